"""DPM-Solver++ for the reverse ODE and the reverse SDE: Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models*, arXiv:2211.01095 (Machine Intelligence Research 2025), in sigma-space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.samplers.sampler import Callback, no_callback
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler, denoised
from pds.score import Score


@dataclass(frozen=True)
class DPMSolver(KarrasLevelsSampler):
    """From sigma to sigma' = e^-h sigma, with lambda = -log sigma, D the denoised image and r = h_before / h:

        x <- e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) (D + (D - D_before) / (2 r)) + sigma' sqrt(1 - e^(-2 eta h)) z

    It solves dx = (1 + eta) (D - x) dlambda + sqrt(2 eta) sigma dw, whose marginals are the model's for every eta: eta = 0, the
    probability flow ODE, gives DPM-Solver++(2M); eta = 1, the reverse SDE, SDE-DPM-Solver++(2M). Its linear term and noise are
    exact, D alone is interpolated. With order 1, and in the first iteration, D stands alone: DDIM's step for eta = 0. The last
    step, to 0, gives D. The global order is `order` for eta = 0; above, the variance of a Gaussian converges with it too.

    Attributes:
        iterations, rho: see `KarrasLevelsSampler`.
        order: 2, D extrapolated from the last two evaluations; 1, the last alone.
        eta: noise of the equation, >= 0; 0 draws none.
    """

    nfe_per_iteration: ClassVar[int] = 1
    source: ClassVar[str] = "Lu et al., arXiv:2211.01095, Algorithm 2 and its SDE form"

    order: Literal[1, 2] = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise PDSError(f"sampler.order must be 1 or 2, got {self.order}")
        if not (self.eta >= 0 and math.isfinite(self.eta)):
            raise PDSError(f"sampler.eta must be at least 0 (0 the ODE, 1 the SDE), got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise after the start."""
        return self.eta > 0

    @property
    def title(self) -> str:
        """The solver."""
        return f"{'SDE-' if self.eta else ''}DPM-Solver++({'2M' if self.order == 2 else '1'})"

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        return f"ρ={self.rho:g}" + (f", η={self.eta:g}" if self.eta else "")

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: list[Interval],
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback = no_callback,
    ) -> Tensor:
        """Sample, with one draw for each iteration but the last when eta > 0; see `Sampler`."""
        self.check(levels, preconditioner)
        D_before, sigma_before = x, math.inf
        for iteration, (sigma, below) in enumerate(levels):
            D = target = denoised(score, x, sigma)
            if self.order == 2 and iteration > 0 and below > 0:
                r = math.log(sigma_before / sigma) / math.log(sigma / below)
                target = D + (D - D_before) / (2 * r)
            kept = (below / sigma) ** (1 + self.eta)
            x = kept * x + (1 - kept) * target
            if self.eta > 0 and below > 0:
                x = x + below * (1 - (below / sigma) ** (2 * self.eta)) ** 0.5 * noise.normal()
            D_before, sigma_before = D, sigma
            callback(iteration, sigma, x)
        return x
