"""The error of the image that a network denoises to, beside that of the best linear guess.

Where the noise hides all structure except the mean and the spectrum of the data, the linear guess is the exact D. A network
that is worse there only adds error, and a walk may start below this level (`PreconditionedSDE.start`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pds.data.images import to_range, to_unit
from pds.data.statistics import DatasetStatistics
from pds.gaussian import StationaryGaussian
from pds.models.scores import Model, in_evaluation_mode
from pds.noise import ImageNoise
from pds.processes.forward import noise_range
from pds.remedies import LevelShift, SeenNoise
from pds.score import Score, denoised

LEVELS = 9  # noise levels of the measurement


class DenoisingError(NamedTuple):
    """Mean squared error of D(x_0 + sigma z; sigma), a pixel, in squared pixel units of the model.

    Attributes:
        sigma: noise level, in pixel units of the model.
        network: error of the network.
        bounded: error of the network with D kept in the data range (`LevelShift` with a scale of 1).
        seen: error of the network with the strength of the noise read off the modes without data (`SeenNoise`).
        linear: error of the exact score of the Gaussian with the mean and the spectrum of the data.
    """

    sigma: float
    network: float
    bounded: float
    seen: float
    linear: float


@torch.no_grad()
def denoising_errors(model: Model, images: Tensor, statistics: DatasetStatistics, seed: int = 0) -> list[DenoisingError]:
    """The errors from the largest to the smallest noise level of a model, with the same noise at every level.

    Args:
        model: the model; its network is used where it is.
        images: (n, C, H, W) uint8 real images, best not those of the statistics.
        statistics: of the training images.
        seed: seed of the noise.

    Raises:
        PDSError: the network has no unconditional score.
    """
    model.require_unconditional("the error of denoised images is measured")
    clean = to_range(to_unit(images).to(model.device), model.data_range)
    z = ImageNoise(seed, torch.arange(len(images), device=model.device), model.shape).normal()
    gaussian = statistics.gaussian(model.data_range)
    scores = (
        model.score,
        LevelShift(model.score, 1.0, (min(model.data_range), max(model.data_range))),
        SeenNoise(model.score, gaussian).to(model.device),
        StationaryGaussian(gaussian.mean.to(model.device), gaussian.power.to(model.device)),
    )

    def error(score: Score, sigma: float) -> float:
        D = denoised(score, clean + sigma * z, sigma)
        return (D - clean).square().mean().item()

    smallest, largest = noise_range(model.process)
    sigmas = np.geomspace(largest, smallest, LEVELS).tolist()
    with in_evaluation_mode(model.score):
        return [DenoisingError(sigma, *(error(score, sigma) for score in scores)) for sigma in sigmas]
