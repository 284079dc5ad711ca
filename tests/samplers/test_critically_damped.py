"""Samplers of CLD: the authors' numbers, and the exact law of a Gaussian, with PDS or without."""

import functools
import math

import pytest
import torch
from conftest import Golden, RecordedNoise, natural_power
from samplers import exact
from scipy.linalg import expm

from pds.errors import PDSError
from pds.evaluation.gaussian import sampled_law
from pds.gaussian import StationaryGaussian
from pds.models.scores import VelocityScore
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity, Spectrum
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import VarianceExploding
from pds.processes.schedules import ProcessTimes
from pds.samplers.accelerated import DDIM
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.critically_damped import SSCS, CLDEulerMaruyama, CLDFlow, Step, exact_step
from pds.samplers.edm import EDM
from pds.samplers.predictor_corrector import Langevin, PredictorCorrector
from pds.score import CountedScore
from pds.training import denoising_loss

CLD = CriticallyDamped(numerical_eps=0.0)
GOLDEN = Golden("cld/cld")
POWER = natural_power(exact.SIZE)


class Network(torch.nn.Module):
    """The network of the golden file."""

    def forward(self, u, t):
        x, v = u.chunk(2, dim=1)
        return (torch.tanh(1.3 * v - 0.4 * x) * (1 + t[:, None, None, None]) - 0.1 * x * v).float()


def published(channels):
    return VelocityScore(Network(), CriticallyDamped(), channels)


@pytest.mark.parametrize(("name", "process"), [("published", CriticallyDamped()), ("linear", CriticallyDamped(4, 3, 0.4, 0.1))])
def test_the_kernel_is_the_authors(name, process):
    t = GOLDEN[f"{name}/t"]
    mean, root = process.kernel(t)
    torch.testing.assert_close(
        process.transition(t) @ torch.tensor([1.0, 0.3]).double(), GOLDEN[f"{name}/mean"], rtol=0, atol=3e-8
    )
    torch.testing.assert_close(mean, process.transition(t)[..., 0])
    covariance = root @ root.mT
    ours = torch.stack([covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]], 1)
    torch.testing.assert_close(ours, GOLDEN[f"{name}/var"], rtol=1e-7, atol=0)
    torch.testing.assert_close(-1 / root[:, 1, 1], GOLDEN[f"{name}/noise_multiplier"], rtol=1e-7, atol=0)


