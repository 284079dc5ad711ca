"""Adaptive steps for the reverse SDE: Jolicoeur-Martineau et al., *Gotta Go Fast When Generating Data with Score-Based Models*,
arXiv:2105.14080, Algorithm 1."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.options import Count, Range, options
from pds.processes.forward import Process, noise_range
from pds.samplers.sampler import Sampler, Steps, Task
from pds.samplers.sigma_space import Interval
from pds.score import Score, score_of

# h_init, theta and r of the paper's experiments.
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9


@options
class AdaptiveSDE(Sampler[list[Interval]]):
    """Adaptive steps for the reverse SDE, each image its own.

    Stochastic improved Euler steps of the reverse SDE, sigma(t) = sigma_min (sigma_max / sigma_min)^t, g^2 = d sigma^2 / dt:

        x' = x + h g(t)^2 s(x, sigma(t)) + sqrt(h) g(t) z
        x~ = x + h g(t - h)^2 s(x', sigma(t - h)) + sqrt(h) g(t - h) z
        x" = (x' + x~) / 2

    Each image has its own step h. An attempt is accepted if E = |(x' - x") / max(eps_abs, eps_rel max(|x'|, |x'_before|))| /
    sqrt(n) is at most 1. Then h <- min(t, 0.9 h E^-0.9). The walk goes from t = 1 to 0, and ends with the denoised image. No
    order is claimed: a rejected attempt draws its noise anew, as published, and so prefers noise that is easy to follow.

    An attempt, accepted or not, takes 2 evaluations and a draw; the end takes 1 evaluation. An image that has arrived is not
    evaluated any more. So the network calls of a batch are those of its slowest image, more than the mean over its images. The
    callback comes after each attempt, with the largest noise level left as sigma.

    Attributes:
        iterations: T, the most attempts that an image may take; an image that needs more is an error.
        eps_rel: relative tolerance; the paper's 0.01, 0.02, 0.05 and 0.1 go from slow to fast.
        eps_abs: absolute tolerance: one grey level of 256, which is 0.0078 for images from -1 to 1.
    """

    nfe_per_iteration: ClassVar[int] = 2
    nfe: ClassVar[None] = None
    title: ClassVar[str] = "adaptive SDE (Gotta Go Fast)"
    source: ClassVar[str] = "Jolicoeur-Martineau et al., arXiv:2105.14080, Algorithm 1"

    iterations: Count = 2000
    eps_rel: Annotated[float, Range(1e-9, 1000)] = 0.02
    eps_abs: Annotated[float, Range(1e-9, 1e3)] = 0.0039

    @property
    def detail(self) -> str:
        return f"ε_rel={self.eps_rel:g}, ε_abs={self.eps_abs:g}"

    def levels(self, process: Process) -> list[Interval]:
        """The whole interval for each attempt: where an image will be in it is not known beforehand."""
        smallest, largest = noise_range(process)
        return [Interval(largest, smallest)] * self.iterations

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        sigma_max, sigma_min = task.levels[0]
        rate = math.log(sigma_max / sigma_min)
        x, before = x.clone(), x.clone()
        t = torch.ones(len(x), dtype=torch.float64, device=x.device)
        h = torch.full_like(t, FIRST_STEP)

        def kick(network: Score, x: Tensor, at: Tensor, t: Tensor, h: Tensor, z: Tensor) -> Tensor:
            sigma = sigma_min * (rate * t).exp()
            variance = _column(2 * rate * sigma**2 * h, x)
            return variance * network(at, sigma.to(x.dtype)) + variance.sqrt() * z

        for _ in task.levels:
            moving = (t > 0).nonzero()[:, 0]
            x_now, t_now, h_now, z = x[moving], t[moving], h[moving], task.noise.normal()[moving]
            network = score_of(task.network, moving)
            euler = x_now + kick(network, x_now, x_now, t_now, h_now, z)
            improved = (euler + x_now + kick(network, x_now, euler, t_now - h_now, h_now, z)) / 2
            tolerance = (self.eps_rel * torch.maximum(euler.abs(), before[moving].abs())).clamp(min=self.eps_abs)
            error = ((euler - improved) / tolerance).double().square().mean((1, 2, 3)).sqrt()
            # Not <= 1: an image that is not finite is accepted, so that the check of all values reports it.
            accepted = ~(error > 1)
            x[moving] = torch.where(_column(accepted), improved, x_now)
            before[moving] = torch.where(_column(accepted), euler, before[moving])
            t[moving] = torch.where(accepted, t_now - h_now, t_now)
            h[moving] = torch.minimum(t[moving], SAFETY * h_now * error**-EXPONENT)
            yield sigma_min * math.exp(rate * t.max().item()), x
            if not (t > 0).any():
                return task.denoised(x, sigma_min)
        raise PDSError(
            f"{int((t > 0).sum())} of {len(x)} images have not arrived after {len(task.levels)} attempts: allow more "
            "iterations, or a larger eps_rel"
        )


def _column(values: Tensor, like: Tensor | None = None) -> Tensor:
    """(batch, 1, 1, 1), one number an image."""
    return (values if like is None else values.to(like.dtype))[:, None, None, None]
