"""DPM-Solver++ against the exact recursion of the ODE and of the SDE, a fine solution, and DDIM's step."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import natural_power
from samplers.exact import SIZE, MixtureTarget, ddim, exact_moments, measured_orders

from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.processes.ladders import karras_levels
from pds.samplers.dpm_solver import DPMSolver

VE, VP = VarianceExploding(0.05, 4.0, 100), VariancePreserving(0.1, 12.0, 100)
SUB_VP = SubVariancePreserving(0.1, 12.0, 100)


def recursion(power, T, eta, order, rho):
    """(factor of the distance to the mean, variance) of a mode at 0, from covariances of (x, D of the step before)."""
    sigmas = karras_levels(0.05, 4.0, T, rho).tolist()
    C, away = np.diag([16.0, 0.0]), np.array([1.0, 0.0])
    for i, sigma in enumerate(sigmas[:-1]):
        # In log-SNR lambda, as printed: e^(lambda_s - lambda_t), not ratios of sigma.
        h = math.log(sigma) - math.log(sigmas[i + 1])
        decay, gain = math.exp(-(1 + eta) * h), -math.expm1(-(1 + eta) * h)
        K = power / (power + sigma**2)
        half = 0.0 if order == 1 or i == 0 else h / (2 * (math.log(sigmas[i - 1]) - math.log(sigma)))
        step = np.array([[decay + gain * (1 + half) * K, -gain * half], [K, 0]])
        C, away = step @ C @ step.T, step @ away
        C[0, 0] += sigmas[i + 1] ** 2 * -math.expm1(-2 * eta * h)
    K = power / (power + sigmas[-1] ** 2)
    return K * away[0], K**2 * C[0, 0]


@pytest.mark.parametrize("rho", [7.0, math.inf])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_mean_and_variance_follow_the_exact_recursion(eta, order, rho):
    power, mean, T = natural_power(SIZE), 0.4, 9
    found_mean, found = exact_moments(DPMSolver(T, rho, order, eta), VE, power, mean, draws=T if eta else 1)
    expected = torch.tensor([recursion(p, T, eta, order, rho)[1] for p in power.flatten().tolist()]).reshape(power.shape)
    torch.testing.assert_close(found, expected.double(), rtol=1e-10, atol=1e-12)
    assert found_mean == pytest.approx(mean * (1 - recursion(power[0, 0].item(), T, eta, order, rho)[0]), rel=1e-10)


@pytest.mark.parametrize("rho", [7.0, math.inf])
@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_convergence(order, rho):
    assert measured_orders(lambda T: DPMSolver(T, rho, order, eta=0), VE) == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_variance_of_the_sde_converges_with_the_order(eta, order):
    # By the recursion above, without the error of the start: the exact variance after the last step, from a fine grid.
    fine = recursion(0.3, 20_000, eta, 2, 7.0)[1]
    errors = [abs(recursion(0.3, T, eta, order, 7.0)[1] - fine) for T in (128, 256, 512)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("process", [VarianceExploding(0.01, 50.0, 100), VP, SUB_VP], ids=lambda process: process.title)
def test_many_steps_reach_the_data_of_every_process(process, eta):
    power, T = natural_power(SIZE) / 4, 200
    mean, variance = exact_moments(DPMSolver(T, eta=eta), process, power, 0.4, draws=T if eta else 1)
    torch.testing.assert_close(variance, power, rtol=0.01, atol=0)
    assert mean == pytest.approx(0.4, abs=0.02)


def test_the_first_order_is_ddim():
    x, sampler = 4 * ImageNoise(0, torch.arange(3), (1, 1, 2)).normal().double(), DPMSolver(6, order=1, eta=0)
    for process in (VE, VP):
        expected = ddim(MixtureTarget(), x, process, sampler)
        final = sampler(MixtureTarget(), x, sampler.levels(process), Identity(), None)
        torch.testing.assert_close(final, expected, rtol=0, atol=1e-10)
