"""Frequency filters R and space filters A: what the preconditioner multiplies by, before inversion.

A frequency filter is (C, H, W) in the layout of `torch.fft.fft2`: DC at index [0, 0]. A space filter is (C, H, W) in
pixels. Both are positive, and 1 leaves the sampler as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError

Region = Literal["outside_low", "outside_high", "inside_high"]


def _squared_distance(size: tuple[int, int], region: Region) -> Tensor:
    """(H, W) squared distance, in index units, of every frequency to the centre of the disc."""
    h, w = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in size)
    if region != "outside_low":
        # The highest frequency stands at index (0.5 H, 0.5 W) of the FFT's own layout.
        h, w = size[0] / 2 - h.abs(), size[1] / 2 - w.abs()
    return h[:, None] ** 2 + w[None, :] ** 2


def parametric_filter(shape: tuple[int, int, int], r: float, lam: float, region: Region = "outside_low") -> Tensor:
    """The (r, lambda) filter: 1 in one part of the frequency plane, lambda in the rest ([IJCV] Eq. 28).

    The paper draws a disc of radius sqrt(2) r around the index (0.5 H, 0.5 W), 1 inside and lambda outside, and does not
    say whether that index is DC or the highest frequency; `region` names the three readings by where lambda acts.

    Args:
        shape: (C, H, W).
        r: radius in units of H, in (0, 0.5]; at 0.5 the disc reaches the corners of a square plane.
        lam: lambda > 0. P divides by it: below 1 the coordinates where it acts move faster, above 1 slower.
        region: "outside_low" (the disc is around DC; as printed, spectrum shifted), "outside_high" (the disc is around the
            highest frequency; as printed, FFT layout) or "inside_high" (lambda inside that disc, as the text on Fig. 7
            describes it).

    Returns:
        (C, H, W) float32, DC at [0, 0].
    """
    if region not in Region.__args__:
        raise PDSError(f"filter.region must be one of {', '.join(Region.__args__)}, got {region!r}")
    if not 0 < r <= 0.5:
        raise PDSError(f"filter.r must be in (0, 0.5], in units of the image height, got {r}")
    if not (lam > 0 and math.isfinite(lam)):
        raise PDSError(f"filter.lam must be positive and finite, got {lam}")
    inside = _squared_distance(shape[1:], region) <= 2 * (r * shape[1]) ** 2
    acts = inside if region == "inside_high" else ~inside
    return torch.where(acts, lam, 1.0).float().expand(shape).clone()


def _normalised(mask: Tensor, alpha: float, name: str) -> Tensor:
    """(mask / max + alpha - 1) / alpha ([ECCV] Eq. 27), the maximum over all channels and places."""
    if not (alpha >= 1 and math.isfinite(alpha)):
        raise PDSError(f"filter.alpha must be at least 1 and finite, got {alpha}")
    result = (mask.double() / mask.max() + alpha - 1) / alpha
    if result.min() <= 0:
        raise PDSError(f"filter.alpha=1 leaves zeros in the {name} filter: use a value above 1")
    return result.float()


def statistics_filter(statistics: DatasetStatistics, alpha: float) -> Tensor:
    """The frequency filter of a data set: R = (R_hat / max R_hat + alpha - 1) / alpha, R_hat = log(1 + E|F x|^2)
    ([ECCV] Eqs. 26-27).

    Args:
        statistics: power spectrum of 200 training images in [0, 1].
        alpha: normalisation, at least 1; R tends to 1 (vanilla) as alpha grows.

    Returns:
        (C, H, W) float32 in (1 - 1/alpha, 1], DC at [0, 0].
    """
    return _normalised(torch.log1p(statistics.power.double()), alpha, "frequency")


def released_space_filter(statistics: DatasetStatistics, alpha: float) -> Tensor:
    """The space filter of the authors' released code: A_hat = E[x^2], normalised with alpha like R.

    Returns:
        (C, H, W) float32 in (0, 1].
    """
    return _normalised(statistics.second_moment, alpha, "space")


def paper_space_filter(statistics: DatasetStatistics, alpha: float) -> Tensor:
    """The space filter of the papers: A = log(E[x] + 1) / max ([ECCV] Eqs. 24-25); it has no alpha.

    Raises:
        PDSError: where the mean image is 0, as at the border of MNIST: the filter has no inverse there.
    """
    mask = torch.log1p(statistics.mean.double())
    if mask.min() <= 0:
        raise PDSError(
            f"the papers' space filter log(E[x] + 1) is 0 at {int((mask <= 0).sum())} pixels of {statistics.name}, so it has "
            "no inverse: use filter.space=released or none"
        )
    return (mask / mask.max()).float()


SPACE_FILTERS: dict[str, Callable[[DatasetStatistics, float], Tensor | None]] = {
    "none": lambda statistics, alpha: None,
    "released": released_space_filter,
    "paper": paper_space_filter,
}


def space_filter(statistics: DatasetStatistics, alpha: float, definition: str) -> Tensor | None:
    """The space filter of one of its two definitions, "paper" or "released", or None for "none"."""
    if definition not in SPACE_FILTERS:
        raise PDSError(f"filter.space must be one of {', '.join(SPACE_FILTERS)}, got {definition!r}")
    return SPACE_FILTERS[definition](statistics, alpha)
