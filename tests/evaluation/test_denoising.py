"""The error of denoised images: known for a Gaussian, and lowered for a network that cannot see the noise."""

from dataclasses import replace

import pytest
import torch
from test_remedies import POWER, SHAPE, SIZE, Blind, Exact, model

from pds.data.statistics import DatasetStatistics
from pds.evaluation.denoising import LEVELS, denoising_errors
from pds.noise import ImageNoise
from pds.processes.forward import VarianceExploding

MEAN = 0.5


def test_the_errors_are_those_of_the_law_and_a_blind_network_has_more_than_its_noise_says():
    z = ImageNoise(5, torch.arange(400), SHAPE).normal().double()
    drawn = MEAN + torch.fft.ifft2(POWER.sqrt() * torch.fft.fft2(z)).real
    images = (255 * drawn).round().to(torch.uint8)
    power = POWER.clone()
    power[0, 0, 0] += SIZE**2 * MEAN**2
    statistics = DatasetStatistics("drawn", (power * SIZE**2).float(), torch.full(SHAPE, MEAN), torch.zeros(SHAPE))

    class Centred(Exact):
        def forward(self, x, sigma):
            return super().forward(x - MEAN, sigma)

    class Unseeing(Blind):
        def forward(self, x, sigma):
            return super().forward(x - MEAN, sigma)

    exact, blind = (denoising_errors(model(score), images, statistics) for score in (Centred(), Unseeing()))
    assert len(exact) == LEVELS and [row.sigma for row in exact] == sorted((row.sigma for row in exact), reverse=True)
    for row in exact:
        expected = (POWER * row.sigma**2 / (POWER + row.sigma**2)).mean().item()
        assert row.network == pytest.approx(row.linear, rel=1e-3) == pytest.approx(expected, rel=0.08)
        assert row.bounded <= row.network * (1 + 1e-6)
    # |z|^2 differs from d by its own spread. Such a network takes this for the image.
    first = blind[0]
    assert first.network > 20 * exact[0].network and first.seen < 0.05 * first.network


def test_the_errors_are_in_the_units_of_the_range_of_the_model():
    class Centred(Exact):
        def forward(self, x, sigma):
            return super().forward(x - MEAN, sigma)

    class Doubled(Centred):
        """The same network for images from -1 to 1."""

        def forward(self, x, sigma):
            return super().forward((x + 1) / 2, sigma / 2) / 2

    images = torch.randint(0, 256, (20, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = DatasetStatistics("any", (POWER * SIZE**2).float(), torch.full(SHAPE, MEAN), torch.zeros(SHAPE))
    plain = replace(model(Centred()), process=VarianceExploding(0.05, 8.0, 20))
    doubled = replace(model(Doubled()), process=VarianceExploding(0.1, 16.0, 20), data_range=(-1, 1))
    for one, two in zip(*(denoising_errors(made, images, statistics) for made in (plain, doubled)), strict=True):
        assert two.sigma == pytest.approx(2 * one.sigma)
        for name in ("network", "bounded", "linear"):  # `seen` takes a part of the mean for noise
            assert getattr(two, name) == pytest.approx(4 * getattr(one, name), rel=1e-3), name
