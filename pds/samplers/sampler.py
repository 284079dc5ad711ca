"""The shape of every sampler: a small frozen dataclass of options, called with all it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.score import Score

Callback = Callable[[int, float, Tensor], None]
"""Called with (iteration, sigma, x) after each step: progress, recording, early stops."""


def no_callback(iteration: int, sigma: float, x: Tensor) -> None:
    """The default callback."""


LEFT_OVER = 10.0  # noise that a stable run may leave, in units of the smallest level


def amplified_noise(iterations: int, gain: float, left: float, remedy: str) -> list[str]:
    """The doubt of a `check` about noise that is amplified where the data have no variance, if it is.

    Args:
        iterations: T.
        gain: largest gain of filter and solenoid, `stiffness()[1]`.
        left: standard deviation of what is left of that noise, in units of the smallest level.
        remedy: what to do.
    """
    if left <= LEFT_OVER * gain**0.5:
        return []
    return [
        f"at sampler.iterations={iterations} the largest gain of filter and solenoid, {gain:.3g}, is unstable where the data "
        f"have no variance ({left:.2g} times the smallest noise level would be left there): {remedy}"
    ]


Levels = TypeVar("Levels", bound=Sized)
"""What a sampler needs to know about each of its T iterations: its own business, but their number."""


class Sampler(Protocol[Levels]):
    """What generation asks of a sampler.

    Attributes:
        source: the paper and the algorithm in it.
    """

    source: ClassVar[str]

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise after the start."""
        ...

    @property
    def mixes_batch(self) -> bool:
        """Whether an image depends on those sampled with it."""
        ...

    @property
    def title(self) -> str:
        """What tables call it."""
        ...

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        ...

    @property
    def nfe_per_iteration(self) -> int:
        """Score evaluations an iteration."""
        ...

    def levels(self, process: Process) -> Levels:
        """What the T iterations on a model of this process need; raises a `PDSError` when they cannot be."""
        ...

    def check(self, levels: Levels, preconditioner: Preconditioner) -> list[str]:
        """Raise a `PDSError` for options that cannot work with this preconditioner; a sentence for each that may not."""
        ...

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """(batch, C, H, W) start."""
        ...

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: Levels,
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback,
    ) -> Tensor:
        """Sample.

        Args:
            score: `score(x, sigma)`.
            x: (batch, C, H, W) start, from `prior`.
            levels: from `levels`.
            preconditioner: P and S; `Identity()`, which gives the vanilla sampler, for those whose `check` refuses any other.
            noise: source of standard normal draws; each sampler says how many it makes.
            callback: called with (iteration, sigma, x) after each iteration, x in units of the data.

        Returns:
            (batch, C, H, W), not clamped, in the data range of the model.
        """
        ...
