"""NCSN: the noise-conditional, dilated RefineNet of Song & Ermon, *Generative Modeling by Estimating Gradients of the
Data Distribution*, NeurIPS 2019 ([NCSN] appendix A). Parameter names and shapes are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pds.errors import PDSError
from pds.models.checkpoints import load_weights
from pds.models.scores import LadderScore, ScoreModel
from pds.processes.ladders import geometric_ladder


class ConditionalInstanceNorm(nn.Module):
    """Conditional instance normalisation++ ([NCSN] appendix A.1).

    y = gamma (instance_norm(x) + alpha m) + beta, where m are the spatial means of x standardised over the channels, and
    the table row of the noise label is [gamma | alpha | beta].
    """

    eps = 1e-5

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, 3 * channels)
        nn.init.normal_(self.embed.weight[:, : 2 * channels], 1.0, 0.02)
        nn.init.zeros_(self.embed.weight[:, 2 * channels :])

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        # Normalisation, shift and gain are one multiply-add over the image; the statistics stay float32 under autocast.
        # (torch.var_mean would do, at 15 times the cost on a CPU.)
        h = x.float()
        mean = h.mean((2, 3))
        var = (h - mean[:, :, None, None]).square().mean((2, 3))
        inverse_std = (var + self.eps).rsqrt()
        channel_var, channel_mean = torch.var_mean(mean, dim=1, keepdim=True, correction=1)
        m = (mean - channel_mean) * (channel_var + self.eps).rsqrt()
        gamma, alpha, beta = self.embed(label).float().chunk(3, dim=1)
        gain = gamma * inverse_std
        shift = gamma * (alpha * m - mean * inverse_std) + beta
        return torch.addcmul(shift[:, :, None, None], x, gain[:, :, None, None]).to(x.dtype)


def elu(x: Tensor) -> Tensor:
    """ELU with alpha 1: on a CPU through exp, which is vectorised there and four times faster than torch's expm1."""
    return F.elu(x) if x.is_cuda or x.dtype != torch.float32 else torch.maximum(x.clamp_max(0).exp() - 1, x)


def _conv(in_channels: int, out_channels: int, bias: bool = True, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)


class ConvMeanPool(nn.Module):
    """A convolution followed by 2x2 averaging."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2)


class ResidualBlock(nn.Module):
    """Pre-activation residual block; `halve` averages 2x2 at its end, `dilation` widens its receptive field instead."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: int,
        halve: bool = False,
        dilation: int = 1,
        down: bool = False,
    ) -> None:
        super().__init__()
        # The first block of stages 2-4 ("down") changes the width in its second convolution.
        self.conv1 = _conv(in_channels, in_channels if down else out_channels, dilation=dilation)
        self.normalize2 = ConditionalInstanceNorm(in_channels if down else out_channels, levels)
        if halve:
            self.conv2: nn.Module = ConvMeanPool(in_channels, out_channels, 3)
            self.shortcut: nn.Module = ConvMeanPool(in_channels, out_channels, 1)
        else:
            self.conv2 = _conv(in_channels if down else out_channels, out_channels, dilation=dilation)
            self.shortcut = _conv(in_channels, out_channels, dilation=dilation) if down else nn.Identity()
        self.normalize1 = ConditionalInstanceNorm(in_channels, levels)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.conv1(elu(self.normalize1(x, label)))
        h = self.conv2(elu(self.normalize2(h, label)))
        return self.shortcut(x) + h


class ResidualConvUnit(nn.Module):
    """RefineNet's adaptive convolutions: `blocks` residual chains of two norm-activation-convolution stages."""

    stages = 2

    def __init__(self, channels: int, blocks: int, levels: int) -> None:
        super().__init__()
        self.names = [[f"{b}_{s}" for s in range(1, self.stages + 1)] for b in range(1, blocks + 1)]
        for name in (name for block in self.names for name in block):
            self.add_module(f"{name}_norm", ConditionalInstanceNorm(channels, levels))
            self.add_module(f"{name}_conv", _conv(channels, channels, bias=False))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        for block in self.names:
            h = x
            for name in block:
                h = getattr(self, f"{name}_norm")(h, label)
                h = getattr(self, f"{name}_conv")(elu(h))
            x = x + h
        return x


class Fusion(nn.Module):
    """RefineNet's multi-resolution fusion: every input to the size of the first, then summed."""

    def __init__(self, in_channels: tuple[int, ...], channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(c, channels) for c in in_channels)
        self.norms = nn.ModuleList(ConditionalInstanceNorm(c, levels) for c in in_channels)

    def forward(self, inputs: list[Tensor], label: Tensor) -> Tensor:
        size = inputs[0].shape[-2:]
        resized = (
            F.interpolate(conv(norm(x, label)), size, mode="bilinear", align_corners=True)
            for x, conv, norm in zip(inputs, self.convs, self.norms, strict=True)
        )
        return sum(resized, start=inputs[0].new_zeros(()))


