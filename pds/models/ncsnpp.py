"""NCSN++ and DDPM++: the U-Nets of Song et al., *Score-Based Generative Modeling through Stochastic Differential
Equations*, ICLR 2021 ([SDE] section 4.4, appendix H), in plain PyTorch. Parameter names, shapes and order are those of the
published checkpoints, which number all modules in one flat list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pds.errors import OptionError, PDSError
from pds.models.checkpoints import load_weights
from pds.models.layouts import Which
from pds.models.scores import Classes, LadderScore, Model, NetworkScore, NoisePrediction, ScorePrediction, VelocityScore
from pds.options import Length, Range, Shape, checked
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import Process, VarianceExploding

Embedding = Literal["fourier", "positional"]
Block = Literal["biggan", "ddpm"]
Output = Literal["none", "output_skip", "residual"]
Input = Literal["none", "input_skip", "residual"]
Combination = Literal["sum", "cat"]
NEARLY_ZERO = 1e-5  # gain of layers that start as (almost) nothing


def _conv(in_channels: int, out_channels: int, kernel: int = 3, gain: float = 1.0, stride: int = 1) -> nn.Conv2d:
    # The padding of a strided convolution differs; the caller adds it.
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 if stride == 1 else 0)
    nn.init.xavier_uniform_(conv.weight, gain)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _hold_taps(layer: nn.Module, fir: bool) -> None:
    """Keep the FIR filter's taps, the outer product of [1, 3, 3, 1] / 8, on the layer's device; no checkpoint has them."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    layer.register_buffer("taps", torch.outer(taps, taps) if fir else None, persistent=False)


def _fir(x: Tensor, taps: Tensor, stride: int, padding: int) -> Tensor:
    """x filtered with (4, 4) taps, zeros outside."""
    return F.conv2d(x, taps.expand(x.shape[1], 1, 4, 4), stride=stride, padding=padding, groups=x.shape[1])


def downsample(x: Tensor, taps: Tensor | None) -> Tensor:
    """Half the height and width: anti-aliased by the FIR filter, or the mean of 2x2."""
    return F.avg_pool2d(x, 2) if taps is None else _fir(x, taps, stride=2, padding=1)


def upsample(x: Tensor, fir: bool) -> Tensor:
    """Twice the height and width: zeros inserted and FIR-filtered, or nearest neighbours."""
    if not fir:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    # With these taps this is linear interpolation of an image with zeros around it.
    wide = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear", align_corners=False)
    return wide[..., 2:-2, 2:-2]


class Downsample(nn.Module):
    """`downsample`, followed by a convolution or not."""

    taps: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, conv: bool, fir: bool) -> None:
        super().__init__()
        self.fir = fir
        _hold_taps(self, fir)
        if conv:
            # The checkpoints name it after the filter in front of it.
            self.add_module("Conv2d_0" if fir else "Conv_0", _conv(in_channels, out_channels, stride=2))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        conv = next(self.children(), None)
        if conv is None:
            return downsample(x, self.taps)
        # Without the filter, one row and one column of zeros at the bottom and at the right.
        return conv(F.pad(x, (0, 1, 0, 1)) if self.taps is None else _fir(x, self.taps, stride=1, padding=2))


class Upsample(nn.Module):
    """`upsample`, followed by a convolution or not."""

    def __init__(self, in_channels: int, out_channels: int, conv: bool, fir: bool) -> None:
        super().__init__()
        self.fir = fir
        if conv:
            self.Conv_0 = _conv(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = upsample(x, self.fir)
        return self.Conv_0(x) if hasattr(self, "Conv_0") else x


class NIN(nn.Module):
    """A 1x1 convolution whose weight is stored (in, out)."""

    def __init__(self, in_channels: int, out_channels: int, gain: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))
        nn.init.xavier_uniform_(self.W, gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.T[:, :, None, None], self.b)


class Attention(nn.Module):
    """Single-head self-attention over the pixels, residual."""

    def __init__(self, channels: int, rescale: bool) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (NIN(channels, channels, math.sqrt(0.1)) for _ in range(3))
        self.NIN_3 = NIN(channels, channels, NEARLY_ZERO)
        self.scale = 1 / math.sqrt(2) if rescale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        # (batch, 1 head, pixels, channels)
        q, k, v = (nin(h).flatten(2).transpose(1, 2)[:, None] for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.NIN_3(h)) * self.scale


