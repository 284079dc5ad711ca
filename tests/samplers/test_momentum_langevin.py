"""MILD against the exact Gaussian recursion of (x, v), and its true law; test_annealed_langevin.py has its trajectories."""

import numpy as np
import pytest
import torch
from conftest import GaussianTarget, natural_power
from samplers.exact import Impulses, modes_of

from pds.errors import OptionError
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.preconditioning.solenoids import FourierSolenoid
from pds.processes.ladders import geometric_ladder
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.momentum_langevin import MomentumLangevin

SIZE = 8
SHAPE = (1, SIZE, SIZE)
R = ParametricFilter(0.2, 0.8).frequency(SHAPE)
TURN = 0.5 * FourierSolenoid("spectral", 1.0).spectrum((SIZE, SIZE))
PRECONDITIONERS = {
    "vanilla": Identity(),
    "P": FourierPreconditioner(SHAPE, R),
    "P and S": FourierPreconditioner(SHAPE, R, solenoid=TURN, omega=1.0),
}


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_variance_of_every_frequency_follows_the_exact_recursion(name):
    power, levels, noise = natural_power(SIZE), geometric_ladder(1, 0.1, 4).repeat_interleave(2), Impulses(9)
    sampler = MomentumLangevin(iterations=8, step_size=0.4, denoise=False, gamma=[0.2, 0.6])
    final = sampler(GaussianTarget(power), noise.normal(), levels, PRECONDITIONERS[name], noise)
    m2 = R[0].double().numpy() ** -2 if "P" in name else np.ones((SIZE, SIZE))
    turn = TURN.double().numpy() if "S" in name else np.zeros((SIZE, SIZE))
    covariance = np.zeros((SIZE, SIZE, 2, 2), complex)  # of (x, v), by frequency
    covariance[..., 0, 0] = 1
    for sigma, gamma in zip(levels.tolist(), np.linspace(0.2, 0.6, 8), strict=True):
        a = 0.4 * sigma**2
        c = a * (m2 + 1j * turn) / (power.numpy() + sigma**2)
        step = np.stack([np.stack([1 - c, gamma * (1 - c)], -1), np.stack([-c, gamma * (1 - c)], -1)], -2)
        covariance = step @ covariance @ step.conj().swapaxes(-1, -2)
        covariance[..., 0, 0] += 2 * a * m2
    torch.testing.assert_close(modes_of(final), torch.from_numpy(covariance[..., 0, 0].real), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_law_is_that_of_mild_whatever_the_preconditioner(name):
    # Small steps: a Gaussian of variance q comes out with (1 - gamma) q, with P and S as without.
    power, sigma, T, gamma, noise = natural_power(SIZE) / 16, 0.5, 300, 0.5, Impulses(301)
    sampler, levels = MomentumLangevin(iterations=T, step_size=0.01, denoise=False, gamma=gamma), torch.full((T,), sigma)
    final = sampler(GaussianTarget(power), 0.5 * noise.normal(), levels, PRECONDITIONERS[name], noise)
    ratio = modes_of(final) / ((1 - gamma) * (power + sigma**2))
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.07)  # of which 6% are the bias of the step


def test_without_momentum_it_is_annealed_langevin():
    levels, score = geometric_ladder(1, 0.1, 4), GaussianTarget(natural_power(SIZE))
    P, finals = PRECONDITIONERS["P and S"], []
    for sampler in (MomentumLangevin(4, 0.6, gamma=0.0), AnnealedLangevin(4, 0.6)):
        noise = ImageNoise(0, torch.arange(3), SHAPE)
        finals.append(sampler(score, noise.uniform(), levels, P, noise))
    torch.testing.assert_close(*finals, rtol=0, atol=1e-5)


def test_the_stability_bound_is_the_one_that_diverges():
    growth = {}
    limit = 2 * 1.4 / 1.8 / PRECONDITIONERS["P"].stiffness()[1]
    for factor in (0.98, 1.02):
        noise = ImageNoise(0, torch.arange(2), SHAPE)
        sampler = MomentumLangevin(iterations=600, step_size=factor * limit, denoise=False, gamma=0.4)
        assert len(sampler.check(torch.ones(600), PRECONDITIONERS["P"])) == (factor > 1)
        target = GaussianTarget(torch.zeros(SIZE, SIZE))
        growth[factor] = sampler(target, noise.normal(), torch.ones(600), PRECONDITIONERS["P"], noise).abs().max().item()
    assert growth[0.98] < 100
    assert growth[1.02] > 1e6
    with pytest.raises(OptionError, match=r"step_size must be below 1.556.*and 1.6 diverges"):
        MomentumLangevin(10, 1.6, gamma=0.4).check(torch.ones(10), Identity())
    for gamma, said in (
        ([0.5, 1.0], "a number or a list of numbers at least 0 and below 1, got"),
        ([], "one value or several, got none"),
    ):
        with pytest.raises(OptionError, match=f"gamma must be {said}"):
            MomentumLangevin(10, 0.5, gamma=gamma)
