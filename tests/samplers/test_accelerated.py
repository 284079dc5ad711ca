"""DDIM and the accelerated samplers against the printed rules on Gaussian targets, and their orders on a mixture, measured."""

import math

import numpy as np
import pytest
import torch
from conftest import GaussianTarget, RecordedNoise, mode_variance, natural_power
from samplers.exact import flow
from scipy.integrate import quad
from test_configurations import composed

from pds.lab.config import build
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.preconditioning.solenoids import FourierSolenoid
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.processes.schedules import LearningRates, ProcessTimes
from pds.samplers.accelerated import DDIM, AcceleratedDeterministic, AcceleratedStochastic
from pds.score import CountedScore

SIZE, MEAN, POWER = 8, 0.5, natural_power(8)
SHAPE = (1, SIZE, SIZE)
VP = VariancePreserving(0.1, 6.0, 100)


class Mixture:
    """The exact score of a one-dimensional Gaussian mixture, each pixel a draw of its own."""

    def __init__(self, means, weights, variances):
        self.parts = list(zip(means, weights, variances, strict=True))

    def densities(self, x, sigma2):
        return [
            w * torch.exp(-((x - mu) ** 2) / (2 * (c + sigma2))) / (2 * math.pi * (c + sigma2)) ** 0.5
            for mu, w, c in self.parts
        ]

    def __call__(self, x, sigma):
        sigma2 = sigma[0].item() ** 2
        p = self.densities(x, sigma2)
        return -sum(p_i * (x - mu) / (c + sigma2) for p_i, (mu, w, c) in zip(p, self.parts, strict=True)) / sum(p)


def abar(sigma):
    return 1 / (1 + sigma**2)


def gaussian_factor(name, levels):
    """(H, W) the final deviation from the mean, in units of that of the start, of a VP state, by the printed rules."""
    power, D, before = POWER.numpy(), np.ones((SIZE, SIZE)), None
    for sigma, below, above in levels:
        a, a_below, a_above = abar(sigma), abar(below), abar(above)
        Q = a * power + 1 - a
        e = np.sqrt(1 - a) * D / Q  # the noise prediction, -sqrt(1 - abar) s
        if name != "deterministic":
            new = np.sqrt(a_below) * (D - np.sqrt(1 - a) * e) / np.sqrt(a) + np.sqrt(1 - a_below) * e
            if name == "DDIM 2" and before is not None:
                line = lambda gamma, a=a: (gamma - a) / np.sqrt(gamma**3 * (1 - gamma))  # noqa: E731
                slope = (e - before[1]) / (a - before[0])
                new = new - np.sqrt(a_below) / 2 * quad(line, a, a_below, epsabs=1e-12, epsrel=1e-12)[0] * slope
            before, D = (a, e), new
        elif below:
            s, beta, beta_above = -D / Q, 1 - a / a_below, 1 - a_above / a
            forward = np.sqrt(a_above / a) * (D - beta_above / 2 * s)
            s_above = -forward / (a_above * power + 1 - a_above)
            correction = beta**2 / (4 * beta_above) * (s - np.sqrt(a_above / a) * s_above)
            D = (D + beta / 2 * s + correction) / np.sqrt(a / a_below)
        else:
            D = (D - (1 - a) * D / Q) / np.sqrt(a)
    return D


DETERMINISTIC = {
    "DDIM 1": lambda *options: DDIM(*options, order=1),
    "DDIM 2": lambda *options: DDIM(*options, order=2),
    "deterministic": AcceleratedDeterministic,
}


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_sampler_is_the_printed_map_of_every_frequency(name, denoise):
    sampler = DETERMINISTIC[name](6, ProcessTimes(), denoise)
    levels = sampler.levels(VP)
    score, noise = CountedScore(GaussianTarget(POWER, MEAN)), ImageNoise(0, torch.arange(3), SHAPE)
    x = sampler.prior(noise, VP, Identity()).double()
    final = sampler(score, x, levels, Identity(), noise)
    start, end = abar(levels[0].sigma) ** 0.5, abar(levels[-1].below) ** 0.5
    factor = torch.from_numpy(gaussian_factor(name, levels)) * start / end
    torch.testing.assert_close(torch.fft.fft2(final - MEAN), factor * torch.fft.fft2(x - MEAN), rtol=1e-8, atol=1e-8)
    assert score.nfe == sampler.nfe_per_iteration * 6 - (denoise and name == "deterministic")
    assert levels[-1].below == (
        0 if denoise else pytest.approx(VP.sigma(torch.tensor(VP.end(100 / (8 if name[0] == "d" else 7)))))
    )


