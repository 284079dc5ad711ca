"""Analytic-DDIM by the paper's formulas on Gaussian targets, and the noise moments it needs: measured, kept, found, refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import GaussianTarget, natural_power
from samplers.exact import SHAPE, SIZE, exact_moments

from pds.data.dataset import Dataset
from pds.data.images import ArrayImages
from pds.errors import MissingError, PDSError
from pds.files import ASSETS, sha256
from pds.models.checkpoints import Checkpoint
from pds.models.scores import Model
from pds.moments import (
    LEVELS,
    measure,
    measured_moments,
    moments_beside,
    moments_file,
    noise_moments,
    read_moments,
    write_moments,
)
from pds.noise import ImageNoise
from pds.processes.forward import VarianceExploding, VariancePreserving
from pds.processes.schedules import LearningRates, ProcessTimes
from pds.remedies import EpsilonScaling
from pds.samplers.accelerated import DDIM
from pds.samplers.analytic import AnalyticDDIM
from pds.score import CountedScore, NoiseMoments

MEAN, POWER = 0.5, natural_power(SIZE)
VP, VE = VariancePreserving(0.1, 6.0, 100), VarianceExploding(0.05, 4.0, 100)
CPU = torch.device("cpu")


def gamma(power, sigma):
    """E‖e‖² / d of a Gaussian: e = -sigma S has the variance sigma² / (p + sigma²) in each mode."""
    return (sigma**2 / (power + sigma**2)).mean().item()


def knowing(sampler, process, power, data_range=(-1e3, 1e3)):
    """The sampler with the exact moments of a Gaussian at its own levels."""
    sigmas = tuple(sorted(level.sigma for level in sampler.levels(process)))
    values = tuple(gamma(power, sigma) for sigma in sigmas)
    return dataclasses.replace(sampler, moments=NoiseMoments(sigmas, values, data_range))


@pytest.mark.parametrize(("T", "schedule"), [(2, ProcessTimes()), (20, ProcessTimes()), (20, LearningRates())])
@pytest.mark.parametrize("c", [1.0, 0.3])
def test_white_noise_is_drawn_exactly_at_any_T(c, T, schedule):
    power = torch.full((SIZE, SIZE), c, dtype=torch.float64)
    sampler = knowing(AnalyticDDIM(T, schedule, denoise=False), VP, power)
    levels = sampler.levels(VP)
    kept = math.prod((c + level.sigma * level.below) / (c + level.sigma**2) for level in levels) ** 2
    mean, variance = exact_moments(sampler, VP, power, MEAN, draws=T + 1)
    # The start has the variance 1 + sigma_T² instead of c + sigma_T². The rest of this difference is the only error.
    exact = c + levels[-1].below ** 2
    torch.testing.assert_close(variance, exact + (1 - c) * kept * torch.ones_like(power), rtol=1e-9, atol=0)
    assert mean == pytest.approx(MEAN * (1 - kept**0.5), rel=1e-9)
    without = exact_moments(DDIM(T, schedule, denoise=False), VP, power, MEAN, draws=1)[1].mean().item()
    assert without == pytest.approx((1 + levels[0].sigma ** 2) * kept, rel=1e-9)
    assert without < 0.95 * variance.mean()


def by_the_paper(levels, process_power, denoise, shade):
    """(mean, variance of every mode) of the sampler in the paper's variables: Y, betabar, alpha, Theorem 1 with lambda = 0."""
    V, deviation = torch.ones(SIZE, SIZE, dtype=torch.float64), -MEAN / (1 + levels[0].sigma ** 2) ** 0.5
    for n, (sigma, below, _) in enumerate(levels):
        abar, abar_below = 1 / (1 + sigma**2), 1 / (1 + below**2)
        betabar, betabar_below, alpha = 1 - abar, 1 - abar_below, abar / abar_below
        Q = abar * process_power + betabar
        optimal = (math.sqrt(betabar / alpha) - math.sqrt(betabar_below)) ** 2 * (1 - betabar * (1 / Q).mean())
        if denoise and n == len(levels) - 2:
            optimal = min(optimal, abar_below * (shade * math.sqrt(math.pi / 2)) ** 2)
        if denoise and n == len(levels) - 1:
            optimal = 0
        keep = (1 - betabar / Q) / alpha**0.5 + math.sqrt(betabar_below * betabar) / Q
        V, deviation = keep**2 * V + optimal, keep[0, 0].item() * deviation
    return MEAN + deviation / abar_below**0.5, V / abar_below


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("process", [VP, VE], ids=lambda process: process.title)
def test_it_is_the_papers_map_of_every_frequency(process, denoise):
    sampler = knowing(AnalyticDDIM(6, ProcessTimes(), denoise), process, POWER, data_range=(-1.0, 1.0))
    levels = sampler.levels(process)
    expected_mean, expected = by_the_paper(levels, POWER, denoise, shade=2 / 255)
    mean, variance = exact_moments(sampler, process, POWER, MEAN, draws=7 - denoise)
    torch.testing.assert_close(variance, expected, rtol=1e-9, atol=0)
    assert mean == pytest.approx(expected_mean, rel=1e-9)


