"""The form of every sampler: a frozen dataclass of options, and a loop, `walk`, from noise to images.

`Sampler` calls the loop. It checks the preconditioner, counts the iterations and calls the callback. Its members state the
facts that tables, runs and tests need. So a new sampler is its options, its noise levels and its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.options import Count, options
from pds.preconditioning.preconditioner import Identity, Preconditioner
from pds.processes.forward import Process
from pds.score import NoiseMoments, Score, denoised, score_at

if TYPE_CHECKING:
    from typing_extensions import Self

    from pds.data.statistics import DatasetStatistics

Callback = Callable[[int, float, Tensor], None]
"""Called with (iteration, sigma, x) after each iteration: progress, recording, early stops."""


def no_callback(iteration: int, sigma: float, x: Tensor) -> None:
    """The default callback."""


Levels = TypeVar("Levels", bound=Sized)
"""A sampler's data of its T iterations. Only the length, T, is public."""

Steps = Generator[tuple[float, Tensor], None, Tensor | None]
"""(sigma, x) after each iteration. Its return value is the images, if these are not the last x."""


@dataclass(frozen=True)
class Task(Generic[Levels]):
    """The tools of a loop.

    Attributes:
        network: `score(x, sigma)` of the model.
        levels: from `Sampler.levels`.
        preconditioner: P and S.
        noise: source of standard normal draws.
    """

    network: Score
    levels: Levels
    preconditioner: Preconditioner
    noise: NoiseSource

    def score(self, x: Tensor, sigma: float) -> Tensor:
        """s(x, sigma) of a batch at one noise level; one evaluation."""
        return score_at(self.network, x, sigma)

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma) = x + sigma^2 s(x, sigma), the expected image; one evaluation."""
        return denoised(self.network, x, sigma)


@options
class Sampler(Generic[Levels]):
    """The caller of a loop.

    Attributes:
        source: the paper and its algorithm.
        takes_filter: whether it can sample with a filter or a solenoid.
        iterations: T.
    """

    source: ClassVar[str]
    takes_filter: ClassVar[bool] = False

    iterations: Count

    @property
    def title(self) -> str:
        """Its name in tables."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """The options that comparisons vary, for tables."""
        return ""

    @property
    def stochastic(self) -> bool:
        """Whether the sampler draws noise after the start."""
        return True

    @property
    def mixes_batch(self) -> bool:
        """Whether an image depends on the images sampled with it."""
        return False

    @property
    def nfe_per_iteration(self) -> int:
        """The most score evaluations that an iteration takes."""
        return 1

    @property
    def nfe(self) -> int | None:
        """Score evaluations an image takes; None where they depend on the image."""
        return self.iterations * self.nfe_per_iteration

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Facts beyond the options that the images depend on, by name. They are part of a run's identity and of its record."""
        return {}

    def with_moments(self, measure: Callable[[int], NoiseMoments]) -> Self:
        """This sampler with the moments of the model's noise, if it needs them; `measure(n)` takes n training images."""
        return self

    def with_statistics(
        self, statistics: Callable[[], DatasetStatistics], data_range: tuple[float, float], process: Process
    ) -> Self:
        """This sampler with the statistics of the training images, if it needs them on a model of this range and process."""
        return self

    def without_denoising(self) -> Self:
        """This sampler, ending at its smallest noise level instead of the denoised images, if it has that option."""
        return self

    def levels(self, process: Process) -> Levels:
        """Return the data of the T iterations on a model of this process; raise a `PDSError` if the process has no such
        levels."""
        raise NotImplementedError

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """(batch, C, H, W) start, x = data + sigma z without the data: (std(x_1) / m(1)) z, sigma_max z for VE."""
        scale = process.scale(torch.ones(1, dtype=torch.float64)).item()
        return process.prior_std / scale * noise.normal()

    def check(self, levels: Levels, preconditioner: Preconditioner) -> list[str]:
        """Raise a `PDSError` for options that cannot work with this preconditioner; return a sentence for each that may not."""
        if not self.takes_filter and not isinstance(preconditioner, Identity):
            raise PDSError(f"{self.title} takes no filter and no solenoid: leave both out, or choose another sampler")
        return []

    def walk(self, x: Tensor, task: Task[Levels]) -> Steps:
        """The loop: from the start `x`, yield (sigma, x) after each iteration, x being the sampler's own state.

        It may return other images than the last x, as samplers that denoise at the end do.
        """
        raise NotImplementedError

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: Levels,
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback = no_callback,
    ) -> Tensor:
        """Sample.

        Args:
            score: `score(x, sigma)`.
            x: (batch, C, H, W) start, from `prior`.
            levels: from `levels`, or a part of them in a row.
            preconditioner: P and S; `Identity()` is the vanilla sampler.
            noise: source of standard normal draws.
            callback: called with (iteration, sigma, x) after each iteration. x is the sampler's own state, images plus noise of
                level sigma. Samplers that step the state of the process, as `PredictorCorrector`, have it times m.

        Returns:
            (batch, C, H, W), not clamped, in the data range of the model.

        Raises:
            PDSError: see `check`.
        """
        self.check(levels, preconditioner)
        steps = self.walk(x, Task(score, levels, preconditioner, noise))
        iteration = 0
        while True:
            try:
                sigma, x = next(steps)
            except StopIteration as end:
                return x if end.value is None else end.value
            callback(iteration, sigma, x)
            iteration += 1


LEFT_OVER = 10.0  # noise that may be left after a stable run, in units of the smallest level


def amplified_noise(iterations: int, gain: float, left: float, remedy: str) -> list[str]:
    """The doubt of a `check` about steps that amplify noise where the data have no variance; empty if they do not.

    Args:
        iterations: T.
        gain: largest gain of filter and solenoid, `stiffness()[1]`.
        left: standard deviation of the noise that is left, in units of the smallest level.
        remedy: what to do.
    """
    if left <= LEFT_OVER * gain**0.5:
        return []
    what = "the step" if gain == 1 else f"the largest gain of filter and solenoid, {gain:.3g},"
    return [
        f"at T = {iterations} {what} is unstable where the data have no variance "
        f"({left:.2g} times the smallest noise level would be left there): {remedy}"
    ]
