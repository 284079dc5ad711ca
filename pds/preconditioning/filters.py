"""Frequency filters R and space filters A: what the preconditioner multiplies by, before inversion.

A frequency filter is (C, H, W) in the layout of `torch.fft.fft2`: DC at index [0, 0]. A space filter is (C, H, W) in
pixels. Both are positive, and 1 leaves the sampler as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError

Shape = tuple[int, int, int]
LazyStatistics = Callable[[], DatasetStatistics]
"""Called only by filters that need the statistics of a data set."""


class Filter(Protocol):
    """A way to make R and A; None stands for 1."""

    @property
    def title(self) -> str:
        """What tables call it; empty for none."""
        ...

    def frequency(self, shape: Shape, statistics: LazyStatistics) -> Tensor | None: ...

    def space(self, shape: Shape, statistics: LazyStatistics) -> Tensor | None: ...


@dataclass(frozen=True)
class NoFilter:
    """R = A = 1: the vanilla sampler."""

    title = ""

    def frequency(self, shape: Shape, statistics: LazyStatistics) -> None:
        return None

    def space(self, shape: Shape, statistics: LazyStatistics) -> None:
        return None


@dataclass(frozen=True)
class ParametricFilter:
    """The (r, lambda) filter: 1 in one part of the frequency plane, lambda in the rest ([IJCV] Eq. 28).

    The paper draws a disc of radius sqrt(2) r around the index (0.5 H, 0.5 W), 1 inside and lambda outside, and does not
    say whether that index is DC or the highest frequency; `region` names the three readings by where lambda acts.

    Attributes:
        r: radius in units of H, in (0, 0.5]; at 0.5 the disc reaches the corners of a square plane.
        lam: lambda > 0. P divides by it: below 1 the coordinates where it acts move faster, above 1 slower.
        region: "outside_low" (the disc is around DC; as printed, spectrum shifted), "outside_high" (the disc is around the
            highest frequency; as printed, FFT layout) or "inside_high" (lambda inside that disc, as the text on Fig. 7
            describes it).
    """

    r: float
    lam: float
    region: Literal["outside_low", "outside_high", "inside_high"] = "outside_low"

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise PDSError(f"filter.region must be one of {', '.join(REGIONS)}, got {self.region!r}")
        if not 0 < self.r <= 0.5:
            raise PDSError(f"filter.r must be in (0, 0.5], in units of the image height, got {self.r}")
        if not (self.lam > 0 and math.isfinite(self.lam)):
            raise PDSError(f"filter.lam must be positive and finite, got {self.lam}")

    @property
    def title(self) -> str:
        return f"PDS r={self.r:g}H λ={self.lam:g} {self.region}"

    def frequency(self, shape: Shape, statistics: LazyStatistics | None = None) -> Tensor:
        h, w = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in shape[1:])
        if self.region != "outside_low":
            # The highest frequency stands at index (0.5 H, 0.5 W) of the FFT's own layout.
            h, w = shape[1] / 2 - h.abs(), shape[2] / 2 - w.abs()
        inside = h[:, None] ** 2 + w[None, :] ** 2 <= 2 * (self.r * shape[1]) ** 2
        acts = inside if self.region == "inside_high" else ~inside
        return torch.where(acts, self.lam, 1.0).float().expand(shape).clone()

    def space(self, shape: Shape, statistics: LazyStatistics) -> None:
        return None


REGIONS = ("outside_low", "outside_high", "inside_high")


@dataclass(frozen=True)
class StatisticsFilter:
    """Filters from 200 training images in [0, 1].

    R = (R_hat / max R_hat + alpha - 1) / alpha with R_hat = log(1 + E|F x|^2) ([ECCV] Eqs. 26-27), the maximum over all
    channels and frequencies; R tends to 1 (vanilla) as alpha grows.

    Attributes:
        alpha: normalisation, >= 1.
        pixels: the space filter: "none"; "released", that of the authors' code, E[x^2] normalised with alpha like R; or
            "paper", A = log(E[x] + 1) / max ([ECCV] Eqs. 24-25), which has no alpha, and no inverse where the mean image is 0.
    """

    alpha: float
    pixels: Literal["none", "released", "paper"] = "none"

    def __post_init__(self) -> None:
        if not (self.alpha >= 1 and math.isfinite(self.alpha)):
            raise PDSError(f"filter.alpha must be at least 1 and finite, got {self.alpha}")
        if self.pixels not in PIXELS:
            raise PDSError(f"filter.pixels must be one of {', '.join(PIXELS)}, got {self.pixels!r}")

    @property
    def title(self) -> str:
        return f"PDS α={self.alpha:g}" + (f" space={self.pixels}" if self.pixels != "none" else "")

    def frequency(self, shape: Shape, statistics: LazyStatistics) -> Tensor:
        return self._normalised(torch.log1p(statistics().power.double()))

    def space(self, shape: Shape, statistics: LazyStatistics) -> Tensor | None:
        if self.pixels == "none":
            return None
        if self.pixels == "released":
            return self._normalised(statistics().second_moment.double())
        mask = torch.log1p(statistics().mean.double())
        if mask.min() <= 0:
            raise PDSError(
                f"the papers' space filter log(E[x] + 1) is 0 at {int((mask <= 0).sum())} pixels of {statistics().name} and "
                "has no inverse there: use filter.pixels=released or none"
            )
        return (mask / mask.max()).float()

    def _normalised(self, mask: Tensor) -> Tensor:
        result = (mask / mask.max() + self.alpha - 1) / self.alpha
        if result.min() <= 0:
            raise PDSError("filter.alpha=1 leaves zeros in the filter, which then has no inverse: use a value above 1")
        return result.float()


PIXELS = ("none", "released", "paper")


def statistics_filter(
    alpha: float | str,
    pixels: Literal["none", "released", "paper"],
    iterations: int,
    reference: Mapping[str, float | None],
) -> StatisticsFilter:
    """A `StatisticsFilter` whose alpha may be "auto": alpha_ref T / T_ref, the relation alpha ~ T of [IJCV].

    With few steps a sampler leaves a relative excess of about 2 ln(sigma_max/sigma_min) / T of high-frequency variance at
    every level, and the filter cancels it with 1/R^2 - 1, which falls as 1/alpha.

    Args:
        alpha: a number, see `StatisticsFilter`, or "auto".
        pixels: see `StatisticsFilter`.
        iterations: T.
        reference: "alpha" that is known to be good at "iterations"; None where none is.

    Raises:
        PDSError: "auto" without a reference, or with so few iterations that alpha would not be above 1.
    """
    if alpha != "auto":
        if not isinstance(alpha, (int, float)):
            raise PDSError(f"filter.alpha must be a number of at least 1 or auto, got {alpha!r}")
        return StatisticsFilter(float(alpha), pixels)
    if not (reference["alpha"] and reference["iterations"]):
        raise PDSError(
            "filter.alpha=auto scales an alpha that is known to be good, and none was published for this model and data set: "
            "set filter.reference.alpha and filter.reference.iterations, or filter.alpha to a number"
        )
    scaled = reference["alpha"] * iterations / reference["iterations"]
    if scaled <= 1:
        raise PDSError(
            f"filter.alpha=auto gives {scaled:.3g} at sampler.iterations={iterations}, and must be above 1: take more than "
            f"{reference['iterations'] / reference['alpha']:.0f} iterations, or set filter.alpha to a number"
        )
    return StatisticsFilter(scaled, pixels)
