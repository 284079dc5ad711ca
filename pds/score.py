"""The score contract, the counter of its evaluations, and the moments of the noise that it predicts.

`score(x, sigma) -> tensor like x` is the gradient of the log-density of data plus sigma times standard noise. The state x is
(batch, C, H, W) in the range of the data. The level sigma is (batch,) in the same units. Every network is an adapter to it
(`pds.models`), so every sampler can sample every network.

If noise enters a velocity (`pds.processes.critically_damped`), the state x is data and velocity, (batch, 2 C, H, W). The level
sigma is still the noise of its data half. The score is that by the velocity alone, (batch, C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor


class Score(Protocol):
    """Gradient of the log-density of noisy data."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


def score_at(score: Score, x: Tensor, sigma: float) -> Tensor:
    """The score of a batch at one noise level."""
    return score(x, x.new_full((len(x),), sigma))


def denoised(score: Score, x: Tensor, sigma: float) -> Tensor:
    """D(x; sigma) = x + sigma^2 s(x, sigma), the expected image (Tweedie): (batch, C, H, W) in the data range."""
    return x + sigma**2 * score_at(score, x, sigma)


class Labelled(Protocol):
    """A score that may be given the class of each image, (batch,) int64, -1 for none."""

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor: ...


@runtime_checkable
class BatchScore(Protocol):
    """The score of the images of one batch, which it tells apart."""

    def rows(self, rows: Tensor) -> Score: ...


def score_of(score: Score, rows: Tensor) -> Score:
    """The score of some images of the batch, by their indices in it."""
    return score.rows(rows) if isinstance(score, BatchScore) else score


class CountedScore:
    """A score that counts its evaluations: `nfe` network calls, of `images` images in all."""

    def __init__(self, score: Labelled) -> None:
        self.score = score
        self.nfe = 0
        self.images = 0

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        self.nfe += 1
        self.images += len(x)
        return self.score(x, sigma, *labels)


@dataclass(frozen=True)
class NoiseMoments:
    """Gamma(sigma) = E‖e(x_0 + sigma z, sigma)‖² / d of a model's noise prediction e = -sigma s, over its training images x_0.

    Attributes:
        sigmas: K noise levels, ascending.
        values: Gamma at each level, in [0, 1]: 0 where the noise cannot be told from the data, 1 where the noise is known.
        data_range: pixel values of black and white in the model's state.
        provenance: what the values were measured on: weights, process, images.
    """

    sigmas: tuple[float, ...]
    values: tuple[float, ...]
    data_range: tuple[float, float] = (0.0, 1.0)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __call__(self, sigma: float) -> float:
        """Gamma at any noise level: linear in log(sigma) between two of them, constant beyond the outermost."""
        return float(np.interp(math.log(sigma), np.log(self.sigmas), self.values))
