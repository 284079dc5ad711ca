"""The common part of solvers in sigma-space: the state is x = data + sigma z for a model of any process.

A state x_t = m (x_0 + sigma z) of any process is m times such an x. So a solver of an equation in sigma solves every process.
The equation is the probability flow dx/dsigma = -sigma s(x, sigma) (Karras et al., NeurIPS 2022, section 2) or an SDE of the
same marginals.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pds.options import options
from pds.processes.forward import Process, noise_range
from pds.processes.ladders import Rho, karras_levels
from pds.samplers.sampler import Sampler


class Interval(NamedTuple):
    """The noise levels of one iteration.

    Attributes:
        sigma: where it starts, in pixel units of the model.
        below: where it ends, 0 for the last.
    """

    sigma: float
    below: float


def between(sigma: float, low: float, high: float) -> bool:
    """Whether a noise level is in [low, high], up to its rounding: the first of a grid may be above the largest."""
    return low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9)


def intervals(levels: Tensor) -> list[Interval]:
    """The intervals from each of (T,) descending noise levels to the next, and from the last to 0."""
    sigmas = levels.tolist()
    return [Interval(*ends) for ends in zip(sigmas, [*sigmas[1:], 0.0], strict=True)]


@options
class KarrasLevelsSampler(Sampler[list[Interval]]):
    """A solver on a fixed grid: T levels over the noise of the process, then 0.

    Attributes:
        iterations: T.
        rho: exponent of the Karras levels, the larger the finer at small ones.
    """

    rho: Rho = 7.0

    @property
    def detail(self) -> str:
        return f"ρ={self.rho:g}"

    def levels(self, process: Process) -> list[Interval]:
        """The T intervals from the process's largest noise level over its smallest to 0."""
        return intervals(karras_levels(*noise_range(process), self.iterations, self.rho))
