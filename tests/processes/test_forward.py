"""Forward processes against the published schedules, and against themselves: marginals follow from the rates."""

import pytest
import torch
from conftest import Golden

from pds.errors import OptionError
from pds.processes.forward import (
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    integration_times,
)

PROCESSES = [VarianceExploding(0.01, 50.0, 1000), VariancePreserving(), SubVariancePreserving()]
VE_FILES = ["ve_bedroom", "ve_church", "ve_cifar10", "ve_ffhq1024", "ve_ffhq256"]


@pytest.mark.parametrize("case", [*VE_FILES, "vp"])
def test_published_schedules(case):
    golden = Golden(f"schedule/{case}")
    meta = golden.json("meta")
    if case == "vp":
        process = VariancePreserving(meta["beta_min"], meta["beta_max"], meta["num_scales"])
    else:
        process = VarianceExploding(meta["sigma_min"], meta["sigma_max"], meta["num_scales"])
    for speed_up in meta["speed_ups"]:
        expected = golden.under(f"speedup_{speed_up}/")
        count = int(expected["N"])
        assert count == int(meta["num_scales"] / speed_up)
        assert process.end(speed_up) == pytest.approx(float(expected["eps"]))
        t = integration_times(process, count, process.end(speed_up))
        # The published code finds its step as floor(t (N - 1)): one level down an iteration.
        assert torch.equal(expected["timestep_index"].long(), torch.arange(count - 1, -1, -1))
        f, variance = process.steps(t)
        measured = {"t": t, "G": variance.sqrt()}
        if case == "vp":
            measured |= {"marginal_std_of_t": process.scale(t) * process.sigma(t), "discrete_betas": variance.flip(0)}
            assert torch.allclose(f, (1 - variance).sqrt() - 1)
        else:
            sigmas = (variance.flip(0).cumsum(0)).sqrt()
            measured |= {"sigma_of_t": process.sigma(t), "discrete_sigmas": sigmas}
            assert not f.any()
        for key, value in measured.items():
            # The published code takes differences in float32: of neighbouring squares, of 1 and m^2.
            rtol = 2e-4 if key in ("G", "marginal_std_of_t") else 1e-5
            torch.testing.assert_close(value, expected[key].double(), rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.title)
def test_time_and_sigma_are_inverse(process):
    t = torch.logspace(-6, 0, 50, dtype=torch.float64)
    sigma = process.sigma(t)
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(process.time(sigma), t, rtol=1e-6, atol=1e-12)
    assert len(process.ladder) == process.levels
    assert (process.ladder.diff() < 0).all()


@pytest.mark.parametrize("kind", [VarianceExploding, VariancePreserving, SubVariancePreserving])
def test_one_noise_level_is_no_process(kind):
    with pytest.raises(OptionError, match=r"^levels must be a whole number from 2 to 1000000, got 1"):
        kind(levels=1)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.title)
def test_marginals_solve_the_equation_of_their_rates(process):
    # dm/dt = f m and d(std^2)/dt = 2 f std^2 + g^2.
    t, h = torch.linspace(0.01, 0.99, 40, dtype=torch.float64), 1e-5
    f, g2 = process.rates(t)

    def variance(t):
        return (process.scale(t) * process.sigma(t)) ** 2

    torch.testing.assert_close((process.scale(t + h) - process.scale(t - h)) / (2 * h), f * process.scale(t))
    # VE as published has sigma(0) = sigma_min > 0 and no other start.
    torch.testing.assert_close((variance(t + h) - variance(t - h)) / (2 * h), 2 * f * variance(t) + g2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.title)
def test_fine_steps_are_the_rates(process):
    t = integration_times(process, 20_000)
    for fine, rate in zip(process.steps(t), process.rates(t), strict=True):
        torch.testing.assert_close(fine[1000:-1000] * len(t), rate[1000:-1000], rtol=2e-3, atol=1e-9)


def test_impossible_processes_are_refused():
    with pytest.raises(OptionError, match=r"sigma_min must be below sigma_max, got 1 and 0\.1"):
        VarianceExploding(1.0, 0.1, 10)
    with pytest.raises(OptionError, match="beta_min must be at most beta_max, got 2 and 1"):
        SubVariancePreserving(2.0, 1.0)
