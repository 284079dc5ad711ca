"""Remedies for few steps. Each is an adapter of a score, so that any sampler can use it.

Along a sampler of few steps the state holds more or less noise than its level says (exposure bias). A network that was trained
on the exact amount then errs. Each class here wraps a score; each function returns a model with the wrapped score:

    pds.sample(epsilon_scaling(model, scale=1.01), sampler)

Here e = -sigma s(x, sigma) is the noise that a network predicts. It denoises x to the image D = x - sigma e.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from pds.data.dataset import Dataset
from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.gaussian import StationaryGaussian
from pds.models.safetensors_files import state_digest
from pds.models.scores import GivenModel, Model, NetworkScore
from pds.options import Range, Search, checked
from pds.processes.forward import noise_range

LEAST_MODES = 16  # the fewest modes for a measurement of the noise
DATA_SHARE = 0.01  # the most variance of the data in these modes, in units of the noise's


class Remedy(NetworkScore):
    """A score that changes the arguments or the values of another score.

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

    @property
    def provenance(self) -> dict[str, str]:
        """The facts from the data set that the values depend on; empty for a remedy without statistics."""
        return {}

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


def without_remedy(score: NetworkScore) -> NetworkScore:
    """The score of the network itself."""
    while isinstance(score, Remedy):
        score = score.score
    return score


def _trained(shifted: Tensor, sigma: Tensor, levels: tuple[float, float]) -> Tensor:
    """The shifted levels cut to those of the training. A sampler's own level passes whatever it is."""
    lowest, largest = levels
    return shifted.clamp(sigma.clamp(max=lowest), sigma.clamp(min=largest))


