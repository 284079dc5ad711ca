"""SA-Solver: Xue et al., *SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models*, NeurIPS 2023
(arXiv:2309.05019), Algorithm 1 for data prediction, in sigma-space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from torch import Tensor

from pds.errors import OptionError
from pds.options import Count, Range, options
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler, between


@options
class SASolver(KarrasLevelsSampler):
    """The reverse SDE of strength eta = tau^2. With lambda = -log sigma, D the denoised image and c = 1 + tau^2, a step is

        x <- e^(-c h) x + int c e^(-c (lambda' - l)) L(l) dl + sigma' sqrt(1 - e^(-2 tau^2 h)) z,

    with the integral over the step. The predictor's L is the polynomial through the last evaluations; the corrector's
    polynomial also goes through the new one, at the predicted state. Both take the same z, and a state is evaluated once (PEC).
    Where L is a line its slope has the weight c h^2 / 2, as in the released code for few steps. The last steps lower their
    orders, as the first steps must. The very last step, to 0, has no noise and gives D. An iteration takes one evaluation, and
    one draw except in the last.

    Attributes:
        iterations: T.
        predictor_order: evaluations that the predictor uses. Without noise and corrector this is its global order, for the
            steps that have enough history.
        corrector_order: evaluations that the corrector uses, the new one among them; 0 leaves the corrector out.
        tau: strength of the noise; 0 is the probability flow, 1 the reverse SDE.
        tau_from, tau_to: tau acts in steps that end between these noise levels, in pixel units of the model; elsewhere it is 0.
    """

    source: ClassVar[str] = "Xue et al., NeurIPS 2023, Algorithm 1"

    iterations: Count = 20
    predictor_order: Literal[1, 2, 3] = 3
    corrector_order: Literal[0, 1, 2, 3, 4] = 4
    tau: Annotated[float, Range(0, 100)] = 1.0
    tau_from: Annotated[float, Range(0, 1e9)] = 0.0
    tau_to: Annotated[float, Range(0, 1e9, infinity="no upper limit")] = math.inf

    def __post_init__(self) -> None:
        if self.tau_from > self.tau_to:
            raise OptionError("tau_from", f"must be at most tau_to, got {self.tau_from:g} and {self.tau_to:g}")

    @property
    def stochastic(self) -> bool:
        return self.tau > 0

    @property
    def title(self) -> str:
        return f"SA-Solver(P{self.predictor_order}{f'C{self.corrector_order}' if self.corrector_order else ''})"

    @property
    def detail(self) -> str:
        window = f" for σ in [{self.tau_from:g}, {self.tau_to:g}]" if (self.tau_from, self.tau_to) != (0, math.inf) else ""
        return f"{super().detail}, τ={self.tau:g}{window}"

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        T = len(task.levels)
        sigmas: list[float] = []
        images: list[Tensor] = []
        predicted, noise = x, None
        for i, (sigma, below) in enumerate(task.levels):
            sigmas.append(sigma)
            images.append(task.denoised(predicted, sigma))
            if i == 0 or not self.corrector_order:
                x = predicted
            else:
                order = min(self.corrector_order, i + 1, T - i + 2)
                x = self._step(x, noise, sigmas[-2], sigma, sigmas[-order:], images[-order:], last=False)
            last = i == T - 1
            noise = task.noise.normal() if self._tau(below, last) else None
            order = min(self.predictor_order, i + 1, T - i)
            predicted = self._step(x, noise, sigma, below, sigmas[-order:], images[-order:], last)
            sigmas, images = sigmas[-3:], images[-3:]
            yield sigma, predicted

    def _tau(self, below: float, last: bool) -> float:
        return self.tau if not last and between(below, self.tau_from, self.tau_to) else 0.0

    def _step(
        self,
        x: Tensor,
        z: Tensor | None,
        sigma: float,
        below: float,
        nodes: Sequence[float],
        images: Sequence[Tensor],
        last: bool,
    ) -> Tensor:
        """From `sigma` to `below`, with the polynomial through the denoised images at the noise levels `nodes`."""
        tau = self._tau(below, last)
        if below == 0:
            return images[-1]
        c, h = 1 + tau**2, math.log(sigma / below)
        kept, at = (below / sigma) ** c, np.log(sigma / np.array(nodes))
        # I_k = int_0^h c e^(-c (h - s)) s^k ds, by parts.
        moments = [1 - kept]
        for k in range(1, len(nodes)):
            moments.append(h**k - k / c * moments[-1])
        if len(nodes) == 2:
            moments[1] = c * h**2 / 2
        weights = np.linalg.solve(np.vander(at, increasing=True).T, moments)
        x = kept * x + sum(float(weight) * D for weight, D in zip(weights, images, strict=True))
        return x if z is None else x + below * (1 - (below / sigma) ** (2 * tau**2)) ** 0.5 * z
