"""The preconditioned reverse SDE: exact for constant D, of its orders between fixed ends, stable within its stated bounds."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GaussianTarget, natural_power
from samplers.exact import SHAPE, SIZE, Impulses, exact_moments, measured_orders

from pds.errors import OptionError, PDSError
from pds.evaluation.gaussian import sampled_law
from pds.gaussian import StationaryGaussian
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.preconditioning.solenoids import FourierSolenoid, ShiftSolenoid
from pds.processes.discrete import DiscreteVariancePreserving, beta_schedule
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.processes.ladders import karras_levels
from pds.samplers.dpm_solver import DPMSolver
from pds.samplers.preconditioned_sde import DIVERGED, PreconditionedSDE
from pds.samplers.sampler import Task
from pds.samplers.sigma_space import Interval
from pds.score import score_at

VE, VP = VarianceExploding(0.05, 4.0, 4096), VariancePreserving(0.1, 12.0, 400)
SUB_VP, CHAIN = SubVariancePreserving(0.1, 12.0, 400), DiscreteVariancePreserving(beta_schedule("linear", 1e-4, 0.08, 300))
LOWERING, RAISING = ParametricFilter(0.2, 1.4).frequency(SHAPE), ParametricFilter(0.15, 0.6).frequency(SHAPE)
SPECTRAL = FourierSolenoid("spectral", 1.0).spectrum((SIZE, SIZE))
SHIFT = ShiftSolenoid("S3", 1.0).spectrum((SIZE, SIZE))
WIDE = VarianceExploding(0.01, 50.0, 1000)
PRECONDITIONERS = {
    "I": (None, None, 0.0),
    "P": (RAISING, None, 0.0),
    "S": (None, SPECTRAL, 2.0),
    "P and S": (LOWERING, SHIFT, 0.7),
}
WEIGHTS = pytest.mark.parametrize("weight", ["exact", "midpoint"])
KINDS = pytest.mark.parametrize("name", PRECONDITIONERS)


def operator(R, h, omega):
    return Identity() if R is None and h is None else FourierPreconditioner(SHAPE, R, solenoid=h, omega=omega)


def eigenvalues(R, h, omega):
    """(H, W) eigenvalues of P P^T and of omega S, from their makers."""
    gain = torch.ones(SIZE, SIZE, dtype=torch.float64) if R is None else R[0].double() ** -2
    return gain, torch.zeros_like(gain) if h is None else omega * h.double()


class Point:
    """The score of data that are one image: D is constant."""

    image = ImageNoise(9, torch.tensor([0]), SHAPE).normal().double()

    def __call__(self, x, sigma):
        return (self.image - x) / sigma.square()[:, None, None, None]


def moments_of(sampler, start, levels, P, draws):
    noise = Impulses(draws)
    final = sampler(Point(), start.expand(draws + 1, -1, -1, -1), levels, P, noise)
    assert noise.draws == draws
    return final[-1], torch.fft.fft2(final[:-1] - final[-1:]).abs().square().sum(0)


def test_where_d_is_constant_a_step_is_as_good_as_any_number_of_steps():
    draw, start = np.random.default_rng(0), ImageNoise(3, torch.tensor([0]), SHAPE).normal().double()
    for _ in range(60):
        sigma, h, part = draw.uniform(0.1, 50), draw.choice([0.05, 0.5, 2.0, 6.0]), draw.uniform(0.1, 0.9)
        R = [None, ParametricFilter(0.2, draw.uniform(0.3, 3)).frequency(SHAPE)][draw.integers(2)]
        P = operator(R, [None, SPECTRAL, SHIFT][draw.integers(3)], draw.uniform(0, 5))
        sampler = PreconditionedSDE(
            2, order=int(draw.integers(1, 3)), weight=str(draw.choice(["exact", "midpoint"])), eta=draw.uniform(0.1, 4)
        )
        middle, end = sigma * math.exp(-part * h), sigma * math.exp(-h)
        mean, variance = moments_of(sampler, sigma * start, [Interval(sigma, end)], P, 1)
        two = moments_of(sampler, sigma * start, [Interval(sigma, middle), Interval(middle, end)], P, 2)
        torch.testing.assert_close(two[0], mean, rtol=0, atol=1e-9 * sigma)
        torch.testing.assert_close(two[1], variance, rtol=1e-7, atol=1e-12 * sigma**2)


def recursion(power, gain, turn, sigmas, eta, order, weight):
    """Variance of a mode after the step from the last of `sigmas`, to 0: by matrices of (x, D_before), in log-SNR lambda."""
    c, covariance = 1 + eta * gain + 1j * turn, np.diag([sigmas[0] ** 2, 0]).astype(complex)
    lambdas = [-math.log(sigma) for sigma in sigmas]
    for i, (a, b) in enumerate(itertools.pairwise(lambdas)):
        h, K = b - a, power / (power + sigmas[i] ** 2)
        mixed = -np.expm1(-c * h)
        slope = 0.0
        if order == 2 and i:
            slope = (h - mixed / c if weight == "exact" else h / 2 * mixed) / (a - lambdas[i - 1])
        step = np.array([[np.exp(-c * h) + (mixed + slope) * K, -slope], [K, 0]])
        covariance = step @ covariance @ step.conj().T
        covariance[0, 0] += sigmas[i + 1] ** 2 * -np.expm1(-2 * eta * gain * h)
    return (power / (power + sigmas[-1] ** 2)) ** 2 * covariance[0, 0].real


@WEIGHTS
@KINDS
@pytest.mark.parametrize("order", [1, 2])
def test_every_mode_follows_the_exact_recursion(order, name, weight):
    power, T, eta = natural_power(SIZE), 7, 1.5
    sampler, P = PreconditionedSDE(T, 5.0, order, weight, eta), operator(*PRECONDITIONERS[name])
    gain, turn = eigenvalues(*PRECONDITIONERS[name])
    sigmas = karras_levels(0.05, 4.0, T, 5.0).tolist()
    rows = zip(power.flatten().tolist(), gain.flatten().tolist(), turn.flatten().tolist(), strict=True)
    expected = torch.tensor([recursion(p, g, w, sigmas, eta, order, weight) for p, g, w in rows]).reshape(power.shape)
    found = exact_moments(sampler, VE, power, 0.4, draws=T, preconditioner=P)[1]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sampler.variance(sampler.levels(VE), power, gain, turn), expected, rtol=1e-9, atol=1e-13)


@WEIGHTS
@KINDS
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_the_variance_between_fixed_ends_converges_with_the_order(eta, order, name, weight):
    gain, turn = (values.max() for values in eigenvalues(*PRECONDITIONERS[name]))
    power = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64)
    found = []
    for T in (128, 256, 512, 1024):
        sampler = PreconditionedSDE(T, order=order, weight=weight, eta=eta)
        found.append(sampler.variance(sampler.levels(VE)[:-1], power, gain, turn))
    changes = [(a - b).abs().sum().item() for a, b in itertools.pairwise(found)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(changes)] == pytest.approx([order, order], abs=0.2)


@WEIGHTS
@pytest.mark.parametrize(("T", "slope"), [(8, 1.4), (8, 0.0), (400, 1.0)])
def test_a_shorter_walk_starts_from_the_law_of_the_data_and_ends_where_it_is_told(T, slope, weight):
    mean, power = torch.linspace(0, 1, SIZE**2, dtype=torch.float64).reshape(SHAPE), 0.1 * natural_power(SIZE)[None]
    target = StationaryGaussian(mean, power)
    sampler = PreconditionedSDE(
        T, weight=weight, eta=1.5, slope=slope, start=1.2, end=0.2, data=StationaryGaussian(mean, power)
    )
    levels = sampler.levels(VE)
    assert [levels[0].sigma, levels[-1].sigma, levels[-1].below] == pytest.approx([1.2, 0.2, 0])
    law = sampled_law(sampler, target, VE, Identity())
    torch.testing.assert_close(law.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(law.power, sampler.variance(levels, power), rtol=1e-5, atol=1e-12)
    if T == 400:
        torch.testing.assert_close(law.power, power**2 / (power + 0.2**2), rtol=2e-3, atol=1e-12)
    if slope == 0:
        torch.testing.assert_close(law.power, replace(sampler, order=1).variance(levels, power), rtol=1e-5, atol=1e-12)


def test_a_shorter_walk_needs_the_data_and_a_place_among_the_levels():
    sampler = PreconditionedSDE(4, start=1.2)
    with pytest.raises(OptionError, match="needs the statistics"):
        sampler.prior(ImageNoise(0, torch.arange(2), SHAPE), VE, Identity())
    for options, name in (({"start": 0.05}, "start"), ({"end": 4.0}, "end"), ({"start": 0.3, "end": 0.3}, "end")):
        with pytest.raises(OptionError) as error:
            PreconditionedSDE(4, **options).levels(VE)
        assert error.value.name == name


def test_a_start_above_the_process_is_that_of_the_process_and_needs_no_data():
    def none():
        raise AssertionError("nobody needs them")

    def prior(sampler):
        return sampler.prior(ImageNoise(0, torch.arange(2), SHAPE), VE, Identity())

    above = PreconditionedSDE(4, start=4.1).with_statistics(none, (0, 1), VE)
    assert torch.equal(prior(above), prior(PreconditionedSDE(4)))
    # At the largest level itself the walk starts from the law of the data, as `variance` says.
    power, mean = natural_power(SIZE).expand(SHAPE).clone(), torch.full(SHAPE, 0.3)
    at = PreconditionedSDE(4, start=4.0, data=StationaryGaussian(mean, power))
    assert not torch.equal(prior(at), prior(PreconditionedSDE(4)))
    assert at.variance([Interval(4.0, 4.0)], power).allclose(power + 16)


@WEIGHTS
@pytest.mark.parametrize("order", [1, 2])
def test_the_flow_of_a_mixture_is_reached_with_the_order(order, weight):
    orders = measured_orders(lambda T: PreconditionedSDE(T, order=order, weight=weight, eta=0.0), VE)
    assert orders == pytest.approx([order, order], abs=0.15)


@KINDS
def test_the_step_to_zero_keeps_its_law(name):
    power, sigma, P = natural_power(SIZE), 0.3, operator(*PRECONDITIONERS[name])
    for eta, weight in itertools.product((0.0, 1.0, 7.0), ("exact", "midpoint")):
        sampler, noise = PreconditionedSDE(1, weight=weight, eta=eta), Impulses(1)
        x = torch.fft.ifft2((power + sigma**2).sqrt() * torch.fft.fft2(noise.normal())).real
        final = sampler(GaussianTarget(power), x, [Interval(sigma, 0.0)], P, noise)
        assert noise.draws == 1
        law = torch.fft.fft2(final[0, 0]).abs().square()
        torch.testing.assert_close(law, power**2 / (power + sigma**2), rtol=1e-10, atol=1e-12)


def most_excess(sampler):
    """The largest relative error of a mode's variance after the step to 0, over modes of every variance, by impulses."""
    ladder = WIDE.ladder
    low, high = ladder[-1] ** 2, ladder[0] ** 2
    frequency = torch.fft.fftfreq(256, 1 / 256, dtype=torch.float64).abs() / 128  # an even spectrum of a row of pixels
    power = (low * (high / low) ** frequency).expand(1, 2, -1).contiguous()
    law = sampled_law(sampler, StationaryGaussian(torch.zeros_like(power), power), WIDE, Identity())
    return (law.power / (power**2 / (power + low)) - 1).max().item()


