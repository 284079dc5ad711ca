"""Euler and Heun against the exact recursion of Algorithm 2, a fine solution, and DDIM's step."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import natural_power
from samplers.exact import SIZE, MixtureTarget, ddim, exact_moments, measured_orders

from pds.conditioning import within
from pds.errors import OptionError
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity, Spectrum
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.edm import EDM
from pds.samplers.preconditioned_sde import PreconditionedSDE

VE, VP = VarianceExploding(0.05, 4.0, 100), VariancePreserving(0.1, 12.0, 100)
SUB_VP = SubVariancePreserving(0.1, 12.0, 100)
T = 9


def karras(i, rho=7):
    """Level i of T, from the paper's Eq. 5; 0 after the last."""
    return (4 ** (1 / rho) + i / (T - 1) * (0.05 ** (1 / rho) - 4 ** (1 / rho))) ** rho if i < T else 0.0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("churn", "churned"),
    [({}, 0), ({"S_churn": 2.0, "S_min": 0.1, "S_max": 1.5, "S_noise": 1.1}, 5), ({"S_churn": 40.0}, 9)],
    ids=["none", "some", "most"],
)
def test_mean_and_variance_follow_the_exact_recursion(order, churn, churned):
    power, mean = natural_power(SIZE), 0.4
    sampler = EDM(T, order=order, **{"S_churn": 0, **churn})
    low, high = churn.get("S_min", 0), churn.get("S_max", math.inf)
    steps = [i for i in range(T) if churn and low <= karras(i) <= high]
    assert len(steps) == churned
    found_mean, found = exact_moments(sampler, VE, power, mean, draws=1 + churned)

    v, away = torch.full_like(power, 16.0), -torch.full_like(power, mean)
    for i in range(T):
        sigma, below = karras(i), karras(i + 1)
        gamma = min(churn.get("S_churn", 0) / T, 2**0.5 - 1) if i in steps else 0
        hat = sigma * (1 + gamma)
        v = v + churn.get("S_noise", 1) ** 2 * (hat**2 - sigma**2)
        slope = hat / (power + hat**2)  # d = (x - D) / sigma^ of a mode
        factor = 1 + (below - hat) * slope
        if order == 2 and below > 0:
            factor = 1 + (below - hat) * (slope + factor * below / (power + below**2)) / 2
        v, away = factor**2 * v, factor * away
    torch.testing.assert_close(found, v, rtol=1e-10, atol=1e-12)
    assert found_mean == pytest.approx(mean + away[0, 0].item(), rel=1e-10)


@pytest.mark.parametrize("process", [VarianceExploding(0.01, 50.0, 100), VP, SUB_VP], ids=lambda process: process.title)
def test_many_steps_reach_the_data_of_every_process(process):
    power = natural_power(SIZE) / 4
    mean, variance = exact_moments(EDM(200, S_churn=0), process, power, 0.4, draws=1)
    torch.testing.assert_close(variance, power, rtol=0.01, atol=0)
    assert mean == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("rho", [7.0, math.inf])
@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_convergence(order, rho):
    assert measured_orders(lambda T: EDM(T, rho, order=order, S_churn=0), VE) == pytest.approx([order, order], abs=0.1)


def test_euler_is_ddim():
    x, sampler = 4 * ImageNoise(0, torch.arange(3), (1, 1, 2)).normal().double(), EDM(6, order=1, S_churn=0)
    for process in (VE, VP):
        expected = ddim(MixtureTarget(), x, process, sampler)
        final = sampler(MixtureTarget(), x, sampler.levels(process), Identity(), None)
        torch.testing.assert_close(final, expected, rtol=0, atol=1e-10)


def test_an_empty_interval_of_churn_is_refused():
    with pytest.raises(OptionError, match="S_min must be at most S_max, got 2 and 1"):
        EDM(4, S_min=2.0, S_max=1.0)


@pytest.mark.parametrize("largest", [10.0, 90.0, 348.0])
def test_an_upper_limit_at_the_largest_level_leaves_out_no_step(largest):
    """The first level of a grid is the largest of the process up to rounding."""
    (first, _), *_ = EDM(8).levels(VarianceExploding(0.02, largest, 100))
    assert EDM(8, S_churn=4.0, S_max=largest).churned(first) > first
    sampler = PreconditionedSDE(8, eta_to=largest)
    assert sampler.step(None, first, first / 2, Spectrum(1.0, 0.0)) == replace(sampler, eta_to=math.inf).step(
        None, first, first / 2, Spectrum(1.0, 0.0)
    )
    w = within(torch.tensor([first]), (0.1, largest), 3.0, 1.0)
    assert w.item() == 3.0