def test_the_first_order_form_is_ddims_step():
    score, x = Mixture((-1, 0.6), (0.4, 0.6), (0.04, 0.09)), torch.linspace(-3, 3, 50, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for order in (1, 2):  # the first step of order 2 has no evaluation before it
        sampler = DDIM(2, ProcessTimes(), order=order)
        (level, _), noise = sampler.levels(VP), RecordedNoise([])
        a, a_below = abar(level.sigma), abar(level.below)
        Y = a**0.5 * x
        e = -((1 - a) ** 0.5) * score(Y / a**0.5, torch.tensor([level.sigma])) / a**0.5
        expected = a_below**0.5 * (Y - (1 - a) ** 0.5 * e) / a**0.5 + (1 - a_below) ** 0.5 * e
        step = sampler(score, x, [level], Identity(), noise)
        torch.testing.assert_close(a_below**0.5 * step, expected, rtol=1e-6, atol=1e-7)


def slope(counts, errors):
    return np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("schedule", [ProcessTimes(0.02), LearningRates()], ids=lambda schedule: schedule.detail)
@pytest.mark.parametrize(("name", "order"), [("DDIM 1", 1), ("DDIM 2", 2), ("deterministic", 2)])
def test_errors_of_the_ode_fall_with_the_claimed_order(name, order, schedule):
    score, z = Mixture((-1, 0.6), (0.4, 0.6), (0.09, 0.16)), torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    counts, errors = (160, 320, 640), []
    for T in counts:
        sampler = DETERMINISTIC[name](T, schedule, False)
        levels = sampler.levels(VariancePreserving())
        x = (1 + levels[0].sigma ** 2) ** 0.5 * z.reshape(-1, 1, 1, 1)
        exact = flow(score, x, levels[0].sigma, levels[-1].below)
        errors.append((sampler(score, x, levels, Identity(), RecordedNoise([])) - exact).square().mean().sqrt().item())
    assert slope(counts, errors) == pytest.approx(-order, abs=0.12)


@pytest.mark.parametrize("name", ["DDIM 2", "deterministic"])
@pytest.mark.parametrize("process", [VarianceExploding(0.05, 4.0, 100), VariancePreserving()], ids=["VE", "VP"])
def test_denoising_leaves_an_error_that_more_iterations_do_not_mend(process, name):
    # A Gaussian of variance p: the flow maps x at sigma to x sqrt(p / (p + sigma^2)) at 0.
    p, score, ends = 0.05, Mixture((0.0,), (1.0,), (0.05,)), {}
    for denoise, end in ((True, 0.05), (False, 0.05), (True, None)):
        errors = []
        for T in (160, 320, 640):
            sampler = DETERMINISTIC[name](T, ProcessTimes(end), denoise)
            levels = sampler.levels(process)
            start, stop = levels[0].sigma, levels[-1].below
            x = sampler(score, torch.full((1, 1, 1, 1), start, dtype=torch.float64), levels, Identity(), RecordedNoise([]))
            errors.append(abs(x.item() / start / ((p + stop**2) / (p + start**2)) ** 0.5 - 1))
        ends[denoise, end] = slope((160, 320, 640), errors), errors[-1], levels[-1].sigma
    assert ends[False, 0.05][0] == pytest.approx(-2, abs=0.2)
    order, error, sigma = ends[True, 0.05]
    assert order == pytest.approx(0, abs=0.1)
    if name == "deterministic":
        assert error == pytest.approx(1 - (p / (p + sigma**2)) ** 0.5, rel=0.02)
    # The published end of VP moves with T, and its floor with it; that of VE hardly does.
    assert ends[True, None][0] == pytest.approx(0 if process.title == "VE" else -1.2, abs=0.3)


R = ParametricFilter(0.2, 0.85).frequency(SHAPE)
TURN = 0.3 * FourierSolenoid("spectral", 1.0).spectrum((SIZE, SIZE))
PRECONDITIONERS = {
    "vanilla": Identity(),
    "P": FourierPreconditioner(SHAPE, R),
    "P and S": FourierPreconditioner(SHAPE, R, solenoid=TURN, omega=1.0),
}
STOCHASTIC = [
    ("vanilla", VP, False, "scaled"),
    ("vanilla", VP, True, "printed"),
    ("P", VP, False, "scaled"),
    ("P", VarianceExploding(0.05, 4.0, 100), True, "printed"),
    ("P and S", SubVariancePreserving(0.1, 6.0, 100), False, "scaled"),
]


def printed_steps(name, levels, second_noise):
    """Each step of a VP state by frequency, (keep, first, pull, second): Y <- keep (Y + first z) + pull + second z+."""
    gain = R[0].double() ** -1 if "P" in name else torch.ones(SIZE, SIZE, dtype=torch.float64)
    turn = TURN.double() if "S" in name else torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for sigma, below, _ in levels:
        a, beta = abar(sigma), 1 - abar(sigma) / abar(below)
        root, Q = (1 - beta) ** 0.5, a * POWER + 1 - a
        if below:
            pull = (gain**2 + 1j * turn) * beta / root / Q
            second = gain * (beta / 2) ** 0.5 / (root if second_noise == "scaled" else 1)
            yield 1 + gain**2 * (1 / root - 1) - pull, gain * (beta / 2) ** 0.5, pull * a**0.5 * MEAN, second
        else:
            pull = (1 - a) / root / Q
            yield 1 / root - pull, 0 * gain, pull * a**0.5 * MEAN, 0 * gain


@pytest.mark.parametrize(("name", "process", "denoise", "second_noise"), STOCHASTIC)
def test_the_stochastic_sampler_is_the_printed_map_of_every_frequency(name, process, denoise, second_noise):
    sampler, P = AcceleratedStochastic(6, ProcessTimes(), denoise, second_noise), PRECONDITIONERS[name]
    levels, draws = sampler.levels(process), [ImageNoise(seed, torch.arange(3), SHAPE).normal() for seed in range(13)]
    score, noise = CountedScore(GaussianTarget(POWER, MEAN)), RecordedNoise(draws)
    x = sampler.prior(noise, process, P)
    final = sampler(score, x, levels, P, noise)
    assert score.nfe == len(levels) == sampler.nfe_per_iteration * 6
    assert len(list(noise.draws)) == 2 * denoise
    Y, one, z = torch.fft.fft2(x.double()) * abar(levels[0].sigma) ** 0.5, torch.fft.fft2(torch.ones(SHAPE)), iter(draws[1:])
    for keep, first, pull, second in printed_steps(name, levels, second_noise):
        z1, z2 = (torch.fft.fft2(next(z).double()) if first.any() else 0 for _ in range(2))
        Y = keep * (Y + first * z1) + pull * one + second * z2
    expected = Y / abar(levels[-1].below) ** 0.5
    torch.testing.assert_close(torch.fft.fft2(final.double()), expected, rtol=0, atol=3e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "process", "denoise", "second_noise"), STOCHASTIC)
