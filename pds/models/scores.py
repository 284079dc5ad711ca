"""Adapters from networks to the score contract of `pds.score`. Each says on which noise levels its network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pds.models.checkpoints import Checkpoint
from pds.processes.forward import Process
from pds.score import Score

TRAINING_END = 1e-5  # smallest training time of continuous models ([SDE] appendix C)


class NetworkScore(nn.Module):
    """A network as a score, which knows the noise levels that its training is to show it."""

    network: nn.Module

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) random noise levels, float64."""
        raise NotImplementedError


class LadderScore(NetworkScore):
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

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) levels of the ladder, each as likely."""
        return self.sigmas.cpu()[torch.randint(len(self.sigmas), (count,), generator=generator)]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network(x, self.label(sigma)).float()


class _ContinuousScore(NetworkScore):
    """A network trained on all noise levels of a process."""

    def __init__(self, network: nn.Module, process: Process) -> None:
        super().__init__()
        self.network, self.process = network, process

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) noise levels at uniform times."""
        t = TRAINING_END + (1 - TRAINING_END) * torch.rand(count, generator=generator, dtype=torch.float64)
        return self.process.sigma(t)


class SigmaScore(_ContinuousScore):
    """A network `network(x, sigma)` that returns the score itself (continuous VE)."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.network(x, sigma.to(x.dtype)).float()


class NoisePredictionScore(_ContinuousScore):
    """A network `network(m x, 999 t)` that predicts the noise in x (continuous VP and sub-VP): s = -noise / sigma."""

    def label(self, t: Tensor) -> Tensor:
        """(batch,) what the network sees of the times t."""
        return 999 * t

    def noise(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        """(batch, C, H, W) z of x = x_0 + sigma z, from the output of the network; m and sigma are (batch, 1, 1, 1)."""
        return output

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        t = self.process.time(sigma)
        m, std = (value.to(x.dtype)[:, None, None, None] for value in (self.process.scale(t), sigma))
        return -self.noise(self.network(m * x, self.label(t).to(x.dtype)).float(), x, m, std) / std


class ChainScore(NoisePredictionScore):
    """A network `network(m x, N t - 1)` trained on the levels of a discrete VP chain: Ho et al., NeurIPS 2020 (DDPM).

    Args:
        network: takes the number of the level, 0 = the smallest, as a float: samplers go between two levels.
        process: the chain.
        prediction: what it predicts, with x_t = m (x_0 + sigma z): "epsilon", z; "v_prediction", m (z - sigma x_0)
            (Salimans & Ho, ICLR 2022); "sample", x_0.
    """

    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample")

    def __init__(self, network: nn.Module, process: Process, prediction: str = "epsilon") -> None:
        super().__init__(network, process)
        self.prediction = prediction

    def label(self, t: Tensor) -> Tensor:
        return self.process.levels * t - 1

    def noise(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "v_prediction":
            return m * (output + sigma * m * x)
        return (x - output) / sigma if self.prediction == "sample" else output


class Bfloat16Score:
    """A score whose network runs under bfloat16 autocast: states, noise and what comes out stay float32."""

    def __init__(self, score: NetworkScore) -> None:
        self.score = score

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.score(x, sigma)


def for_sampling(score: NetworkScore, device: torch.device, bf16: bool = False, compile: bool = False) -> Score:
    """The score as samplers call it, `score` itself being moved, and compiled, in place.

    Args:
        score: from a `ScoreModel`.
        device: where to sample.
        bf16: run the network under bfloat16 autocast. Its rounding, 0.4% of a value, changes the images.
        compile: compile the network with `torch.compile`, at its first call for each batch size. Images change by rounding
            in the precision that the device computes in.
    """
    score.to(device, memory_format=torch.channels_last)
    if compile:
        score.network.compile()
    return Bfloat16Score(score) if bf16 else score


@dataclass(frozen=True)
class ScoreModel:
    """A network ready to sample: the score and what it was trained on.

    Attributes:
        title: what tables call it.
        score: `score(x, sigma)`, in evaluation mode.
        process: the forward process whose noise it knows.
        shape: (C, H, W) of its images.
        checkpoint: where the weights come from, or None for random weights.
        data_range: pixel values of black and white in its state: (0, 1), or (-1, 1) for centred models.
        beside_weights: what its function depends on and neither its weights nor its arguments tell: other files of its folder.
    """

    title: str
    score: NetworkScore
    process: Process
    shape: tuple[int, int, int]
    checkpoint: Checkpoint | None
    data_range: tuple[float, float] = (0.0, 1.0)
    beside_weights: Mapping[str, Any] = field(default_factory=dict)
