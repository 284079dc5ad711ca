"""Restart: Xu et al., *Restart Sampling for Improving Generative Processes*, NeurIPS 2023 (arXiv:2306.14878), Algorithm 1."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pds.errors import OptionError
from pds.options import Count, Range, options
from pds.processes.forward import Process, noise_range
from pds.processes.ladders import Rho, karras_levels
from pds.samplers.edm import FlowSteps
from pds.samplers.sampler import Sampler, Steps, Task
from pds.samplers.sigma_space import intervals


class RestartLevel(NamedTuple):
    """The noise levels of one iteration.

    Attributes:
        sigma: where it starts, in pixel units of the model.
        below: where it ends, 0 for the last.
        raised_from: the level before noise is added at its start; `sigma` where none is.
    """

    sigma: float
    below: float
    raised_from: float


@options
class Restart(FlowSteps, Sampler[list[RestartLevel]]):
    """Heun's steps of the probability flow, with restarts: at `low`, noise raises the state to `high` again, several times.

    A restart is x <- x + sqrt(high^2 - low^2) z, then `steps` Heun steps back to `low`. `low` is the level of the grid nearest
    to the given one. Without restarts the sampler is `EDM` without churn. The last step, to 0, is Euler's: the denoised image.
    The global order of the flow is `order`.

    Attributes:
        iterations: T, all steps: restarts * steps on the ways back, the rest on the grid. With order 2 they take 2 T - 1
            evaluations.
        rho: exponent of both grids, the larger the finer at small ones.
        order: 2, Heun; 1, Euler.
        restarts: K, the number of restarts; each takes one draw.
        steps: steps of each way back.
        low, high: noise levels that a restart begins and ends at, in pixel units of the model.
    """

    source: ClassVar[str] = "Xu et al., NeurIPS 2023, Algorithm 1"
    title: ClassVar[str] = "Restart"

    iterations: Count = 18
    rho: Rho = 7.0
    order: Literal[1, 2] = 2
    restarts: Annotated[int, Range(0, 10_000)] = 2
    steps: Annotated[int, Range(1, 10_000)] = 2
    low: Annotated[float, Range(1e-9, 1e9)] = 0.06
    high: Annotated[float, Range(1e-9, 1e9)] = 0.3

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise OptionError("low", f"must be below high, got {self.low:g} and {self.high:g}")
        if self.iterations - self.restarts * self.steps < 2:
            raise OptionError(
                "iterations", f"must be at least {self.restarts * self.steps + 2}, two more than those of the restarts"
            )

    @property
    def stochastic(self) -> bool:
        return self.restarts > 0

    @property
    def detail(self) -> str:
        return f"ρ={self.rho:g}, {self.restarts} × {self.steps} steps from {self.high:g} to {self.low:g}"

    def levels(self, process: Process) -> list[RestartLevel]:
        """The grid from the process's largest noise level over its smallest to 0, and the ways back in it."""
        smallest, largest = noise_range(process)
        sigmas = karras_levels(smallest, largest, self.iterations - self.restarts * self.steps, self.rho)
        grid = [RestartLevel(sigma, below, sigma) for sigma, below in intervals(sigmas)]
        if not self.restarts:
            return grid
        # The ladder's own end is off by rounding.
        if self.high > largest and not math.isclose(self.high, largest):
            raise OptionError("high", f"must be at most {largest:g}, the largest noise level of the model, got {self.high:g}")
        at = int(torch.argmin((sigmas[1:] - self.low).abs())) + 1
        low = sigmas[at].item()
        if low >= self.high:
            raise OptionError("high", f"must be above {low:.4g}, the level of the grid nearest to low, got {self.high:g}")
        back = karras_levels(low, self.high, self.steps + 1, self.rho).tolist()
        way = [RestartLevel(a, b, low if i == 0 else a) for i, (a, b) in enumerate(pairwise(back))]
        return grid[:at] + way * self.restarts + grid[at:]

    def walk(self, x: Tensor, task: Task[list[RestartLevel]]) -> Steps:
        for sigma, below, raised_from in task.levels:
            if raised_from < sigma:
                x = x + (sigma**2 - raised_from**2) ** 0.5 * task.noise.normal()
            x = self.flow_step(task, x, sigma, below)
            yield sigma, x
