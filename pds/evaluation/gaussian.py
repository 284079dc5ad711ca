"""The law of a sampler on a Gaussian target, exactly: no network, no random numbers, no features.

The score of a `StationaryGaussian` is affine in the images and keeps the Fourier modes apart. So a sampler whose steps do not
depend on the images is affine in its draws and keeps the modes apart as well. An impulse has a flat spectrum. So the responses
of the sampler to an impulse in one draw at a time add up to its covariance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.gaussian import StationaryGaussian
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import Process
from pds.samplers.sampler import Sampler, no_callback

UNIFORM_STD = 12**-0.5
TOLERANCE = 1e-3  # of linearity, in units of the largest response; filters compute in float32


class _Impulses:
    """Draws for `count` + 2 images, d = 0, 1, …: draw d is an impulse in image d, in its first pixel.

    The last image gets no noise. The image before it gets an impulse in every draw, in another pixel.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.shape, self.draws = count, shape, 0

    def normal(self) -> Tensor:
        z = torch.zeros(self.count + 2, *self.shape, dtype=torch.float64)
        if self.draws < self.count:
            z[self.draws, :, 0, 0] = 1
            z[-2, :, -1, 1 % self.shape[-1]] = 1
        self.draws += 1
        return z

    def uniform(self) -> Tensor:
        # Only its two moments matter here.
        return 0.5 + UNIFORM_STD * self.normal()


def sampled_law(
    sampler: Sampler[Any], target: StationaryGaussian, process: Process, preconditioner: Preconditioner
) -> StationaryGaussian:
    """Return the law of the images that `sampler` makes with the exact score of `target`.

    Args:
        sampler: a sampler whose steps do not depend on the images: not the Langevin corrector, not adaptive steps.
        target: the law of the data.
        process: the forward process of a network that knew it.
        preconditioner: P and S without a space filter, which mixes the modes.

    Raises:
        PDSError: the sampler or the preconditioner is not linear mode by mode, or the state has a velocity.
    """
    if isinstance(process, CriticallyDamped):
        raise PDSError("the law of images alone is followed here, and the state of CLD has a velocity: choose another model")
    levels = sampler.levels(process)
    sampler.check(levels, preconditioner)
    shape = tuple(target.power.shape)

    def run(count: int) -> tuple[Tensor, int]:
        noise = _Impulses(count, shape)
        start = sampler.prior(noise, process, preconditioner)
        return sampler(target, start, levels, preconditioner, noise, no_callback).double(), noise.draws

    _, draws = run(0)
    final, _ = run(draws)
    answers, all_at_once, mean = final[:-2] - final[-1], final[-2] - final[-1], final[-1]
    law = StationaryGaussian(mean, torch.fft.fft2(answers).abs().square().sum(0))
    expected = torch.roll(answers.sum(0), (-1, 1), (-2, -1))  # along an axis of one pixel nothing moves
    if torch.isfinite(law.power).all() and (all_at_once - expected).abs().max() > TOLERANCE * answers.abs().max():
        raise PDSError(
            f"the law of {sampler.title} is not known exactly here: its steps depend on the images, or a space filter mixes "
            "the modes; leave out the Langevin corrector, adaptive steps and the space filter"
        )
    return law
