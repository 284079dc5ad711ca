"""Annealed Langevin dynamics against the published trajectories, those of MILD too, and the exact Gaussian recursion."""

import pytest
import torch
from conftest import GaussianTarget, Golden, RecordedNoise, golden_score, natural_power
from samplers.exact import Impulses, modes_of

from pds.errors import PDSError
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.preconditioning.solenoids import FourierSolenoid, ShiftSolenoid
from pds.processes.forward import VarianceExploding
from pds.processes.ladders import geometric_ladder
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.momentum_langevin import MomentumLangevin
from pds.score import CountedScore

CASES = [
    "ncsn_ald_analytic",
    "ncsn_ald_network",
    "ncsnv2_ald_denoise_analytic",
    "ncsnv2_ald_denoise_network",
    "ncsnv2_ald_nodenoise_analytic",
    "mild_gamma0.1_analytic",
    "mild_gamma0.38_analytic",
    "mild_gamma0.38_network",
]


@pytest.mark.parametrize("case", CASES)
def test_published_trajectories(case):
    golden = Golden(f"sampler/{case}")
    hyper = golden.json("meta")["hyper"]
    sigmas = geometric_ladder(hyper["sigma_begin"], hyper["sigma_end"], hyper["num_classes"])
    momentum = {"gamma": hyper["gamma"]} if case.startswith("mild") else {}
    sampler = (MomentumLangevin if momentum else AnnealedLangevin)(
        iterations=hyper["num_classes"] * hyper["n_steps_each"],
        step_size=hyper["step_lr"] / hyper["sigma_end"] ** 2,
        denoise=hyper.get("denoise", False),
        **momentum,
    )
    score = CountedScore(golden_score(golden, sigmas))
    noise = RecordedNoise(list(golden.under("noise/").values()))
    process = VarianceExploding(hyper["sigma_end"], hyper["sigma_begin"], hyper["num_classes"])
    levels = sampler.levels(process)
    x = sampler.prior(noise, process, Identity())
    assert torch.equal(x, golden["x_init"])
    steps = []
    with torch.no_grad():
        final = sampler(score, x, levels, Identity(), noise, lambda i, sigma, x: steps.append(x))
    tolerance = {"rtol": 0, "atol": 1e-3 * golden["steps/x"].abs().max().item()}
    torch.testing.assert_close(torch.stack(steps), golden["steps/x"], **tolerance)
    torch.testing.assert_close(final, golden["final"], rtol=0, atol=1e-3 * golden["final"].abs().max().item())
    assert score.nfe == len(golden["net/labels"])


SIZE = 8
R = ParametricFilter(0.2, 0.8).frequency((1, SIZE, SIZE))
PRECONDITIONERS = {
    "vanilla": Identity(),
    "P": FourierPreconditioner((1, SIZE, SIZE), R),
    "S": FourierPreconditioner((1, SIZE, SIZE), solenoid=ShiftSolenoid("S3", 1.0).spectrum((SIZE, SIZE)), omega=0.3),
    "P and S": FourierPreconditioner(
        (1, SIZE, SIZE), R, solenoid=FourierSolenoid("spectral", 1.0).spectrum((SIZE, SIZE)), omega=0.5
    ),
}
TURNS = {
    "S": 0.3 * ShiftSolenoid("S3", 1.0).spectrum((SIZE, SIZE)),
    "P and S": 0.5 * FourierSolenoid("spectral", 1.0).spectrum((SIZE, SIZE)),
}


