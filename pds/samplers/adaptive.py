"""Adaptive steps for the reverse SDE: Jolicoeur-Martineau et al., *Gotta Go Fast When Generating Data with Score-Based Models*,
arXiv:2105.14080, Algorithm 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.samplers.sampler import Callback, no_callback
from pds.samplers.sigma_space import Interval, SigmaSpaceSampler, denoised
from pds.score import Score

# h_init, theta and r of the paper's experiments.
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9


@dataclass(frozen=True)
class AdaptiveSDE(SigmaSpaceSampler):
    """Stochastic improved Euler steps of the reverse SDE, sigma(t) = sigma_min (sigma_max / sigma_min)^t, g^2 = d sigma^2 / dt:

        x' = x + h g(t)^2 s(x, sigma(t)) + sqrt(h) g(t) z
        x~ = x + h g(t - h)^2 s(x', sigma(t - h)) + sqrt(h) g(t - h) z
        x" = (x' + x~) / 2

    with the step h of each image its own: E = |(x' - x") / max(eps_abs, eps_rel max(|x'|, |x'_before|))| / sqrt(n) is at most 1
    or the attempt is rejected, and then h <- min(t, 0.9 h E^-0.9). From t = 1 to 0, then the denoised image. No order is
    claimed: a rejected attempt draws its noise anew, as published, which prefers noise that is easy to follow.

    An image takes 2 evaluations an attempt, accepted or not, and 1 at the end. Images that have arrived are evaluated no more:
    the network calls of a batch are those of its slowest image, more than the mean over its images.

    Attributes:
        iterations: T, the most attempts that an image may take.
        eps_rel: relative tolerance, > 0; the paper's 0.01, 0.02, 0.05 and 0.1 go from slow to fast.
        eps_abs: absolute tolerance, > 0: one grey level of 256, which is 0.0078 for images from -1 to 1.
    """

    nfe_per_iteration: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    title: ClassVar[str] = "adaptive SDE (Gotta Go Fast)"
    source: ClassVar[str] = "Jolicoeur-Martineau et al., arXiv:2105.14080, Algorithm 1"

    eps_rel: float = 0.02
    eps_abs: float = 0.0039

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.eps_rel > 0 and self.eps_abs > 0):
            raise PDSError(f"sampler.eps_rel and sampler.eps_abs must be positive, got {self.eps_rel} and {self.eps_abs}")

    @property
    def detail(self) -> str:
        """The options that comparisons are made over, for tables."""
        return f"ε_rel={self.eps_rel:g}, ε_abs={self.eps_abs:g}"

    def levels(self, process: Process) -> list[Interval]:
        """For each attempt the whole interval, as nobody knows beforehand where in it an image will be."""
        return [Interval(process.ladder[0].item(), process.ladder[-1].item())] * self.iterations

    def __call__(
        self,
        score: Score,
        x: Tensor,
        levels: list[Interval],
        preconditioner: Preconditioner,
        noise: NoiseSource,
        callback: Callback = no_callback,
    ) -> Tensor:
        """Sample, with one draw for each attempt of the slowest image; see `Sampler`.

        `callback` is called after each attempt, sigma the largest noise level left.

        Raises:
            PDSError: when an image has not arrived after T attempts.
        """
        self.check(levels, preconditioner)
        sigma_max, sigma_min = levels[0]
        rate = math.log(sigma_max / sigma_min)
        x, before = x.clone(), x.clone()
        t = torch.ones(len(x), dtype=torch.float64, device=x.device)
        h = torch.full_like(t, FIRST_STEP)

        def kick(x: Tensor, at: Tensor, t: Tensor, h: Tensor, z: Tensor) -> Tensor:
            sigma = sigma_min * (rate * t).exp()
            variance = _column(2 * rate * sigma**2 * h, x)
            return variance * score(at, sigma.to(x.dtype)) + variance.sqrt() * z

        for iteration in range(len(levels)):
            moving = (t > 0).nonzero()[:, 0]
            x_now, t_now, h_now, z = x[moving], t[moving], h[moving], noise.normal()[moving]
            euler = x_now + kick(x_now, x_now, t_now, h_now, z)
            improved = (euler + x_now + kick(x_now, euler, t_now - h_now, h_now, z)) / 2
            tolerance = (self.eps_rel * torch.maximum(euler.abs(), before[moving].abs())).clamp(min=self.eps_abs)
            error = ((euler - improved) / tolerance).double().square().mean((1, 2, 3)).sqrt()
            # Not <= 1, so that an image that is not finite goes on to where it is told.
            accepted = ~(error > 1)
            x[moving] = torch.where(_column(accepted), improved, x_now)
            before[moving] = torch.where(_column(accepted), euler, before[moving])
            t[moving] = torch.where(accepted, t_now - h_now, t_now)
            h[moving] = torch.minimum(t[moving], SAFETY * h_now * error**-EXPONENT)
            callback(iteration, sigma_min * math.exp(rate * t.max().item()), x)
            if not (t > 0).any():
                return denoised(score, x, sigma_min)
        raise PDSError(
            f"{int((t > 0).sum())} of {len(x)} images have not arrived after sampler.iterations={len(levels)} attempts: allow "
            "more, or a larger sampler.eps_rel"
        )


def _column(values: Tensor, like: Tensor | None = None) -> Tensor:
    """(batch, 1, 1, 1), one number an image."""
    return (values if like is None else values.to(like.dtype))[:, None, None, None]
