"""Noise that a score network does not see, and its growth along a sampler.

With few steps a predictor leaves more noise in the state than its level says, k sigma z instead of sigma z. The exact score of
a mode without data, -x / sigma^2, pulls k times as hard, and the excess stays small. A network that was trained on k = 1 alone
may pull as if k were 1, r(k) = 1 instead of r(k) = k. Then the excess grows from step to step. In such a mode

    K <- sqrt((K (1 + m^2 linear) - m^2 weight r(k) / std)^2 + m^2 noise^2),    k = K / std,

is the standard deviation of the state. m^2 is the gain of P P^T there; linear, weight and noise are the coefficients of the
step. With r = 1 and reverse diffusion on VE, K stays bounded only for m^2 >= sigma_i^2 / sigma_{i+1}^2: with a filter, not for
m = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from pds.data.images import ArrayImages, as_uint8, to_range, to_unit
from pds.data.statistics import dataset_statistics
from pds.errors import PDSError
from pds.models.scores import GivenModel, Model, in_evaluation_mode
from pds.noise import ImageNoise
from pds.options import Length, Range, Seed, checked
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process, noise_range
from pds.remedies import DATA_SHARE
from pds.samplers.predictor_corrector import Level, Predictor, PredictorCorrector, ReverseDiffusion
from pds.score import Score, score_at

FACTORS = (0.5, 0.8, 1.0, 1.25, 1.6, 2.0, 4.0)
HIGH = 0.35  # cycles a pixel, along both axes; images have least above it
MOST = 8.0  # the largest gain of a filter that is tried
LEVELS = 5  # noise levels at which the response of a model is measured
HIDDEN = 0.1  # share of the noise below which a measured response is mostly chance


@dataclass(frozen=True)
class NoiseResponse:
    """The noise that a network predicts in a state with k times as much noise as its level says.

    Attributes:
        sigmas: (S,) ascending noise levels.
        factors: (K,) ascending k, 1 among them.
        values: (S, K) mean <e, z> / <z, z> of the predicted noise e = -sigma s(x_0 + k sigma z, sigma). An exact score of pure
            noise gives k. A network that does not see the excess gives the same value for every k. The values are lower where
            the data hide noise.
        errors: (S,) mean squared error a pixel of the denoised image at k = 1, in squared pixel units of the model. It is empty
            if it was not measured.
    """

    sigmas: tuple[float, ...]
    factors: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    errors: tuple[float, ...] = ()

    def __call__(self, sigma: float, k: float) -> float:
        """r(k) at a level, in units of r(1): linear in k and in log sigma between the measured values, and linear in k above
        them.

        Below the smallest k and beyond the levels it has the nearest value. A level where r(1) is below `HIDDEN` is left out:
        the data hide the noise there, and a ratio of two such values tells nothing.
        """
        known = [(at, row) for at, row in zip(self.sigmas, self.values, strict=True) if row[self.factors.index(1.0)] > HIDDEN]
        return float(np.interp(math.log(sigma), np.log([at for at, _ in known]), [self._of_level(row, k) for _, row in known]))

    def _of_level(self, row: Sequence[float], k: float) -> float:
        at_1 = row[self.factors.index(1.0)]
        if k <= self.factors[-1]:
            return float(np.interp(k, self.factors, row)) / at_1
        slope = (row[-1] - row[-2]) / (self.factors[-1] - self.factors[-2])
        return (row[-1] + slope * (k - self.factors[-1])) / at_1


@torch.no_grad()
def noise_response(score: Score, images: Tensor, sigmas: Sequence[float], seed: int = 0) -> NoiseResponse:
    """Measure the response, with the same noise at every level.

    Args:
        score: `score(x, sigma)`.
        images: (n, C, H, W) float32 real images in the data range of the model.
        sigmas: (S,) ascending noise levels.
        seed: of the noise.

    Returns:
        The response at `FACTORS`, averaged over images and pixels.
    """
    _, channels, height, width = images.shape
    z = ImageNoise(seed, torch.arange(len(images), device=images.device), (channels, height, width)).normal()

    errors = dict[float, float]()

    def share(sigma: float, k: float) -> float:
        e = -sigma * score_at(score, images + k * sigma * z, sigma)
        if k == 1:
            errors[sigma] = sigma**2 * (z - e).square().mean().item()
        return ((e * z).sum() / z.square().sum()).item()

    values = tuple(tuple(share(sigma, k) for k in FACTORS) for sigma in sigmas)
    return NoiseResponse(tuple(sigmas), FACTORS, values, tuple(errors[sigma] for sigma in sigmas))


def excess_noise(levels: Sequence[Level], response: NoiseResponse, gain: float = 1.0) -> Iterator[float]:
    """k before each iteration of a predictor without a corrector, in modes without data variance.

    Args:
        levels: from `PredictorCorrector.levels`.
        response: the response of the network.
        gain: m^2, the gain of P P^T in these modes; the prior goes through P.

    Yields:
        T ratios, in units of the level's own noise.
    """
    K = gain**0.5 * levels[0].std
    for level in levels:
        k = K / level.std
        yield k
        kept = K * (1 + gain * level.linear) - gain * level.weight * response(level.sigma, k) / level.std
        K = math.hypot(kept, gain**0.5 * level.noise)


def least_gain(levels: Sequence[Level], response: NoiseResponse) -> float:
    """Return the smallest gain m^2 >= 1 that keeps k at the end of the run to 2, to 1%; infinite above 8.

    The last steps of a sampler may leave more than that with an exact score, as those of sub-VP do. Then the bound is 1.1 times
    as much as they leave.
    """
    exact = NoiseResponse((1.0,), FACTORS, (FACTORS,))
    bound = max(2.0, 1.1 * list(excess_noise(levels, exact))[-1])
    gains = 1.01 ** np.arange(math.ceil(math.log(MOST) / math.log(1.01)) + 1)
    return next((float(gain) for gain in gains if list(excess_noise(levels, response, gain))[-1] <= bound), math.inf)


def highest_frequencies(size: tuple[int, int]) -> Tensor:
    """(H, W) bool, DC at [0, 0]: the modes that are searched for excess noise.

    Raises:
        PDSError: images of 1 or 3 pixels along an axis have none.
    """
    h, w = (torch.fft.fftfreq(n).abs() > HIGH for n in size)
    if not (h.any() and w.any()):
        raise PDSError(
            f"excess noise is followed above {HIGH} cycles a pixel, and images of {size[0]} x {size[1]} have no such modes"
        )
    return h[:, None] & w[None, :]


def noise_in(x: Tensor, modes: Tensor) -> float:
    """Standard deviation of (batch, C, H, W) images in some Fourier modes, (H, W) bool; 1 for standard normal noise."""
    power = torch.fft.fft2(x, norm="ortho").abs().square()
    return power[..., modes.to(x.device)].mean().sqrt().item()


def last_without_data(levels: Sequence[Level], variance: float) -> int:
    """The last iteration whose noise hides the data.

    Args:
        levels: from `PredictorCorrector.levels`.
        variance: variance of the data in one mode, in squared units of the model's data range.
    """
    return max(i for i, level in enumerate(levels) if i == 0 or variance <= DATA_SHARE * level.sigma**2)


@torch.no_grad()
def follow(
    score: Score,
    process: Process,
    sampler: PredictorCorrector,
    preconditioner: Preconditioner,
    noise: ImageNoise,
    modes: Tensor,
    last: int,
) -> list[float]:
    """k before each iteration of a real run, up to that before iteration `last`.

    Args:
        score: the score of the network.
        process: the process that it was trained on.
        sampler: a predictor without a corrector.
        preconditioner: P and S.
        noise: noise of the images to sample.
        modes: (H, W) bool, from `highest_frequencies`.
        last: from `last_without_data`.

    Returns:
        last + 1 ratios, in units of the level's own noise.
    """
    levels = sampler.levels(process)
    x = sampler.prior(noise, process, preconditioner)
    left = [noise_in(x, modes) / levels[0].std]

    def look(iteration: int, sigma: float, x: Tensor) -> None:
        left.append(noise_in(x, modes) / levels[iteration + 1].std)

    if last:
        sampler.without_denoising()(score, x, levels[:last], preconditioner, noise, look)
    return left


def alpha_of_gain(gain: float, power: Tensor, modes: Tensor) -> float:
    """alpha of the weakest statistics filter with a gain m^2 in some modes; infinite for 1, NaN for an infinite gain.

    Args:
        gain: from `least_gain`.
        power: (C, H, W) spectrum of the data set, from `DatasetStatistics`.
        modes: (H, W) bool.
    """
    spectrum = power.double().log1p()
    lowest = (spectrum[:, modes].mean() / spectrum.max()).item()
    # The solution of R = (lowest + alpha - 1) / alpha = 1 / m.
    return (1 - lowest) / (1 - gain**-0.5) if 1 < gain < math.inf else math.inf if gain == 1 else math.nan


@dataclass(frozen=True)
class NoiseTrack:
    """Noise of a sampler's state in units of its level, along one run.

    Attributes:
        iterations: T.
        what: title of the filter, or "vanilla".
        sigmas: (S,) descending noise levels.
        predicted, sampled: (S,) noise by the recursion, and measured along a run, in units of the level's own noise.
    """

    iterations: int
    what: str
    sigmas: Sequence[float]
    predicted: Sequence[float]
    sampled: Sequence[float]


@dataclass(frozen=True)
class Excess:
    """The excess noise that a predictor without a corrector leaves in the highest frequencies, and the filter that removes it.

    Attributes:
        iterations: T.
        sigma: noise level at which the data begin to show in these frequencies.
        k: noise in these frequencies at this level, in units of the level's own, without a filter.
        least_gain: from `least_gain`: the gain 1 / R^2 that keeps k below 2 at the end; inf if no gain up to 8 does.
        alpha: alpha of the weakest `StatisticsFilter` with this gain; inf if the network sees the excess, though a filter may
            still help; nan if none is enough.
    """

    iterations: int
    sigma: float
    k: float
    least_gain: float
    alpha: float


@dataclass(frozen=True)
class Diagnosis:
    """Whether a network sees excess noise, and the filter that it needs at each T. Printed, it is a table.

    Attributes:
        response: the noise that the network predicts in a state with k times as much noise as its level says.
        excess: an entry for each T.
    """

    response: NoiseResponse
    excess: tuple[Excess, ...]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("T", "sigma", "k", "least gain", "alpha")]
        rows += [tuple(f"{value:.3g}" for value in (x.iterations, x.sigma, x.k, x.least_gain, x.alpha)) for x in self.excess]
        return "\n".join(f"{T:>6}{sigma:>9}{k:>9}{gain:>12}{alpha:>8}" for T, sigma, k, gain, alpha in rows)


def require_noise(response: NoiseResponse, what: str) -> None:
    """Refuse a network that predicts no noise where there is nothing else, at the largest level; `what` needs it."""
    if not np.isfinite(response.values).all():
        raise PDSError(f"{what} needs the noise that the network predicts, and it is not finite: the weights are broken")
    if response.values[-1][response.factors.index(1.0)] <= HIDDEN:
        at = f"sigma = {response.sigmas[-1]:g}"
        raise PDSError(f"{what} needs the noise that the network predicts, and there is none at {at}: the weights are broken")


def response_of(model: Model, images: Tensor, seed: int = 0) -> NoiseResponse:
    """The response of a model between its largest and its smallest noise level.

    Args:
        model: the model; its network is used where it is.
        images: (n, C, H, W) uint8 real images.
        seed: of the noise.

    Raises:
        PDSError: the network has no unconditional score.
    """
    model.require_unconditional("the noise that a network predicts is measured")
    x = to_range(to_unit(images).to(model.device), model.data_range)
    with in_evaluation_mode(model.score):
        return noise_response(model.score, x, np.geomspace(*noise_range(model.process), LEVELS).tolist(), seed)


@checked
def diagnose(
    model: GivenModel,
    images: Tensor,
    iterations: Annotated[Sequence[int], Range(2), Length()] = (25, 50, 100),
    predictor: Predictor = ReverseDiffusion(),
    seed: Seed = 0,
) -> Diagnosis:
    """Find out whether a network sees excess noise, and the filter that removes what it does not see at each T.

    This takes 35 evaluations an image.

    Args:
        model: from `load` or `wrap`. Its statistics give alpha; without them, those of `images` do.
        images: (n, C, H, W) real images of the model's shape, uint8 or floats in [0, 1]; 16 are enough.
        iterations: values of T.
        predictor: the predictor of the sampler, which has no corrector.
        seed: of the noise.

    Raises:
        PDSError: the images are of another shape, a T is too small, or the network has no unconditional score of images.
    """
    if model.score.halves != 1:
        raise PDSError(f"a diagnosis is for scores of images, and {model.title} gives the score of a velocity")
    images = as_uint8(images)
    if tuple(images.shape[1:]) != tuple(model.shape):
        raise PDSError(f"images must have the shape {tuple(model.shape)} of the model's, got {tuple(images.shape[1:])}")
    statistics = model.statistics or dataset_statistics(ArrayImages("images", "all", images.cpu().numpy()), len(images))
    statistics.require_shape(model.shape, model.title)
    modes = highest_frequencies(model.shape[1:])
    variance = statistics.gaussian(model.data_range).power[:, modes].mean().item()
    response = response_of(model, images, seed)
    require_noise(response, "a diagnosis")
    excess = []
    for T in iterations:
        levels = PredictorCorrector(T, predictor, None).levels(model.process)
        last = last_without_data(levels, variance)
        gain = least_gain(levels, response)
        k = list(excess_noise(levels, response))[last]
        excess.append(Excess(T, levels[last].sigma, k, gain, alpha_of_gain(gain, statistics.power, modes)))
    return Diagnosis(response, tuple(excess))
