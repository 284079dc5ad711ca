"""CLD: its transition is that of its equation, its level is that of its data half, its objective is that of its score."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from pds.errors import OptionError, PDSError
from pds.models.scores import NetworkScore, VelocityScore
from pds.processes.critically_damped import CriticallyDamped
from pds.training import denoising_loss

PROCESSES = [CriticallyDamped(numerical_eps=0.0), CriticallyDamped(2.0, 5.0, 0.6, 0.3, 0.0)]
each = pytest.mark.parametrize("process", PROCESSES, ids=["published", "other"])


def integrated(process, t):
    """Transition and covariance by the equations of the moments, in the paper's own variables (Eqs. 5, 6)."""

    def rate(s, state):
        beta = process.beta_0 + process.beta_1 * s
        A = beta * torch.tensor([[0, 1 / process.mass], [-1, -2 / math.sqrt(process.mass)]], dtype=torch.float64)
        mean, cov = (torch.tensor(part).reshape(2, 2) for part in (state[:4], state[4:]))
        noise = torch.diag(torch.tensor([0, 4 * math.sqrt(process.mass) * beta], dtype=torch.float64))
        return torch.cat([(A @ mean).flatten(), (A @ cov + cov @ A.T + noise).flatten()]).numpy()

    start = [1, 0, 0, 1, 0, 0, 0, process.gamma * process.mass]
    end = torch.tensor(solve_ivp(rate, (0, t), start, rtol=1e-11, atol=1e-16, method="DOP853").y[:, -1])
    return end[:4].reshape(2, 2), end[4:].reshape(2, 2)


