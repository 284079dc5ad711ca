"""NCSNv2: the unconditional, dilated RefineNets of Song & Ermon, *Improved Techniques for Training Score-Based Generative
Models*, NeurIPS 2020 ([NCSNv2] technique 3 and table 3). Parameter names and shapes are those of the published checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pds.models.checkpoints import load_weights
from pds.models.layouts import Which
from pds.models.ncsn import Levels, Width
from pds.models.refinenet import STAGES, DilatedRefineNet, image_shape, instance_norm_plus
from pds.models.scores import LadderScore, Model
from pds.options import Shape, checked
from pds.processes.forward import VarianceExploding
from pds.processes.ladders import NoiseLevel

Depth = Literal["base", "deeper", "deepest"]


class InstanceNorm(nn.Module):
    """Instance normalisation++ with one gain, weight and bias a channel, the same for every noise label."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return instance_norm_plus(x, self.gamma, self.alpha, self.beta)


class NoNorm(nn.Module):
    """No normalisation, for any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 5x5 windows, stride 1, size kept.

    On a CPU it takes six maxima of shifted images: the same bits at a thirtieth of the cost of torch's pooling. There torch's
    pooling takes longer than a convolution.
    """
    if x.is_cuda:
        return F.max_pool2d(x, 5, stride=1, padding=2)
    x = F.pad(x, (2, 2, 2, 2), value=-math.inf)
    for dim in (-1, -2):
        n = x.shape[dim] - 4
        two = torch.maximum(x.narrow(dim, 0, n + 3), x.narrow(dim, 1, n + 3))
        four = torch.maximum(two.narrow(dim, 0, n + 1), two.narrow(dim, 2, n + 1))
        x = torch.maximum(four.narrow(dim, 0, n), x.narrow(dim, 4, n))
    return x


class NCSNv2(DilatedRefineNet):
    """The score networks of [NCSNv2] (`NCSNv2`, `NCSNv2Deeper`, `NCSNv2Deepest`).

    The network does not see the noise level: its output is divided by it ([NCSNv2] technique 3).

    Args:
        channels: image channels C.
        width: channels of the first stage (`ngf`; 128 in all published networks).
        depth: "base" (CIFAR-10, CelebA; halves its images once), "deeper" (LSUN; twice) or "deepest" (FFHQ; three times).
        sigmas: (L,) descending noise levels, in pixel units of the model; kept as float32, in the state dict.
        rescale: map images from [0, 1] to [-1, 1] before the first convolution; off for images already there.
    """

    sigmas: Tensor

    def __init__(self, channels: int, width: int, depth: Depth, sigmas: Tensor, rescale: bool = True) -> None:
        super().__init__(channels, width, STAGES[depth], InstanceNorm, NoNorm, max_pool, rescale)
        self.register_buffer("sigmas", sigmas.float())

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Score estimate, the gradient of the log-density of data plus noise: see `DilatedRefineNet.forward`."""
        return super().forward(x, label) / self.sigmas[label][:, None, None, None]


@checked
def ncsnv2(
    shape: Shape,
    width: Width = 128,
    depth: Depth = "base",
    sigma_begin: NoiseLevel = 50.0,
    sigma_end: NoiseLevel = 0.01,
    levels: Levels = 232,
    checkpoint: str | Path | None = None,
    weights: Which = None,
    rescale: bool = True,
) -> Model:
    """An NCSNv2 with its noise ladder and its weights, ready to sample or to train.

    Args:
        shape: (C, H, W) of its images; H and W multiples of 2 (base), 4 (deeper) or 8 (deepest).
        width: channels of the first stage (`ngf`).
        depth: base (CIFAR-10, CelebA), deeper (LSUN) or deepest (FFHQ).
        sigma_begin: largest noise level sigma_1, in pixel units of the model.
        sigma_end: smallest noise level sigma_L.
        levels: noise levels L, in geometric progression.
        checkpoint: weights file; None for random weights.
        weights: which of its weights, see `load_weights`.
        rescale: the network maps [0, 1] to [-1, 1] inside.

    Raises:
        PDSError: the shape or the depth does not fit, or the checkpoint is of another network or of other noise levels.
    """
    channels, height, wide = image_shape(f"NCSNv2 {depth}", shape, STAGES[depth])
    process = VarianceExploding(sigma_end, sigma_begin, levels)
    sigmas = process.ladder
    network = NCSNv2(channels, width, depth, sigmas, rescale).eval()
    loaded = None
    if checkpoint is not None:
        options = {"shape": [channels, height, wide]}
        loaded = load_weights(network, checkpoint, weights, options, levels=("sigma_begin", "sigma_end"))
    title = f"NCSNv2 {depth} (width {width}, {levels} levels) {channels}x{height}x{wide}"
    return Model(
        title, LadderScore(network, sigmas), process, (channels, height, wide), loaded, (0.0, 1.0) if rescale else (-1.0, 1.0)
    )
