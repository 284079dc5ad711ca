"""Samplers of critically-damped Langevin diffusion: Dockhorn, Vahdat & Kreis, ICLR 2022 ([CLD]).

All samplers step in the phase y of the process, with the velocity w = v / sqrt(M) and its score s_w: beta and M drop out. From
y down to 0, in r = -y, the reverse equations are

    dx = -w dr + [H s_x dr + sqrt(2 H) dW']        dw = (x + 2 w + 2 s_w) dr + [2 G s_w dr + 2 sqrt(G) dW]

and have the marginals of the model for all G, H >= 0 that do not depend on the state. The brackets are Langevin dynamics at a
fixed level, which keep any law of these scores. G = H = 0 is the probability flow, and G = 1, H = 0 the reverse equation of
[CLD]. A filter gives G and H the factor P P^T: PDS on the Langevin parts alone. P P^T on the whole drift, the papers' form,
changes the law. s_x follows from s_w exactly (`CriticallyDamped.data_score`), so it costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.options import Count, Range, options
from pds.preconditioning.preconditioner import Preconditioner, Spectrum, spectrum_of
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import Process, Time
from pds.samplers.sampler import Sampler, Steps, Task

if TYPE_CHECKING:
    from typing_extensions import Self

Number = float | Tensor
Halves = tuple[Tensor, Tensor]
"""Data x and velocity w."""
HalvesScore = Callable[[Tensor, Tensor, float], Tensor]
"""(x, w, sigma) to s_w."""
Draw = Callable[[], Tensor]
CANCELLED = 1e-12  # 1 less a sum has at most four digits below this
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


class Step(NamedTuple):
    """One iteration.

    Attributes:
        sigma: level of its start.
        below: level of its end.
        length: h, the decrease of the phase.
        left: phase of its end.
        scale: m(t) at its end.
        root: sqrt(M).
        spread: variance of x given w and x_0, at `sigma`.
        by_score, by_data, by_velocity: s_x in s_w, x and w there.
    """

    sigma: float
    below: float
    length: float
    left: float
    scale: float
    root: float
    spread: float
    by_score: float
    by_data: float
    by_velocity: float


@options
class VelocitySampler(Sampler[list[Step]]):
    """A sampler on a grid of times of a CLD process.

    Attributes:
        iterations: T.
        striding: "quadratic", t = end + (1 - end) (i / T)^2, or "linear".
        end: last time of the grid.
        denoise: end with the step of the data to t = 0, x - y(end) w. The authors evaluate the network for this step and count
            the evaluation; only the velocity depends on it.
    """

    iterations: Count = 50
    striding: Literal["quadratic", "linear"] = "quadratic"
    end: Time = 1e-3
    denoise: bool = True

    @property
    def detail(self) -> str:
        ended = "" if self.end == type(self).end else f", to t={self.end:g}"
        return f"{self.striding} striding{ended}" + ("" if self.denoise else ", not denoised")

    def without_denoising(self) -> Self:
        return replace(self, denoise=False)

    def levels(self, process: Process) -> list[Step]:
        if not isinstance(process, CriticallyDamped):
            raise PDSError(f"{self.title} samples networks of CLD, and this one is of {process.title}: choose another sampler")
        share = torch.linspace(1, 0, self.iterations + 1, dtype=torch.float64)
        t = self.end + (1 - self.end) * (share**2 if self.striding == "quadratic" else share)
        y, root = process.phase(t), torch.full_like(t, math.sqrt(process.mass))
        columns = [process.sigma(t[:-1]), process.sigma(t[1:]), y[:-1] - y[1:], y[1:], process.scale(t[1:]), root[1:]]
        factors, spread = process.data_score(t[:-1])
        a, b, c = factors.unbind(-1)
        columns += [spread, a / root[1:], b, c * root[1:]]
        return [Step(*row) for row in torch.stack(columns, 1).tolist()]

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """(batch, 2 C, H, W) data and velocity at t = 1, independent; neither goes through P."""
        x = noise.normal()
        mass = process.mass if isinstance(process, CriticallyDamped) else 1.0
        return torch.cat([x, math.sqrt(mass) * noise.normal()], dim=1)

    def walk(self, x: Tensor, task: Task[list[Step]]) -> Steps:
        root = task.levels[0].root
        x, w = x.chunk(2, dim=1)
        w = w / root
        for step in task.levels:

            def score(x: Tensor, w: Tensor, sigma: float) -> Tensor:
                return root * task.score(torch.cat([x, root * w], dim=1), sigma)

            x, w = self.advanced(x, w, step, score, task.preconditioner, task.noise.normal)
            yield step.sigma, x / step.scale
        return x - step.left * w if self.denoise else None

    def advanced(self, x: Tensor, w: Tensor, step: Step, score: HalvesScore, P: Preconditioner, draw: Draw) -> Halves:
        """Data and velocity after a step."""
        raise NotImplementedError


@options
class CLDEulerMaruyama(VelocitySampler):
    """Euler-Maruyama on the reverse equation of critically-damped Langevin diffusion.

        w <- w + h (x + 2 w + 2 s_w) + 2 h P P^T s_w + 2 sqrt(h) P z
        x <- x - h w + r P P^T s_x + sqrt(2 r) P z'

    Here r is data_eta log(sigma / sigma') times the variance of x given w and x_0. The equation has the law of the model for
    every P, S and data_eta (S adds flows along which the density does not change). The steps have this law as h goes to 0, with
    order 1. One evaluation an iteration, and one draw, or two with Langevin dynamics of the data.

    Attributes:
        data_eta: strength of the Langevin dynamics of the data; 0 is the published equation.
    """

    source: ClassVar[str] = "Dockhorn et al., ICLR 2022, appendix B"
    title: ClassVar[str] = "CLD Euler-Maruyama"
    takes_filter: ClassVar[bool] = True

    data_eta: Annotated[float, Range(0, 1000)] = 0.0

    @property
    def detail(self) -> str:
        return super().detail + (f", η={self.data_eta:g} on the data" if self.data_eta else "")

    def advanced(self, x: Tensor, w: Tensor, step: Step, score: HalvesScore, P: Preconditioner, draw: Draw) -> Halves:
        h, s = step.length, score(x, w, step.sigma)
        flowed = w + h * (x + 2 * w + 2 * s)
        moved, velocity = x - h * w, P.step(flowed, 2 * h * s, 2 * math.sqrt(h), draw())
        if self.data_eta:
            r = self.data_eta * math.log(step.sigma / step.below) * step.spread
            by_data = step.by_score * s + step.by_data * x + step.by_velocity * w
            moved = P.step(moved, r * by_data, math.sqrt(2 * r), draw())
        return moved, velocity


class Exact(NamedTuple):
    """(x, w) <- mean (x, w) + root z; entries by row, each a number, or a tensor with one value a Fourier mode."""

    xx: Number
    xw: Number
    wx: Number
    ww: Number
    root_x: Number
    root_both: Number
    root_w: Number

    def moved(self, x: Tensor, w: Tensor, z_x: Tensor, z_w: Tensor) -> tuple[Tensor, Tensor]:
        """The halves after the step."""
        return (
            self.xx * x + self.xw * w + self.root_x * z_x,
            self.wx * x + self.ww * w + self.root_both * z_x + self.root_w * z_w,
        )


@options
class SSCS(VelocitySampler):
    """The symmetric splitting CLD sampler, with its own friction for each Fourier mode.

    First dx = -w dr, dw = (x - 2 c w) dr + 2 sqrt(g) dW is solved exactly for half a step. Then w <- w + 2 h (1 + c) (s_w + w),
    then the other half step follows. g is the eigenvalue of P P^T in a mode and c - g, imaginary, that of omega S. Vanilla is c
    = g = 1, the critical damping. Both parts together are the reverse equation for every c. The first keeps N(0, I), whose
    score is s_w = -w, and the second does not change it. So the prior is sampled exactly at any step size and with any filter.

    The score is taken at the level of the start of the step, as the authors do. An iteration takes one evaluation and four
    draws.
    """

    source: ClassVar[str] = "Dockhorn et al., ICLR 2022, Algorithm 1"
    title: ClassVar[str] = "SSCS"
    takes_filter: ClassVar[bool] = True

    def check(self, levels: list[Step], preconditioner: Preconditioner) -> list[str]:
        spectrum_of(preconditioner, self.title)
        return super().check(levels, preconditioner)

    def advanced(self, x: Tensor, w: Tensor, step: Step, score: HalvesScore, P: Preconditioner, draw: Draw) -> Halves:
        spectrum = spectrum_of(P, self.title)
        into, back = spectrum.transforms(x)
        half, c = exact_step(step.length / 2, spectrum, x)
        X, W = half.moved(into(x), into(w), into(draw()), into(draw()))
        x, w = back(X), back(W)
        W = W + 2 * step.length * (1 + c) * into(score(x, w, step.sigma) + w)
        X, W = half.moved(X, W, into(draw()), into(draw()))
        return back(X), back(W)


def _hyperbolic(h: float, c: Tensor) -> tuple[Tensor, Tensor]:
    """e^-ch cosh(delta h) and e^-ch sinh(delta h) / delta with delta^2 = c^2 - 1, from exponentials that cannot overflow."""
    delta = (c**2 - 1).sqrt()
    near = delta.abs() * h < 1e-4
    slow, fast = ((delta - c) * h).exp(), (-(delta + c) * h).exp()
    series = (-c * h).exp() * h * (1 + (delta * h) ** 2 / 6)
    return (slow + fast) / 2, torch.where(near, series, (slow - fast) / torch.where(near, 1, 2 * delta))


def exact_step(h: float, spectrum: Spectrum, like: Tensor) -> tuple[Exact, Number]:
    """dx = -w dr, dw = (x - 2 c w) dr + 2 sqrt(g) dW over h, exactly, and c: numbers, or tensors for the device of `like`."""
    g, turn = (torch.as_tensor(part, dtype=torch.complex128) for part in spectrum)
    c = g + 1j * turn
    even, ratio = _hyperbolic(h, c)
    xx, xw, wx, ww = even + c * ratio, -ratio, ratio, even - c * ratio
    # It keeps N(0, I), so the covariance of its noise is I - mean mean^H.
    variance_x = 1 - xx.abs() ** 2 - xw.abs() ** 2
    if (variance_x < CANCELLED).any():
        # It is also 4 g int |xw|^2 over the step.
        within = zip((h / 2 * (NODES + 1)).tolist(), (h / 2 * WEIGHTS).tolist(), strict=True)
        integral = sum(weight * _hyperbolic(part, c)[1].abs() ** 2 for part, weight in within)
        variance_x = torch.where(variance_x < CANCELLED, 4 * g.real * integral, variance_x)
    root_x = variance_x.clamp(min=1e-30).sqrt()
    root_both = -(wx * xx.conj() + ww * xw.conj()) / root_x
    root_w = (1 - wx.abs() ** 2 - ww.abs() ** 2 - root_both.abs() ** 2).clamp(min=0).sqrt()
    entries = (xx, xw, wx, ww, root_x.to(c.dtype), root_both, root_w.to(c.dtype), c)
    if c.ndim == 0:
        *exact, friction = (entry.real.item() for entry in entries)
        return Exact(*exact), friction
    kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    *tensors, friction_here = (entry.to(like.device, kind) for entry in entries)
    return Exact(*tensors), friction_here


@options
class CLDFlow(VelocitySampler):
    """Heun's method on the probability flow of critically-damped Langevin diffusion, G = 0.

    Its order is 2. An iteration takes two evaluations and no draw.
    """

    source: ClassVar[str] = "Dockhorn et al., ICLR 2022, appendix B"
    title: ClassVar[str] = "CLD probability flow"
    stochastic: ClassVar[bool] = False
    nfe_per_iteration: ClassVar[int] = 2

    iterations: Count = 25

    def advanced(self, x: Tensor, w: Tensor, step: Step, score: HalvesScore, P: Preconditioner, draw: Draw) -> Halves:
        h = step.length
        rate_x, rate_w = -w, x + 2 * w + 2 * score(x, w, step.sigma)
        x_end, w_end = x + h * rate_x, w + h * rate_w
        last = x_end + 2 * w_end + 2 * score(x_end, w_end, step.below)
        return x + h / 2 * (rate_x - w_end), w + h / 2 * (rate_w + last)