class TimeShift(Remedy):
    """The network gets the noise level that the variance of the state's pixels shows: Li et al., *Alleviating Exposure Bias in
    Diffusion Models through Sampling with Shifted Time Steps*, ICLR 2024.

    The level is found for each image within a window around sigma: sigma'^2 = Var(x) - v, v the pixel variance of an image of
    the data. Both are means over channels of the variance within a channel: the colour of an image is no noise. The network's
    prediction is taken for the noise at sigma, as in the paper.

    Args:
        score: of a model.
        data_variance: v, in squared pixel units of the model.
        window: largest distance of sigma' from sigma, as a part of sigma; 0 changes nothing.
        cutoff: below this sigma nothing is shifted: there the variance of single images hides that of the noise.
        levels: smallest and largest noise level of the process, in pixel units of the model.
    """

    def __init__(
        self,
        score: NetworkScore,
        data_variance: float,
        window: float,
        cutoff: float,
        levels: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__(score)
        self.data_variance, self.window, self.cutoff, self.levels = data_variance, window, cutoff, levels

    @property
    def provenance(self) -> dict[str, str]:
        return {"remedy": f"{self.data_variance:.9g}"}

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        variance = x.flatten(2).double().var(2).mean(1)
        found = (variance - self.data_variance).clamp(min=0).sqrt().to(sigma.dtype)
        shifted = found.clamp(sigma * (1 - self.window), sigma * (1 + self.window))
        given = _trained(torch.where(sigma >= self.cutoff, shifted, sigma), sigma, self.levels)
        s: Tensor = self.score(x, given, *labels)
        return s * (given / sigma)[:, None, None, None]


class LevelShift(Remedy):
    """The network gets a constant multiple of the noise level, and its denoised image is kept in the data range.

    The network's prediction is taken for the noise at sigma: D = x - sigma e(x, scale sigma), the multiple cut to the levels of
    its training. A scale above 1 measured better on the shipped VE network at few steps (experiments/RESULTS.md). The mean of
    images lies in the data range. So a D outside is moved to the nearest value inside, which lowers the error of any network.

    Args:
        score: score of a model.
        scale: given level over true level; 1 gives the true level.
        bounds: black and white in the data range, lower first; None leaves D as it is.
        levels: smallest and largest noise level of the process, in pixel units of the model.
    """

    def __init__(
        self,
        score: NetworkScore,
        scale: float,
        bounds: tuple[float, float] | None,
        levels: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__(score)
        self.scale, self.bounds, self.levels = scale, bounds, levels

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        shifted = self.scale * sigma
        given = _trained(shifted, sigma, self.levels)
        factor = torch.where(given == shifted, self.scale, given / sigma)
        s: Tensor = factor[:, None, None, None] * self.score(x, given, *labels)
        if self.bounds is None:
            return s
        std = sigma.to(x.dtype)[:, None, None, None]
        return (torch.clamp(x + std * (std * s), *self.bounds) - x) / std / std


class BandCorrection(Remedy):
    """The differential correction of DCW (*Elucidating the SNR-t Bias of Diffusion Probabilistic Models*, CVPR 2026), in bands.

    After each step DCW moves the state by a part of its distance from D. It does so in the low band of a Haar wavelet and in
    the rest. This shrinks the noise that the step takes out. A score does not know the next state. So here each evaluation
    moves D by a part of x - D: D + c (x - D). In the low band c = low sigma / sigma_max, above it c = high (1 - sigma /
    sigma_max).

    Args:
        score: score of a model.
        sigma_max: largest noise level of the process.
        low, high: parts of the two bands; 0 and 0 change nothing. The predicted noise of a band is multiplied by 1 - c.
    """

    def __init__(self, score: NetworkScore, sigma_max: float, low: float, high: float) -> None:
        super().__init__(score)
        self.sigma_max, self.low, self.high = sigma_max, low, high

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        s, part = self.score(x, sigma, *labels), (sigma / self.sigma_max)[:, None, None, None]
        # The low band of one Haar level is the mean of each 2 x 2 block. An odd last row or column forms its own blocks.
        coarse = torch.nn.functional.avg_pool2d(s, 2, ceil_mode=True, count_include_pad=False)
        coarse = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : x.shape[-2], : x.shape[-1]]
        return s - self.low * part * coarse - self.high * (1 - part) * (s - coarse)


class SeenNoise(Remedy):
    """A network made to see the strength of the noise: our own remedy.

    A network whose every path passes a normalisation predicts noise of the right shape and of the usual strength, for noise of
    any strength. In the Fourier modes with next to no variance of the data the state is the mean image and that noise. So the
    strength is read off there, for each image, by least squares: k = <x - mean, e> / (sigma <e, e>) over those modes. The
    predicted noise is multiplied by k in each mode, to the extent sigma^2 / (sigma^2 + p) that the mode is noise. For an exact
    score k = 1 up to p / sigma^2 <= 0.01. If fewer than 16 modes are so empty, at small sigma, nothing changes.

    Args:
        score: score of a model.
        law: the Gaussian with the mean and the power spectrum p of the data.
    """

    mean: Tensor
    power: Tensor

    def __init__(self, score: NetworkScore, law: StationaryGaussian) -> None:
        super().__init__(score)
        self.register_buffer("mean", law.mean.float(), persistent=False)
        self.register_buffer("power", law.power.float(), persistent=False)

    @property
    def provenance(self) -> dict[str, str]:
        return {"remedy": state_digest({"mean": self.mean, "power": self.power})}

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        s, std = self.score(x, sigma, *labels), sigma.to(x.dtype)[:, None, None, None]
        empty = (self.power <= DATA_SHARE * std**2).to(x.dtype)
        state, score = torch.fft.fft2(x - self.mean), torch.fft.fft2(s)
        predicted = (empty * score.abs().square()).sum((1, 2, 3), keepdim=True)
        # e = -sigma s.
        k = -(empty * (state * score.conj()).real).sum((1, 2, 3), keepdim=True) / (std**2 * predicted)
        k = torch.where(empty.sum((1, 2, 3), keepdim=True) >= LEAST_MODES, k, 1.0)
        weight = std**2 / (std**2 + self.power)
        return torch.where(k == 1, s, torch.fft.ifft2(score * (1 + weight * (k - 1))).real)


# The choices of remedy=...: each is given the model and the data set by position.


@checked
def epsilon_scaling(
    model: GivenModel, dataset: Dataset | None = None, /, *, scale: Annotated[float, Range(0.5, 2), Search(1, 1.03)] = 1.005
) -> Model:
    """The predicted noise divided by a number (Ning et al., ICLR 2024).

    Args:
        scale: the divisor; 1 changes nothing.
    """
    _require_images(model)
    return replace(model, score=EpsilonScaling(model.score, scale))


@checked
def time_shift(
    model: GivenModel,
    dataset: Dataset | None = None,
    /,
    *,
    window: Annotated[float, Range(0, 0.9), Search(0, 0.3)] = 0.1,
    cutoff: Annotated[float, Range(0, 1e9)] = 1.0,
) -> Model:
    """The network given the noise level that the state shows (Li et al., ICLR 2024).

    The pixel variance of the data is that of the model's statistics, or of the data set's.

    Args:
        window: largest distance from the sampler's level, as a part of it; 0 changes nothing.
        cutoff: noise level below which nothing is shifted, in pixel units of the model.
    """
    _require_images(model)
    if math.prod(model.shape[1:]) == 1:
        raise PDSError(f"this remedy needs images of more than one pixel, and {model.title} has one: leave the remedy out")
    statistics, (black, white) = _statistics(model, dataset), model.data_range
    moment = statistics.power.double() / math.prod(model.shape[1:])  # E|F x|^2, and its mean without DC is that variance
    moment[:, 0, 0] = 0
    data_variance = (white - black) ** 2 * moment.mean().item()
    return replace(model, score=TimeShift(model.score, data_variance, window, cutoff, noise_range(model.process)))


@checked
def level_shift(
    model: GivenModel,
    dataset: Dataset | None = None,
    /,
    *,
    scale: Annotated[float, Range(0.1, 10), Search(1, 2, log=True)] = 1.4,
    bounded: bool = True,
) -> Model:
    """The network given a constant multiple of the noise level.

    Args:
        scale: given level over true level; 1 gives the true level.
        bounded: keep the network's denoised image in the data range, where the mean of images lies. Guidance may lead out of
            it again.
    """
    _require_images(model)
    low, high = sorted(model.data_range)
    return replace(model, score=LevelShift(model.score, scale, (low, high) if bounded else None, noise_range(model.process)))


@checked
def band_correction(
    model: GivenModel,
    dataset: Dataset | None = None,
    /,
    *,
    low: Annotated[float, Range(-1, 1)] = 0.02,
    high: Annotated[float, Range(-1, 1)] = 0.0,
) -> Model:
    """The predicted noise scaled in a low and in a high band (DCW, CVPR 2026).

    Args:
        low: part left out of the low band at the largest noise level, falling in proportion to sigma.
        high: part left out of the high band at the smallest noise level, falling as sigma grows.
    """
    _require_images(model)
    _, largest = noise_range(model.process)
    return replace(model, score=BandCorrection(model.score, largest, low, high))


@checked
def seen_noise(model: GivenModel, dataset: Dataset | None = None, /) -> Model:
    """The network made to see the strength of the noise, from the modes without data."""
    _require_images(model)
    gaussian = _statistics(model, dataset).gaussian(model.data_range)
    return replace(model, score=SeenNoise(model.score, gaussian).to(model.device))


def _statistics(model: Model, dataset: Dataset | None) -> DatasetStatistics:
    if model.statistics is None and dataset is None:
        fix = "give dataclasses.replace(model, statistics=pds.statistics(folder of images))"
        raise PDSError(f"this remedy needs the statistics of the images that {model.title} was trained on: {fix}")
    known = model.statistics or dataset.statistics  # type: ignore[union-attr]
    known.require_shape(model.shape, model.title)
    return known


def _require_images(model: Model) -> None:
    if model.score.halves != 1:
        raise PDSError(
            f"a remedy is for scores of images, and {model.title} gives the score of a velocity: leave the remedy out"
        )