@WEIGHTS
@pytest.mark.parametrize("T", [10, 20])
def test_the_excess_at_few_steps_is_that_of_the_images(T, weight):
    sampler = PreconditionedSDE(T, 7.0, weight=weight, eta=3.0)
    power = torch.logspace(-8, 4, 400, dtype=torch.float64)
    predicted = (sampler.variance(sampler.levels(WIDE)[:-1], power) / (power + 1e-4)).max().item() - 1
    assert predicted > 0.2
    assert most_excess(sampler) == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("process", [WIDE, VP, SUB_VP, CHAIN], ids=["VE", "VP", "sub-VP", "chain"])
@KINDS
def test_many_steps_reach_the_data_of_every_process(name, process):
    power, P = natural_power(SIZE) / 4, operator(*PRECONDITIONERS[name])
    sampler = PreconditionedSDE(250, 7.0, eta=1.0)
    found = sampler.variance(sampler.levels(process), power, *eigenvalues(*PRECONDITIONERS[name]))
    torch.testing.assert_close(found, power, rtol=0.03, atol=0)
    # The images themselves, in few steps.
    sampler = PreconditionedSDE(6)
    _, few = exact_moments(sampler, process, power, 0.4, draws=6, preconditioner=P)
    expected = sampler.variance(sampler.levels(process), power, *eigenvalues(*PRECONDITIONERS[name]))
    torch.testing.assert_close(few, expected, rtol=1e-3, atol=1e-9)


