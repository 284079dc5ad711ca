"""NCSN++ in plain eager arithmetic, as in its authors' code: the baseline of every speed-up."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pds.models.ncsnpp import NIN, Attention, Combine, Downsample, NCSNpp, ResidualBlock, sinusoidal_features


class PlainNCSNpp(nn.Module):
    """The function of an `NCSNpp`, with its weights; only convolutions and norms have the same arithmetic.

    Attention is written out as two products and a softmax. A 1x1 layer is a product over the channels. The FIR filter is one
    convolution, transposed on the way up. Memory has the default layout of torch.

    Args:
        network: the network, without classes; its weights are shared.
    """

    taps: Tensor

    def __init__(self, network: NCSNpp) -> None:
        super().__init__()
        if network.classes:
            raise ValueError("the authors' networks have no classes")
        self.network = network
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("taps", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Network output, see `NCSNpp.forward`."""
        net = self.network
        x = x if net.centred else 2 * x - 1
        embedding = self._embed(condition)
        pyramid, h = x, net._stem[0](x)
        skips = [h]
        for down in net._down:
            for block, attention in down.blocks:
                h = self._block(block, h, embedding)
                h = h if attention is None else _attend(attention, h)
                skips.append(h)
            if down.resample is None:
                continue
            h = self._resampled(down.resample, h, embedding)
            if net.input == "input_skip":
                pyramid = self._down(pyramid, net.fir)
                h = _combined(down.pyramid, pyramid, h)
            elif net.input == "residual":
                pyramid = h = (self._resampled(down.pyramid, pyramid, None) + h) * net.pyramid_scale
            skips.append(h)

        first, attention, last = net._middle
        h = self._block(last, _attend(attention, self._block(first, h, embedding)), embedding)

        image: Tensor | None = None
        for up in net._up:
            for block in up.blocks:
                h = self._block(block, torch.cat([h, skips.pop()], dim=1), embedding)
            h = h if up.attention is None else _attend(up.attention, h)
            if net.output == "residual" and image is not None:
                image = h = (self._resampled(up.output[0], image, None) + h) * net.pyramid_scale
            elif net.output != "none":
                norm, conv = up.output
                made = conv(F.silu(norm(h)))
                image = made if image is None else self._up(image, net.fir) + made
            h = h if up.resample is None else self._resampled(up.resample, h, embedding)
        if net.output == "output_skip" and image is not None:
            h = image
        else:
            norm, conv = net._end
            h = conv(F.silu(norm(h)))
        if not net.scale_by_sigma:
            return h
        sigma = condition if net.embedding == "fourier" else net.sigmas[condition.long()]
        return h / sigma[:, None, None, None]

    def _embed(self, condition: Tensor) -> Tensor | None:
        net = self.network
        if not net._dense:
            return None
        if net._fourier:
            phase = 2 * math.pi * condition.log()[:, None] * net._fourier[0].W[None, :]
            features = torch.cat([phase.sin(), phase.cos()], dim=-1)
        else:
            features = sinusoidal_features(condition, net.width)
        first, second = net._dense
        return second(F.silu(first(features)))

    def _block(self, block: ResidualBlock, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(block.GroupNorm_0(x))
        if block.resample:
            change = self._down if block.resample == "down" else self._up
            x, h = change(x, block.fir), change(h, block.fir)
        h = block.Conv_0(h)
        if embedding is not None:
            h = h + block.Dense_0(F.silu(embedding))[:, :, None, None]
        h = block.Conv_1(F.silu(block.GroupNorm_1(h)))
        if hasattr(block, "Conv_2"):
            x = block.Conv_2(x)
        elif hasattr(block, "NIN_0"):
            x = _product(block.NIN_0, x)
        return (x + h) * block.scale

    def _resampled(self, layer: nn.Module, x: Tensor, embedding: Tensor | None) -> Tensor:
        """`layer`, which halves or doubles the height: a residual block, or a filter with or without a convolution."""
        if isinstance(layer, ResidualBlock):
            return self._block(layer, x, embedding)
        conv = next(layer.children(), None)
        if not isinstance(layer, Downsample):
            x = self._up(x, bool(layer.fir))
            return x if conv is None else conv(x)
        if conv is None:
            return self._down(x, bool(layer.fir))
        return conv(self._filtered(x, 1, 2) if layer.fir else F.pad(x, (0, 1, 0, 1)))

    def _filtered(self, x: Tensor, stride: int, padding: int) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.taps.expand(channels, 1, 4, 4), stride=stride, padding=padding, groups=channels)

    def _down(self, x: Tensor, fir: bool) -> Tensor:
        return self._filtered(x, 2, 1) if fir else F.avg_pool2d(x, 2)

    def _up(self, x: Tensor, fir: bool) -> Tensor:
        if not fir:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        channels = x.shape[1]
        return F.conv_transpose2d(x, (4 * self.taps).expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


def _product(layer: NIN, x: Tensor) -> Tensor:
    return torch.einsum("bchw,cd->bdhw", x, layer.W) + layer.b[:, None, None]


def _attend(layer: Attention, x: Tensor) -> Tensor:
    h = layer.GroupNorm_0(x)
    q, k, v = (_product(one, h).flatten(2) for one in (layer.NIN_0, layer.NIN_1, layer.NIN_2))
    weights = torch.einsum("bci,bcj->bij", q, k).mul(x.shape[1] ** -0.5).softmax(dim=-1)
    h = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    return (x + _product(layer.NIN_3, h)) * layer.scale


def _combined(layer: Combine, pyramid: Tensor, h: Tensor) -> Tensor:
    pyramid = layer.Conv_0(pyramid)
    return pyramid + h if layer.method == "sum" else torch.cat([pyramid, h], dim=1)
