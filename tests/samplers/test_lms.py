"""Linear multistep sampling: DDIM's step at order 1, a published rule on an even grid, and its orders on a mixture."""

import itertools
import math

import numpy as np
import pytest
import torch
from samplers.exact import MixtureTarget, ddim, flow, measured_orders

from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity
from pds.processes.forward import VarianceExploding, VariancePreserving
from pds.samplers.lms import LMS
from pds.samplers.sigma_space import Interval

VE, VP = VarianceExploding(0.05, 4.0, 100), VariancePreserving(0.1, 12.0, 100)
START = 4 * ImageNoise(0, torch.arange(8), (1, 1, 2)).normal().double()


@pytest.mark.parametrize("process", [VE, VP], ids=["VE", "VP"])
def test_the_first_order_is_ddim(process):
    sampler = LMS(6, order=1)
    final = sampler(MixtureTarget(), START, sampler.levels(process), Identity(), None)
    torch.testing.assert_close(final, ddim(MixtureTarget(), START, process, sampler), rtol=0, atol=1e-10)


def test_on_an_even_grid_it_has_the_weights_of_adams_and_bashforth():
    # The responses to an e that is 1 in the evaluation of one level alone.
    levels = [Interval(5.0 - i, 4.0 - i) for i in range(4)]
    found = []
    for i in range(4):
        pulse = lambda x, sigma, i=i: torch.full_like(x, -float(sigma[0] == 5 - i) / sigma[0].item())  # noqa: E731
        states = []
        LMS(4)(pulse, torch.zeros(1, 1, 1, 1), levels, Identity(), None, lambda i, sigma, x, s=states: s.append(x.item()))
        found.append(states[3] - states[2])
    assert found == pytest.approx([9 / 24, -37 / 24, 59 / 24, -55 / 24], rel=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_the_flow_of_a_mixture_is_reached_with_the_order(order):
    assert measured_orders(lambda T: LMS(T, order=order), VE) == pytest.approx([order, order], abs=0.3)


@pytest.mark.parametrize("order", [3, 4])
def test_steps_with_all_their_history_are_of_their_order(order):
    errors = []
    for count in (40, 80, 160):
        h = math.log(40) / count
        # The first steps have less history, so they are made small.
        lambdas = np.cumsum([-math.log(4.0), h**3, h**2, h**1.5, *[h] * count])
        levels = [Interval(math.exp(-a), math.exp(-b)) for a, b in itertools.pairwise(lambdas)]
        final = LMS(9, order=order)(MixtureTarget(), START, levels, Identity(), None)
        errors.append((final - flow(MixtureTarget(), START, 4.0, levels[-1].below)).abs().mean().item())
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([order, order], abs=0.6)
