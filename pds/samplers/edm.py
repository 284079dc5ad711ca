"""Euler's and Heun's method with Karras levels and churn: Karras et al., *Elucidating the Design Space of Diffusion-Based
Generative Models*, NeurIPS 2022, Algorithm 2."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from pds.errors import OptionError
from pds.options import Count, Range, options
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler, between

MOST_CHURN = math.sqrt(2) - 1  # gamma: an iteration adds at most as much noise as there is


class FlowSteps:
    """T steps of the probability flow dx/dsigma = -sigma s(x, sigma): Euler's (order 1) or Heun's (2).

    At 0 Heun's step is Euler's.
    """

    iterations: int
    order: Literal[1, 2]

    @property
    def nfe_per_iteration(self) -> int:
        return self.order

    @property
    def nfe(self) -> int:
        return self.order * self.iterations - (self.order - 1)

    def flow_step(self, task: Task[Any], x: Tensor, sigma: float, below: float) -> Tensor:
        """x after a step from the noise level `sigma` to `below`."""
        d = -sigma * task.score(x, sigma)
        if self.order == 2 and below > 0:
            d = (d - below * task.score(x + (below - sigma) * d, below)) / 2
        return x + (below - sigma) * d


@options
class EDM(FlowSteps, KarrasLevelsSampler):
    """Euler's and Heun's method with Karras levels and churn.

    From sigma to sigma': x^ = x + S_noise sqrt(sigma^2 (1 + gamma)^2 - sigma^2) z at sigma^ = (1 + gamma) sigma, then a step
    of dx/dsigma = d(x, sigma) = -sigma s(x, sigma):

        Euler  x <- x^ + (sigma' - sigma^) d(x^, sigma^), which is DDIM's step
        Heun   x <- x^ + (sigma' - sigma^) (d(x^, sigma^) + d(x_Euler, sigma')) / 2

    gamma = min(S_churn / T, sqrt(2) - 1) for S_min <= sigma <= S_max, else 0. The last step, to 0, is Euler's: the denoised
    image. So T iterations take T evaluations (Euler) or 2 T - 1 (Heun). Their global orders are 1 and 2. An iteration
    with churn takes one draw.

    Attributes:
        iterations: T.
        order: 1, Euler; 2, Heun.
        S_churn: noise to add over all iterations. 0, the paper's default, is the deterministic sampler. It draws nothing, and
            leaves noise on the images of VE networks.
        S_min: smallest noise level at which noise is added, in pixel units of the model.
        S_max: largest noise level at which noise is added, in the same units. sigma^ may pass the process's largest level,
            unless S_max is that level over sqrt(2) or less.
        S_noise: standard deviation of z. A value a little above 1 (the paper: up to 1.007) corrects networks that denoise too
            much.
    """

    source: ClassVar[str] = "Karras et al., NeurIPS 2022, Algorithm 2"

    iterations: Count = 18
    order: Literal[1, 2] = 2
    S_churn: Annotated[float, Range(0, 1e6)] = 10.0
    S_min: Annotated[float, Range(0, 1e9)] = 0.0
    S_max: Annotated[float, Range(0, 1e9, infinity="no upper limit")] = math.inf
    S_noise: Annotated[float, Range(1e-3, 1e3)] = 1.0

    def __post_init__(self) -> None:
        if self.S_min > self.S_max:
            raise OptionError("S_min", f"must be at most S_max, got {self.S_min:g} and {self.S_max:g}")

    @property
    def stochastic(self) -> bool:
        return self.S_churn > 0

    @property
    def title(self) -> str:
        return "EDM Heun" if self.order == 2 else "EDM Euler"

    @property
    def detail(self) -> str:
        churn = f", churn {self.S_churn:g} in [{self.S_min:g}, {self.S_max:g}] × {self.S_noise:g}" if self.S_churn else ""
        return super().detail + churn

    def churned(self, sigma: float) -> float:
        """sigma^: the noise level that an iteration from `sigma` starts at."""
        gamma = min(self.S_churn / self.iterations, MOST_CHURN) if between(sigma, self.S_min, self.S_max) else 0.0
        return (1 + gamma) * sigma

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        for sigma, below in task.levels:
            start = self.churned(sigma)
            if start > sigma:
                x = x + self.S_noise * (start**2 - sigma**2) ** 0.5 * task.noise.normal()
            x = self.flow_step(task, x, start, below)
            yield sigma, x