class ChainedPooling(nn.Module):
    """RefineNet's chained residual pooling, with averaging where the original takes the maximum."""

    stages = 2

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in range(self.stages))
        self.norms = nn.ModuleList(ConditionalInstanceNorm(channels, levels) for _ in range(self.stages))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = path = elu(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            path = conv(F.avg_pool2d(norm(path, label), 5, stride=1, padding=2))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """RefineNet block: units on each input, fusion (if there are several), chained pooling, output units."""

    def __init__(self, in_channels: tuple[int, ...], channels: int, levels: int, output_blocks: int = 1) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(ResidualConvUnit(c, 2, levels) for c in in_channels)
        self.output_convs = ResidualConvUnit(channels, output_blocks, levels)
        if len(in_channels) > 1:
            self.msf = Fusion(in_channels, channels, levels)
        self.crp = ChainedPooling(channels, levels)

    def forward(self, inputs: list[Tensor], label: Tensor) -> Tensor:
        adapted = [unit(x, label) for x, unit in zip(inputs, self.adapt_convs, strict=True)]
        h = self.msf(adapted, label) if len(adapted) > 1 else adapted[0]
        return self.output_convs(self.crp(h, label), label)


class NCSN(nn.Module):
    """The noise-conditional score network of [NCSN] (`CondRefineNetDilated`).

    Args:
        channels: image channels C.
        width: channels of the first stage (`ngf`; 64 for the published MNIST network, 128 for CIFAR-10 and CelebA).
        levels: number of noise levels L, the rows of the conditional normalisation tables.
        rescale: map images from [0, 1] to [-1, 1] before the first convolution; off for models of logits.
    """

    def __init__(self, channels: int, width: int, levels: int, rescale: bool = True) -> None:
        super().__init__()
        self.rescale = rescale
        self.begin_conv = _conv(channels, width)
        self.normalizer = ConditionalInstanceNorm(width, levels)
        self.end_conv = _conv(width, channels)
        w, v = width, 2 * width
        self.res1 = nn.ModuleList([ResidualBlock(w, w, levels), ResidualBlock(w, w, levels)])
        self.res2 = nn.ModuleList([ResidualBlock(w, v, levels, halve=True, down=True), ResidualBlock(v, v, levels)])
        self.res3, self.res4 = (
            nn.ModuleList([ResidualBlock(v, v, levels, dilation=d, down=True), ResidualBlock(v, v, levels, dilation=d)])
            for d in (2, 4)
        )
        self.refine1 = RefineBlock((v,), v, levels)
        self.refine2 = RefineBlock((v, v), v, levels)
        self.refine3 = RefineBlock((v, v), w, levels)
        self.refine4 = RefineBlock((w, w), w, levels, output_blocks=3)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Score estimate.

        Args:
            x: (batch, C, H, W) noisy images, data range [0, 1]; H and W even.
            label: (batch,) int64 noise labels, 0 = the LARGEST noise level.

        Returns:
            (batch, C, H, W), the gradient of the log-density of data plus noise; not divided by sigma.
        """
        h = self.begin_conv(2 * x - 1 if self.rescale else x)
        skips = []
        for stage in (self.res1, self.res2, self.res3, self.res4):
            for block in stage:
                h = block(h, label)
            skips.append(h)
        h = self.refine1([skips[3]], label)
        for refine, skip in ((self.refine2, skips[2]), (self.refine3, skips[1]), (self.refine4, skips[0])):
            h = refine([skip, h], label)
        return self.end_conv(elu(self.normalizer(h, label)))


def ncsn(
    shape: Sequence[int],
    width: int,
    sigma_begin: float,
    sigma_end: float,
    levels: int,
    checkpoint: str | None = None,
    rescale: bool = True,
) -> ScoreModel:
    """An NCSN with its noise ladder and its weights, ready to sample or to train.

    Args:
        shape: (C, H, W) of its images; H and W even.
        width, levels, rescale: as for `NCSN`.
        sigma_begin, sigma_end: largest and smallest noise level, in units of the data range ([NCSN]: 1 and 0.01).
        checkpoint: weights file (`pds.models.checkpoints`), or None for random weights.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise PDSError(f"images have a shape (C, H, W) of positive numbers, got {list(shape)}")
    if width < 1:
        raise PDSError(f"model.width must be at least 1, got {width}")
    channels, height, wide = shape
    if height % 2 or wide % 2:
        raise PDSError(f"NCSN halves its images once: their height and width must be even, got {height}x{wide}")
    sigmas = geometric_ladder(sigma_begin, sigma_end, levels)
    network = NCSN(channels, width, levels, rescale).eval()
    weights = None if checkpoint is None else load_weights(network, checkpoint)
    title = f"NCSN (width {width}, {levels} levels) {channels}x{height}x{wide}"
    return ScoreModel(title, LadderScore(network, sigmas), sigmas, (channels, height, wide), weights)
