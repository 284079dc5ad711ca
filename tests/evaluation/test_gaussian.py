"""The exact law of samplers on a Gaussian of the data."""

import math
from types import SimpleNamespace

import pytest
import torch
from command_line import command
from conftest import natural_power
from test_configurations import composed

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.evaluation.gaussian import sampled_law
from pds.gaussian import StationaryGaussian
from pds.lab.diagnosis import show_gaussian
from pds.preconditioning.filters import StatisticsFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.processes.discrete import DiscreteVariancePreserving, beta_schedule
from pds.processes.forward import VarianceExploding, VariancePreserving
from pds.samplers.adaptive import AdaptiveSDE
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.predictor_corrector import Ancestral, EulerMaruyama, Langevin, PredictorCorrector, ReverseDiffusion

SIZE, T = 8, 12
SHAPE = (2, SIZE, SIZE)
VE = VarianceExploding(0.05, 4.0, 100)
TARGET = StationaryGaussian(
    torch.full(SHAPE, 0.3, dtype=torch.float64), torch.stack([natural_power(SIZE), 0.1 * natural_power(SIZE)])
)


def mnist_filter(alpha):
    statistics = DatasetStatistics.load("asset:mnist_statistics.npz")
    return FourierPreconditioner(statistics.shape, StatisticsFilter(alpha).frequency(statistics.shape, lambda: statistics))


def test_reverse_diffusion_has_the_law_of_its_recursion():
    power = TARGET.power.sum(0)
    R = ((power / power.max() + 1) / 2).float().expand(SHAPE)
    law = sampled_law(PredictorCorrector(T, ReverseDiffusion(), None), TARGET, VE, FourierPreconditioner(SHAPE, R))
    m2, sigmas = R.double() ** -2, [0.05 * 80 ** (i / (T - 1)) for i in reversed(range(T))] + [0.0]
    mean, v = torch.zeros(SHAPE, dtype=torch.float64), m2 * 16.0
    seen = VE.sigma(torch.linspace(1, 1e-5 * 100 / T, T, dtype=torch.float64))  # by the network, as published
    for sigma, below, at in zip(sigmas, sigmas[1:], seen, strict=False):
        factor = 1 - m2 * (sigma**2 - below**2) / (TARGET.power + at**2)
        mean, v = 0.3 + factor[..., :1, :1] * (mean - 0.3), factor**2 * v + (m2 * (sigma**2 - below**2) if below else 0)
    torch.testing.assert_close(law.power, v, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(law.mean, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 1), (1, 6), (1, 1)])
def test_images_of_one_column_have_a_law(size):
    target = StationaryGaussian(torch.zeros(1, *size).double(), torch.full((1, *size), 0.25).double())
    law = sampled_law(PredictorCorrector(500, ReverseDiffusion(), None), target, VarianceExploding(0.01, 5.0, 500), Identity())
    torch.testing.assert_close(law.power, target.power, rtol=0.05, atol=0)


def test_a_uniform_start_counts_by_its_moments():
    law = sampled_law(AnnealedLangevin(2, 1e-9, denoise=False), TARGET, VE, Identity())
    torch.testing.assert_close(law.power, torch.full_like(law.power, 1 / 12), rtol=1e-3, atol=0)
    torch.testing.assert_close(law.mean, torch.full_like(law.mean, 0.5), rtol=1e-3, atol=0)


def test_the_gaussian_of_a_data_set_has_its_mean_and_its_spectrum_in_the_range_of_the_model():
    statistics = DatasetStatistics.load("asset:mnist_statistics.npz")
    unit, centred = statistics.gaussian(), statistics.gaussian((-1.0, 1.0))
    variance = (statistics.second_moment - statistics.mean.square()).double().sum()
    torch.testing.assert_close(unit.power.sum(), variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(centred.power, 4 * unit.power)
    torch.testing.assert_close(centred.mean, 2 * unit.mean - 1)
    doubled = StationaryGaussian(unit.mean + 0.1, 4 * unit.power)
    assert unit.distance(doubled) == pytest.approx(unit.power.sum().item() + 784 * 0.01)


DDPM = DiscreteVariancePreserving(beta_schedule("linear", 1e-4, 0.02, 1000))


@pytest.mark.parametrize(
    ("process", "predictor", "iterations", "alpha", "helps"),
    [
        (VarianceExploding(0.01, 16.0, 1000), ReverseDiffusion(), 25, 3, True),
        (VariancePreserving(), ReverseDiffusion(), 25, 3, True),
        (VariancePreserving(), EulerMaruyama(), 25, 40, False),
        (DDPM, Ancestral(), 50, 20, True),
        (DDPM, ReverseDiffusion(), 25, 5, False),
    ],
)
def test_what_a_filter_does_where_the_score_is_exact(process, predictor, iterations, alpha, helps):
    # It cancels the noise that a step leaves too much of; Euler-Maruyama on VP leaves too little.
    data_range = (0.0, 1.0) if process.title == "VE" else (-1.0, 1.0)
    target = DatasetStatistics.load("asset:mnist_statistics.npz").gaussian(data_range)
    sampler = PredictorCorrector(iterations, predictor, None)
    vanilla, filtered = (sampled_law(sampler, target, process, P).distance(target) for P in (Identity(), mnist_filter(alpha)))
    assert (filtered < 0.6 * vanilla) if helps else (filtered > vanilla)


@pytest.mark.parametrize(
    ("sampler", "space"),
    [
        (PredictorCorrector(5, ReverseDiffusion(), Langevin(0.2)), None),
        (AdaptiveSDE(200), None),
        (PredictorCorrector(5, ReverseDiffusion(), None), torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) + 0.5),
    ],
)
def test_what_is_not_linear_mode_by_mode_is_refused(sampler, space):
    P = Identity() if space is None else FourierPreconditioner(SHAPE, space=space)
    with pytest.raises(PDSError, match=r"not known exactly here: its steps depend on the images, or a space filter"):
        sampled_law(sampler, TARGET, VE, P)


def test_the_command():
    result = command("tools/gaussian.py", "iterations=[25,50]", "over=[2,3]")
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in result.stdout.splitlines() if row.startswith("| ")]
    assert rows[0] == ["T", "vanilla", "alpha=2", "alpha=3", "lowest"]
    assert [row[0] for row in rows[2:]] == ["25", "50"] and rows[2][-1] == "3"
    assert float(rows[2][3]) < float(rows[2][1])
    for wrong in ("filter.beta", "filtr.alpha", "model.process.sigma_max", "sampler.iterations"):
        refused = command("tools/gaussian.py", f"vary={wrong}")
        assert refused.returncode == 1 and f"error: vary={wrong} is no key of filter, solenoid, sampler" in refused.stderr


@pytest.mark.parametrize(("distances", "lowest"), [((math.nan, 2.0, 1.0), "3"), ((math.nan, math.inf, math.nan), "–")])
def test_what_diverges_is_not_the_lowest(monkeypatch, capsys, distances, lowest):
    law = iter(distances)
    monkeypatch.setattr("pds.lab.diagnosis.sampled_law", lambda *_: SimpleNamespace(distance=lambda _: next(law)))
    show_gaussian(composed("iterations=[5]", "over=[2,3]", config="gaussian"))
    assert capsys.readouterr().out.splitlines()[-1].split("|")[-2].strip() == lowest
