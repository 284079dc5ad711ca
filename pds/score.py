"""The score contract, and the counter of its evaluations.

`score(x, sigma) -> tensor like x` is the gradient of the log-density of data plus sigma times standard noise. The state x is
(batch, C, H, W) in the range of the data. The level sigma is (batch,) in the same units. Every network is an adapter to it
(`pds.models`), so every sampler can sample every network.

If noise enters a velocity (`pds.processes.critically_damped`), the state x is data and velocity, (batch, 2 C, H, W). The level
sigma is still the noise of its data half. The score is that by the velocity alone, (batch, C, H, W).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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
