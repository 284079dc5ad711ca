"""Each remedy changes a score as its paper or its docstring says, leaves an exact score as it is where it should, and
samples."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import natural_power

import pds
from pds.data.statistics import DatasetStatistics
from pds.errors import OptionError, PDSError
from pds.gaussian import StationaryGaussian
from pds.models.scores import NetworkScore
from pds.noise import ImageNoise
from pds.processes.forward import VarianceExploding
from pds.remedies import (
    BandCorrection,
    EpsilonScaling,
    LevelShift,
    SeenNoise,
    TimeShift,
    band_correction,
    epsilon_scaling,
    level_shift,
    seen_noise,
    time_shift,
)
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import PredictorCorrector, ReverseDiffusion

SIZE = 16
SHAPE = (1, SIZE, SIZE)
POWER = 1e-3 * natural_power(SIZE)[None]
MEAN = torch.zeros_like(POWER)
LAW = StationaryGaussian(MEAN, POWER)


class Exact(NetworkScore):
    """The score of a Gaussian; it records the noise levels of its calls."""

    def __init__(self):
        super().__init__()
        self.network, self.told = torch.nn.Identity(), None

    def forward(self, x, sigma):
        self.told = sigma
        spectrum = torch.fft.fft2(x.double()) / (POWER + sigma.double().square()[:, None, None, None])
        return -torch.fft.ifft2(spectrum).real.to(x.dtype)


class Blind(Exact):
    """A score that normalises its state: it predicts the noise of its level for any state."""

    def forward(self, x, sigma):
        norm = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) / x[0].numel() ** 0.5
        return super().forward(sigma[:, None, None, None] * x / norm, sigma)


def state(k, sigma, count=6):
    z = ImageNoise(0, torch.arange(count), SHAPE).normal()
    return k * sigma * z, torch.full((count,), sigma)


def test_epsilon_scaling_divides():
    x, sigma = state(1.0, 2.0)
    assert torch.equal(EpsilonScaling(Exact(), 1.25)(x, sigma), Exact()(x, sigma) / 1.25)


@pytest.mark.parametrize(("k", "expected"), [(1.0, 1.0), (1.05, 1.05), (1.4, 1.2), (0.5, 0.8)])
def test_time_shift_tells_the_level_that_the_state_shows_within_its_window(k, expected):
    inner = Exact()
    x, sigma = state(k, 20.0, count=64)
    shifted = TimeShift(inner, POWER.mean().item(), window=0.2, cutoff=1.0)
    answer = shifted(x, sigma)
    assert (inner.told / sigma).mean().item() == pytest.approx(expected, abs=0.02)
    told = inner.told
    torch.testing.assert_close(answer, Exact()(x, told) * (told / sigma)[:, None, None, None])
    assert torch.equal(shifted(x / 40, sigma / 40), Exact()(x / 40, sigma / 40))  # below the cutoff


def test_no_remedy_tells_a_level_beyond_the_training():
    inner = Exact()
    x, sigma = state(1.4, 20.0)
    for remedy in (TimeShift(inner, 0.0, 0.5, 0.0, (0.1, 21.0)), LevelShift(inner, 1.4, None, (0.1, 21.0))):
        remedy(x, sigma)
        assert inner.told.tolist() == pytest.approx([21.0] * 6)


def test_time_shift_takes_the_colour_of_an_image_for_no_noise():
    """Reds and blues: flat images, so each channel has no variance of its own."""
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 0.9]]).repeat(8, 1)[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    red = replace(model(inner := Exact()), shape=(3, SIZE, SIZE), statistics=pds.statistics(colours))
    x = colours + 0.4 * ImageNoise(0, torch.arange(16), (3, SIZE, SIZE)).normal()
    time_shift(red, window=0.9, cutoff=0.0).score(x, torch.full((16,), 0.4))
    assert inner.told.mean().item() == pytest.approx(0.4, rel=0.02)


def test_band_correction_scales_the_bands():
    x, sigma = state(1.0, 3.0)
    plain, smooth = Exact()(x, sigma), torch.ones(6, *SHAPE)
    scaled = BandCorrection(Exact(), sigma_max=12.0, low=0.4, high=0.2)
    checker = smooth * (1 - 2 * (torch.arange(SIZE) % 2))
    torch.testing.assert_close(scaled(smooth, sigma), (1 - 0.4 / 4) * Exact()(smooth, sigma))
    torch.testing.assert_close(scaled(checker, sigma), (1 - 0.2 * 3 / 4) * Exact()(checker, sigma))
    assert torch.equal(BandCorrection(Exact(), 12.0, 0.0, 0.0)(x, sigma), plain)
    odd = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert BandCorrection(lambda x, sigma: -x, 12.0, 0.4, 0.2)(odd, sigma[:2]).shape == odd.shape


@pytest.mark.parametrize("level", [0.3, 1.0, 3.0])
def test_seen_noise_is_the_same_in_another_unit_of_the_images(level):
    x, sigma = state(1.2, level)
    doubled = SeenNoise(lambda x, sigma: Blind()(x / 2, sigma / 2) / 2, StationaryGaussian(2 * MEAN, 4 * POWER))(
        2 * x, 2 * sigma
    )
    torch.testing.assert_close(doubled, SeenNoise(Blind(), LAW)(x, sigma) / 2)


@pytest.mark.parametrize("k", [0.7, 1.0, 1.5])
def test_a_blind_network_sees_the_noise_and_an_exact_one_is_left_alone(k):
    x, sigma = state(k, 5.0, count=32)
    noise = -5.0 * SeenNoise(Blind(), LAW)(x, sigma)
    assert (noise / x * 5.0).mean().item() == pytest.approx(1, abs=0.01)
    assert (-5.0 * Blind()(x, sigma) / x * 5.0).mean().item() == pytest.approx(1 / k, abs=0.01)
    torch.testing.assert_close(SeenNoise(Exact(), LAW)(x, sigma), Exact()(x, sigma), rtol=0.01, atol=1e-4)
    # Several levels at once give the same as each alone, and nothing changes if all modes have data.
    mixed = torch.tensor([5.0, 0.5, 1e-4])
    together = SeenNoise(Blind(), LAW)(x[:3], mixed)
    alone = [SeenNoise(Blind(), LAW)(x[i : i + 1], mixed[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(alone[2], Blind()(x[2:3], mixed[2:3]))


def test_seen_noise_stands_where_its_network_stands():
    network = torch.nn.Conv2d(1, 1, 1)
    made = replace(model(Exact()), score=Exact().requires_grad_(False))
    made.score.network = network.to("meta")
    assert seen_noise(made).score.power.device.type == "meta"


@pytest.mark.parametrize("level", [0.5, 5.0])
def test_seen_noise_does_not_take_the_mean_image_for_noise(level):
    """An exact network of images that are nearly their mean is left alone; the mean lies in modes without variance."""
    x, sigma = state(1.0, level, count=32)
    off = 0.5 + MEAN
    moved = SeenNoise(lambda x, sigma: Exact()(x - off.float(), sigma), StationaryGaussian(off, POWER))(x + off.float(), sigma)
    torch.testing.assert_close(moved, SeenNoise(Exact(), LAW)(x, sigma), rtol=1e-3, atol=1e-4)


def test_level_shift_tells_a_multiple_of_the_level_and_keeps_the_images_in_the_data_range():
    inner = Exact()
    x, sigma = state(1.0, 0.2)
    answer = LevelShift(inner, 1.5, None)(x, sigma)
    assert torch.equal(inner.told, 1.5 * sigma)
    torch.testing.assert_close(answer, 1.5 * Exact()(x, 1.5 * sigma))
    held = LevelShift(Exact(), 1.5, (-0.01, 0.02))(x, sigma)
    D, free = (x + sigma[:, None, None, None] ** 2 * s for s in (held, answer))
    assert free.min() < -0.01 and free.max() > 0.02
    torch.testing.assert_close(D, free.clamp(-0.01, 0.02), rtol=0, atol=1e-6)
    assert torch.equal(LevelShift(Exact(), 1.0, None)(x, sigma), Exact()(x, sigma))


def model(score):
    made = pds.wrap(
        lambda x, label: x, predicts="score", process=VarianceExploding(0.05, 8.0, 20), shape=SHAPE, data_range=(0, 1)
    )
    statistics = DatasetStatistics("flat", (POWER * SIZE**2).float(), torch.zeros(SHAPE), torch.zeros(SHAPE))
    return replace(made, score=score, statistics=statistics)


REMEDIES = [epsilon_scaling, partial(time_shift, window=0.5, cutoff=0.05), band_correction, level_shift, seen_noise]


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize(
    "sampler", [PreconditionedSDE(6), PredictorCorrector(6, ReverseDiffusion(), None), AnnealedLangevin(6, 0.5, 1)]
)
def test_every_remedy_samples_with_every_kind_of_sampler(sampler, remedy):
    plain, mended = (pds.sample(made, sampler, images=4).images for made in (model(Blind()), remedy(model(Blind()))))
    assert not torch.equal(plain, mended)
    own = pds.sample(remedy(model(Blind())), sampler, images=2).images
    assert (own.int() - mended[:2].int()).abs().max() <= 1


def test_a_shifted_level_stays_among_those_of_the_training():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = torch.nn.Embedding(100, 1)

        def forward(self, x, label):
            return x * self.levels(label.long())[..., None, None]

    chain = pds.DiscreteVariancePreserving(pds.beta_schedule("linear", 1e-4, 0.02, 100))
    made = pds.wrap(Table(), predicts="noise", process=chain, shape=SHAPE, data_range=(-1, 1))
    for scale in (0.5, 1.7):
        pds.sample(pds.level_shift(made, scale=scale), pds.DDIM(5), images=2)


def test_the_strength_of_the_noise_is_weighed_by_the_variance_of_the_data():
    statistics = pds.statistics(torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)) / 4 + 0.5)
    made = replace(model(Blind()), statistics=statistics)
    variance = statistics.gaussian(made.data_range).power.float()
    assert torch.equal(pds.seen_noise(made).score.power, variance)
    assert statistics.power[0, 0, 0] / SHAPE[1] / SHAPE[2] > 100 * variance[0, 0, 0]  # the mean image is no variance


def test_what_is_refused():
    for remedy, odd in (
        (epsilon_scaling, {"scale": 0.0}),
        (time_shift, {"window": 1.5}),
        (band_correction, {"low": float("nan")}),
        (level_shift, {"scale": math.inf}),
    ):
        with pytest.raises(OptionError) as error:
            remedy(model(Exact()), **odd)
        assert error.value.name == next(iter(odd))
    with pytest.raises(PDSError, match="needs the statistics"):
        time_shift(replace(model(Exact()), statistics=None))
    with pytest.raises(PDSError, match="needs images of more than one pixel"):
        time_shift(replace(model(Exact()), shape=(3, 1, 1)))
