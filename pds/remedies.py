"""Remedies for few steps, each an adapter of a score, so that any sampler can have it.

Along a sampler of few steps the state holds more or less noise than its level says (exposure bias). A network that was trained
on the exact amount then errs. Each class here wraps a score; each function gives a model that has it:

    pds.sample(epsilon_scaling(model, scale=1.01), sampler)

With e = -sigma s(x, sigma) the noise that a network predicts, D = x - sigma e the image that it denoises x to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from pds.data.dataset import Dataset
from pds.data.images import to_unit
from pds.data.statistics import DatasetStatistics, choose
from pds.errors import PDSError
from pds.evaluation.excess_noise import DATA_SHARE, LEVELS, noise_response
from pds.models.scores import Model, NetworkScore
from pds.options import Count, Range, checked

Response = Callable[[float, float], float]
"""r(sigma, k): the noise that a network predicts where there is k times as much as sigma says, in units of that at k = 1."""

LEAST_MODES = 16  # for a measurement of the noise


class Remedy(NetworkScore):
    """A score that changes what another one is asked or answers.

    Args:
        score: of a model.
    """

    def __init__(self, score: NetworkScore) -> None:
        super().__init__()
        self.score = score

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The network behind the score."""
        return self.score.network

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        return self.score.draw_sigma(count, generator)


class EpsilonScaling(Remedy):
    """e / scale: Ning et al., *Elucidating the Exposure Bias in Diffusion Models*, ICLR 2024, with their uniform schedule.

    Args:
        score: of a model.
        scale: their lambda, a little above 1; 1 changes nothing.
    """

    def __init__(self, score: NetworkScore, scale: float) -> None:
        super().__init__(score)
        self.scale = scale

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        s: Tensor = self.score(x, sigma, *labels)
        return s / self.scale


class TimeShift(Remedy):
    """The network is told the noise level that the variance of the state's pixels shows: Li et al., *Alleviating Exposure Bias
    in Diffusion Models through Sampling with Shifted Time Steps*, ICLR 2024.

    The level is found for each image, sigma'^2 = Var(x) - v, v the pixel variance of an image of the data, within a window
    around sigma. The network's prediction is taken for the noise at sigma, as in the paper.

    Args:
        score: of a model.
        data_variance: v, in squared units of the data range.
        window: how far sigma' may be from sigma, as a part of it; 0 changes nothing.
        cutoff: below this sigma nothing is shifted; the variance of single images hides the noise's there.
    """

    def __init__(self, score: NetworkScore, data_variance: float, window: float, cutoff: float) -> None:
        super().__init__(score)
        self.data_variance, self.window, self.cutoff = data_variance, window, cutoff

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        found = (x.flatten(1).double().var(1) - self.data_variance).clamp(min=0).sqrt().to(sigma.dtype)
        shifted = found.clamp(sigma * (1 - self.window), sigma * (1 + self.window))
        told = torch.where(sigma >= self.cutoff, shifted, sigma)
        s: Tensor = self.score(x, told, *labels)
        return s * (told / sigma)[:, None, None, None]


class BandCorrection(Remedy):
    """The differential correction of DCW (*Elucidating the SNR-t Bias of Diffusion Probabilistic Models*, CVPR 2026), in bands.

    DCW moves the state after each step by a part of its distance from D, in the low band of a Haar wavelet and in the rest.
    This shrinks the noise that the step takes out. A score does not know the next state. So the part is taken of the distance x
    - D in each evaluation: D + c (x - D), c = low sigma / sigma_max in the low band, high (1 - sigma / sigma_max) above.

    Args:
        score: of a model.
        sigma_max: largest noise level of the process.
        low, high: of the two bands; 0 and 0 change nothing. The noise predicted there is multiplied by 1 - c.
    """

    def __init__(self, score: NetworkScore, sigma_max: float, low: float, high: float) -> None:
        super().__init__(score)
        self.sigma_max, self.low, self.high = sigma_max, low, high

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        s, part = self.score(x, sigma, *labels), (sigma / self.sigma_max)[:, None, None, None]
        # The low band of one Haar level is the mean of each 2 x 2 block; an odd last row or column is a block by itself.
        coarse = torch.nn.functional.avg_pool2d(s, 2, ceil_mode=True, count_include_pad=False)
        coarse = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : x.shape[-2], : x.shape[-1]]
        return s - self.low * part * coarse - self.high * (1 - part) * (s - coarse)


