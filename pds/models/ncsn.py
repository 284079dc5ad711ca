"""NCSN: the noise-conditional, dilated RefineNet of Song & Ermon, *Generative Modeling by Estimating Gradients of the
Data Distribution*, NeurIPS 2019 ([NCSN] appendix A). Parameter names and shapes are those of the published checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from pds.models.checkpoints import load_weights
from pds.models.layouts import Which
from pds.models.refinenet import STAGES, DilatedRefineNet, image_shape, instance_norm_plus
from pds.models.scores import LadderScore, Model
from pds.options import Range, Shape, checked
from pds.processes.forward import VarianceExploding
from pds.processes.ladders import NoiseLevel

Width = Annotated[int, Range(1, 1024)]
Levels = Annotated[int, Range(1, 10_000)]


class ConditionalInstanceNorm(nn.Module):
    """Conditional instance normalisation++: the table row of the noise label is [gamma | alpha | beta]."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, 3 * channels)
        nn.init.normal_(self.embed.weight[:, : 2 * channels], 1.0, 0.02)
        nn.init.zeros_(self.embed.weight[:, 2 * channels :])

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return instance_norm_plus(x, *self.embed(label).float().chunk(3, dim=1))


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 5, stride=1, padding=2)


class NCSN(DilatedRefineNet):
    """The noise-conditional score network of [NCSN] (`CondRefineNetDilated`).

    Every normalisation is conditional, including those of the RefineNet blocks. The pooling averages where RefineNet takes the
    maximum. The output is the gradient of the log-density of data plus noise; it is not divided by sigma.

    Args:
        channels: image channels C.
        width: channels of the first stage (`ngf`; 64 for the published MNIST network, 128 for CIFAR-10 and CelebA).
        levels: number of noise levels L, the rows of the conditional normalisation tables.
        rescale: map images from [0, 1] to [-1, 1] before the first convolution; off for models of logits.
    """

    def __init__(self, channels: int, width: int, levels: int, rescale: bool = True) -> None:
        norm = partial(ConditionalInstanceNorm, levels=levels)
        super().__init__(channels, width, STAGES["base"], norm, norm, _mean_pool, rescale)


@checked
def ncsn(
    shape: Shape,
    width: Width = 64,
    sigma_begin: NoiseLevel = 1.0,
    sigma_end: NoiseLevel = 0.01,
    levels: Levels = 10,
    checkpoint: str | Path | None = None,
    weights: Which = None,
    rescale: bool = True,
) -> Model:
    """An NCSN with its noise ladder and its weights, ready to sample or to train.

    Args:
        shape: (C, H, W) of its images; H and W even.
        width: channels of the first stage; 64 for the published MNIST network, 128 for CIFAR-10 and CelebA.
        sigma_begin: largest noise level sigma_1, in pixel units of the model.
        sigma_end: smallest noise level sigma_L.
        levels: noise levels L, in geometric progression.
        checkpoint: weights file; None for random weights.
        weights: which of its weights, see `load_weights`.
        rescale: the network maps [0, 1] to [-1, 1] inside; false for models of logits.

    Raises:
        PDSError: the shape does not fit, or the checkpoint is of another network. Files that state their images and noise
            levels are also refused if these differ; the files of [NCSN] do not state them.
    """
    channels, height, wide = image_shape("NCSN", shape, STAGES["base"])
    process = VarianceExploding(sigma_end, sigma_begin, levels)
    network = NCSN(channels, width, levels, rescale).eval()
    loaded = None
    if checkpoint is not None:
        options = {"shape": [channels, height, wide], "sigma_begin": sigma_begin, "sigma_end": sigma_end}
        loaded = load_weights(network, checkpoint, weights, options)
    title = f"NCSN (width {width}, {levels} levels) {channels}x{height}x{wide}"
    return Model(title, LadderScore(network, process.ladder), process, (channels, height, wide), loaded)