def test_the_exact_norm_is_that_of_its_law():
    drawn, exact = PreconditionedSDE(4), PreconditionedSDE(4, prior_norm="exact")
    P = operator(RAISING, None, 0.0)
    for process in (VE, VP):
        a, b = (sampler.prior(ImageNoise(0, torch.arange(50), SHAPE), process, P) for sampler in (drawn, exact))
        std = process.prior_std / process.scale(torch.ones(1)).item()
        torch.testing.assert_close(torch.linalg.vector_norm(b, dim=(1, 2, 3)), torch.full((50,), std * SIZE))
        torch.testing.assert_close(
            b / b.flatten(1).norm(dim=1)[:, None, None, None], a / a.flatten(1).norm(dim=1)[:, None, None, None]
        )
        assert a.square().mean().item() == pytest.approx(std**2, rel=0.1)


def test_eta_acts_between_its_levels_alone():
    sampler = PreconditionedSDE(9, eta=2.0, eta_from=0.1, eta_to=1.5)
    levels, noise = sampler.levels(VE), ImageNoise(0, torch.arange(2), SHAPE)
    acting = [0.1 <= sigma <= 1.5 and below > 0 for sigma, below in levels]
    assert 0 < sum(acting) < 8
    sampler(GaussianTarget(natural_power(SIZE)), 4 * noise.normal(), levels, Identity(), noise)
    assert noise.draws == 1 + sum(acting)
    without = sampler.variance([level for level in levels if level.sigma > 1.5], torch.ones(1, dtype=torch.float64))
    flow = PreconditionedSDE(9, eta=0.0)
    assert torch.equal(without, flow.variance([level for level in levels if level.sigma > 1.5], torch.ones(1).double()))