def gains(name):
    """(H, W) m^2 and omega h of a preconditioner, from its filters."""
    m2 = R[0].double() ** -2 if name.startswith("P") else torch.ones(SIZE, SIZE, dtype=torch.float64)
    return m2, TURNS.get(name, torch.zeros(SIZE, SIZE, dtype=torch.float64))


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_variance_of_every_frequency_follows_the_exact_recursion(name):
    power, levels, noise = natural_power(SIZE), geometric_ladder(1, 0.1, 4).repeat_interleave(2), Impulses(9)
    sampler = AnnealedLangevin(iterations=8, step_size=0.6, denoise=False)
    final = sampler(GaussianTarget(power), noise.normal(), levels, PRECONDITIONERS[name], noise)
    m2, turn = gains(name)
    v = torch.ones(SIZE, SIZE, dtype=torch.float64)
    for sigma in levels.tolist():
        a, q = 0.6 * sigma**2, power + sigma**2
        v = ((1 - a * m2 / q) ** 2 + (a * turn / q) ** 2) * v + 2 * a * m2
    torch.testing.assert_close(modes_of(final), v, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_small_steps_converge_to_the_target(name):
    # The theorems of the papers: P and S change the path, not the stationary law. Impulses give the law without sampling error.
    power, sigma, T, noise = natural_power(SIZE) / 4, 0.5, 200, Impulses(201)
    sampler, levels = AnnealedLangevin(iterations=T, step_size=0.1, denoise=False), torch.full((T,), sigma)
    final = sampler(GaussianTarget(power), 3 * noise.normal(), levels, PRECONDITIONERS[name], noise)
    ratio = modes_of(final) / (power + sigma**2)
    # A step of size a leaves an excess of a |m^2 + i omega s|^2 / (2 q m^2), 8% at most here.
    assert ratio.min() > 0.999 and ratio.max() < 1.1


def test_a_biased_rule_would_be_seen():
    # P on the drift alone, without P on the noise, has another law: the test above must see the difference.
    class Wrong(FourierPreconditioner):
        def step(self, x, f, g, z, score_part=None):
            return x + self.drift(f) + g * z

    power, T, noise = natural_power(SIZE) / 4, 200, Impulses(201)
    sampler = AnnealedLangevin(iterations=T, step_size=0.1, denoise=False)
    wrong = Wrong((1, SIZE, SIZE), ParametricFilter(0.3, 0.8).frequency((1, SIZE, SIZE)))
    final = sampler(GaussianTarget(power), 3 * noise.normal(), torch.full((T,), 0.5), wrong, noise)
    assert (modes_of(final) / (power + 0.25) - 1).abs().max() > 0.2


def test_the_identity_is_no_preconditioner_to_the_bit():
    power, levels = natural_power(SIZE), geometric_ladder(1, 0.1, 4)
    score, sampler = GaussianTarget(power), AnnealedLangevin(iterations=4, step_size=0.6)
    noise = ImageNoise(0, torch.arange(3), (1, SIZE, SIZE))
    final = sampler(score, noise.uniform(), levels, Identity(), noise)
    noise = ImageNoise(0, torch.arange(3), (1, SIZE, SIZE))
    x = noise.uniform()
    for sigma in levels.tolist():
        a = 0.6 * sigma**2
        x = x + a * score(x, torch.full((3,), sigma)) + (2 * a) ** 0.5 * noise.normal()
    assert torch.equal(final, x + sigma**2 * score(x, torch.full((3,), sigma)))


def test_the_stability_bound_is_the_one_that_diverges():
    # Just below the bound a mode without variance stays bounded, just above it grows.
    shape = (1, SIZE, SIZE)
    P = FourierPreconditioner(shape, R, solenoid=ShiftSolenoid("S1", 1.0).spectrum((SIZE, SIZE)), omega=0.4)
    limit = 2 / P.stiffness()[1]
    growth = {}
    for factor in (0.98, 1.02):
        noise = ImageNoise(0, torch.arange(2), shape)
        sampler = AnnealedLangevin(iterations=2000, step_size=factor * limit, denoise=False)
        doubts = sampler.check(torch.ones(2000), P)
        assert ["stable only where the data have variance" in doubt for doubt in doubts] == [True] * (factor > 1)
        x = sampler(GaussianTarget(torch.zeros(SIZE, SIZE)), noise.normal(), torch.ones(2000), P, noise)
        growth[factor] = x.abs().max().item()
    assert growth[0.98] < 100
    assert growth[1.02] > 1e6
    with pytest.raises(PDSError, match=r"step_size must be below 2 .* and 2 diverges"):
        AnnealedLangevin(iterations=10, step_size=2.0).check(torch.ones(10), Identity())
    with pytest.raises(PDSError, match="diverges"):
        AnnealedLangevin(iterations=1, step_size=2.0)(None, torch.zeros(1), torch.ones(1), Identity(), None)
