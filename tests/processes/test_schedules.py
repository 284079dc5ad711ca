"""Noise levels by the learning rates of [LI], written out, and within the levels of a network."""

import math

import pytest
import torch

from pds.errors import PDSError
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.processes.schedules import LearningRates, ProcessTimes

PROCESSES = [VarianceExploding(0.01, 50.0, 1000), VariancePreserving(), SubVariancePreserving()]


def test_learning_rates_are_the_printed_ones():
    T, c0, c1, abar, expected = 60, 2.0, 4.0, 1.0, []
    for t in range(1, T + 1):
        beta = T**-c0 if t == 1 else c1 * math.log(T) / T * min(T**-c0 * (1 + c1 * math.log(T) / T) ** t, 1)
        abar *= 1 - beta
        expected.insert(0, math.sqrt(1 / abar - 1))
    sigmas = LearningRates(c0, c1).sigmas(VariancePreserving(), T)
    torch.testing.assert_close(sigmas, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.title)
def test_without_constants_they_span_the_ladder_of_the_process(process):
    for T in (40, 1000):
        sigmas = LearningRates().sigmas(process, T)
        assert len(sigmas) == T and (sigmas.diff() < 0).all()
        torch.testing.assert_close(sigmas[[0, -1]], process.ladder[[0, -1]], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("T", "c0", "c1"), [(50, 2.33, 4.492), (1000, 1.319, 2.625)])
def test_the_largest_constants_are_those_that_the_documentation_names(T, c0, c1):
    process = VariancePreserving()
    LearningRates(c0, c1).sigmas(process, T)
    for wider in (LearningRates(c0 + 0.001, c1), LearningRates(c0, c1 + 0.002)):
        says = rf"outside those of the model, 152.2 to 0.01049: at T = {T} use .*c0 up to {c0}, .*c1 up to {c1}$"
        with pytest.raises(PDSError, match=says) as error:
            wider.sigmas(process, T)
        assert "\n" not in str(error.value)
    # The rule of thumb there, abar_T = T^(c0 - c1) / e.
    sigma = LearningRates(1.2, 2.0).sigmas(process, 1000)[0].item()
    assert 1 / (1 + sigma**2) == pytest.approx(1000**-0.8 / math.e, rel=0.1)


def test_uniform_times_are_those_of_the_process():
    process = VariancePreserving()
    torch.testing.assert_close(
        process.time(ProcessTimes().sigmas(process, 50)), torch.linspace(1, 0.02, 50, dtype=torch.float64)
    )
    times = process.time(ProcessTimes(0.001).sigmas(process, 50))
    torch.testing.assert_close(times, torch.linspace(1, 0.001, 50, dtype=torch.float64))


def test_impossible_schedules_are_refused():
    process = VariancePreserving()
    for schedule, T in ((LearningRates(), 10), (LearningRates(c1=20.0), 50), (LearningRates(c0=9.0), 50)):
        with pytest.raises(PDSError, match=rf"iterations must be above {T} .* must be below 1; use more, or smaller c0 and c1"):
            schedule.sigmas(process, T)
    # The smallest level alone is above the largest of the model, whatever c1 is.
    narrow = VarianceExploding(0.3, 2.0, 10)
    with pytest.raises(PDSError, match=r"c0 must be from 0\.058 to 0\.637 at T = 50, .* got 0\.01$"):
        LearningRates(0.01).sigmas(narrow, 50)
    for c0 in (0.058, 0.637):
        LearningRates(c0).sigmas(narrow, 50)
    with pytest.raises(PDSError, match="iterations must be at least 2"):
        LearningRates().sigmas(process, 1)
