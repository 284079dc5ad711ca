"""Settings for a network without any reference, from its response to excess noise and from images of its own.

A mode of data variance p should have the variance p + sigma^2. If it has V, it shows k = sqrt(V / (p + sigma^2)) times the
noise that it should have. An exact score takes all of it for noise. A network with the response r(k) takes r(k) / k of it, and
keeps the rest as image. With this response in place of the exact score, the variance recursion of the preconditioned SDE gives
the variance of each mode under each setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pds.data.images import ArrayImages, from_range, to_range, to_uint8, to_unit
from pds.data.statistics import DatasetStatistics, dataset_statistics
from pds.errors import PDSError
from pds.evaluation.excess_noise import (
    FACTORS,
    LEVELS,
    NoiseResponse,
    alpha_of_gain,
    highest_frequencies,
    least_gain,
    require_noise,
    response_of,
)
from pds.models.scores import Model, in_evaluation_mode
from pds.noise import ImageNoise
from pds.options import Count, checked
from pds.preconditioning.filters import StatisticsFilter
from pds.preconditioning.preconditioner import Identity
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import Level
from pds.score import denoised

IMAGES = 64
"""The most that a guess costs, in evaluations of as many images."""
MODES = 64
ETAS = tuple(np.geomspace(0.25, 4, 9).tolist())
WEIGHTS: tuple[Literal["midpoint", "exact"], ...] = ("midpoint", "exact")
RHOS = (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0)
ALPHAS = (math.inf, 20.0, 10.0, 5.0, 3.0, 2.0)
AHEAD = 2.0
"""The level at which a walk starts, over that where the network is level with the linear guess. On the shipped VE network walks
from there, 2.8, measured 4 to 10 worse than from 5 in three pairs (10 evaluations, 512 images)."""
LOST = 0.01
"""Share of the variance of a pixel that the step to 0 may lose. The ends of the walks that were chosen by trials on the shipped
VE and VP networks lose 0.9 and 1.3%."""


@dataclass(frozen=True)
class Look:
    """The facts about a network that a guess uses.

    Attributes:
        response: the noise that it predicts in a state with k times as much noise as its level says.
        statistics: statistics of its own denoised images.
        evaluations: evaluations that these facts took, over all images.
        start: twice the noise level above which the network denoises worse than the linear guess; inf if it does so
            at no level, or at all of them.
        end: noise level at which the denoised images lose `LOST` of the variance; 0 if they lose more at all levels.
    """

    response: NoiseResponse
    statistics: DatasetStatistics
    evaluations: int
    start: float = math.inf
    end: float = 0.0


@dataclass(frozen=True)
class Guess:
    """Settings that no measurement has tested.

    Attributes:
        sampler: the sampler, with its eta, grid, weight and the ends of its walk.
        alpha: alpha of its `StatisticsFilter` from `Look.statistics`; inf for no filter.
        predicted: Fréchet distance in pixels by the recursion, in squared pixel units of the model.
    """

    sampler: PreconditionedSDE
    alpha: float
    predicted: float


@torch.no_grad()
@checked
def look_at(model: Model, iterations: Count, seed: int = 0) -> Look:
    """Sample half of 64 images with the default of `PreconditionedSDE`, and measure the response with the evaluations that are
    left.

    Args:
        model: from `load` or `wrap`; its network is used where it is.
        iterations: T.
        seed: of all noise.

    Raises:
        PDSError: the images are not finite, T has too few evaluations for a response, or the network samples no image without
            a class.
    """
    model.require_unconditional("a first guess samples images")
    sampler, count = PreconditionedSDE(iterations), IMAGES // 2
    for_response = (IMAGES - count) * iterations // (len(FACTORS) * LEVELS)
    if for_response < 1:
        raise PDSError(f"a first guess needs at least 2 iterations, got {iterations}: give sampler and filter their values")
    noise = ImageNoise(seed, torch.arange(count, device=model.device), model.shape)
    x = sampler.prior(noise, model.process, Identity())
    with in_evaluation_mode(model.score):
        x = sampler(model.score, x, sampler.levels(model.process), Identity(), noise)
    if not x.isfinite().all():
        raise PDSError("a first guess samples images, and these are not finite: the weights are broken, or T is too small")
    images = to_uint8(from_range(x, model.data_range)).cpu()
    used = min(count, for_response)
    statistics = dataset_statistics(ArrayImages("its own images", "all", images.numpy()), count)
    response = response_of(model, images[:used], seed)
    require_noise(response, "a first guess")
    return Look(
        response,
        statistics,
        count * iterations + used * len(FACTORS) * LEVELS,
        _start(model, images[:used], statistics, response, seed),
        _end(model, statistics, response),
    )


def _start(model: Model, images: Tensor, statistics: DatasetStatistics, response: NoiseResponse, seed: int) -> float:
    """See `Look`; of the same images and noise as the response."""
    law = statistics.gaussian(model.data_range)
    clean = to_range(to_unit(images), model.data_range)
    z = ImageNoise(seed, torch.arange(len(images)), model.shape).normal()
    linear = [(denoised(law, clean + s * z, s) - clean).square().mean().item() for s in response.sigmas]
    return AHEAD * _crossed(response.sigmas, np.log(response.errors) - np.log(linear), from_above=True)


def _end(model: Model, statistics: DatasetStatistics, response: NoiseResponse) -> float:
    variance = statistics.gaussian(model.data_range).power.mean().item()
    end = _crossed(response.sigmas, np.log(response.errors) - math.log(LOST * variance), from_above=False)
    return 0.0 if end == math.inf else end


def _crossed(sigmas: Sequence[float], values: np.ndarray, from_above: bool) -> float:
    """The level where values, straight lines between levels in log sigma, last or first rise above 0; inf if they do not."""
    rises = [i for i in range(len(sigmas) - 1) if values[i] <= 0 < values[i + 1]]
    if not rises or (from_above and values[-1] <= 0):
        return math.inf
    i = rises[-1 if from_above else 0]
    part = -values[i] / (values[i + 1] - values[i])
    return float(sigmas[i] * (sigmas[i + 1] / sigmas[i]) ** part)


def guess(model: Model, look: Look, iterations: int, alphas: tuple[float, ...] = ALPHAS) -> Guess:
    """The preconditioned SDE with the smallest predicted distance, walking from `look.start` to `look.end`.

    A shorter walk than the process's needs the statistics of the data; `look.start=inf` gives the whole walk. `prior_norm`
    stays "drawn". The spread of the prior's norm is the only excess noise in the recursion, and without it an ODE would
    always win.

    Args:
        model: the model.
        look: the facts about it.
        iterations: T.
        alphas: strengths of the filter to try; inf is no filter.
    """
    walk = PreconditionedSDE(iterations, start=look.start, end=look.end if look.end < look.start else 0.0)
    samplers = (replace(walk, rho=rho, weight=weight) for rho in RHOS for weight in WEIGHTS)
    return min((best_eta(sampler, model, look, alphas=alphas) for sampler in samplers), key=lambda found: found.predicted)


def best_eta(
    sampler: PreconditionedSDE,
    model: Model,
    look: Look,
    etas: tuple[float, ...] = ETAS,
    alphas: tuple[float, ...] = (math.inf,),
) -> Guess:
    """The best eta and strength of the filter, among `etas` and `alphas`, for a given sampler."""
    law = look.statistics.gaussian(model.data_range)
    chosen = _quantiles(law.power)
    power = law.power.flatten()[chosen]
    filters = [_gain(alpha, look)[chosen] for alpha in alphas]
    gains = torch.tensor(etas, dtype=torch.float64)[:, None, None] * torch.stack(filters)
    levels = sampler.levels(model.process)
    target = power**2 / (power + levels[-1].sigma ** 2)
    # The spread of the prior's norm over images.
    spread = 1 / math.sqrt(2 * math.prod(model.shape))
    seen = replace(sampler, eta=1.0)
    distance = torch.zeros(gains.shape[:2], dtype=torch.float64)
    for sign in (-1, 1):
        start = 1 + sign * spread
        left = seen.variance(levels, power.expand(gains.shape), gains, share=_share(look.response), initial=start)
        distance += (left.clamp(min=0).sqrt() - target.sqrt()).square().sum(-1) * law.power.numel() / len(chosen) / 2
    distance = torch.where(distance.isfinite(), distance, math.inf)
    eta, alpha = divmod(int(distance.argmin()), len(alphas))
    return Guess(replace(sampler, eta=etas[eta]), alphas[alpha], distance[eta, alpha].item())


def guess_alpha(model: Model, look: Look, levels: Sequence[Level]) -> float:
    """alpha of the weakest filter with which a predictor leaves no excess noise; inf if it needs none, nan if none is enough.

    Args:
        model: the model.
        look: the facts about it.
        levels: levels of a `PredictorCorrector` without a corrector.
    """
    return alpha_of_gain(least_gain(levels, look.response), look.statistics.power, highest_frequencies(model.shape[1:]))


def _gain(alpha: float, look: Look) -> Tensor:
    """(C H W,) eigenvalue of P P^T in each mode."""
    if alpha == math.inf:
        return torch.ones(look.statistics.power.numel(), dtype=torch.float64)
    R = StatisticsFilter(alpha).frequency(look.statistics.shape, lambda: look.statistics)
    return R.double().flatten() ** -2


def _quantiles(power: Tensor) -> Tensor:
    """A sample of the modes: even steps through their order by variance."""
    order = power.flatten().argsort()
    count = min(MODES, len(order))
    return order[((torch.arange(count) + 0.5) * len(order) / count).long()]


def _share(response: NoiseResponse) -> Callable[[float, Tensor], Tensor]:
    """The map from (sigma, k) to r(k) / k, the part of the exact noise that the network predicts."""
    knots = np.array([*response.factors, 1e6])

    def share(sigma: float, k: Tensor) -> Tensor:
        values = np.array([response(sigma, float(knot)) for knot in knots])
        return torch.from_numpy(np.interp(k.numpy(), knots, values)) / k

    return share