@each
@pytest.mark.parametrize("t", [1e-3, 0.05, 0.4, 1.0])
def test_transition_and_covariance_solve_the_equation(process, t):
    transition, covariance = integrated(process, t)
    at = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(process.transition(at)[0], transition, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(process.covariance(at)[0], covariance, rtol=1e-7, atol=1e-14)
    assert process.scale(at).item() == pytest.approx(transition[0, 0].item())
    assert (process.scale(at) * process.sigma(at)).item() == pytest.approx(covariance[0, 0].sqrt().item())


def test_near_the_data_nothing_cancels():
    process = PROCESSES[0]
    t = torch.tensor([1e-6], dtype=torch.float64)
    # Given x, w = x / y + 2 (W_y - int W / y), whose variance is 4 y / 3; the two variances that cancel are gamma.
    _, root = process.kernel(t)
    assert root[0, 1, 1].item() ** 2 == pytest.approx(process.mass * 4 * process.phase(t).item() / 3, rel=1e-3)


@each
def test_times_and_levels_are_inverse_and_grow(process):
    t = torch.cat([torch.logspace(-7, 0, 200, dtype=torch.float64), torch.linspace(0.01, 1, 100, dtype=torch.float64)]).sort()[
        0
    ]
    sigma = process.sigma(t)
    assert (sigma.diff() >= 0).all() and sigma[0] > 0
    torch.testing.assert_close(process.time(sigma), t, rtol=1e-12, atol=0)
    assert torch.equal(process.time(sigma.float()), process.time(sigma.float().double()))


class Exact(NetworkScore):
    """The score by the velocity where the data are N(0, p)."""

    halves = 2

    def __init__(self, process, p):
        super().__init__()
        self.process, self.p = process, p

    def forward(self, u, sigma):
        mean, root = self.process.kernel(self.process.time(sigma))
        law = root @ root.mT + self.p * mean[:, :, None] * mean[:, None, :]
        x, v = u.chunk(2, 1)
        xx, xv, vv = (law[:, i, j].to(u.dtype)[:, None, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        return -(xx * v - xv * x) / (xx * vv - xv**2)


@each
def test_the_score_by_the_data_follows_from_that_by_the_velocity(process):
    p, t = 0.8, torch.tensor([1e-3, 0.02, 0.3, 1.0], dtype=torch.float64)
    mean, root = process.kernel(t)
    law = root @ root.mT + p * mean[:, :, None] * mean[:, None, :]
    x, v = torch.randn(2, 4, dtype=torch.float64)
    s_x, s_v = (-torch.linalg.solve(law, torch.stack([x, v], -1)[..., None]))[..., 0].unbind(-1)
    factors, spread = process.data_score(t)
    a, b, c = factors.unbind(-1)
    torch.testing.assert_close(a * s_v + b * x + c * v, s_x, rtol=1e-6, atol=1e-6)
    covariance = process.covariance(t)
    left = covariance[:, 0, 0] - covariance[:, 0, 1] ** 2 / covariance[:, 1, 1]
    torch.testing.assert_close(spread, left, rtol=1e-6, atol=0)


class Known(VelocityScore):
    """Its states, and the score of Gaussian data in place of the network's."""

    def __init__(self, process, p):
        super().__init__(torch.nn.Identity(), process, 1)
        self.exact = Exact(process, p)

    def forward(self, u, sigma):
        return self.exact(u, sigma)


@each
@pytest.mark.parametrize("t", [0.02, 0.3])
def test_the_hybrid_loss_is_least_at_the_marginal_score(process, t):
    generator = torch.Generator().manual_seed(0)
    n, p = 60_000, 0.8
    x = p**0.5 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(n, 2, 1, 1, generator=generator, dtype=torch.float64)
    sigma = process.sigma(torch.full((n,), t, dtype=torch.float64))
    losses = {q: denoising_loss(Known(process, q), x, sigma, z).item() for q in (0.8 * p, p, 1.25 * p)}
    assert losses[p] < min(losses[0.8 * p], losses[1.25 * p])
    # Half of what u hides of the noise: 1 / 2 - Var(v | x, x_0) Var(score) / 2, the score's variance being 1 / Var(v | x).
    mean, root = (part[0] for part in process.kernel(torch.tensor([t], dtype=torch.float64)))
    law = root @ root.T + p * torch.outer(mean, mean)
    given = law[1, 1] - law[0, 1] ** 2 / law[0, 0]
    assert losses[p] == pytest.approx(0.5 * (1 - root[1, 1].item() ** 2 / given.item()), rel=0.03, abs=0.002)


@each
def test_a_network_that_predicts_nothing_has_the_score_of_data_at_zero(process):
    def nothing(u, t):
        return torch.zeros_like(u[:, :1])

    nothing_known = VelocityScore(torch.nn.Module(), process, 1)
    nothing_known.network.forward = nothing
    u, t = torch.randn(3, 2, 2, 2), torch.tensor([0.01, 0.2, 1.0], dtype=torch.float64)
    variance = process.covariance(t)[:, 1, 1].float()[:, None, None, None]
    torch.testing.assert_close(nothing_known(u, process.sigma(t).float()), -u[:, 1:] / variance)


def test_what_does_not_know_the_velocity_is_refused_in_a_sentence():
    process = PROCESSES[0]
    network = VelocityScore(torch.nn.Identity(), process, 3)
    with pytest.raises(PDSError, match=r"data and velocity, of 6 channels, and this one has 3: choose SSCS") as error:
        network(torch.zeros(1, 3, 2, 2), torch.ones(1))
    assert "\n" not in str(error.value)
    asking = [lambda: process.ladder, lambda: process.end(1.0)]
    asking += [
        lambda name=name: getattr(process, name)(torch.ones(1)) for name in ("rates", "steps", "ancestral", "corrector_scale")
    ]
    for ask in asking:
        with pytest.raises(PDSError, match=r"data and velocity.*choose SSCS, CLDEulerMaruyama or CLDFlow"):
            ask()


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta_0", 0.0), ("beta_0", 31.0), ("beta_1", -1.0), ("mass", 0.0), ("gamma", 2.0), ("numerical_eps", -1e-9)],
)
def test_impossible_processes_are_refused(name, value):
    with pytest.raises(OptionError, match=f"{name} must be"):
        CriticallyDamped(**{name: value})
