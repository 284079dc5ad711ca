"""The noise levels of a sampler of T iterations that is free to choose them: sigma = sqrt(1 / abar - 1) of a VP state."""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import torch
from torch import Tensor

from pds.errors import OptionError
from pds.options import Range, options
from pds.processes.forward import Process, Time, integration_times, noise_range


class Schedule(Protocol):
    """A way to choose noise levels."""

    @property
    def detail(self) -> str:
        """Its name in tables."""
        ...

    def sigmas(self, process: Process, count: int) -> Tensor:
        """(count,) float64 noise levels, descending, within those of the process."""
        ...


@options
class ProcessTimes:
    """The levels of the process at uniform times, from 1 to `end`.

    Attributes:
        end: last time; None for the published 1e-5 N / count (VE), 1e-3 N / count (VP).
    """

    end: Time | None = None

    @property
    def detail(self) -> str:
        return "uniform times" + ("" if self.end is None else f" to {self.end:g}")

    def sigmas(self, process: Process, count: int) -> Tensor:
        return process.sigma(integration_times(process, count, self.end))


@options
class LearningRates:
    """1 - alpha_1 = beta_1 = T^-c0, 1 - alpha_t = r min(beta_1 (1 + r)^t, 1) with r = c1 log T / T < 1, t = 2..T ([LI]).

    The noise variance first grows by the factor 1 + r a level. Once it is of order 1, abar falls by the factor 1 - r a level.
    So abar_T is about T^(c0 - c1) / e. [LI] takes c0 and c1 as large as the proofs need. A network knows a range of noise only.
    This range allows c0 <= log(1 + sigma_min^-2) / log T, and c1 - c0 up to about (2 log sigma_max - 1) / log T. For the
    published VP process and T = 50 the bounds are c0 <= 2.330 and, with that c0, c1 <= 4.492. At T = 1000 they are 1.319 and
    2.625.

    Attributes:
        c0: sets the smallest level. None takes the largest c0 that the ladder of the process allows; it ends at the smallest
            level of the process.
        c1: sets the largest level. None takes the largest c1 that the ladder of the process allows; it begins at the largest
            level of the process.
    """

    c0: Annotated[float, Range(0.001, 1000)] | None = None
    c1: Annotated[float, Range(0.001, 1000)] | None = None

    @property
    def detail(self) -> str:
        given = (f"{symbol}={value:g}" for symbol, value in (("c₀", self.c0), ("c₁", self.c1)) if value is not None)
        return ", ".join(["learning rates", *given])

    def sigmas(self, process: Process, count: int) -> Tensor:
        if count < 2:
            raise OptionError("iterations", f"must be at least 2 for learning rates, got {count}")
        smallest, largest = noise_range(process)
        log_T, limit = math.log(count), math.log1p(smallest**-2) / math.log(count)
        c0, least = limit if self.c0 is None else self.c0, math.log1p(largest**-2) / log_T
        if c0 < least:
            raise OptionError(
                "c0",
                f"must be from {-_rounded_down(-least):g} to {_rounded_down(limit):g} at T = {count}, for the noise levels of "
                f"the model, {largest:.4g} to {smallest:.4g}, got {c0:g}",
            )
        r = _rate(count**-c0, largest, count) if self.c1 is None else self.c1 * log_T / count
        if r >= 1:
            raise OptionError(
                "iterations",
                f"must be above {count} with these learning rates: c1 log T / T must be below 1; use more, or smaller "
                "c0 and c1, or the times of the process",
            )
        sigmas = _sigmas(count**-c0, r, count)
        # With the largest possible c0 or c1, the end is that of the model up to rounding.
        if not smallest * (1 - 1e-6) <= sigmas[-1] <= sigmas[0] <= largest * (1 + 1e-6):
            c0 = min(c0, _rounded_down(limit))
            c1 = _rounded_down(_rate(count**-c0, largest, count) * count / log_T)
            raise OptionError(
                "c0" if sigmas[-1] < smallest * (1 - 1e-6) else "c1",
                f"gives noise levels from {sigmas[0]:.4g} to {sigmas[-1]:.4g}, outside those of the model, {largest:.4g} to "
                f"{smallest:.4g}: at T = {count} use c0 up to {_rounded_down(limit):g}, and with c0 = {c0:g} c1 up to {c1:g}",
            )
        return sigmas


def _rounded_down(value: float) -> float:
    """Rounded down to three decimals, so that a printed limit is a valid value."""
    return math.floor(1000 * value) / 1000


def _sigmas(beta_1: float, r: float, count: int) -> Tensor:
    """(count,) sigma_T, ..., sigma_1."""
    t = torch.arange(2, count + 1, dtype=torch.float64)
    rates = torch.cat([torch.tensor([beta_1], dtype=torch.float64), r * (beta_1 * (1 + r) ** t).clamp(max=1)])
    return (-(-rates).log1p()).cumsum(0).expm1().sqrt().flip(0)


def _rate(beta_1: float, largest: float, count: int) -> float:
    """The largest r in (0, 1] with sigma_T <= `largest`."""
    low, high = 0.0, 1.0
    if _sigmas(beta_1, high, count)[0] <= largest:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmas(beta_1, middle, count)[0] <= largest else (low, middle)
    return low
