"""Discrete noise ladders: the sigma levels of the NCSN family, and those that a sampler of T iterations visits."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from pds.errors import OptionError
from pds.options import Count, Range, checked

NoiseLevel = Annotated[float, Range(1e-6, 1e6)]
"""In pixel units of the model; float32 holds the squares and their inverses."""


@checked
def geometric_ladder(sigma_begin: NoiseLevel, sigma_end: NoiseLevel, levels: Count) -> Tensor:
    """Noise levels in geometric progression, both ends included ([NCSN] section 4.2).

    Args:
        sigma_begin: largest noise level, in pixel units of the model, whose data range is [0, 1].
        sigma_end: smallest noise level, at most `sigma_begin`.
        levels: number of levels L.

    Returns:
        (L,) float64, descending.
    """
    if sigma_end > sigma_begin:
        raise OptionError("sigma_end", f"must be at most sigma_begin, got {sigma_end:g} and {sigma_begin:g}")
    return torch.linspace(math.log(sigma_begin), math.log(sigma_end), levels, dtype=torch.float64).exp()


Rho = Annotated[float, Range(0.1, 1e6, infinity="levels evenly spaced in log sigma")]


@checked
def karras_levels(sigma_min: NoiseLevel, sigma_max: NoiseLevel, levels: Count, rho: Rho) -> Tensor:
    """Noise levels evenly spaced in sigma^(1 / rho), both ends included (Karras et al., NeurIPS 2022, Eq. 5).

    Args:
        sigma_min, sigma_max: smallest and largest noise level, in pixel units of the model.
        levels: number of levels; a single one is `sigma_max`.
        rho: exponent, the larger the finer the steps at small levels. The paper has 7; 1 is even in sigma, inf in log sigma.

    Returns:
        (levels,) float64, descending.
    """
    geometric = geometric_ladder(sigma_max, sigma_min, levels)
    if rho == math.inf:
        return geometric
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), levels, dtype=torch.float64) ** rho


@checked
def visit_levels(sigmas: Tensor, iterations: Count, steps_per_level: Count | None = None) -> Tensor:
    """The noise level of each of T iterations, when a ladder is walked down with a fixed number of steps a level.

    Without `steps_per_level`, T iterations visit every level T / L times. If T is smaller than L, they visit T levels of the
    ladder once: both ends, and others spread evenly between them.

    Args:
        sigmas: (L,) descending ladder.
        iterations: T.
        steps_per_level: iterations spent at each visited level, or None.

    Returns:
        (T,) float64, descending, each entry one of `sigmas`.

    Raises:
        OptionError: T cannot be divided that way; the message names the nearest values that can.
    """
    total = len(sigmas)
    # Every level if T allows it; else a part of the ladder, once.
    steps = steps_per_level or max(1, iterations // total)
    every = steps_per_level is None and iterations > total
    unit = total if every else steps
    visited = iterations // steps
    if iterations % unit or visited > total or visited == 1 < total:
        below, largest = iterations // unit * unit, None if every else total * steps
        least = unit if every else min(2, total) * steps
        nearest = sorted({min(max(least, value), largest or value) for value in (below, below + unit)})
        if steps > iterations > 1:
            raise OptionError("steps_per_level", f"must be at most {iterations // 2} for {iterations} iterations, got {steps}")
        raise OptionError(
            "iterations",
            f"must be a multiple of {unit} from {least}{f' to {largest}' if largest else ' on'} to walk down {total} noise "
            f"levels at {steps_per_level or 'equal'} steps a level, got {iterations} (nearest: {', '.join(map(str, nearest))})",
        )
    chosen = torch.linspace(0, total - 1, visited, dtype=torch.float64).round().long()
    return sigmas.double()[chosen].repeat_interleave(steps)
