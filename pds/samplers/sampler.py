"""The shape of every sampler: a small frozen dataclass of options, called with all it depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.score import Score

Callback = Callable[[int, float, Tensor], None]
"""Called with (iteration, sigma, x) after each step: progress, recording, early stops."""


class Sampler(Protocol):
    """What generation asks of a sampler.

    Attributes:
        title: what tables call it.
        source: the paper and the algorithm in it.
        nfe_per_iteration: score evaluations an iteration.
        stochastic: whether it draws noise after the start.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    nfe_per_iteration: ClassVar[int]
    stochastic: ClassVar[bool]

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        ...

    def levels(self, sigmas: Tensor) -> Tensor:
        """(T,) noise level of each iteration, from a model's (L,) descending levels."""
        ...

    def check(self, preconditioner: Preconditioner) -> None:
        """Raise a `PDSError` for options that cannot work with this preconditioner."""
        ...

    def prior(self, noise: NoiseSource, levels: Tensor, preconditioner: Preconditioner) -> Tensor:
        """(batch, C, H, W) start."""
        ...

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: Tensor,
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback,
    ) -> Tensor:
        """(batch, C, H, W) samples, not clamped."""
        ...
