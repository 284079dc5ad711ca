"""The dilated RefineNet of NCSN and NCSNv2: stages of residual blocks, then RefineNet blocks back to full resolution.

RefineNet is from Lin et al., CVPR 2017. The dilated stages and instance normalisation++ are from Song & Ermon 2019 ([NCSN]
appendix A). The deeper forms are from Song & Ermon 2020 ([NCSNv2] table 3). Parameter names, shapes and order are those of the
published checkpoints. Every block passes the noise label to its normalisations; nothing else uses the label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pds.errors import OptionError

Normalisation = Callable[[int], nn.Module]  # from the number of channels to a module of (x, label)
Pooling = Callable[[Tensor], Tensor]


class Stage(NamedTuple):
    """Two residual blocks on the way down, and the RefineNet block that takes their output on the way up.

    Attributes:
        res, refine: suffixes of both in the published parameter names.
        multiple: channels of its output, in units of the network's width.
        halve: its first block halves height and width.
        dilation: dilation of all its convolutions.
    """

    res: str
    refine: str
    multiple: int
    halve: bool = False
    dilation: int = 1


STAGES = {
    "base": (
        Stage("1", "4", 1),
        Stage("2", "3", 2, halve=True),
        Stage("3", "2", 2, dilation=2),
        Stage("4", "1", 2, dilation=4),
    ),
    "deeper": (
        Stage("1", "5", 1),
        Stage("2", "4", 2, halve=True),
        Stage("3", "3", 2, halve=True),
        Stage("4", "2", 4, dilation=2),
        Stage("5", "1", 4, dilation=4),
    ),
    "deepest": (
        Stage("1", "5", 1),
        Stage("2", "4", 2, halve=True),
        Stage("3", "3", 2, halve=True),
        Stage("31", "31", 2, halve=True),
        Stage("4", "2", 4, dilation=2),
        Stage("5", "1", 4, dilation=4),
    ),
}


def elu(x: Tensor) -> Tensor:
    """ELU with alpha 1: on a CPU through exp, which is vectorised there and four times faster than torch's expm1."""
    return F.elu(x) if x.is_cuda or x.dtype != torch.float32 else torch.maximum(x.clamp_max(0).exp() - 1, x)


def instance_norm_plus(x: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Instance normalisation++ ([NCSN] appendix A.1).

    y = gamma (instance_norm(x) + alpha m) + beta, where m are the spatial means of x standardised over the channels.

    Args:
        x: (batch, C, H, W).
        gamma, alpha, beta: (batch, C) or (C,), float32.
    """
    # Normalisation, shift and gain are one multiply-add over the image; the statistics stay float32 under autocast.
    # (torch.var_mean would do, at 15 times the cost on a CPU.)
    eps = 1e-5
    h = x.float()
    mean = h.mean((2, 3))
    var = (h - mean[:, :, None, None]).square().mean((2, 3))
    inverse_std = (var + eps).rsqrt()
    channel_var, channel_mean = torch.var_mean(mean, dim=1, keepdim=True, correction=1)
    m = (mean - channel_mean) * (channel_var + eps).rsqrt()
    gain = gamma * inverse_std
    shift = gamma * (alpha * m - mean * inverse_std) + beta
    return torch.addcmul(shift[:, :, None, None], x, gain[:, :, None, None]).to(x.dtype)


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
        norm: Normalisation,
        halve: bool = False,
        dilation: int = 1,
        down: bool = False,
    ) -> None:
        super().__init__()
        # The first block of every stage except the first ("down") changes the width in its second convolution.
        self.conv1 = _conv(in_channels, in_channels if down else out_channels, dilation=dilation)
        self.normalize2 = norm(in_channels if down else out_channels)
        if halve:
            self.conv2: nn.Module = ConvMeanPool(in_channels, out_channels, 3)
            self.shortcut: nn.Module = ConvMeanPool(in_channels, out_channels, 1)
        else:
            self.conv2 = _conv(in_channels if down else out_channels, out_channels, dilation=dilation)
            self.shortcut = _conv(in_channels, out_channels, dilation=dilation) if down else nn.Identity()
        self.normalize1 = norm(in_channels)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.conv1(elu(self.normalize1(x, label)))
        h = self.conv2(elu(self.normalize2(h, label)))
        return self.shortcut(x) + h


class ResidualConvUnit(nn.Module):
    """RefineNet's adaptive convolutions: `blocks` residual chains of two norm-activation-convolution stages."""

    stages = 2

    def __init__(self, channels: int, blocks: int, norm: Normalisation) -> None:
        super().__init__()
        self.names = [[f"{b}_{s}" for s in range(1, self.stages + 1)] for b in range(1, blocks + 1)]
        for name in (name for block in self.names for name in block):
            self.add_module(f"{name}_norm", norm(channels))
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
    """RefineNet's multi-resolution fusion: every input is resized to the size of the first, then all are summed."""

    def __init__(self, in_channels: tuple[int, ...], channels: int, norm: Normalisation) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(c, channels) for c in in_channels)
        self.norms = nn.ModuleList(norm(c) for c in in_channels)

    def forward(self, inputs: list[Tensor], label: Tensor) -> Tensor:
        size = inputs[0].shape[-2:]
        maps = (conv(norm(x, label)) for x, conv, norm in zip(inputs, self.convs, self.norms, strict=True))
        # Resizing to the same size gives the same bits, slowly.
        resized = (h if h.shape[-2:] == size else F.interpolate(h, size, mode="bilinear", align_corners=True) for h in maps)
        return sum(resized, start=inputs[0].new_zeros(()))


