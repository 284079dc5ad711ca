"""Discrete noise ladders: the sigma levels of the NCSN family and which of them a T-iteration sampler visits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pds.errors import PDSError


def geometric_ladder(sigma_begin: float, sigma_end: float, levels: int) -> Tensor:
    """Noise levels in geometric progression, both ends included ([NCSN] section 4.2).

    Args:
        sigma_begin: largest noise level, in units of the data range [0, 1].
        sigma_end: smallest noise level, below `sigma_begin`.
        levels: number of levels L, at least 1.

    Returns:
        (L,) float64, descending.
    """
    if not 0 < sigma_end <= sigma_begin:
        raise PDSError(
            f"noise levels must satisfy 0 < sigma_end <= sigma_begin, got sigma_begin={sigma_begin}, sigma_end={sigma_end}"
        )
    if levels < 1:
        raise PDSError(f"a noise ladder needs at least 1 level, got {levels}")
    return torch.linspace(math.log(sigma_begin), math.log(sigma_end), levels, dtype=torch.float64).exp()


def karras_levels(sigma_min: float, sigma_max: float, levels: int, rho: float) -> Tensor:
    """Noise levels evenly spaced in sigma^(1 / rho), both ends included (Karras et al., NeurIPS 2022, Eq. 5).

    Args:
        sigma_min, sigma_max: smallest and largest noise level, in units of the data range.
        levels: number of levels, at least 1; a single one is `sigma_max`.
        rho: exponent > 0, the larger the finer the steps at small levels: 7 in the paper, 1 is even in sigma, inf in log sigma.

    Returns:
        (levels,) float64, descending.
    """
    geometric = geometric_ladder(sigma_max, sigma_min, levels)
    if not rho > 0:
        raise PDSError(f"sampler.rho must be positive (inf: levels evenly spaced in log sigma), got {rho}")
    if rho == math.inf:
        return geometric
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), levels, dtype=torch.float64) ** rho


def visit_levels(sigmas: Tensor, iterations: int, steps_per_level: int | None = None) -> Tensor:
    """The noise level of each of T iterations, when a ladder is walked down with a fixed number of steps a level.

    Without `steps_per_level`, T iterations visit every level T / L times, or, when T is smaller than L, T levels of the
    ladder once. Visiting fewer levels than there are keeps both ends and spreads the others evenly over the ladder.

    Args:
        sigmas: (L,) descending ladder.
        iterations: T >= 1.
        steps_per_level: iterations spent at each visited level, or None.

    Returns:
        (T,) float64, descending, each entry one of `sigmas`.

    Raises:
        PDSError: when T cannot be divided that way; the message names the nearest values that can.
    """
    total = len(sigmas)
    if iterations < 1 or (steps_per_level is not None and steps_per_level < 1):
        raise PDSError(
            f"sampler.iterations and sampler.steps_per_level must be at least 1, got {iterations} and {steps_per_level}"
        )
    # Every level when T allows it; else a part of the ladder, once.
    steps = steps_per_level or max(1, iterations // total)
    unit = steps if steps_per_level or iterations <= total else total
    visited = iterations // steps
    if iterations % unit or visited > total or visited == 1 < total:
        below, largest = iterations // unit * unit, None if unit == total else total * steps
        least = unit if unit == total else 2 * steps
        nearest = sorted({min(max(least, value), largest or value) for value in (below, below + unit)})
        raise PDSError(
            f"sampler.iterations={iterations} does not fit {total} noise levels at {steps_per_level or 'equal'} steps a level: "
            f"use a multiple of {unit} from {least}{f' to {largest}' if largest else ' on'} "
            f"(nearest: {', '.join(map(str, nearest))})"
        )
    chosen = torch.linspace(0, total - 1, visited, dtype=torch.float64).round().long()
    return sigmas.double()[chosen].repeat_interleave(steps)
