"""ER-SDE-Solver: Cui, Zhang, Lu & Liao, *Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models*,
WACV 2025 (arXiv:2309.06169), Algorithms 1 to 3 in sigma-space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from pds.options import Count, options
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler

Scale = Literal["ode", "sde", "er_sde"]

# phi(sigma) / sigma. The third is what the paper recommends, its SDE 5.
SCALES: dict[Scale, Callable[[np.ndarray | float], np.ndarray | float]] = {
    "ode": lambda sigma: 1.0 + 0.0 * sigma,
    "sde": lambda sigma: sigma,
    "er_sde": lambda sigma: np.exp(sigma**0.3) + 10,
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


@options
class ERSDE(KarrasLevelsSampler):
    """The reverse SDEs of all noise scales phi(sigma), with D the denoised image and r = phi(sigma') / phi(sigma):

        x <- r x + (1 - r) D + A D' + B D" + sqrt(sigma'^2 - r^2 sigma^2) z
        A = sigma' - sigma + phi(sigma') int 1 / phi,   B = (sigma' - sigma)^2 / 2 + phi(sigma') int (s - sigma) / phi(s) ds,

    with integrals from sigma' to sigma. D' and D" are differences of the last two and three evaluations in sigma. phi = sigma
    is the probability flow and phi = sigma^2 the reverse SDE; phi = sigma (e^(sigma^0.3) + 10) lies between them. The last
    step, to 0, gives D. Without noise the global order is 1 for order 1 and 2 for order 2. For order 3 it is 2 as well: D' is a
    difference of two evaluations, and B D" leaves its error of first order. This is the published form.

    The released code sums 100 points for each integral, which leaves an error of the first order in the step. Here the
    integrals are exact to rounding.

    Attributes:
        iterations: T.
        order: 1 to 3, the evaluations that a step uses; "order" is the paper's name.
        scale: "ode", "sde" or "er_sde", the noise scale. "sde" and "er_sde" draw once in each iteration except the last, "ode"
            draws nothing.
    """

    source: ClassVar[str] = "Cui et al., WACV 2025, Algorithms 1-3"

    iterations: Count = 20
    order: Literal[1, 2, 3] = 3
    scale: Scale = "er_sde"

    @property
    def stochastic(self) -> bool:
        return self.scale != "ode"

    @property
    def title(self) -> str:
        return f"ER-SDE-Solver-{self.order}"

    @property
    def detail(self) -> str:
        return super().detail + {"ode": ", ODE", "sde": ", SDE", "er_sde": ""}[self.scale]

    def phi(self, sigma: float) -> float:
        """The noise scale."""
        return sigma * float(SCALES[self.scale](sigma))

    def integral(self, sigma: float, below: float, power: int) -> float:
        """int (s - sigma)^power / phi(s) ds from `below` to `sigma`, over log s, where the integrand is smooth."""
        half = math.log(sigma / below) / 2
        s = below * np.exp(half * (NODES + 1))
        return half * float(WEIGHTS @ ((s - sigma) ** power / SCALES[self.scale](s)))

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        seen: list[tuple[float, Tensor]] = []  # (sigma, D), the last first
        slope_before: Tensor | None = None
        for sigma, below in task.levels:
            D = task.denoised(x, sigma)
            seen = [(sigma, D), *seen][:3]
            r = self.phi(below) / self.phi(sigma)
            x = r * x + (1 - r) * D
            slope = None
            if self.order > 1 and len(seen) > 1 and below > 0:
                slope = (D - seen[1][1]) / (sigma - seen[1][0])
                x = x + (below - sigma + self.phi(below) * self.integral(sigma, below, 0)) * slope
            if self.order > 2 and slope is not None and slope_before is not None:
                bend = 2 * (slope - slope_before) / (sigma - seen[2][0])
                x = x + ((below - sigma) ** 2 / 2 + self.phi(below) * self.integral(sigma, below, 1)) * bend
            slope_before = slope
            variance = below**2 - (r * sigma) ** 2
            if self.stochastic and below > 0:
                x = x + max(variance, 0.0) ** 0.5 * task.noise.normal()
            yield sigma, x