def test_the_clip_of_the_last_noise_matters_in_the_test_above():
    sampler = knowing(AnalyticDDIM(6, ProcessTimes()), VP, POWER, data_range=(-1.0, 1.0))
    before_last = sampler.levels(VP)[-2]
    free = (before_last.sigma - before_last.below) * (1 - sampler.moments(before_last.sigma)) ** 0.5
    assert free > 3 * 2 / 255


def test_between_its_levels_gamma_is_linear_in_the_logarithm_of_sigma():
    moments = NoiseMoments((0.1, 1.0, 10.0), (0.2, 0.4, 1.0))
    assert [moments(sigma) for sigma in (0.1, 1.0, 10.0)] == pytest.approx([0.2, 0.4, 1.0])
    assert moments(10**0.25) == pytest.approx(0.55)
    assert (moments(1e-3), moments(1e3)) == (0.2, 1.0)


def gaussian_images(count):
    z = ImageNoise(7, torch.arange(count), SHAPE).normal()
    return (MEAN + torch.fft.ifft2(POWER.sqrt() * torch.fft.fft2(z.double())).real).float()


def test_the_estimate_agrees_with_a_gaussian_within_its_error_in_batches_of_any_size():
    images, sigmas, score = gaussian_images(300), (0.05, 0.5, 5.0, 50.0), CountedScore(GaussianTarget(POWER, MEAN))
    indices = np.random.default_rng(0).permutation(300)
    values = measure(score, lambda chosen: images[chosen], indices, sigmas, CPU, batch_size=300)
    assert (score.nfe, score.images) == (4, 1200)
    for sigma, value in zip(sigmas, values, strict=True):
        # e² - z² of a mode has the variance 2 (1 - B²), e² alone 2 B²: at sigma = 50 that is 500 times as much.
        B = sigma**2 / (POWER + sigma**2)
        error = (2 * (1 - B**2).mean().item() / (300 * SIZE**2)) ** 0.5
        assert value == pytest.approx(gamma(POWER, sigma), abs=4 * error)
    again = measure(score, lambda chosen: images[chosen], indices, sigmas, CPU, batch_size=77)
    np.testing.assert_allclose(again, values, rtol=1e-7)