class ResidualBlock(nn.Module):
    """The residual block of BigGAN, which may resample both its branches, or that of DDPM, which does not resample.

    Args:
        in_channels, out_channels: widths.
        features: of the noise embedding.
        biggan: shortcut of the BigGAN block (a convolution) rather than that of the DDPM block.
        rescale: divide the sum by sqrt(2).
        dropout: dropout of training.
        resample: "down", "up" or "" before the first convolution.
        fir: resample with the FIR filter.
    """

    taps: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int,
        biggan: bool,
        rescale: bool,
        dropout: float,
        resample: Literal["down", "up", ""] = "",
        fir: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.fir, self.dropout = resample, fir, dropout
        _hold_taps(self, fir and resample == "down")
        self.scale = 1 / math.sqrt(2) if rescale else 1.0
        self.GroupNorm_0 = _norm(in_channels)
        self.Conv_0 = _conv(in_channels, out_channels)
        self.Dense_0 = _linear(features, out_channels)
        self.GroupNorm_1 = _norm(out_channels)
        self.Conv_1 = _conv(out_channels, out_channels, gain=NEARLY_ZERO)
        if biggan and (resample or in_channels != out_channels):
            self.Conv_2 = _conv(in_channels, out_channels, kernel=1)
        elif in_channels != out_channels:
            self.NIN_0 = NIN(in_channels, out_channels, math.sqrt(0.1))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample:
            x, h = (downsample(v, self.taps) if self.resample == "down" else upsample(v, self.fir) for v in (x, h))
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(embedding)[:, :, None, None]
        h = F.dropout(F.silu(self.GroupNorm_1(h)), self.dropout, self.training)
        shortcut = getattr(self, "Conv_2", None) or getattr(self, "NIN_0", None)
        return ((x if shortcut is None else shortcut(x)) + self.Conv_1(h)) * self.scale


class Combine(nn.Module):
    """The input pyramid joins the features: summed, or put in front of them."""

    def __init__(self, image_channels: int, channels: int, method: str) -> None:
        super().__init__()
        self.method = method
        self.Conv_0 = _conv(image_channels, channels, kernel=1)

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        pyramid = self.Conv_0(pyramid)
        return pyramid + h if self.method == "sum" else torch.cat([pyramid, h], dim=1)