def test_mean_and_variance_of_the_stochastic_sampler(name, process, denoise, second_noise):
    images, sampler, P = 6000, AcceleratedStochastic(6, ProcessTimes(), denoise, second_noise), PRECONDITIONERS[name]
    levels, noise = sampler.levels(process), ImageNoise(1, torch.arange(6000), SHAPE)
    final = sampler(GaussianTarget(POWER, MEAN), sampler.prior(noise, process, P), levels, P, noise)
    V, mean = (R[0].double() ** -2 if "P" in name else 1), 0  # of Y, the mean of every pixel
    for keep, first, pull, second in printed_steps(name, levels, second_noise):
        V = keep.abs() ** 2 * (V + first**2) + second**2
        mean = (keep * mean + pull)[0, 0].real.item()
    end = abar(levels[-1].below)
    ratio = end * mode_variance(final - final.mean(dim=0, keepdim=True)) / V
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=5 * (2 / images) ** 0.5)
    assert final.mean().item() == pytest.approx(mean / end**0.5, abs=4 * (V[0, 0].item() / end / images) ** 0.5 / SIZE)


def chain(second_noise, T):
    """The accelerated stochastic sampler and its levels, where a mixture of scale 1 is neither noise nor data."""
    sampler = AcceleratedStochastic(T, ProcessTimes(0.1), False, second_noise)
    return sampler, [level for level in sampler.levels(VariancePreserving()) if level.sigma < 2]