class ChainedPooling(nn.Module):
    """RefineNet's chained residual pooling."""

    stages = 2

    def __init__(self, channels: int, norm: Normalisation, pool: Pooling) -> None:
        super().__init__()
        self.pool = pool
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in range(self.stages))
        self.norms = nn.ModuleList(norm(channels) for _ in range(self.stages))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = path = elu(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            path = conv(self.pool(norm(path, label)))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """RefineNet block: units on each input, fusion (if there are several), chained pooling, output units."""

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        norm: Normalisation,
        pool: Pooling,
        output_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(ResidualConvUnit(c, 2, norm) for c in in_channels)
        self.output_convs = ResidualConvUnit(channels, output_blocks, norm)
        if len(in_channels) > 1:
            self.msf = Fusion(in_channels, channels, norm)
        self.crp = ChainedPooling(channels, norm, pool)

    def forward(self, inputs: list[Tensor], label: Tensor) -> Tensor:
        adapted = [unit(x, label) for x, unit in zip(inputs, self.adapt_convs, strict=True)]
        h = self.msf(adapted, label) if len(adapted) > 1 else adapted[0]
        return self.output_convs(self.crp(h, label), label)


class DilatedRefineNet(nn.Module):
    """Residual stages on the way down, and a RefineNet block for each of them on the way up.

    Args:
        channels: image channels C.
        width: channels of the first stage (`ngf`).
        stages: from full resolution down.
        norm: normalisation of the stages and before the last convolution.
        refine_norm: normalisation in the RefineNet blocks.
        pool: pooling of 5x5 windows with stride 1 in the RefineNet blocks, size kept.
        rescale: map images from [0, 1] to [-1, 1] before the first convolution; off for models of logits.
    """

    pds_memory_format: ClassVar = torch.channels_last

    def __init__(
        self,
        channels: int,
        width: int,
        stages: Sequence[Stage],
        norm: Normalisation,
        refine_norm: Normalisation,
        pool: Pooling,
        rescale: bool,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.begin_conv = _conv(channels, width)
        self.normalizer = norm(width)
        self.end_conv = _conv(width, channels)
        widths = [width, *(stage.multiple * width for stage in stages)]
        for i, stage in enumerate(stages):
            above, v = widths[i], widths[i + 1]
            first = ResidualBlock(above, v, norm, stage.halve, stage.dilation, down=i > 0)
            self.add_module(f"res{stage.res}", nn.ModuleList([first, ResidualBlock(v, v, norm, dilation=stage.dilation)]))
        # Published checkpoints list the RefineNet blocks by name; the deepest form uses them in another order.
        for i, stage in sorted(enumerate(stages), key=lambda item: item[1].refine):
            above, v = widths[i], widths[i + 1]
            inputs = (v,) if stage is stages[-1] else (v, v)
            block = RefineBlock(inputs, above, refine_norm, pool, output_blocks=3 if i == 0 else 1)
            self.add_module(f"refine{stage.refine}", block)
        self.down = [f"res{stage.res}" for stage in stages]
        self.up = [f"refine{stage.refine}" for stage in reversed(stages)]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Score estimate.

        Args:
            x: (batch, C, H, W) noisy images, data range [0, 1]; H and W divisible by 2 for every stage that halves them.
            label: (batch,) int64 noise labels, 0 = the LARGEST noise level.

        Returns:
            (batch, C, H, W).
        """
        h = self.begin_conv(2 * x - 1 if self.rescale else x)
        outputs = []
        for name in self.down:
            for block in getattr(self, name):
                h = block(h, label)
            outputs.append(h)
        refined: list[Tensor] = []
        for name in self.up:
            refined = [getattr(self, name)([outputs.pop(), *refined], label)]
        return self.end_conv(elu(self.normalizer(refined[0], label)))


def image_shape(network: str, shape: Sequence[int], stages: Sequence[Stage]) -> tuple[int, int, int]:
    """`shape` as (C, H, W); a PDSError if `network` of these stages cannot take such images."""
    channels, height, width = shape
    unit = 2 ** sum(stage.halve for stage in stages)
    if height % unit or width % unit:
        raise OptionError("shape", f"must have a height and width divisible by {unit} for {network}, got {height}x{width}")
    return channels, height, width