def test_score_and_loss_are_the_authors():
    network = published(2)
    sigma = network.process.sigma(GOLDEN["loss/t"])
    x, z = GOLDEN["loss/x"], GOLDEN["loss/z"]
    state, _, _ = network.noised(x, sigma, z)
    torch.testing.assert_close(state, GOLDEN["loss/state"], rtol=1e-5, atol=1e-6)
    # Theirs sums over the pixels, without the half.
    for i, theirs in enumerate(GOLDEN["loss/loss"]):
        one = slice(i, i + 1)
        ours = denoising_loss(network, x[one], sigma[one], z[one])
        assert 2 * x[0].numel() * ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    ours = network(GOLDEN["score/u"], network.process.sigma(GOLDEN["score/t"]).float())
    torch.testing.assert_close(ours, GOLDEN["score/score"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("striding", ["linear", "quadratic"])
@pytest.mark.parametrize("kind", ["em", "sscs"])
def test_samples_are_the_authors(kind, striding):
    sampler = {"em": CLDEulerMaruyama, "sscs": SSCS}[kind](5, striding)
    prefix = f"{kind}_{striding}/"
    draws = [GOLDEN[f"{prefix}draw{i}"] for i in range(sum(key.startswith(f"{prefix}draw") for key in GOLDEN.arrays))]
    steps = [half for draw in draws[2:-1] for half in draw.chunk(2, 1)]  # the last is of a denoising that has no noise
    noise = RecordedNoise([*draws[:2], *(steps[1::2] if kind == "em" else steps)])
    counted = CountedScore(published(1))
    x = sampler.prior(noise, CLD, Identity())
    images = sampler(counted, x, sampler.levels(CLD), Identity(), noise)
    scale = GOLDEN[f"{prefix}x"].abs().max()
    assert (images - GOLDEN[f"{prefix}x"]).abs().max() < 2e-5 * scale
    assert counted.nfe == 5 and next(noise.draws, None) is None


def test_the_flow_is_the_authors():
    """du / ds of the reverse time s = 1 - t, by a short step."""
    network, u, h = published(2), GOLDEN["score/u"].double(), 1e-7
    root, rate = math.sqrt(CLD.mass), CLD.beta_0 / math.sqrt(CLD.mass)
    for i, t in enumerate(GOLDEN["score/t"]):
        sigma = CLD.sigma(t).item()
        x, w = u[i : i + 1].chunk(2, 1)
        score = lambda x, w, sigma: root * network(torch.cat([x, root * w], 1), torch.full((1,), sigma).double())  # noqa: E731
        step = Step(sigma, sigma, h, 0.0, 1.0, root, 0.0, 0.0, 0.0, 0.0)
        moved = CLDFlow().advanced(x, w / root, step, score, Identity(), None)
        drift = torch.cat([(moved[0] - x) / h, root * (moved[1] - w / root) / h], 1) * rate
        torch.testing.assert_close(drift[0], GOLDEN["flow/drift"][i].double(), rtol=1e-3, atol=2e-3)


@functools.cache
def law_at(sigma):
    """Mean and covariance of (x, v) at a level, which many samplers visit: its time takes a search."""
    mean, root = CLD.kernel(CLD.time(torch.tensor([sigma], dtype=torch.float64)))
    return mean[0], (root @ root.mT + 0 * mean[:, :, None])[0]


class Stationary:
    """The score by the velocity of images with a power spectrum, and that of the stationary law at every level without one."""

    def __init__(self, power):
        self.power = power

    def __call__(self, u, sigma):
        x, v = u.chunk(2, 1)
        if self.power is None:
            return -v / CLD.mass
        mean, covariance = law_at(sigma[0].item())
        law = covariance[:, :, None, None] + torch.einsum("i,j,hw->ijhw", mean, mean, self.power)
        X, V = torch.fft.fft2(x), torch.fft.fft2(v)
        return torch.fft.ifft2(-(law[0, 0] * V - law[0, 1] * X) / (law[0, 0] * law[1, 1] - law[0, 1] ** 2)).real


def error(kind, iterations, preconditioner=Identity(), **options):
    """The largest relative error of the variance of a mode, without the denoising."""
    sampler = kind(iterations, denoise=False, end=0.01, **options)
    draws = 2 + iterations * (4 if kind is SSCS else sampler.stochastic + len(options))
    _, variance = exact.exact_moments(sampler, CLD, POWER, 0.0, draws, preconditioner, Stationary(POWER))
    law = POWER + CLD.sigma(torch.tensor(0.01)).item() ** 2
    return ((variance - law) / law).abs().max().item()


def filtered(low, high, turn=0.0):
    """Gains of P P^T from low, at frequency 0, to high."""
    k = torch.fft.fftfreq(exact.SIZE).abs()
    radius = torch.maximum(k[:, None], k[None, :]) * 2
    h = torch.fft.fftfreq(exact.SIZE)[:, None].sign() * torch.ones(1, exact.SIZE)
    h[exact.SIZE // 2] = 0
    return FourierPreconditioner(
        exact.SHAPE, ((low + (high - low) * radius) ** -0.5)[None], solenoid=h if turn else None, omega=turn
    )


@pytest.mark.parametrize(("kind", "order", "least"), [(CLDEulerMaruyama, 1, 64), (SSCS, 1, 32), (CLDFlow, 2, 64)])
def test_the_law_of_a_gaussian_is_reached_with_the_order(kind, order, least):
    errors = [error(kind, iterations) for iterations in (least, 2 * least)]
    assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 0.8


@pytest.mark.parametrize("P", [Identity(), filtered(0.6, 1.8, 0.5)], ids=["vanilla", "filter and solenoid"])
def test_langevin_dynamics_of_the_data_keep_the_law_too(P):
    errors = [error(CLDEulerMaruyama, iterations, P, data_eta=1.0) for iterations in (64, 128)]
    assert errors[1] < 0.65 * errors[0] and errors[1] < 0.1


class OnBothDrifts(CLDEulerMaruyama):
    """The papers' form of PDS: P P^T before the whole drift."""

    def advanced(self, x, w, step, score, preconditioner, draw):
        h, s = step.length, score(x, w, step.sigma)
        return x - preconditioner.drift(h * w), preconditioner.step(w, h * (x + 2 * w + 4 * s), 2 * math.sqrt(h), draw())


@pytest.mark.parametrize("kind", [CLDEulerMaruyama, SSCS])
@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_pds_on_the_langevin_half_keeps_the_law(kind, turn):
    P = filtered(0.6, 1.8, turn)
    errors = [error(kind, iterations, P) for iterations in ((32, 64) if kind is SSCS else (64, 128))]
    assert errors[1] < 0.65 * errors[0] and errors[1] < 0.1
    torch.testing.assert_close(error(kind, 16, filtered(1.0, 1.0)), error(kind, 16), rtol=1e-4, atol=1e-4)


def test_pds_on_the_whole_drift_does_not():
    errors = [error(OnBothDrifts, iterations, filtered(0.6, 1.8)) for iterations in (64, 128)]
    assert min(errors) > 0.3 and errors[1] > 0.9 * errors[0]


@pytest.mark.parametrize("P", [Identity(), filtered(0.5, 3.0), filtered(0.5, 3.0, 2.0)], ids=["vanilla", "filter", "solenoid"])
def test_sscs_samples_the_stationary_law_exactly_at_any_step(P):
    _, variance = exact.exact_moments(SSCS(3, denoise=False, end=0.9), CLD, POWER, 0.0, 14, P, Stationary(None))
    scale = CLD.scale(torch.tensor(0.9)).item()
    torch.testing.assert_close(variance * scale**2, torch.ones_like(variance), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [(0.4, 0.0), (1.0, 0.0), (1.0, 0.7), (3.0, -2.0)])
def test_the_exact_step_solves_its_equation(c):
    h, (g, turn) = 0.37, c
    step, friction = exact_step(h, Spectrum(*torch.tensor([[[g]], [[turn]]], dtype=torch.float64)), torch.zeros(1).double())
    A = torch.tensor([[0, -1], [1, -2 * (g + 1j * turn)]], dtype=torch.complex128)
    mean = torch.from_numpy(expm((A * h).numpy()))
    found = torch.stack([value.reshape(()) for value in step[:4]]).reshape(2, 2)
    torch.testing.assert_close(found, mean)
    # d cov = (A cov + cov A^H + diag(0, 4 g)) dr, from 0: its linear system by an exponential.
    eye = torch.eye(2, dtype=torch.complex128)
    system = torch.zeros(5, 5, dtype=torch.complex128)
    system[:4, :4] = torch.kron(A, eye) + torch.kron(eye, A.conj())
    system[3, 4] = 4 * g
    covariance = torch.from_numpy(expm((system * h).numpy()))[:4, 4].reshape(2, 2)
    L = torch.stack([step.root_x, 0 * step.root_x, step.root_both, step.root_w]).reshape(2, 2)
    torch.testing.assert_close(L @ L.mH, covariance, rtol=1e-9, atol=1e-12)
    assert friction.item() == g + 1j * turn


def test_the_exact_step_is_finite_for_any_filter():
    """Far from critical damping, the slow half falls as e^(-h / 2c) and the fast one is gone."""
    h, gain = 8.0, 1e6
    step, _ = exact_step(h, Spectrum(*torch.tensor([[[gain]], [[0.0]]], dtype=torch.float64)), torch.zeros(1).double())
    assert all(torch.isfinite(torch.view_as_real(part)).all() for part in step)
    assert step.xx.real.item() == pytest.approx(math.exp(-h / (2 * gain)), rel=1e-6)
    assert step.wx.real.item() == pytest.approx(1 / (2 * gain), rel=1e-3)


@pytest.mark.parametrize("h", [1e-8, 1e-6, 3e-6, 1e-4])
@pytest.mark.parametrize("c", [1.0, 0.2, 4 + 50j], ids=str)
def test_a_tiny_exact_step_draws_tiny_noise(h, c):
    """T = 2000, the most in [CLD], ends with half steps of 1e-6."""
    g, turn = c.real, c.imag
    step, _ = exact_step(h, Spectrum(*torch.tensor([[[g]], [[turn]]], dtype=torch.float64)), torch.zeros(1).double())
    expected = (4 * g * h**3 / 3) ** 0.5, -((3 * g * h) ** 0.5), (g * h) ** 0.5
    assert [step.root_x.item(), step.root_both.item(), step.root_w.item()] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sampler", [CLDEulerMaruyama(), SSCS(), CLDFlow()], ids=lambda sampler: sampler.title)
def test_networks_without_a_velocity_are_refused(sampler):
    with pytest.raises(PDSError, match="samples networks of CLD, and this one is of VE: choose another sampler"):
        sampler.levels(VarianceExploding())


@pytest.mark.parametrize(
    "sampler",
    [
        EDM(),
        AnnealedLangevin(10, 1.0),
        PredictorCorrector(),
        PredictorCorrector(10, None, Langevin(), end=0.1),
        DDIM(schedule=ProcessTimes(0.1)),
    ],
    ids=lambda sampler: f"{sampler.title}-{sampler.detail}",
)
def test_samplers_of_images_refuse_a_velocity(sampler):
    with pytest.raises(PDSError, match=r"data and velocity.*choose SSCS, CLDEulerMaruyama or CLDFlow"):
        sampler.levels(CLD)


def test_the_law_of_images_is_not_followed_through_a_velocity():
    with pytest.raises(PDSError, match="the state of CLD has a velocity: choose another model"):
        sampled_law(SSCS(), StationaryGaussian(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)), CLD, Identity())


def test_sscs_refuses_a_space_filter():
    P = FourierPreconditioner(exact.SHAPE, None, torch.full(exact.SHAPE, 1.1))
    with pytest.raises(PDSError, match="SSCS needs a filter that keeps the frequencies apart: leave the space filter out"):
        SSCS().check(SSCS().levels(CLD), P)