def test_a_filter_on_no_noise_changes_nothing_and_draws_none():
    sampler, images = PreconditionedSDE(5, eta=0.0), []
    for P in (Identity(), operator(RAISING, None, 0.0)):
        noise = ImageNoise(0, torch.arange(2), SHAPE)
        x = 4 * noise.normal()
        images.append(sampler(GaussianTarget(natural_power(SIZE)), x, sampler.levels(VE), P, noise))
        assert noise.draws == 1
    torch.testing.assert_close(*images)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0, 0.5, 1.0])
def test_dpm_solver_is_its_published_step_to_the_bit(eta, order):
    sampler, shape = DPMSolver(6, 7.0, order, eta), (2, 4, 4)
    score = lambda x, sigma: -(x - 0.2 * x.abs()) / (0.1 + sigma.square())[:, None, None, None]  # noqa: E731
    noise, again = (ImageNoise(0, torch.arange(3), shape) for _ in range(2))
    x = sampler.prior(noise, VE, Identity())
    final = sampler(score, x, sampler.levels(VE), Identity(), noise)
    x, D_before, before = 4.0 * again.normal(), None, None
    for sigma, below in sampler.levels(VE):
        D = target = x + sigma**2 * score_at(score, x, sigma)
        if order == 2 and before and below:
            r = math.log(before / sigma) / math.log(sigma / below)
            target = D + (D - D_before) / (2 * r)
        kept = (below / sigma) ** (1 + eta)
        x = kept * x + (1 - kept) * target
        if eta and below:
            x = x + below * (1 - (below / sigma) ** (2 * eta)) ** 0.5 * again.normal()
        D_before, before = D, sigma
    assert torch.equal(final, x)


