"""Annealed Langevin dynamics ([NCSN] Algorithm 1; [NCSNv2] Algorithm 1 with its final denoising step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.processes.ladders import visit_levels
from pds.samplers.sampler import Callback, no_callback
from pds.score import Score, score_at


@dataclass(frozen=True)
class AnnealedLangevin:
    """x <- x + P P^T f + omega S f + sqrt(2 a) P z with f = a s(x, sigma) and a = step_size * sigma^2.

    The papers write a_i = step_lr (sigma_i / sigma_L)^2, so `step_size` is step_lr / sigma_L^2: the step relative to the
    noise variance, the same at every level (0.2 for the published MNIST and CIFAR-10 settings of [NCSN]).

    Stability: on a Gaussian mode with curvature 1/q, q >= sigma^2, a step multiplies the error by 1 - a (m^2 + i omega h) / q.
    Where the data have no variance q = sigma^2, so `step_size` < 2 / max((m^4 + (omega h)^2) / m^2) is stable on every target
    (vanilla: 2). At 2 / min(...) and above, no mode without variance is stable: refused.

    Attributes:
        iterations: T, Langevin steps in all.
        step_size: a / sigma^2, > 0.
        steps_per_level: steps at each visited level, or None for T / L (1 when T < L).
        denoise: end with x + sigma^2 s(x, sigma) at the last level ([NCSNv2] section 3.4), one more evaluation.
    """

    nfe_per_iteration: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    mixes_batch: ClassVar[bool] = False
    title: ClassVar[str] = "annealed Langevin"
    source: ClassVar[str] = "Song & Ermon, NeurIPS 2019, Algorithm 1; NeurIPS 2020, Algorithm 1"

    iterations: int
    step_size: float
    steps_per_level: int | None = None
    denoise: bool = True

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise PDSError(f"sampler.step_size must be positive, got {self.step_size}")

    @property
    def limit(self) -> float:
        """What step_size times the largest gain must be below to be stable on every target."""
        return 2.0

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        return f"α/σ²={self.step_size:g}" + ("" if self.denoise else ", no denoising")

    def levels(self, process: Process) -> Tensor:
        """(T,) noise level of each iteration, of the (L,) levels of the model's ladder."""
        return visit_levels(process.ladder, self.iterations, self.steps_per_level)

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """The published start: uniform in [0, 1) whatever sigma_1 is; no noise of the process, so P leaves it alone."""
        return noise.uniform()

    def check(self, levels: Tensor, preconditioner: Preconditioner) -> list[str]:
        """Refuse a step size that no target allows, and say so when not every target allows it."""
        self._refuse_divergence(preconditioner)
        highest = preconditioner.stiffness()[1]
        if self.step_size < self.limit / highest:
            return []
        return [
            f"sampler.step_size={self.step_size:g} is stable only where the data have variance: below "
            f"{self.limit / highest:.4g} it is stable on every target"
        ]

    def _refuse_divergence(self, preconditioner: Preconditioner) -> None:
        lowest, highest = preconditioner.stiffness()
        if self.step_size >= self.limit / lowest:
            raise PDSError(
                f"sampler.step_size={self.step_size:g} diverges: with this filter and solenoid every step must be below "
                f"{self.limit / lowest:.4g}, and below {self.limit / highest:.4g} it is stable on every target"
            )

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: Tensor,
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback = no_callback,
    ) -> Tensor:
        """Sample, with one draw for each iteration; the callback comes before any denoising. See `Sampler`."""
        self._refuse_divergence(preconditioner)
        for iteration, sigma in enumerate(levels.tolist()):
            a = self.step_size * sigma**2
            f = a * score_at(score, x, sigma)
            x = preconditioner.at(iteration).step(x, f, (2 * a) ** 0.5, noise.normal())
            callback(iteration, sigma, x)
        return self._denoised(score, x, levels)

    def _denoised(self, score: Score, x: Tensor, levels: Tensor) -> Tensor:
        if not self.denoise:
            return x
        sigma = levels[-1].item()
        return x + sigma**2 * score_at(score, x, sigma)
