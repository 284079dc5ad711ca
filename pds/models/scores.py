"""Adapters from networks to the score contract of `pds.score`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pds.models.checkpoints import Checkpoint


class LadderScore(nn.Module):
    """A network that takes the index of a noise level, as a score.

    Args:
        network: `network(x, label)` with int64 labels, 0 = the largest level, returning the score itself.
        sigmas: (L,) descending noise levels the network was trained on, in units of the data range.
    """

    sigmas: Tensor

    def __init__(self, network: nn.Module, sigmas: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sigmas", sigmas.double(), persistent=False)

    def label(self, sigma: Tensor) -> Tensor:
        """(batch,) int64 index of the level nearest to each sigma on a logarithmic scale."""
        distance = (sigma.double()[:, None] / self.sigmas[None, :]).log().abs()
        return distance.argmin(dim=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network(x, self.label(sigma)).float()


@dataclass(frozen=True)
class ScoreModel:
    """A network ready to sample: the score and what it was trained on.

    Attributes:
        title: what tables call it.
        score: `score(x, sigma)`, in evaluation mode.
        sigmas: (L,) float64 descending noise levels it knows.
        shape: (C, H, W) of its images.
        checkpoint: where the weights come from, or None for random weights.
    """

    title: str
    score: nn.Module
    sigmas: Tensor
    shape: tuple[int, int, int]
    checkpoint: Checkpoint | None