def walked_ratio(sampler, omega, power):
    """Variance in units of the exact one that the loop, unchecked, gives modes of this power."""
    P, levels = FourierPreconditioner(SHAPE, solenoid=SPECTRAL, omega=omega), sampler.levels(VE)[:-1]
    noise = Impulses(len(levels) + 1)
    x = sampler.prior(noise, VE, P)
    flat = torch.full((SIZE, SIZE), power, dtype=torch.float64)
    *_, (_, x) = sampler.walk(x, Task(GaussianTarget(flat), levels, P, noise))
    variance = torch.fft.fft2((x[:-1] - x[-1:])[:, 0]).abs().square().sum(0)
    return (variance / (power + levels[-1].below ** 2)).max().item()


def told(sampler, omega):
    P = FourierPreconditioner(SHAPE, solenoid=SPECTRAL, omega=omega)
    try:
        return len(sampler.check(sampler.levels(VE), P))
    except PDSError as error:
        return f"{str(error).split()[0]} refused"


@pytest.mark.parametrize(("T", "eta"), [(12, 0.5), (20, 1.0), (20, 3.0)])
def test_omega_is_refused_where_the_exact_weight_diverges_and_told_within_a_factor_of_two(T, eta):
    sampler, low, high = PreconditionedSDE(T, weight="exact", eta=eta), 0.01, 100.0
    assert (told(sampler, low), told(sampler, high)) == (0, "omega refused")
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if told(sampler, middle) == "omega refused" else (middle, high)
    assert [told(sampler, factor * high) for factor in (0.45, 0.7, 0.95, 1.05)] == [0, 1, 1, "omega refused"]
    powers = np.geomspace(0.05**2, 16, 13)
    assert max(walked_ratio(sampler, 1.1 * high, power) for power in powers) > DIVERGED * 0.95
    assert max(walked_ratio(sampler, 0.95 * high, power) for power in powers) < DIVERGED


@pytest.mark.parametrize("sampler", [PreconditionedSDE(20), PreconditionedSDE(20, order=1, weight="exact")])
def test_the_other_forms_are_stable_for_every_omega(sampler):
    for omega in (1.0, 10.0, 100.0, 1e4):
        assert told(sampler, omega) == 0
        assert walked_ratio(sampler, omega, 1.0) < 2


def test_what_it_refuses_before_any_evaluation():
    A = torch.linspace(0.8, 1.2, SIZE * SIZE).reshape(SHAPE)
    mixed = FourierPreconditioner(SHAPE, space=A)
    sampler = PreconditionedSDE(5)
    for refusing in (
        lambda: sampler.check(sampler.levels(VE), mixed),
        lambda: sampler(None, torch.zeros(1, *SHAPE), sampler.levels(VE), mixed, None),
    ):
        with pytest.raises(PDSError, match="keeps the frequencies apart: leave the space filter out"):
            refusing()
    with pytest.raises(OptionError, match="iterations must be at most 300, the noise levels of the model, got 301"):
        PreconditionedSDE(301).levels(CHAIN)
    with pytest.raises(OptionError, match="eta_from must be at most eta_to, got 2 and 1"):
        PreconditionedSDE(5, eta_from=2.0, eta_to=1.0)
    for name, value in (("order", 3), ("weight", "heun"), ("prior_norm", "unit"), ("eta", math.inf), ("rho", 0.0)):
        with pytest.raises(OptionError) as error:
            PreconditionedSDE(5, **{name: value})
        assert error.value.name == name
