"""Annealed Langevin dynamics ([NCSN] Algorithm 1; [NCSNv2] Algorithm 1 with its final denoising step)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import Tensor

from pds.errors import OptionError
from pds.noise import NoiseSource
from pds.options import Count, Range, options
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.processes.ladders import visit_levels
from pds.samplers.sampler import Sampler, Steps, Task

if TYPE_CHECKING:
    from typing_extensions import Self


@options
class AnnealedLangevin(Sampler[Tensor]):
    """Annealed Langevin dynamics.

    x <- x + P P^T f + omega S f + sqrt(2 a) P z with f = a s(x, sigma) and a = step_size * sigma^2.

    The papers write a_i = step_lr (sigma_i / sigma_L)^2, so `step_size` is step_lr / sigma_L^2. It is the step relative to the
    noise variance, the same at every level. The published MNIST and CIFAR-10 settings of [NCSN] have 0.2.

    Stability: on a Gaussian mode with curvature 1/q, q >= sigma^2, a step multiplies the error by 1 - a (m^2 + i omega h) / q.
    Where the data have no variance q = sigma^2, so `step_size` < 2 / max((m^4 + (omega h)^2) / m^2) is stable on every target
    (vanilla: 2). At 2 / min(...) and above no mode without variance is stable, and the step is refused.

    An iteration takes one draw. The callback comes before any denoising.

    Attributes:
        iterations: T, Langevin steps in all.
        step_size: a / sigma^2.
        steps_per_level: steps at each visited level, or None for T / L (1 when T < L).
        denoise: end with x + sigma^2 s(x, sigma) at the last level ([NCSNv2] section 3.4), one more evaluation.
    """

    title: ClassVar[str] = "annealed Langevin"
    source: ClassVar[str] = "Song & Ermon, NeurIPS 2019, Algorithm 1; NeurIPS 2020, Algorithm 1"
    takes_filter: ClassVar[bool] = True

    iterations: Count = 20
    step_size: Annotated[float, Range(1e-12, 1e9)] = 1.0
    steps_per_level: Count | None = None
    denoise: bool = True

    @property
    def limit(self) -> float:
        """The bound of step_size times the largest gain below which every target is stable."""
        return 2.0

    @property
    def detail(self) -> str:
        return f"α/σ²={self.step_size:g}" + ("" if self.denoise else ", no denoising")

    @property
    def nfe(self) -> int:
        return self.iterations + self.denoise

    def without_denoising(self) -> Self:
        return replace(self, denoise=False)

    def levels(self, process: Process) -> Tensor:
        """(T,) noise level of each iteration, of the (L,) levels of the model's ladder."""
        return visit_levels(process.ladder, self.iterations, self.steps_per_level)

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """The published start: uniform in [0, 1) for every sigma_1. It is no noise of the process, so P does not act on it."""
        return noise.uniform()

    def check(self, levels: Tensor, preconditioner: Preconditioner) -> list[str]:
        """Refuse a step size that is stable on no target; warn about one that is unstable on some targets."""
        lowest, highest = (self.limit / gain for gain in reversed(preconditioner.stiffness()))
        if self.step_size >= highest:
            raise OptionError(
                "step_size",
                f"must be below {highest:.4g} with this filter and solenoid, and {self.step_size:g} diverges; below "
                f"{lowest:.4g} it is stable on every target",
            )
        if self.step_size < lowest:
            return []
        return [
            f"a step size of {self.step_size:g} is stable only where the data have variance: below {lowest:.4g} it is stable "
            "on every target"
        ]

    def walk(self, x: Tensor, task: Task[Tensor]) -> Steps:
        for sigma in task.levels.tolist():
            a = self.step_size * sigma**2
            f = a * task.score(x, sigma)
            x = task.preconditioner.step(x, f, (2 * a) ** 0.5, task.noise.normal())
            yield sigma, x
        return self._ended(x, task)

    def _ended(self, x: Tensor, task: Task[Tensor]) -> Tensor:
        return task.denoised(x, task.levels[-1].item()) if self.denoise else x