class Scaled(torch.nn.Module):
    """The score of a network that predicts `factor` times the noise per unit of variance; it counts its images."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.images = factor, 0

    def forward(self, x, sigma):
        self.images += len(x)
        return -self.factor * x / (0.1 + sigma.to(x.dtype).square())[:, None, None, None]


def dataset(seed=0, count=6, name="noise"):
    pixels = np.random.default_rng(seed).integers(128, 256, (count, *SHAPE), np.uint8)
    return Dataset(name, SHAPE, lambda: ArrayImages(name, "train", pixels))


def absent():
    raise MissingError("noise train not found: put it there")


def model(tmp_path, weights="a" * 64, process=VP, score=None):
    checkpoint = weights and Checkpoint("safetensors", True, tmp_path / "net.safetensors", weights)
    return Model("net", score or Scaled(), process, SHAPE, checkpoint, (-1.0, 1.0))


def test_moments_stay_within_the_bounds_of_theorem_2(tmp_path):
    nothing = measured_moments(model(tmp_path, score=Scaled(0.0), process=VE), dataset(), 6, CPU, 64)
    bound = [1 - min(1, 1 / sigma**2) for sigma in nothing.sigmas]
    assert nothing.values == pytest.approx(bound, abs=0.15)  # below sigma = 1 it is the estimate itself
    assert [value for value, sigma in zip(nothing.values, nothing.sigmas, strict=True) if sigma > 1.1] == pytest.approx(
        [value for value, sigma in zip(bound, nothing.sigmas, strict=True) if sigma > 1.1]
    )
    thrice = measured_moments(model(tmp_path, score=Scaled(3.0), process=VE), dataset(), 6, CPU, 64)
    assert thrice.values[0] == pytest.approx(9 * 0.05**2 * (1 / 3 + 0.05**2) / 0.1025**2, abs=0.15)  # E[x²] = 1/3 in [-1, 1]
    assert max(thrice.values) == 1
    assert (nothing.sigmas[0], nothing.sigmas[-1]) == pytest.approx((0.05, 4.0))
    with pytest.raises(PDSError, match="the noise that net predicts is not finite"):
        measured_moments(model(tmp_path, score=Scaled(math.nan)), dataset(), 6, CPU, 64)


def test_they_are_measured_once_and_anew_for_anything_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    net = model(tmp_path)
    first = noise_moments(net, dataset(), 5, CPU)
    assert net.score.images == 5 * LEVELS
    assert noise_moments(net, dataset(), 5, CPU, batch_size=2) == first
    assert net.score.images == 5 * LEVELS
    assert first.provenance["weights"] == "a" * 64
    assert (first.provenance["dataset"], first.provenance["split"], first.provenance["images"]) == ("noise", "train", 5)
    others = [
        (model(tmp_path, weights="b" * 64), dataset(), 5),
        (model(tmp_path, process=VE), dataset(), 5),
        (model(tmp_path), dataset(seed=1), 5),
        (model(tmp_path), dataset(name="other"), 5),
        (model(tmp_path), dataset(), 4),
    ]
    for number, (other, images, count) in enumerate(others, start=2):
        assert noise_moments(other, images, count, CPU).provenance != first.provenance
        assert other.score.images == count * LEVELS
        assert len(list((tmp_path / "cache").rglob("*.json"))) == number
    # The weights of the last iteration in the same file are another network, and a remedy is none.
    raw = dataclasses.replace(net, score=Scaled(), checkpoint=dataclasses.replace(net.checkpoint, ema=False))
    assert noise_moments(raw, dataset(), 5, CPU).provenance != first.provenance
    assert raw.score.images == 5 * LEVELS
    remedied = dataclasses.replace(net, checkpoint=None, score=EpsilonScaling(net.score, 2.0))
    assert noise_moments(remedied, dataset(), 5, CPU).values == first.values
    write_moments(moments_file(net.checkpoint), first)
    assert moments_beside(net.checkpoint) == first and moments_beside(raw.checkpoint) is None
    moments_file(net.checkpoint).unlink()
    random = model(tmp_path, weights=None)
    for calls in (1, 2):
        noise_moments(random, dataset(), 5, CPU)
        assert random.score.images == calls * 5 * LEVELS
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 7
    with pytest.raises(PDSError, match=r"training_images must be at most 6, the images of noise train"):
        noise_moments(net, dataset(), 7, CPU)


def test_those_beside_the_weights_need_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    net, gone = model(tmp_path), Dataset("noise", SHAPE, absent)
    path = moments_file(net.checkpoint)
    assert path == tmp_path / "net_moments.json"
    write_moments(path, measured_moments(net, dataset(), 5, CPU, 64))
    assert noise_moments(net, gone, 5, CPU) == read_moments(path)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(MissingError, match="noise train not found"):
        noise_moments(net, gone, 4, CPU)
    with pytest.raises(MissingError):
        noise_moments(net, dataclasses.replace(gone, name="other"), 5, CPU)
    with pytest.raises(PDSError, match=r"was measured with other weights than net\.safetensors: delete it, or"):
        noise_moments(model(tmp_path, weights="b" * 64), gone, 5, CPU)


BROKEN = {
    "cut": lambda text: text[:-20],
    "no json": lambda text: "moments",
    "a list": lambda text: "[]",
    "without values": lambda text: text.replace('"values"', '"value"'),
    "above 1": lambda text: text.replace('"values": [\n    0.2', '"values": [\n    1.2'),
    "descending": lambda text: text.replace('"sigmas": [\n    0.1', '"sigmas": [\n    9.1'),
    "a number less": lambda text: text.replace('"values": [\n    0.2,', '"values": ['),
    "not a number": lambda text: text.replace("0.2", "NaN"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_one_sentence(how, tmp_path):
    path, moments = tmp_path / "moments.json", NoiseMoments((0.1, 1.0), (0.2, 0.9), (-1.0, 1.0), {"weights": "a"})
    write_moments(path, moments)
    assert read_moments(path) == moments
    text = path.read_text()
    path.write_text(BROKEN[how](text))
    assert path.read_text() != text
    with pytest.raises(
        PDSError, match=r"moments\.json is not a file of noise moments of this project \(.+\): delete it"
    ) as error:
        read_moments(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*_moments.json")), ids=lambda path: path.stem)
def test_shipped_moments_are_those_of_the_shipped_weights(path):
    moments = read_moments(path)
    assert moments.provenance["weights"] == sha256(path.with_name(path.name.replace("_moments.json", ".safetensors")))
    assert moments.provenance["images"] == AnalyticDDIM.training_images
    assert moments(moments.sigmas[0]) < 0.95 < 0.999 < moments(moments.sigmas[-1])


def test_without_moments_it_is_refused():
    with pytest.raises(PDSError, match="needs the moments of the model's noise"):
        exact_moments(AnalyticDDIM(5, ProcessTimes()), VP, POWER, MEAN, draws=1)


def test_it_asks_for_its_moments_once_and_says_where_they_are_from():
    asked = []

    def measure(count):
        asked.append(count)
        return NoiseMoments((0.1, 1.0), (0.2, 0.9), provenance={"weights": "a"})

    sampler = AnalyticDDIM(5, ProcessTimes(), training_images=77).with_moments(measure)
    assert (asked, sampler.provenance) == ([77], {"moments": {"weights": "a"}})
