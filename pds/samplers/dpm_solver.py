"""DPM-Solver++ for the reverse ODE and the reverse SDE: Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models*, arXiv:2211.01095 (Machine Intelligence Research 2025), in sigma-space."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from pds.options import Count, Range, options
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler


@options
class DPMSolver(KarrasLevelsSampler):
    """DPM-Solver++(2M) and SDE-DPM-Solver++(2M).

    `PreconditionedSDE` without a filter, with the midpoint weight. With lambda = -log sigma and r = h_before / h:

        x <- e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) (D + (D - D_before) / (2 r)) + sigma' sqrt(1 - e^(-2 eta h)) z

    solves dx = (1 + eta) (D - x) dlambda + sqrt(2 eta) sigma dw. eta = 0, the probability flow, gives DPM-Solver++(2M). eta =
    1, the reverse SDE, gives SDE-DPM-Solver++(2M). Order 1 with eta = 0 is DDIM.

    Attributes:
        iterations: T.
        order: 2, D extrapolated from the last two evaluations; 1, the last alone.
        eta: noise of the equation: 1 is the SDE; 0, the paper's default, is the ODE. The ODE draws nothing and leaves noise on
            the images of VE networks. Above 0 each iteration except the last takes one draw.
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
        return super().detail + (f", η={self.eta:g}" if self.eta else "")

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        return PreconditionedSDE(self.iterations, self.rho, self.order, "midpoint", self.eta).walk(x, task)
