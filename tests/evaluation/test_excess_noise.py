"""Noise that a network does not see: known responses, and the recursion against real sampling."""

import math
import re
from dataclasses import replace

import pytest
import torch
from command_line import command
from conftest import GaussianTarget
from PIL import Image
from test_configurations import composed

import pds
from pds.data.dataset import Dataset
from pds.data.images import ArrayImages, as_uint8
from pds.errors import PDSError
from pds.evaluation.denoising import denoising_errors
from pds.evaluation.excess_noise import (
    FACTORS,
    NoiseResponse,
    excess_noise,
    highest_frequencies,
    least_gain,
    noise_in,
    noise_response,
)
from pds.lab.config import build
from pds.lab.diagnosis import show_excess_noise
from pds.models.ncsnpp import ncsnpp
from pds.moments import measured_moments
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import FourierPreconditioner
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.predictor_corrector import Ancestral, EulerMaruyama, PredictorCorrector, ReverseDiffusion

SHAPE = (1, 32, 32)
VE = VarianceExploding(0.01, 16.0, 1000)
NOISE_ALONE = GaussianTarget(torch.zeros(32, 32))


def half_blind(x, sigma):
    """Pure noise of k sigma, of which (1 + k) / 2 sigma is predicted."""
    k = x.square().mean((1, 2, 3), keepdim=True).sqrt() / sigma[:, None, None, None]
    return -(1 + k) / (2 * k) * x / sigma[:, None, None, None] ** 2


def blind(x, sigma):
    """The same direction, always with the strength of the level."""
    return -x / x.square().mean((1, 2, 3), keepdim=True).sqrt() / sigma[:, None, None, None]


@pytest.mark.parametrize(("score", "seen"), [(NOISE_ALONE, 1.0), (half_blind, 0.5), (blind, 0.0)])
def test_the_response_of_known_scores(score, seen):
    response = noise_response(score, torch.zeros(8, *SHAPE), [0.1, 3.0])
    for row in response.values:
        assert row == pytest.approx([1 + seen * (k - 1) for k in FACTORS], rel=0.02)
    assert response(0.5, 8.0) == pytest.approx(1 + 7 * seen, rel=0.02)


def test_the_response_is_told_in_units_of_that_at_its_own_level():
    response = NoiseResponse((0.1, 10.0), (1.0, 2.0), ((0.5, 0.75), (1.0, 2.0)))
    assert [response(0.1, k) for k in (1.0, 2.0, 3.0)] == pytest.approx([1.0, 1.5, 2.0])
    assert response(1.0, 2.0) == pytest.approx(1.75)  # half-way in log sigma


class UnitNoise:
    """Draws with a standard deviation of 1 to the bit: an excess of the start would be amplified as well."""

    def __init__(self):
        self.draws = ImageNoise(0, torch.arange(32), SHAPE)

    def normal(self):
        z = self.draws.normal()
        return z / z.square().mean().sqrt()


@pytest.mark.parametrize(("process", "T"), [(VE, 12), (VariancePreserving(), 25)])
@pytest.mark.parametrize(
    ("score", "predictor", "gain"),
    [
        (NOISE_ALONE, ReverseDiffusion(), 1.7),
        (half_blind, EulerMaruyama(), 1.0),
        (half_blind, Ancestral(), 1.7),
        (blind, ReverseDiffusion(), 1.0),
        (blind, ReverseDiffusion(), 1.7),
    ],
)
def test_the_recursion_is_what_sampling_does(process, T, score, predictor, gain):
    sampler = PredictorCorrector(T, predictor, None, denoise=False)
    levels, noise = sampler.levels(process), UnitNoise()
    response = noise_response(score, torch.zeros(16, *SHAPE), [1e-3, 1e3])
    P = FourierPreconditioner(SHAPE, torch.full(SHAPE, gain**-0.5))
    x, everywhere = sampler.prior(noise, process, P), torch.ones(32, 32, dtype=torch.bool)
    sampled = [noise_in(x, everywhere)]
    sampler(score, x, levels, P, noise, lambda i, sigma, x: sampled.append(noise_in(x, everywhere)))
    measured = [std / level.std for std, level in zip(sampled, levels, strict=False)]
    assert measured == pytest.approx(list(excess_noise(levels, response, gain)), rel=0.05)


def test_without_a_filter_what_is_not_seen_grows_and_the_derived_gain_bounds_it():
    response = NoiseResponse((0.01, 16.0), (1.0, 2.0), ((1.0, 1.0), (1.0, 1.0)))
    exact = NoiseResponse((0.01, 16.0), (1.0, 2.0), ((1.0, 2.0), (1.0, 2.0)))
    for T in (50, 100):
        levels = PredictorCorrector(T, ReverseDiffusion(), None).levels(VE)
        assert list(excess_noise(levels, response))[-1] > 10 > 1.3 > list(excess_noise(levels, exact))[-1]
        # From sigma_i^2 / sigma_{i+1}^2 on it stays bounded for ever; a run has an end and may need a little less.
        threshold = (VE.sigma_max / VE.sigma_min) ** (2 / (T - 1))
        assert 1 < least_gain(levels, response) <= 1.01 * threshold
        assert least_gain(levels, response) > threshold**0.6
        assert least_gain(levels, exact) == 1
    few = PredictorCorrector(8, ReverseDiffusion(), None).levels(VE)
    assert least_gain(few, response) == math.inf