class FourierFeatures(nn.Module):
    """Random Fourier features, sin and cos of 2 pi W v; W is drawn once and never trained."""

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, v: Tensor) -> Tensor:
        phase = 2 * math.pi * self.W * v[:, None]
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def sinusoidal_features(label: Tensor, features: int) -> Tensor:
    """(batch, features) transformer embedding of labels: sin and cos at geometric frequencies from 1 to 1/10000."""
    half = features // 2
    frequencies = torch.exp(torch.arange(half, device=label.device) * (-math.log(10000) / (half - 1)))
    phase = label.float()[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class DownLevel(NamedTuple):
    """A resolution on the way down: blocks with or without attention, then the step to the next one."""

    blocks: list[tuple[ResidualBlock, Attention | None]]
    resample: nn.Module | None
    pyramid: Any  # a module; None if the input does not enter here


class UpLevel(NamedTuple):
    """A resolution on the way up: blocks, attention, its part of the output, the step to the next one."""

    blocks: list[ResidualBlock]
    attention: Attention | None
    output: list[nn.Module]
    resample: nn.Module | None


class NCSNpp(nn.Module):
    """NCSN++ (VE) and DDPM++ (VP), in every published configuration.

    Args:
        channels: image channels C.
        size: image height; its halvings decide where attention stands.
        width: channels of the first level (`nf`).
        multipliers: width of each level in units of `width` (`ch_mult`).
        blocks: residual blocks a level (`num_res_blocks`); one more on the way up.
        attention: heights at which there is attention (`attn_resolutions`).
        embedding: "fourier" (of log sigma, or log t) or "positional" (of a label).
        block: "biggan" or "ddpm" (`resblock_type`).
        fir: resample with the filter [1, 3, 3, 1] instead of means and nearest neighbours.
        resample_conv: DDPM blocks: a convolution after each resampling (`resamp_with_conv`).
        output: "none", "output_skip" (images of all levels are summed) or "residual" (`progressive`).
        input: "none", "input_skip" or "residual": how the image enters each level (`progressive_input`).
        combine: "sum" or "cat" for "input_skip" (`progressive_combine`).
        skip_rescale: divide residual sums by sqrt(2).
        scale_by_sigma: divide the output by the noise level; the output of a VE network is then the score.
        conditional: the network sees the noise level.
        centred: images come in [-1, 1]; else they come in [0, 1] and the network maps them to [-1, 1].
        dropout: dropout of training.
        fourier_scale: standard deviation of the Fourier frequencies W.
        sigmas: (L,) descending noise levels, None for a network that sees times; a positional network with `scale_by_sigma`
            looks its level up here.
        velocity: the input is data and velocity, 2 `channels`; the output is the velocity's half.
        classes: number of its classes, 0 for none. A linear layer of sqrt(classes) times the one-hot label adds to the features
            of the noise level. EDM's `SongUNet` does the same (Karras et al., NeurIPS 2022).
    """

    pds_memory_format: ClassVar = torch.channels_last

    sigmas: Tensor
    taps: Tensor | None

    def __init__(
        self,
        channels: int,
        size: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        sigmas: Tensor | None,
        embedding: Embedding = "fourier",
        block: Block = "biggan",
        fir: bool = True,
        resample_conv: bool = True,
        output: Output = "none",
        input: Input = "residual",
        combine: Combination = "sum",
        skip_rescale: bool = True,
        scale_by_sigma: bool = True,
        conditional: bool = True,
        centred: bool = False,
        dropout: float = 0.0,
        fourier_scale: float = 16.0,
        classes: int = 0,
        velocity: bool = False,
    ) -> None:
        super().__init__()
        if fir and (output == "residual" or (block == "ddpm" and resample_conv)):
            raise OptionError(
                "fir",
                "must be false for a residual output and for ddpm blocks with resample_conv: NCSN++ has no upsampling by FIR "
                "filter and convolution",
            )
        if size % 2 ** (len(multipliers) - 1):
            unit = 2 ** (len(multipliers) - 1)
            raise OptionError("shape", f"must have a size divisible by {unit} for {len(multipliers)} levels, got {size}")
        self.embedding, self.scale_by_sigma, self.centred = embedding, scale_by_sigma, centred
        self.output, self.input, self.fir, self.width = output, input, fir, width
        self.size, self.skip_rescale, self.classes = size, skip_rescale, classes
        self.pyramid_scale = 1 / math.sqrt(2) if skip_rescale else 1.0
        self.register_buffer("sigmas", None if sigmas is None else sigmas.double())
        _hold_taps(self, fir and input == "input_skip")
        self.all_modules = nn.ModuleList()

        # Plain lists refer to modules that `all_modules` owns. So each parameter has one name, the published one.
        def add(*modules: nn.Module) -> list[Any]:
            self.all_modules.extend(modules)
            return list(modules)

        def residual(in_channels: int, out_channels: int, resample: Literal["down", "up", ""] = "") -> ResidualBlock:
            made = ResidualBlock(in_channels, out_channels, 4 * width, block == "biggan", skip_rescale, dropout, resample, fir)
            return add(made)[0]

        def attend(in_channels: int, height: int) -> Attention | None:
            return add(Attention(in_channels, skip_rescale))[0] if height in attention else None

        self._fourier = add(FourierFeatures(width, fourier_scale)) if embedding == "fourier" else []
        features = 2 * width if embedding == "fourier" else width
        self._dense = add(_linear(features, 4 * width), _linear(4 * width, 4 * width)) if conditional else []
        seen = 2 * channels if velocity else channels
        self._stem = add(_conv(seen, width))

        self._down: list[DownLevel] = []
        widths, c, pyramid_channels, height = [width], width, seen, size
        for level, multiplier in enumerate(multipliers):
            pairs = []
            for _ in range(blocks):
                made = residual(c, width * multiplier)
                c = width * multiplier
                pairs.append((made, attend(c, height)))
                widths.append(c)
            resample = join = None
            if level + 1 < len(multipliers):
                resample = residual(c, c, "down") if block == "biggan" else add(Downsample(c, c, resample_conv, fir))[0]
                if input == "input_skip":
                    join = add(Combine(pyramid_channels, c, combine))[0]
                    c = c if combine == "sum" else 2 * c
                elif input == "residual":
                    join, pyramid_channels = add(Downsample(pyramid_channels, c, True, fir))[0], c
                widths.append(c)
                height //= 2
            self._down.append(DownLevel(pairs, resample, join))

        self._middle = (residual(c, c), *add(Attention(c, skip_rescale)), residual(c, c))

        self._up: list[UpLevel] = []
        for level, multiplier in reversed(list(enumerate(multipliers))):
            made_blocks = []
            for _ in range(blocks + 1):
                made_blocks.append(residual(c + widths.pop(), width * multiplier))
                c = width * multiplier
            attention_here, out = attend(c, height), []
            if output == "residual" and self._up:
                out = add(Upsample(pyramid_channels, c, True, fir))
            elif output != "none":
                to_image = output == "output_skip"
                out = add(_norm(c), _conv(c, channels if to_image else c, gain=NEARLY_ZERO if to_image else 1.0))
            pyramid_channels, resample = c, None
            if level:
                resample = residual(c, c, "up") if block == "biggan" else add(Upsample(c, c, resample_conv, fir))[0]
                height *= 2
            self._up.append(UpLevel(made_blocks, attention_here, out, resample))
        self._end = add(_norm(c), _conv(c, channels, gain=NEARLY_ZERO)) if output != "output_skip" else []
        if classes:
            self.class_embedding = _linear(classes, features)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        """Network output: the score where `scale_by_sigma` is set, else (for VP) the predicted noise.

        Args:
            x: (batch, C, H, W) noisy images, or (batch, 2 C, H, W) with their velocity.
            condition: (batch,) sigma, or t of CLD, for Fourier embeddings. Positional ones take a label. For continuous VP it
                is 999 t; for discrete VE it is the integer index of the noise level, 0 = the LARGEST.
            labels: (batch,) int64 class of each image, -1 for none; None is none for all.

        Returns:
            (batch, C, H, W).
        """
        embedding = self._embed(condition, labels)
        x = x if self.centred else 2 * x - 1
        lowest, skips = self._contract(x, embedding)
        h = self._expand(lowest, skips, embedding)
        if not self.scale_by_sigma:
            return h
        sigma = condition if self.embedding == "fourier" else self.sigmas[condition.long()]
        return h / sigma[:, None, None, None]

    def _embed(self, condition: Tensor, labels: Tensor | None) -> Tensor | None:
        """(batch, 4 width) features of the noise level and the class, activated: every block starts with the activation."""
        if not self._dense:
            return None
        if self._fourier:
            features = self._fourier[0](condition.log())
        else:
            features = sinusoidal_features(condition, self.width)
        if self.classes:
            labels = torch.full_like(condition, -1) if labels is None else labels
            one_hot = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(features.dtype)
            features = features + self.class_embedding(math.sqrt(self.classes) * one_hot)
        first, second = self._dense
        return F.silu(second(F.silu(first(features))))

    def _contract(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Features at the lowest resolution, and the features that the way up will need."""
        pyramid, h = x, self._stem[0](x)
        skips = [h]
        for level in self._down:
            for block, attention in level.blocks:
                h = block(h, embedding)
                h = h if attention is None else attention(h)
                skips.append(h)
            if level.resample is None:
                continue
            h = level.resample(h, embedding)
            if self.input == "input_skip":
                pyramid = downsample(pyramid, self.taps)
                h = level.pyramid(pyramid, h)
            elif self.input == "residual":
                pyramid = h = (level.pyramid(pyramid) + h) * self.pyramid_scale
            skips.append(h)
        return h, skips

    def _expand(self, h: Tensor, skips: list[Tensor], embedding: Tensor | None) -> Tensor:
        """The image at full resolution, from the lowest up."""
        first, attention, last = self._middle
        h = last(attention(first(h, embedding)), embedding)
        pyramid: Tensor | None = None
        for level in self._up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            h = h if level.attention is None else level.attention(h)
            if self.output == "residual" and pyramid is not None:
                pyramid = h = (level.output[0](pyramid) + h) * self.pyramid_scale
            elif self.output != "none":
                norm, conv = level.output
                image = conv(F.silu(norm(h)))
                pyramid = image if pyramid is None else upsample(pyramid, self.fir) + image
            h = h if level.resample is None else level.resample(h, embedding)
        if self.output == "output_skip" and pyramid is not None:
            return pyramid
        norm, conv = self._end
        return conv(F.silu(norm(h)))


@checked
def ncsnpp(
    shape: Shape,
    process: Process = VarianceExploding(),
    width: Annotated[int, Range(4, 1024)] = 128,
    multipliers: Annotated[Sequence[int], Range(1, 64), Length(1, 12)] = (1, 2, 2, 2),
    blocks: Annotated[int, Range(1, 64)] = 4,
    attention: Annotated[Sequence[int], Range(1, 16_384), Length(0, 12)] = (16,),
    embedding: Embedding = "fourier",
    block: Block = "biggan",
    fir: bool = True,
    resample_conv: bool = True,
    output: Output = "none",
    input: Input = "residual",
    combine: Combination = "sum",
    skip_rescale: bool = True,
    scale_by_sigma: bool = True,
    centred: bool = False,
    dropout: Annotated[float, Range(0, below=1)] = 0.1,
    fourier_scale: Annotated[float, Range(0.001, 1e6)] = 16.0,
    classes: Classes = 0,
    checkpoint: str | Path | None = None,
    weights: Which = None,
) -> Model:
    """An NCSN++ or DDPM++ with its forward process and its weights, ready to sample or to train.

    Args:
        shape: (C, H, W) of its images, square.
        process: the forward process it is trained on. VE networks divide by sigma; VP and sub-VP networks predict the noise,
            CLD networks that of the velocity (`VelocityScore`).
        width: channels of the first level (`nf`); the defaults are those of CIFAR-10.
        multipliers: width of each level in units of `width` (`ch_mult`).
        blocks: residual blocks a level (`num_res_blocks`).
        attention: heights with self-attention (`attn_resolutions`).
        embedding: fourier (of log sigma, of log t for CLD), positional (of a label; VP, discrete VE).
        block: kind of residual block (`resblock_type`).
        fir: resample with the filter [1, 3, 3, 1].
        resample_conv: ddpm blocks: a convolution after each resampling (`resamp_with_conv`).
        output: how the levels make the image (`progressive`).
        input: how the image enters the levels (`progressive_input`).
        combine: how input_skip joins the image and the features (`progressive_combine`).
        skip_rescale: residual sums divided by sqrt(2).
        scale_by_sigma: output divided by sigma: true for VE, false for others.
        centred: images in [-1, 1] (VP, CLD) instead of [0, 1] (VE).
        dropout: dropout of training.
        fourier_scale: standard deviation of the Fourier frequencies.
        classes: number of classes of its labels; 0 for none.
        checkpoint: weights file; None for random weights.
        weights: which of its weights, see `load_weights`.

    Raises:
        PDSError: the process and the network do not belong together, or the weights are of another network or of other noise.
    """
    if shape[1] != shape[2]:
        raise OptionError("shape", f"must be square, (C, H, H), for NCSN++, got {list(shape)}")
    exploding, damped = process.title == "VE", isinstance(process, CriticallyDamped)
    if scale_by_sigma != exploding:
        made, due = ("VE", "false") if scale_by_sigma else ("VP", "true")
        raise OptionError(
            "scale_by_sigma",
            f"must be {due} for a {process.title} process; {str(scale_by_sigma).lower()} makes a {made} network: choose the "
            "process that the network was trained on",
        )
    if damped and not (centred and embedding == "fourier"):
        name, value = ("embedding", "fourier") if centred else ("centred", "true")
        raise OptionError(name, f"must be {value} for a CLD network, which sees log t and images in [-1, 1]", {name: value})
    if embedding == "fourier" and not (exploding or damped):
        raise OptionError(
            "embedding", f"must be positional for a {process.title} network, which sees t: a Fourier embedding is of log sigma"
        )
    if embedding == "positional" and width % 2:
        raise OptionError("width", f"must be even for a positional embedding, got {width}")
    try:
        network = NCSNpp(
            channels=shape[0],
            size=shape[1],
            sigmas=None if damped else process.ladder,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            embedding=embedding,
            block=block,
            fir=fir,
            resample_conv=resample_conv,
            output=output,
            input=input,
            combine=combine,
            skip_rescale=skip_rescale,
            scale_by_sigma=scale_by_sigma,
            centred=centred,
            dropout=dropout,
            fourier_scale=fourier_scale,
            classes=classes,
            velocity=damped,
        ).eval()
    except PDSError:
        raise
    except ValueError as error:  # of a GroupNorm
        fix = "take a multiple of 32, or of 4 for a small network"
        raise OptionError(
            "width", f"must give each level channels that divide into equal groups, got {width}: {fix}"
        ) from error
    loaded = None
    if checkpoint is not None:
        noise = {"process.kind": process.title} | {f"process.{name}": value for name, value in vars(process).items()}
        # Networks of LSUN and FFHQ have the same shapes and other noise. VP networks do not use the levels in their files.
        levels = ("process.sigma_max", "process.sigma_min") if exploding else None
        loaded = load_weights(network, checkpoint, weights, {"shape": list(shape)} | noise, levels)
    if isinstance(process, CriticallyDamped):
        score: NetworkScore = VelocityScore(network, process, shape[0])
    elif not exploding:
        score = NoisePrediction(network, process, process.label)
    elif embedding == "positional":
        score = LadderScore(network, process.ladder)
    else:
        score = ScorePrediction(network, process, "sigma")
    name = "NCSN++" if exploding or damped else "DDPM++"
    taken = f", {classes} classes" if classes else ""
    title = f"{name} ({process.title}, width {network.width}{taken}) {shape[0]}x{shape[1]}x{shape[2]}"
    channels, height, width = shape
    unconditional = not classes or loaded is None or loaded.label_dropout != 0
    data_range = (-1.0, 1.0) if centred else (0.0, 1.0)
    return Model(
        title, score, process, (channels, height, width), loaded, data_range, classes=classes, unconditional=unconditional
    )
