"""Noise that belongs to an image: draw d of image i depends on (seed, i, d) alone.

The generator counts (Philox4x32-10; Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011) and has no state. It
makes the whole batch at once on any device. So an image does not depend on the batch size, on its neighbours, on the number of
processes or on a restart. CPU and GPU differ only by the rounding of log, sin and cos.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pds.errors import PDSError

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

# `ImageNoise.normal` computes up to this many values at once, so small images get several draws at a time. One draw takes about
# 130 small operations: below this size a CPU's calls, and a GPU's launches, take longer than the arithmetic.
_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 22}


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of random bits for each counter.

    Args:
        counter: four int64 tensors of one (broadcast) shape holding 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of that shape, uniform in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2**64. This keeps both 32-bit halves intact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


class NoiseSource(Protocol):
    """The source of a sampler's noise: each call is the next draw, like the state in shape, device and dtype."""

    def normal(self) -> Tensor:
        """Standard normal."""
        ...

    def uniform(self) -> Tensor:
        """Uniform in [0, 1)."""
        ...


class ImageNoise:
    """Independent noise streams for a batch of images, one for each (seed, image index).

    Args:
        seed: 0 <= seed < 2**64.
        indices: (batch,) int64 image indices, 0 <= index < 2**32; on the device where the noise is wanted.
        shape: (C, H, W) of an image.
    """

    def __init__(self, seed: int, indices: Tensor, shape: tuple[int, int, int]) -> None:
        if not 0 <= seed < 1 << 64:
            raise PDSError(f"seed must be in [0, 2**64), got {seed}")
        self.key = (seed & _WORD, seed >> 32)
        self.indices, self.shape, self.draws = indices, shape, 0
        self._ahead: dict[int, Tensor] = {}

    def _bits(self, count: int) -> Tensor:
        """(count, batch, 4, ceil(CHW / 4)) random 32-bit words of the next `count` draws."""
        device = self.indices.device
        block = torch.arange(-(-math.prod(self.shape) // 4), device=device)[None, None, :]
        draw = torch.arange(self.draws, self.draws + count, device=device)[:, None, None]
        counter = (block, draw, self.indices[:, None], torch.zeros_like(block))
        return torch.stack(philox(counter, self.key), dim=2)

    def _images(self, values: Tensor) -> Tensor:
        """(count, batch, C, H, W)."""
        return values.flatten(2)[..., : math.prod(self.shape)].reshape(len(values), -1, *self.shape)

    def uniform(self) -> Tensor:
        """(batch, C, H, W) float32 uniform in [0, 1), 24 random bits each."""
        bits = self._bits(1)
        self.draws += 1
        return self._images((bits >> 8).float() * 2.0**-24)[0]

    def normal(self) -> Tensor:
        """(batch, C, H, W) float32 standard normal, by Box-Muller. Small draws are made several at once, to the same bits."""
        if self.draws not in self._ahead:
            # One draw at first: some samplers draw nothing after the prior.
            most = _AT_ONCE.get(self.indices.device.type, 0) if self.draws else 0
            count = max(1, most // max(1, len(self.indices) * math.prod(self.shape)))
            self._ahead = dict(enumerate(self._normals(count), self.draws))
        z = self._ahead.pop(self.draws)
        self.draws += 1
        return z

    def _normals(self, count: int) -> Tensor:
        """(count, batch, C, H, W) of the next `count` draws."""
        bits = self._bits(count)
        # Centred on the bins, so that the logarithm never sees 0: the largest normal is 6.7.
        u = ((bits[:, :, :2] >> 1).double() + 0.5) * 2.0**-31
        radius = (-2 * u.log()).sqrt().float()
        angle = bits[:, :, 2:].float() * (2 * math.pi * 2.0**-32)
        return self._images(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=2))
