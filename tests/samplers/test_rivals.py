"""ER-SDE-Solver, SA-Solver and Restart against numbers from their released code, and their orders on exact scores."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN, GaussianTarget, Golden, RecordedNoise, natural_power
from samplers.exact import SIZE, Impulses, MixtureTarget, exact_moments, flow, measured_orders

from pds.errors import OptionError
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.edm import EDM
from pds.samplers.er_sde import ERSDE
from pds.samplers.restart import Restart
from pds.samplers.sa_solver import SASolver
from pds.samplers.sigma_space import Interval

VE = VarianceExploding(0.05, 4.0, 100)


def intervals(golden):
    return [Interval(*ends) for ends in itertools.pairwise(golden["sigmas"].tolist())]


def cases(prefix):
    return sorted(path.stem for path in (GOLDEN / "rivals").glob(f"{prefix}_*.npz"))


@pytest.mark.parametrize("case", cases("er_sde"))
def test_er_sde_is_the_released_code(case):
    golden, (order, scale) = Golden(f"rivals/{case}"), case.removeprefix("er_sde_").split("_", 1)
    sampler = ERSDE(8, order=int(order), scale=scale)
    final = sampler(MixtureTarget(), golden["x"], intervals(golden), Identity(), RecordedNoise(list(golden["noise"])))
    # Its sums of 100 points are off by 1% of a small term.
    torch.testing.assert_close(final, golden["final"], rtol=0, atol=1e-9 if order == "1" else 4e-3)


@pytest.mark.parametrize("case", cases("sa"))
def test_sa_solver_is_the_released_code(case):
    golden, (orders, tau) = Golden(f"rivals/{case}"), case.removeprefix("sa_").split("_tau")
    predictor, corrector = (int(order) for order in orders[1:].split("c"))
    sampler = SASolver(8, predictor_order=predictor, corrector_order=corrector, tau=float(tau))
    # It draws once more before the first step.
    draws = RecordedNoise(list(golden["noise"])[1:])
    final = sampler(MixtureTarget(), golden["x"], intervals(golden), Identity(), draws)
    torch.testing.assert_close(final, golden["final"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", cases("restart"))
def test_restart_is_the_released_code(case):
    golden = Golden(f"rivals/{case}")
    T, restarts, steps, low, high = golden["options"].tolist()
    sampler = Restart(int(T), restarts=int(restarts), steps=int(steps), low=low, high=high)
    levels = sampler.levels(VE)
    # The released code draws in every step, with or without churn; only the draws of the restarts count.
    grid = sampler.iterations - sampler.restarts * sampler.steps
    at = next(i for i, level in enumerate(levels) if level.raised_from < level.sigma)
    draws = [golden["noise"][at + k * (sampler.steps + 1)] for k in range(sampler.restarts)]
    assert len(golden["noise"]) == grid + sampler.restarts * (sampler.steps + 1)
    final = sampler(MixtureTarget(), golden["x"], levels, Identity(), RecordedNoise(draws))
    # Its ways back are in float32.
    torch.testing.assert_close(final, golden["final"], rtol=0, atol=1e-6)


ORDERS = [
    (lambda T: ERSDE(T, order=1, scale="ode"), 1),
    (lambda T: ERSDE(T, order=2, scale="ode"), 2),
    (lambda T: ERSDE(T, order=3, scale="ode"), 2),
    (lambda T: SASolver(T, predictor_order=1, corrector_order=0, tau=0.0), 1),
    (lambda T: SASolver(T, predictor_order=2, corrector_order=0, tau=0.0), 2),
    (lambda T: SASolver(T, predictor_order=1, corrector_order=2, tau=0.0), 2),
    (lambda T: Restart(T, restarts=0), 2),
    (lambda T: Restart(T, order=1, restarts=0), 1),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=lambda value: value(4).title if callable(value) else str(value))
def test_the_flow_of_a_mixture_is_reached_with_the_order(sampler, order):
    assert measured_orders(sampler, VE) == pytest.approx([order, order], abs=0.35)


@pytest.mark.parametrize(
    "sampler",
    [
        SASolver(9, predictor_order=3, corrector_order=0, tau=0.0),
        SASolver(9, predictor_order=2, corrector_order=3, tau=0.0),
    ],
    ids=lambda sampler: sampler.title,
)
def test_steps_with_all_their_history_are_of_order_3(sampler):
    # The first two steps have less history, and the last two of SA-Solver take less: these steps are small and not compared.
    errors, x = [], 4 * ImageNoise(0, torch.arange(32), (1, 1, 2)).normal().double()
    for count in (20, 40, 80):
        h, states = math.log(40) / count, []
        lambdas = np.cumsum([-math.log(4.0), h**2, h**1.5, *[h] * count, h, h])
        levels = [Interval(math.exp(-a), math.exp(-b)) for a, b in itertools.pairwise(lambdas)]
        sampler(MixtureTarget(), x, levels, Identity(), None, lambda i, sigma, x, states=states: states.append(x))
        errors.append((states[-3] - flow(MixtureTarget(), x, 4.0, levels[-3].below)).abs().mean().item())
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([3, 3], abs=0.5)


def test_the_window_of_tau_holds_its_ends():
    for _, end in SASolver(5).levels(VE)[:-1]:
        noise, sampler = Impulses(2), SASolver(5, tau_from=end, tau_to=end)
        sampler(GaussianTarget(natural_power(SIZE)), noise.normal(), sampler.levels(VE), Identity(), noise)
        assert noise.draws == 2, "the start, and the step that ends at this level"


@pytest.mark.parametrize("sampler", [lambda T: ERSDE(T, order=2), lambda T: SASolver(T, predictor_order=2, corrector_order=0)])
def test_the_variance_of_a_gaussian_converges_with_order_2(sampler):
    power = natural_power(SIZE) / 4
    found = [exact_moments(sampler(T), VE, power, 0.0, draws=T)[1] for T in (32, 64, 128)]
    changes = [(a - b).abs().max().item() for a, b in itertools.pairwise(found)]
    assert math.log2(changes[0] / changes[1]) == pytest.approx(2, abs=0.4)


MANY = [ERSDE(80, order=2), ERSDE(80, scale="ode"), SASolver(80), SASolver(80, tau=0.0), Restart(140, steps=30)]


@pytest.mark.parametrize("sampler", MANY, ids=lambda sampler: f"{sampler.title} {sampler.detail}")
@pytest.mark.parametrize(
    "process",
    [VarianceExploding(0.01, 50.0, 100), VariancePreserving(0.1, 12.0, 100), SubVariancePreserving(0.1, 12.0, 100)],
    ids=lambda process: process.title,
)
def test_many_steps_reach_the_data_of_every_process(process, sampler):
    power = natural_power(SIZE) / 4
    draws = 1 + (sampler.restarts if isinstance(sampler, Restart) else 79 * sampler.stochastic)
    mean, variance = exact_moments(sampler, process, power, 0.4, draws=draws)
    torch.testing.assert_close(variance, power, rtol=0.05, atol=0)
    assert mean == pytest.approx(0.4, abs=0.02)


def test_restart_without_restarts_is_edm():
    x, EDM_, plain = torch.randn(3, 1, 1, 2, dtype=torch.float64), EDM(7, S_churn=0.0), Restart(7, restarts=0)
    assert torch.equal(
        plain(MixtureTarget(), 4 * x, plain.levels(VE), Identity(), None),
        EDM_(MixtureTarget(), 4 * x, EDM_.levels(VE), Identity(), None),
    )


@pytest.mark.parametrize("largest", [50.0, 80.0, 90.0, 140.0])
def test_a_restart_may_go_to_the_largest_level(largest):
    """The first level of the ladder is exp(log(largest)), which is often less."""
    levels = Restart(9, restarts=1, low=1.0, high=largest).levels(VarianceExploding(0.01, largest, 100))
    assert sum(level.sigma == pytest.approx(largest) for level in levels) == 2


def test_what_is_refused():
    for options, says in (
        ({"low": 0.5}, "low must be below high, got 0.5 and 0.3"),
        ({"iterations": 5}, "iterations must be at least 6, two more than those of the restarts"),
    ):
        with pytest.raises(OptionError, match=says):
            Restart(**{"iterations": 20, **options})
    with pytest.raises(OptionError, match="high must be at most 4, the largest noise level of the model, got 9"):
        Restart(20, high=9.0).levels(VE)
    with pytest.raises(OptionError, match="tau_from must be at most tau_to, got 2 and 1"):
        SASolver(5, tau_from=2.0, tau_to=1.0)
