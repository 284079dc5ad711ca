"""DPM-Solver++ for the reverse ODE and the reverse SDE: Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models*, arXiv:2211.01095 (Machine Intelligence Research 2025), in sigma-space."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from pds.options import Count, Range, options
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler


@options
class DPMSolver(KarrasLevelsSampler):
    """From sigma to sigma' = e^-h sigma, with lambda = -log sigma, D the denoised image and r = h_before / h:

        x <- e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) (D + (D - D_before) / (2 r)) + sigma' sqrt(1 - e^(-2 eta h)) z

    It solves dx = (1 + eta) (D - x) dlambda + sqrt(2 eta) sigma dw, whose marginals are the model's for every eta: eta = 0, the
    probability flow ODE, gives DPM-Solver++(2M); eta = 1, the reverse SDE, SDE-DPM-Solver++(2M). Its linear term and noise are
    exact, D alone is interpolated. With order 1, and in the first iteration, D stands alone: DDIM's step for eta = 0. The last
    step, to 0, gives D. The global order is `order` for eta = 0; above, the variance of a Gaussian converges with it too.

    Attributes:
        iterations: T.
        rho: exponent of the Karras levels.
        order: 2, D extrapolated from the last two evaluations; 1, the last alone.
        eta: noise of the equation: 1, the SDE; 0, the paper's default, the ODE, which draws none and leaves noise on the images
            of VE networks. Above 0 each iteration but the last takes one draw.
    """

    source: ClassVar[str] = "Lu et al., arXiv:2211.01095, Algorithm 2 and its SDE form"

    iterations: Count = 20
    order: Literal[1, 2] = 2
    eta: Annotated[float, Range(0, 1000)] = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def title(self) -> str:
        return f"{'SDE-' if self.eta else ''}DPM-Solver++({'2M' if self.order == 2 else '1'})"

    @property
    def detail(self) -> str:
        return f"ρ={self.rho:g}" + (f", η={self.eta:g}" if self.eta else "")

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        D_before, sigma_before = x, math.inf
        for iteration, (sigma, below) in enumerate(task.levels):
            D = target = task.denoised(x, sigma)
            if self.order == 2 and iteration > 0 and below > 0:
                r = math.log(sigma_before / sigma) / math.log(sigma / below)
                target = D + (D - D_before) / (2 * r)
            kept = (below / sigma) ** (1 + self.eta)
            x = kept * x + (1 - kept) * target
            if self.eta > 0 and below > 0:
                x = x + below * (1 - (below / sigma) ** (2 * self.eta)) ** 0.5 * task.noise.normal()
            D_before, sigma_before = D, sigma
            yield sigma, x