def normal(d, variance):
    return torch.exp(-(d**2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def trajectory_divergence(rule, T):
    """Root of KL(exact || sampled) of a whole trajectory. It is a sum over the steps of the divergence of two densities of the
    next state, integrated over x. By Pinsker's inequality it bounds the total variation, in which [LI] states the rates.
    """
    score, total = Mixture((-1, 1), (0.5, 0.5), (0.05, 0.05)), 0.0
    x, u = (torch.linspace(-end, end, 161, dtype=torch.float64) for end in (12, 7))
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(16))
    states, z = (values.reshape(-1, 1, 1, 1) for values in (x[:, None].expand(-1, 16), nodes.expand(161, -1)))
    sampler, levels = chain("scaled" if rule == "DDPM" else rule, T)
    for level in levels:
        h = level.sigma**2 - level.below**2
        after = (x + h * score(x, torch.tensor([level.sigma], dtype=torch.float64)))[:, None] + h**0.5 * u
        p = sum(score.densities(x, level.sigma**2))
        exact = sum(score.densities(after, level.below**2)) * normal(after - x[:, None], h) / p[:, None]
        if rule == "DDPM":
            sampled = normal(h**0.5 * u, h).expand_as(exact)
        else:
            draws = [RecordedNoise([z, w * torch.ones_like(z)]) for w in (0, 1)]
            still, moved = (sampler(score, states, [level], Identity(), noise).reshape(161, 16) for noise in draws)
            parts = normal(after[:, None, :] - still[:, :, None], (moved - still)[0, 0] ** 2)
            sampled = (weights[:, None] * parts).sum(1) / weights.sum()
        r = exact / sampled
        divergence = (sampled * (torch.xlogy(r, r) - r + 1)).sum(1) * h**0.5 * (u[1] - u[0])
        total += (p * divergence).sum().item() * (x[1] - x[0]).item()
    return total**0.5


@pytest.mark.parametrize(("rule", "order"), [("scaled", 1), ("printed", 0.5), ("DDPM", 0.5)])
def test_the_law_of_the_trajectory_falls_with_the_order_of_the_rule(rule, order):
    counts = (50, 100, 200)
    assert slope(counts, [trajectory_divergence(rule, T) for T in counts]) == pytest.approx(-order, abs=0.08)


@pytest.mark.parametrize(("second_noise", "order"), [("scaled", 2), ("printed", 1)])
def test_the_variance_of_a_gaussian_falls_with_the_order_of_the_rule(second_noise, order):
    score, counts, errors = Mixture((0.0,), (1.0,), (0.3,)), (50, 100, 200), []
    x, z, w = torch.eye(3, dtype=torch.float64).reshape(3, 3, 1, 1, 1)
    for T in counts:
        sampler, levels = chain(second_noise, T)
        V = 0.3 + levels[0].sigma ** 2
        for level in levels:
            # The response to a unit state, a unit z and a unit z+: the variance without a random number.
            a, b, c = sampler(score, x, [level], Identity(), RecordedNoise([z, w])).flatten().tolist()
            V = a**2 * V + b**2 + c**2
        errors.append(abs(V / (0.3 + levels[-1].below ** 2) - 1))
    assert slope(counts, errors) == pytest.approx(-order, abs=0.1)


def test_the_start_is_a_standard_normal_vp_state_through_P():
    noise = ImageNoise(0, torch.arange(4000), SHAPE)
    P = PRECONDITIONERS["P"]
    for process in (VariancePreserving(), VarianceExploding(0.01, 1.0, 10)):
        sampler = AcceleratedStochastic(10, ProcessTimes())
        x = sampler.prior(noise, process, P)
        ratio = mode_variance(x) * abar(sampler.levels(process)[0].sigma) * R[0].double() ** 2
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=5 * (2 / 4000) ** 0.5)
    sampler = AcceleratedDeterministic(10, ProcessTimes())
    levels = sampler.levels(VP)
    assert levels[0].above == VP.prior_std * VP.sigma(torch.ones(())).item()
    assert [level.above for level in levels[1:]] == [level.sigma for level in levels[:-1]]


def test_an_unstable_filter_is_told():
    strong = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.3).frequency(SHAPE))
    for P, T, warned in ((Identity(), 10, False), (strong, 10, True), (strong, 400, False)):
        sampler = AcceleratedStochastic(T, ProcessTimes(0.01), denoise=False)
        levels, noise = sampler.levels(VP), ImageNoise(0, torch.arange(64), SHAPE)
        assert len(sampler.check(levels, P)) == warned
        flat = GaussianTarget(torch.zeros(SIZE, SIZE))
        left = sampler(flat, sampler.prior(noise, VP, P), levels, P, noise).std().item()
        assert (left > 10 * levels[-1].below * P.stiffness()[1] ** 0.5) == warned


CHOICES = {"ddim": ("DDIM", 1), "accelerated_ddim": ("accelerated DDIM", 1)}
CHOICES |= {
    "accelerated_deterministic": ("accelerated deterministic", 2),
    "accelerated_stochastic": ("accelerated stochastic", 1),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("schedule", ["process", "learning_rates"])
def test_every_choice_builds_and_samples_a_vp_model(choice, schedule):
    cfg = composed("model=ddpmpp", "dataset=cifar10", f"sampler={choice}", f"sampler/schedule={schedule}")
    sampler, process = build(cfg.sampler), build(cfg.model.process)
    assert (sampler.title, sampler.nfe_per_iteration) == CHOICES[choice]
    levels, noise = sampler.levels(process), ImageNoise(0, torch.arange(2), SHAPE)
    assert len(levels) == sampler.iterations == cfg.sampler.iterations
    x = sampler(GaussianTarget(POWER), sampler.prior(noise, process, Identity()), levels, Identity(), noise)
    assert torch.isfinite(x).all()