class SeenNoise(Remedy):
    """A network made to see how much noise there is: our own remedy, from its measured response.

    A network that is shown k sigma z predicts r(sigma, k) z instead of k z (`pds.evaluation.excess_noise`). Here k is measured
    in each state, in the Fourier modes in which the data have next to nothing, and the noise that is predicted is multiplied by
    k / r(sigma, k), in each mode by as much as noise is more than data there, sigma^2 / (sigma^2 + p). An exact score, r = k,
    is left as it is. Where fewer than 16 modes are without data, at small sigma, nothing is changed.

    Args:
        score: of a model.
        power: (C, H, W) variance p of the data in each mode of the orthonormal DFT, in squared units of the data range.
        response: r(sigma, k).
    """

    power: Tensor

    def __init__(self, score: NetworkScore, power: Tensor, response: Response) -> None:
        super().__init__(score)
        self.register_buffer("power", power.float(), persistent=False)
        self.response = response

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        s, level = self.score(x, sigma, *labels), sigma[0].item()
        # Samplers that ask at several levels at once differ from image to image in their modes.
        if (sigma != sigma[0]).any():
            return torch.cat([self._corrected(*row) for row in zip(x.split(1), s.split(1), sigma.tolist(), strict=True)])
        return self._corrected(x, s, level)

    def _corrected(self, x: Tensor, s: Tensor, sigma: float) -> Tensor:
        empty = self.power <= DATA_SHARE * sigma**2
        if int(empty.sum()) < LEAST_MODES:
            return s
        seen = torch.fft.fft2(x, norm="ortho").abs().square()[:, empty].mean(1)
        k = (seen / (sigma**2 + self.power[empty].mean())).sqrt().tolist()
        factor = s.new_tensor([value / self.response(sigma, value) for value in k])[:, None, None, None]
        weight = sigma**2 / (sigma**2 + self.power)
        return torch.fft.ifft2(torch.fft.fft2(s) * (1 + weight * (factor - 1))).real


# The choices of remedy=...: each is given the model and the data set by position.


@checked
def epsilon_scaling(
    model: Model, dataset: Dataset | None = None, /, *, scale: Annotated[float, Range(0.5, 2)] = 1.005
) -> Model:
    """The predicted noise divided by a number (Ning et al., ICLR 2024).

    Args:
        scale: what it is divided by; 1 changes nothing.
    """
    return replace(model, score=EpsilonScaling(model.score, scale))


@checked
def time_shift(
    model: Model,
    dataset: Dataset | None = None,
    /,
    *,
    window: Annotated[float, Range(0, 0.9)] = 0.1,
    cutoff: Annotated[float, Range(0, 1e9)] = 1.0,
) -> Model:
    """The network told the noise level that the state shows (Li et al., ICLR 2024).

    The pixel variance of the data is that of the model's statistics, or of the data set's.

    Args:
        window: how far from the sampler's level, as a part of it; 0 changes nothing.
        cutoff: the noise level below which nothing is shifted, in units of the data range.
    """
    power = _power(model, dataset)
    power[:, 0, 0] = 0
    return replace(model, score=TimeShift(model.score, power.mean().item(), window, cutoff))


@checked
def band_correction(
    model: Model,
    dataset: Dataset | None = None,
    /,
    *,
    low: Annotated[float, Range(-1, 1)] = 0.02,
    high: Annotated[float, Range(-1, 1)] = 0.0,
) -> Model:
    """The noise predicted in a low and in a high band scaled (DCW, CVPR 2026).

    Args:
        low: part left out of the low band at the largest noise level, falling in proportion to sigma.
        high: part left out of the high band at the smallest noise level, falling as sigma grows.
    """
    return replace(model, score=BandCorrection(model.score, model.process.ladder[0].item(), low, high))


@checked
def seen_noise(model: Model, dataset: Dataset | None = None, /, *, images: Count = 64) -> Model:
    """The network made to see how much noise there is, from its measured response.

    Args:
        images: of the data set, to measure the response on; without a data set the mean image stands in.
    """
    power, (black, white) = _power(model, dataset), model.data_range
    if dataset is None:
        real = _statistics(model, dataset).mean[None].expand(images, -1, -1, -1)
    else:
        real = to_unit(dataset.images.read(choose(dataset.images, images, 0)))
    ladder = model.process.ladder
    sigmas = np.geomspace(ladder[-1].item(), ladder[0].item(), LEVELS).tolist()
    response = noise_response(model.score, (black + (white - black) * real).to(model.device), sigmas)
    return replace(model, score=SeenNoise(model.score, power, response))


def _statistics(model: Model, dataset: Dataset | None) -> DatasetStatistics:
    if model.statistics is not None:
        return model.statistics
    if dataset is None:
        raise PDSError(f"this remedy needs the statistics of the images that {model.title} was trained on, and it has none")
    return dataset.statistics


def _power(model: Model, dataset: Dataset | None) -> Tensor:
    """(C, H, W) variance of the data in each mode of the orthonormal DFT."""
    statistics, (black, white) = _statistics(model, dataset), model.data_range
    return (white - black) ** 2 * statistics.power.double() / math.prod(model.shape[1:])
