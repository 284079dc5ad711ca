"""What solvers in sigma-space share: the state is x = data + sigma z, whatever the process of the model.

A state x_t = m (x_0 + sigma z) of any process is m times such an x, so a solver of the equation in sigma, the probability flow
dx/dsigma = -sigma s(x, sigma) (Karras et al., NeurIPS 2022, section 2) or an SDE of the same marginals, solves every process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Identity, Preconditioner
from pds.processes.forward import Process
from pds.processes.ladders import karras_levels
from pds.score import Score, score_at


class Interval(NamedTuple):
    """The noise levels of one iteration.

    Attributes:
        sigma: where it starts, in units of the data range.
        below: where it ends, 0 for the last.
    """

    sigma: float
    below: float


def denoised(score: Score, x: Tensor, sigma: float) -> Tensor:
    """D(x; sigma) = x + sigma^2 s(x, sigma), the expected image (Tweedie): (batch, C, H, W) in the data range."""
    return x + sigma**2 * score_at(score, x, sigma)


@dataclass(frozen=True)
class SigmaSpaceSampler:
    """Start and border of such a solver.

    Attributes:
        iterations: T, at least 1.
    """

    mixes_batch: ClassVar[bool] = False

    iterations: int

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise PDSError(f"sampler.iterations must be at least 1, got {self.iterations}")

    def check(self, levels: object, preconditioner: Preconditioner) -> list[str]:
        """Refuse every preconditioner: these solvers follow one equation, which a P without a corrector would change."""
        if not isinstance(preconditioner, Identity):
            raise PDSError(
                f"{self.title} solves the model's own equation, which takes no filter: set filter=none solenoid=none"
            )
        return []

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """(std(x_1) / m(1)) z: the process's own start in sigma-space, sigma_max z for VE."""
        scale = process.scale(torch.ones(1, dtype=torch.float64)).item()
        return process.prior_std / scale * noise.normal()


@dataclass(frozen=True)
class KarrasLevelsSampler(SigmaSpaceSampler):
    """One that walks a fixed grid: T levels over the noise of the process, then 0.

    Attributes:
        iterations: T, at least 1.
        rho: exponent of the grid, see `karras_levels`; inf spreads the levels evenly in log sigma.
    """

    rho: float = 7.0

    def levels(self, process: Process) -> list[Interval]:
        """The T intervals from the process's largest noise level over its smallest to 0."""
        sigmas = karras_levels(process.ladder[-1].item(), process.ladder[0].item(), self.iterations, self.rho).tolist()
        return [Interval(*ends) for ends in zip(sigmas, [*sigmas[1:], 0.0], strict=True)]