def test_noise_that_an_exact_score_leaves_as_well_needs_no_filter():
    # The last steps of sub-VP leave more than twice the noise of their level.
    levels = PredictorCorrector(100, ReverseDiffusion(), None).levels(SubVariancePreserving())
    exact = NoiseResponse((0.01, 100.0), (1.0, 2.0), ((1.0, 2.0), (1.0, 2.0)))
    unseen = NoiseResponse((0.01, 100.0), (1.0, 2.0), ((1.0, 1.0), (1.0, 1.0)))
    assert list(excess_noise(levels, exact))[-1] > 5
    assert (least_gain(levels, exact), least_gain(levels, unseen)) == (1, math.inf)


@pytest.mark.parametrize("size", [(1, 32), (32, 3)])
def test_images_without_high_frequencies_are_refused(size):
    with pytest.raises(PDSError, match=rf"images of {size[0]} x {size[1]} have no such modes"):
        highest_frequencies(size)


def test_the_highest_frequencies_of_white_noise_and_of_a_wave():
    modes = highest_frequencies((32, 32))
    assert modes.sum() == 81 and not modes[0].any() and modes[16, 16]  # 12 to 20 of 32, both ways
    white = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert noise_in(3 * white, modes) == pytest.approx(3, rel=0.03)
    wave = torch.cos(2 * math.pi * torch.arange(32) * 5 / 32).expand(1, *SHAPE)
    assert noise_in(wave, modes) < 1e-5


def test_the_score_of_a_velocity_is_not_diagnosed():
    shape = {"width": 8, "multipliers": [1], "blocks": 1, "attention": []}
    made = ncsnpp((1, 8, 8), CriticallyDamped(), **shape, scale_by_sigma=False, centred=True)
    with pytest.raises(PDSError, match=r"a diagnosis is for scores of images, and .* gives the score of a velocity"):
        pds.diagnose(made, torch.rand(4, 1, 8, 8))


def test_a_network_that_always_saw_its_labels_is_not_measured_without_them():
    made = ncsnpp((1, 8, 8), VE, width=8, multipliers=[1, 2], blocks=1, attention=[], classes=3)
    made, images = replace(made, unconditional=False), torch.rand(4, 1, 8, 8)
    source = ArrayImages("drawn", "all", as_uint8(images).numpy())
    for measured in (
        lambda: pds.diagnose(made, images),
        lambda: denoising_errors(made, as_uint8(images), pds.statistics(images)),
        lambda: measured_moments(made, Dataset("drawn", (1, 8, 8), lambda: source), 4, torch.device("cpu"), 4),
    ):
        with pytest.raises(PDSError, match=r"measured without a class, and .* has no unconditional score"):
            measured()


def test_the_command(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        pixels = torch.randint(0, 256, (28, 28), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    data = ["dataset=folder", "dataset.shape=[1,28,28]", f"dataset.source.root={tmp_path}", "images=4"]
    here = [*data, "dataset.statistics_file=asset:mnist_statistics.npz", "iterations=[2,6,12]", "model.process.sigma_max=16"]
    here += ["filter.alpha=auto", "filter.reference.alpha=5", "filter.reference.iterations=6"]
    here.append(f"outputs={tmp_path / 'outputs'}")
    result = command("tools/excess_noise.py", *here)
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in result.stdout.splitlines() if row.startswith("| ")]
    lines = [row for row in rows if row[0] in ("2", "6", "12")]
    assert [row[0] for row in lines] == ["2", "6", "12"]
    for row in lines:
        predicted, sampled, with_filter, sampled_with_filter = map(float, row[2:6])
        assert predicted == pytest.approx(sampled, rel=0.2) and with_filter == pytest.approx(sampled_with_filter, rel=0.3)
    picture = (tmp_path / "outputs" / "excess_noise.svg").read_text()
    assert all(label in picture for label in ("T = 6, vanilla", "T = 12, PDS α=10"))
    assert "PDS α=1.66667 / PDS α=5 / PDS α=10, sampled" in result.stdout


@pytest.mark.parametrize("model", ["own", "ncsn_small", "ncsnpp"])
def test_the_command_follows_a_predictor_alone_for_every_model(model):
    process = ["model/process=ve"] if model == "own" else []
    sampler = build(composed(f"model={model}", *process, config="excess_noise").sampler)
    assert isinstance(sampler, PredictorCorrector) and sampler.corrector is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("sampler/corrector=langevin", "set sampler=predictor_corrector sampler/corrector=none"),
        ("model.checkpoint=null", "random weights, which do not see noise"),
        ("model.shape=[1,16,16] model.checkpoint=null", "shape [1, 28, 28], and the model of [1, 16, 16]: give the images"),
        ("filter.pixels=released", "set filter.pixels=none"),
        ("sampler/predictor=ancestral sampler.precondition=published", "does not filter ancestral steps: set filter=none"),
        ("iterations=[6,1]", "iterations must be a list of 1 to 100 whole numbers from 2 to 1000000, got [6, 1]"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_is_measured(monkeypatch, wrong, says):
    monkeypatch.setattr("pds.lab.diagnosis.response_of", lambda *_: pytest.fail("measured"))
    with pytest.raises(PDSError, match=re.escape(says)):
        show_excess_noise(composed(*wrong.split(), config="excess_noise"))
