"""The Gaussian law of stationary images: the simplest law with the mean and the power spectrum of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StationaryGaussian:
    """x ~ N(mean, F^-1 diag(p) F), F the orthonormal DFT, and the score of x plus noise: `score(x, sigma)`.

    Attributes:
        mean: (C, H, W) float64.
        power: (C, H, W) float64 variance p of each Fourier mode, DC at [0, 0].
        provenance: the provenance of the statistics that it is made of.
    """

    mean: Tensor
    power: Tensor
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """s(x, sigma) = -F^-1 [F (x - mean) / (p + sigma^2)], (batch, C, H, W) float64."""
        spectrum = torch.fft.fft2(x.double() - self.mean) / (self.power + sigma.double().square()[:, None, None, None])
        return -torch.fft.ifft2(spectrum).real

    def noised(self, z: Tensor, sigma: float) -> Tensor:
        """A state of this law with noise of level sigma, from standard normal z: mean + F^-1 sqrt(p + sigma^2) F z."""
        deviation = (self.power + sigma**2).sqrt().to(z.device, z.dtype)
        return self.mean.to(z.device, z.dtype) + torch.fft.ifft2(deviation * torch.fft.fft2(z)).real

    def distance(self, other: StationaryGaussian) -> float:
        """Fréchet distance in pixels, |mean - mean'|^2 + sum (sqrt p - sqrt p')^2, in squared pixel units of the model."""
        means = (self.mean - other.mean).square().sum()
        return (means + (self.power.sqrt() - other.power.sqrt()).square().sum()).item()
