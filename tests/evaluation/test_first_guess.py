"""The first guess: the exact recursion for an exact response, and more noise for a network that does not see it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import pds
from pds.data.statistics import DatasetStatistics
from pds.evaluation.excess_noise import FACTORS, NoiseResponse
from pds.evaluation.first_guess import Look, best_eta, guess, guess_alpha, look_at
from pds.models.wrap import wrap

SIZE = 8
PROCESS = pds.VarianceExploding(0.01, 16, 1000)


def look(response):
    k = torch.fft.fftfreq(SIZE, 1 / SIZE)
    power = SIZE**2 * 0.5 / (1 + k[:, None] ** 2 + k[None, :] ** 2)
    zero = torch.zeros(1, SIZE, SIZE)
    statistics = DatasetStatistics("its own images", power[None], zero, zero)
    levels = (0.01, 0.4, 16.0)
    return Look(NoiseResponse(levels, FACTORS, tuple(tuple(map(response, FACTORS)) for _ in levels)), statistics, 0)


SEES, BLIND = look(lambda k: k), look(lambda k: 1.0)


@pytest.fixture(scope="module")
def model():
    return wrap(lambda x, sigma: x, predicts="data", process=PROCESS, shape=(1, SIZE, SIZE), data_range=(0, 1))


def test_an_exact_response_gives_the_exact_recursion(model):
    sampler = pds.PreconditionedSDE(12, 7.0, eta=1.5)
    levels, power = sampler.levels(PROCESS), torch.logspace(-4, 1, 9, dtype=torch.float64)
    exact = sampler.variance(levels, power)
    assert torch.allclose(sampler.variance(levels, power, share=lambda sigma, k: torch.ones_like(k)), exact)
    # Without noise drawn anew an exact score forgets what the prior had too much, and a blind one keeps it to the end.
    ode = replace(sampler, eta=0.0)
    exact, seen = (ode.variance(levels, power, initial=start) for start in (1.0, 1.1))
    assert (seen / exact)[0] < 1.5
    assert ode.variance(levels, power, share=lambda sigma, k: 1 / k, initial=1.1)[0] == pytest.approx(1.6**2, rel=0.1)


def test_a_network_that_is_blind_to_excess_noise_needs_more_of_it_drawn_anew(model):
    ode = pds.PreconditionedSDE(20, 7.0)
    seen, blind = (best_eta(ode, model, known, (0.0, 0.5, 1.0, 2.0)) for known in (SEES, BLIND))
    assert blind.sampler.eta > seen.sampler.eta
    assert guess(model, SEES, 20).predicted <= best_eta(replace(ode, rho=10.0), model, SEES, (1.0,)).predicted
    levels = pds.PredictorCorrector(30, corrector=None).levels(PROCESS)
    assert guess_alpha(model, SEES, levels) == math.inf
    assert 1 < guess_alpha(model, BLIND, levels) < 20


def test_the_prediction_for_a_filter_is_the_recursion_with_its_gain(model):
    sampler, R = pds.PreconditionedSDE(12, 7.0), pds.StatisticsFilter(3.0).frequency((1, SIZE, SIZE), lambda: SEES.statistics)
    found = best_eta(sampler, model, SEES, (1.5,), (3.0,))
    assert (found.sampler.eta, found.alpha) == (1.5, 3.0)
    levels, power = sampler.levels(PROCESS), SEES.statistics.power.double() / SIZE**2
    exact, expected = power**2 / (power + levels[-1].sigma ** 2), 0.0
    for start in (1 - (2 * SIZE**2) ** -0.5, 1 + (2 * SIZE**2) ** -0.5):  # the spread of the norm of the prior
        left = replace(sampler, eta=1.5).variance(levels, power, 1 / R.double() ** 2, initial=start)
        expected += (left.sqrt() - exact.sqrt()).square().sum().item() / 2
    assert found.predicted == pytest.approx(expected, rel=1e-3)


def test_a_response_is_measured_on_the_networks_own_images_at_the_cost_of_64():
    asked = []

    def network(x, sigma):
        asked.append(len(x))
        return x / (1 + sigma[:, None, None, None] ** 2)

    model = wrap(network, predicts="data", process=PROCESS, shape=(1, SIZE, SIZE), data_range=(0, 1))
    asked.clear()
    found = look_at(model, 10)
    assert found.evaluations == sum(asked) <= 640
    at_16 = [found.response(16.0, k) for k in FACTORS]
    assert at_16 == pytest.approx(FACTORS, rel=0.02)  # exact for a Gaussian of variance 1
    with pytest.raises(pds.PDSError, match="at least 2 iterations"):
        look_at(model, 1)


def test_a_walk_starts_where_the_network_is_worse_than_the_linear_guess_and_ends_where_little_is_lost():
    def two_images(x, sigma):
        """Exact for images that are 0.2 or 0.8 everywhere; above a noise level of 3 it removes little noise."""
        s = sigma.double()[:, None, None, None]
        odds = (0.6 * (x.double() - 0.5).sum((1, 2, 3), keepdim=True) / s**2).sigmoid()
        return torch.where(s > 3, 0.9 * x, 0.2 + 0.6 * odds).to(x.dtype)

    found = {}
    for white in (1, 2):  # the same network in another unit
        process = pds.VarianceExploding(0.01 * white, 16 * white, 1000)
        network = wrap(
            lambda x, sigma, white=white: white * two_images(x / white, sigma / white),
            **{"predicts": "data", "process": process, "shape": (1, SIZE, SIZE), "data_range": (0, white)},
        )
        found[white] = look_at(network, 10)
        best = guess(network, found[white], 10).sampler
        assert (best.start, best.end) == (found[white].start, found[white].end)
        assert guess(network, replace(found[white], start=math.inf), 10).sampler.start == math.inf
    # The levels asked are 2.5 and 16 there, and below 0.4 next to nothing of the images is lost.
    assert 2 * 2.5 < found[1].start < 2 * 16
    assert 0.4 < found[1].end < 2.5
    assert found[2].start == pytest.approx(2 * found[1].start, rel=1e-2)
    assert found[2].end == pytest.approx(2 * found[1].end, rel=1e-2)


def test_levels_that_show_no_noise_say_nothing_of_an_exact_network():
    """At the smallest level an exact network takes next to nothing for noise, and few images may show less than none."""
    process = pds.VarianceExploding(0.002, 80, 1000)
    network = wrap(
        lambda x, sigma: x / (1 + sigma[:, None, None, None] ** 2),
        predicts="data",
        process=process,
        shape=(1, SIZE, SIZE),
        data_range=(-1, 1),
    )
    for T, seed in itertools.product((3, 5), range(6)):
        response = look_at(network, T, seed).response
        assert response.values[0][FACTORS.index(1.0)] < 0.1
        assert response(0.002, 2.0) == pytest.approx(2, abs=0.25)


def test_a_network_that_predicts_no_noise_is_refused():
    network = wrap(lambda x, sigma: x, predicts="data", process=PROCESS, shape=(1, SIZE, SIZE), data_range=(0, 1))
    with pytest.raises(pds.PDSError, match="there is none"):
        look_at(network, 10)
