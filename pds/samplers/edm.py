"""Euler's and Heun's method with Karras levels and churn: Karras et al., *Elucidating the Design Space of Diffusion-Based
Generative Models*, NeurIPS 2022, Algorithm 2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.samplers.sampler import Callback, no_callback
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler
from pds.score import Score, score_at

MOST_CHURN = math.sqrt(2) - 1  # gamma: an iteration adds at most as much noise as there is


@dataclass(frozen=True)
class EDM(KarrasLevelsSampler):
    """From sigma to sigma': x^ = x + S_noise sqrt(sigma^2 (1 + gamma)^2 - sigma^2) z at sigma^ = (1 + gamma) sigma, then a step
    of dx/dsigma = d(x, sigma) = -sigma s(x, sigma):

        Euler  x <- x^ + (sigma' - sigma^) d(x^, sigma^), which is DDIM's step
        Heun   x <- x^ + (sigma' - sigma^) (d(x^, sigma^) + d(x_Euler, sigma')) / 2

    gamma = min(S_churn / T, sqrt(2) - 1) for S_min <= sigma <= S_max, else 0. The last step, to 0, is Euler's: the denoised
    image. So T iterations take T evaluations (Euler) or 2 T - 1 (Heun). Their global orders are 1 and 2.

    Attributes:
        iterations, rho: see `KarrasLevelsSampler`.
        order: 1, Euler; 2, Heun.
        S_churn: noise to add over all iterations, >= 0; 0 is the deterministic sampler, which draws none.
        S_min, S_max: noise levels between which it is added. sigma^ may pass the process's largest level unless S_max, kept
            below it by sqrt(2), prevents it.
        S_noise: standard deviation of z, a little above 1 to make up for what networks denoise too much.
    """

    source: ClassVar[str] = "Karras et al., NeurIPS 2022, Algorithm 2"

    order: Literal[1, 2] = 2
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise PDSError(f"sampler.order must be 1 (Euler) or 2 (Heun), got {self.order}")
        if not (self.S_churn >= 0 and 0 <= self.S_min <= self.S_max and self.S_noise > 0):
            raise PDSError(
                f"sampler.S_churn must be at least 0, 0 <= S_min <= S_max and S_noise positive, got {self.S_churn}, "
                f"{self.S_min}, {self.S_max} and {self.S_noise}"
            )

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise after the start."""
        return self.S_churn > 0

    @property
    def nfe_per_iteration(self) -> int:
        """Score evaluations an iteration; the last takes 1."""
        return self.order

    @property
    def title(self) -> str:
        """The solver."""
        return "EDM Heun" if self.order == 2 else "EDM Euler"

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        churn = f", churn {self.S_churn:g} in [{self.S_min:g}, {self.S_max:g}] × {self.S_noise:g}" if self.S_churn else ""
        return f"ρ={self.rho:g}{churn}"

    def churned(self, sigma: float) -> float:
        """sigma^: the noise level that an iteration from `sigma` starts at."""
        gamma = min(self.S_churn / self.iterations, MOST_CHURN) if self.S_min <= sigma <= self.S_max else 0.0
        return (1 + gamma) * sigma

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: list[Interval],
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback = no_callback,
    ) -> Tensor:
        """Sample, with one draw for each iteration with churn; see `Sampler`."""
        self.check(levels, preconditioner)
        for iteration, (sigma, below) in enumerate(levels):
            start = self.churned(sigma)
            if start > sigma:
                x = x + self.S_noise * (start**2 - sigma**2) ** 0.5 * noise.normal()
            d = _slope(score, x, start)
            if self.order == 2 and below > 0:
                d = (d + _slope(score, x + (below - start) * d, below)) / 2
            x = x + (below - start) * d
            callback(iteration, sigma, x)
        return x


def _slope(score: Score, x: Tensor, sigma: float) -> Tensor:
    """d(x, sigma)."""
    return -sigma * score_at(score, x, sigma)
