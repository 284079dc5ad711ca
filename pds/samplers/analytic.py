"""Analytic-DDIM: Bao, Li, Zhu & Zhang, *Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion
Probabilistic Models*, ICLR 2022."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from pds.errors import PDSError
from pds.options import Count, options
from pds.samplers.accelerated import VPLevel, VPStateSampler
from pds.samplers.sampler import Steps, Task
from pds.score import NoiseMoments

if TYPE_CHECKING:
    from typing_extensions import Self


@options
class AnalyticDDIM(VPStateSampler):
    """DDIM with noise that corrects its steps: one evaluation and one draw an iteration. The iteration that denoises draws
    nothing.

    DDIM's process has x_t = x_0 + sigma_t z and x_{t-1} = x_0 + sigma_{t-1} z with the same z. Given x_t, the expectation of z
    is known: E[z | x_t] = e_t = -sigma_t S_t(x_t). So x_{t-1} has the mean x_t + (sigma_{t-1} - sigma_t) e_t, which is DDIM's
    step. It has the covariance (sigma_t - sigma_{t-1})² Cov[z | x_t], which DDIM leaves out. As E‖z‖² = d, the average of this
    covariance over x_t and the d pixels is (sigma_t - sigma_{t-1})² (1 - Gamma_t) with Gamma_t = E‖e_t‖² / d. The best step
    with noise of one variance is

        x_{t-1} = x_t + (sigma_{t-1} - sigma_t) e_t + (sigma_t - sigma_{t-1}) sqrt(1 - Gamma_t) z'.

    This variance is the paper's sigma_n*² / abar_{n-1} for lambda_n = 0 (Theorem 1). Data N(mu, c I) are sampled exactly in
    steps of any size, except the last two of `denoise`. For other data every frequency gets the same noise. This is too little
    for a frequency of more variance than the average, and too much for one of less.

    As in the paper, the last iteration of `denoise` adds no noise. Much of the noise of the iteration before it would stay in
    the image. So this noise is cut to 1 of 255 shades in the mean of its absolute value (y = 1 in the paper). The released code
    clamps the mean of x_0; this code does not.

    Attributes:
        iterations: T.
        training_images: how many images Gamma is measured on.
        moments: Gamma of the model that is sampled; `pds.moments.noise_moments` finds or measures it.
    """

    source: ClassVar[str] = "Bao et al., ICLR 2022, Theorem 1 with lambda = 0"
    title: ClassVar[str] = "Analytic-DDIM"

    training_images: Count = 256
    moments: NoiseMoments | None = None

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {} if self.moments is None else {"moments": self.moments.provenance}

    def with_moments(self, measure: Callable[[int], NoiseMoments]) -> Self:
        return self if self.moments else replace(self, moments=measure(self.training_images))

    def walk(self, x: Tensor, task: Task[list[VPLevel]]) -> Steps:
        if self.moments is None:
            raise PDSError(f"{self.title} needs the moments of the model's noise: see pds.moments.noise_moments")
        black, white = self.moments.data_range
        shade = (white - black) / 255
        for iteration, (sigma, below, _) in enumerate(task.levels):
            x = x + (sigma - below) * sigma * task.score(x, sigma)
            if below:
                std = (sigma - below) * (1 - self.moments(sigma)) ** 0.5
                if self.denoise and iteration == len(task.levels) - 2:
                    std = min(std, shade * (math.pi / 2) ** 0.5)  # E|std z'| = shade
                x = x + std * task.noise.normal()
            yield sigma, x
