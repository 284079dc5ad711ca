"""Linear multistep sampling: Adams-Bashforth steps of the probability flow in sigma, as `sample_lms` of k-diffusion."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from pds.options import Count, options
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler


@options
class LMS(KarrasLevelsSampler):
    """x <- x + int e(s) ds from sigma to sigma', e the polynomial in s through the last evaluations of e = -sigma s(x, sigma).

    The first steps have fewer evaluations. The last step, to 0, is Euler's: the denoised image. An iteration takes one
    evaluation and no draw.

    Attributes:
        iterations: T.
        order: evaluations that a step uses, and the global order of the steps that have them; 1 is DDIM.
    """

    source: ClassVar[str] = "Crowson, k-diffusion, sample_lms; Zhang & Chen, ICLR 2023 (DEIS) in sigma"
    stochastic: ClassVar[bool] = False

    iterations: Count = 20
    order: Literal[1, 2, 3, 4] = 4

    @property
    def title(self) -> str:
        return f"LMS({self.order})"

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        seen: list[tuple[float, Tensor]] = []
        for sigma, below in task.levels:
            seen = [*seen, (sigma, -sigma * task.score(x, sigma))][-self.order :]
            looked = seen if below > 0 else seen[-1:]
            # In units of the step: u = (s - sigma) / (sigma' - sigma) runs from 0 to 1, int u^k du = 1 / (k + 1).
            at = np.array([(level - sigma) / (below - sigma) for level, _ in looked])
            weights = np.linalg.solve(np.vander(at, increasing=True).T, 1 / np.arange(1, len(at) + 1))
            for weight, (_, e) in zip(weights.tolist(), looked, strict=True):
                x = x + (below - sigma) * weight * e
            yield sigma, x
