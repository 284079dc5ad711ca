"""Frequency filters R and space filters A. The preconditioner divides by them.

A frequency filter is (C, H, W) in the layout of `torch.fft.fft2`: DC at index [0, 0]. A space filter is (C, H, W) in
pixels. Both are positive, and 1 leaves the sampler as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from pds.data.statistics import DatasetStatistics
from pds.errors import OptionError, PDSError
from pds.options import Count, Range, Search, checked, fitted, options

ImageShape = tuple[int, int, int]
LazyStatistics = Callable[[], DatasetStatistics]
"""Called only by filters that need the statistics of a data set."""


class Filter(Protocol):
    """A way to make R and A; None stands for 1."""

    @property
    def title(self) -> str:
        """Its name in tables; empty for none."""
        ...

    def frequency(self, shape: ImageShape, statistics: LazyStatistics) -> Tensor | None:
        """R: (C, H, W) float32, positive and even, DC at [0, 0]; None for 1."""
        ...

    def space(self, shape: ImageShape, statistics: LazyStatistics) -> Tensor | None:
        """A: (C, H, W) float32, positive, in pixels; None for 1."""
        ...


@dataclass(frozen=True)
class NoFilter:
    """R = A = 1: the vanilla sampler."""

    title = ""

    def frequency(self, shape: ImageShape, statistics: LazyStatistics) -> None:
        return None

    def space(self, shape: ImageShape, statistics: LazyStatistics) -> None:
        return None


@options
class ParametricFilter:
    """The (r, lambda) filter: 1 in one part of the frequency plane, lambda in the rest ([IJCV] Eq. 28).

    The paper draws a disc of radius sqrt(2) r around the index (0.5 H, 0.5 W), 1 inside and lambda outside. It does not say
    whether that index is DC or the highest frequency. `region` names the three readings by where lambda acts.

    Attributes:
        r: the radius is sqrt(2) r H; at 0.5 the disc reaches the corners of a square plane.
        lam: lambda. P divides by it: below 1 the coordinates where it acts move faster, above 1 slower.
        region: "outside_low": the disc is around DC (as printed, spectrum shifted). "outside_high": the disc is around the
            highest frequency (as printed, FFT layout). "inside_high": lambda acts inside that disc, as the text on Fig. 7
            describes it.
    """

    r: Annotated[float, Range(above=0, high=0.5)] = 0.2
    lam: Annotated[float, Range(0.001, 1000)] = 1.6
    region: Literal["outside_low", "outside_high", "inside_high"] = "outside_low"

    @property
    def title(self) -> str:
        return f"PDS r={self.r:g}H λ={self.lam:g} {self.region}"

    def frequency(self, shape: ImageShape, statistics: LazyStatistics | None = None) -> Tensor:
        h, w = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in shape[1:])
        if self.region != "outside_low":
            # The highest frequency stands at index (0.5 H, 0.5 W) of the FFT's own layout.
            h, w = shape[1] / 2 - h.abs(), shape[2] / 2 - w.abs()
        inside = h[:, None] ** 2 + w[None, :] ** 2 <= 2 * (self.r * shape[1]) ** 2
        acts = inside if self.region == "inside_high" else ~inside
        return torch.where(acts, self.lam, 1.0).float().expand(shape).clone()

    def space(self, shape: ImageShape, statistics: LazyStatistics) -> None:
        return None


Alpha = Annotated[float, Range(1, 1e6)]
Pixels = Literal["none", "released", "paper"]


@options
class StatisticsFilter:
    """Filters from 200 training images in [0, 1].

    R = (R_hat / max R_hat + alpha - 1) / alpha with R_hat = log(1 + E|F x|^2) ([ECCV] Eqs. 26-27). The maximum is over all
    channels and frequencies. R tends to 1 (vanilla) as alpha grows.

    Attributes:
        alpha: normalisation, the smaller the stronger. 1 leaves the zeros of the spectrum in R, and a filter with zeros is
            refused.
        pixels: the space filter. "none": A = 1. "released": the authors' code, E[x^2] normalised with alpha like R. "paper":
            A = log(E[x] + 1) / max ([ECCV] Eqs. 24-25), without alpha; it has no inverse where the mean image is 0.
    """

    alpha: Alpha = 5.0
    pixels: Pixels = "none"

    @property
    def title(self) -> str:
        return f"PDS α={self.alpha:g}" + (f" space={self.pixels}" if self.pixels != "none" else "")

    def frequency(self, shape: ImageShape, statistics: LazyStatistics) -> Tensor:
        return self._normalised(torch.log1p(statistics().power.double()))

    def space(self, shape: ImageShape, statistics: LazyStatistics) -> Tensor | None:
        if self.pixels == "none":
            return None
        if self.pixels == "released":
            return self._normalised(statistics().second_moment.double())
        mask = torch.log1p(statistics().mean.double())
        if mask.min() <= 0:
            raise OptionError(
                "pixels",
                f"must be released or none: the papers' space filter log(E[x] + 1) is 0 at {int((mask <= 0).sum())} pixels of "
                f"{statistics().name} and has no inverse there",
            )
        return (mask / mask.max()).float()

    def _normalised(self, mask: Tensor) -> Tensor:
        if not mask.max() > 0:
            raise PDSError("a statistics filter needs images that are not all black: give the statistics of other images")
        result = (mask / mask.max() + self.alpha - 1) / self.alpha
        if result.min() <= 0:
            raise OptionError("alpha", f"must be above 1: {self.alpha:g} leaves zeros in the filter, which then has no inverse")
        return result.float()


@checked
def statistics_filter(
    alpha: Annotated[Alpha | Literal["auto"], Search(1.3, 20, log=True)] = 5.0,
    pixels: Pixels = "none",
    *,
    iterations: Count,
    reference: Mapping[str, Any],
) -> StatisticsFilter:
    """A `StatisticsFilter` whose alpha may be "auto": alpha_ref T / T_ref, the relation alpha ~ T of [IJCV].

    With few steps a sampler leaves a relative excess of about 2 ln(sigma_max/sigma_min) / T of high-frequency variance at every
    level. The filter cancels it with 1/R^2 - 1, which falls as 1/alpha.

    Args:
        alpha: a number, the smaller the stronger (R tends to 1 as it grows), or "auto". Where none was published, the command
            line takes the first guess for the network in its place (`pds.evaluation.first_guess`).
        pixels: the space filter A: none, released (the authors' code) or paper ([ECCV] Eqs. 24-25).
        iterations: T, which auto follows.
        reference: "alpha", a good value at "iterations" iterations; both null if none is known.

    Raises:
        OptionError: "auto" without a reference, or with so few iterations that alpha would not be above 1.
    """
    if alpha != "auto":
        return StatisticsFilter(alpha, pixels)
    if reference.get("alpha") is None or reference.get("iterations") is None:
        raise OptionError(
            "alpha",
            "must be a number: auto scales an alpha that is known to be good, and none was published for this model and data "
            "set; or give reference.alpha and reference.iterations",
        )
    known, at = (
        fitted("reference.alpha", reference["alpha"], Alpha),
        fitted("reference.iterations", reference["iterations"], Count),
    )
    scaled = known * iterations / at
    if scaled <= 1:
        raise OptionError(
            "alpha",
            f"must be a number: auto gives {scaled:.3g} at {iterations} iterations, not above 1; more than {at / known:.0f} "
            "iterations take auto",
        )
    return StatisticsFilter(scaled, pixels)
