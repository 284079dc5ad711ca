"""Momentum-imbued Langevin dynamics ([MILD] Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from torch import Tensor

from pds.errors import OptionError
from pds.options import Range, options
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.sampler import Steps, Task


@options
class MomentumLangevin(AnnealedLangevin):
    """Momentum-imbued Langevin dynamics.

    v <- gamma v + f, x <- x + v + sqrt(2 a) P z with f = (P P^T + omega S) a s(x + gamma v, sigma), a = step_size sigma^2.

    v starts at 0, is kept across levels, and holds no noise. The final denoising leaves v out.

    Why P P^T stands in v and P before z: in the coordinates y = P^-1 x the score is P^T s(P y). There [MILD] reads w <- gamma w
    + a P^T s(P (y + gamma w)), y <- y + w + sqrt(2 a) z. Times P, with v = P w, this is the rule above. So the rule is MILD in
    other coordinates, and has the stationary law of MILD for every P. (S adds a flow along which the log-density does not
    change.) That law is not p. For small steps v settles at a s / (1 - gamma), the drift of Langevin dynamics with step a / (1
    - gamma). Its noise would be sqrt(2 a / (1 - gamma)). With less noise MILD samples p^(1 / (1 - gamma)): a Gaussian of
    variance q comes out with (1 - gamma) q.

    Stability: with c = a m^2 / q a step multiplies a Gaussian mode (x, v) by [[1 - c, gamma (1 - c)], [-c, gamma (1 - c)]]. Its
    eigenvalues are inside the unit circle for c < 2 (1 + gamma) / (1 + 2 gamma). With a solenoid c is complex, and the bound is
    a guide.

    Attributes:
        gamma: momentum in [0, 1): 0.38 for the published CIFAR-10 setting with one step a level, 0.1 with five. Several values
            are interpolated linearly over the iterations.
    """

    source: ClassVar[str] = "Shetty et al., ICASSP 2024, Algorithm 1"
    title: ClassVar[str] = "momentum Langevin (MILD)"

    gamma: Annotated[float | Sequence[float], Range(0, below=1)] = 0.38

    def __post_init__(self) -> None:
        if not self.anchors:
            raise OptionError("gamma", "must be one value or several, got none")

    @property
    def anchors(self) -> tuple[float, ...]:
        """The values of gamma that are given."""
        return tuple(self.gamma) if isinstance(self.gamma, Sequence) else (self.gamma,)

    @property
    def detail(self) -> str:
        return f"γ={'…'.join(f'{gamma:g}' for gamma in self.anchors)}, {super().detail}"

    @property
    def limit(self) -> float:
        return min(2 * (1 + gamma) / (1 + 2 * gamma) for gamma in self.anchors)

    def walk(self, x: Tensor, task: Task[Tensor]) -> Steps:
        places = np.linspace(0, len(self.anchors) - 1, len(task.levels))
        gammas = np.interp(places, range(len(self.anchors)), self.anchors)
        P, v = task.preconditioner, 0 * x
        for sigma, gamma in zip(task.levels.tolist(), gammas.tolist(), strict=True):
            a = self.step_size * sigma**2
            v = gamma * v + P.drift(a * task.score(x + gamma * v, sigma))
            x = x + v + (2 * a) ** 0.5 * P.noise(task.noise.normal())
            yield sigma, x
        return self._ended(x, task)
