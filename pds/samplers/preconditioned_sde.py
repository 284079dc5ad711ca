"""The preconditioned reverse SDE, its linear part solved exactly. DPM-Solver++ (Lu et al., arXiv:2211.01095) is a case."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pds.errors import OptionError, PDSError
from pds.gaussian import StationaryGaussian
from pds.noise import NoiseSource
from pds.options import Count, Range, Search, options
from pds.preconditioning.preconditioner import Preconditioner, Spectrum, spectrum_of
from pds.processes.forward import Process, noise_range
from pds.processes.ladders import Rho, karras_levels
from pds.samplers.sampler import Steps, Task
from pds.samplers.sigma_space import Interval, KarrasLevelsSampler, between, intervals

if TYPE_CHECKING:
    from typing_extensions import Self

    from pds.data.statistics import DatasetStatistics

Number = float | Tensor


class Step(NamedTuple):
    """x <- kept x + (1 - kept) (D + (D - D_before) / span) + noise z; each a number, or a tensor with one value a Fourier mode.

    Attributes:
        kept: e^(-c h).
        span: None where D alone is used.
        noise: sigma' sqrt(1 - e^(-2 g h)).
    """

    kept: Number
    span: Number | None
    noise: Number


@options
class PreconditionedSDE(KarrasLevelsSampler):
    """The preconditioned reverse SDE with its linear part solved exactly.

    With lambda = -log sigma, D the denoised image, G = eta P P^T and a skew S,

        dx = (I + G + omega S) (D - x) dlambda + sqrt(2 G) sigma dw

    has the marginals of the model for every G and S. G = 0, S = 0 is the probability flow, G = I the reverse SDE. A filter is
    PDS on the Langevin half of the equation alone. The walk starts at sigma_max z, on VP at sqrt(1 + sigma_max^2) z, which does
    not go through P. In a Fourier mode let G have the eigenvalue g and omega S the eigenvalue i w. Let c = 1 + g + i w and h =
    log(sigma / sigma'). A step is

        x <- e^(-c h) x + (1 - e^(-c h)) D + W (D - D_before) / h_before + sigma' sqrt(1 - e^(-2 g h)) z,

    exact for every h where D is constant. With order 2 the slope of D enters through the last two evaluations with a weight W.
    The "exact" weight, for a D that is linear in lambda, is W = h - (1 - e^(-c h)) / c (`solver_type="heun"` in diffusers). The
    "midpoint" weight is W = h / 2 (1 - e^(-c h)). With order 1, W = 0; so it is in the first iteration and in the last, to 0.
    The last step gives D: on a Gaussian of variance p it maps the exact law to p^2 / (p + sigma_min^2).

    A walk may be shorter than the noise of the process, so that all T levels lie where the images are decided. At `start` the
    state is drawn from the Gaussian with the mean and the spectrum of the data and sigma^2 of noise. This is the law of the
    state where the noise hides all else. The step to 0 is taken from `end`, and gives p^2 / (p + end^2).

    Between fixed ends the mean and the variance of a Gaussian converge with the order. At few steps neither weight keeps the
    variance: see `variance`. With order 1 every omega is stable, and a large one loses variance. With order 2 the exact weight
    is unstable from omega s h of about 1 on, s an eigenvalue of S. The midpoint weight is stable there.

    An iteration takes one evaluation. Each iteration in which eta acts takes one draw, except the last.

    Attributes:
        iterations: T.
        order: 2, D extrapolated from the last two evaluations; 1, D of the last alone.
        weight: "exact" or "midpoint".
        eta: strength of the Langevin half. 0 is the probability flow, without noise; 1 without a filter is the reverse SDE. The
            defaults of eta and rho were chosen for the whole walk at 20 evaluations on the shipped VE network; a shorter walk
            measured better. The command line also takes auto, a first guess for the network.
        eta_from: smallest noise level at which eta acts, in pixel units of the model; below it eta is 0.
        eta_to: largest noise level at which eta acts, in the same units; above it eta is 0.
        slope: factor on W. 1 is of second order; a larger factor carries the slope further than a straight line.
        start: largest noise level of the walk, in pixel units of the model; inf for that of the process. A smaller one needs
            the statistics of the data.
        end: noise level of the step to 0, in the same units; 0 for the smallest of the process.
        prior_norm: "drawn" as z, or "exact": z / |z| sqrt(d), so that no image starts with more noise than another.
        data: law that the walk starts from, for `start`. `pds.sample` and the runner take it from the model's statistics.
    """

    source: ClassVar[str] = "the reverse SDE, its Langevin half preconditioned; solved as in Lu et al., arXiv:2211.01095"
    takes_filter: ClassVar[bool] = True

    iterations: Count = 20
    rho: Annotated[Rho, Search(2, 14, log=True)] = 4.0
    order: Literal[1, 2] = 2
    weight: Annotated[Literal["exact", "midpoint"], Search()] = "midpoint"
    eta: Annotated[float, Range(0, 1000), Search(0.25, 8, log=True, auto=True)] = 2.0
    eta_from: Annotated[float, Range(0, 1e9)] = 0.0
    eta_to: Annotated[float, Range(0, 1e9, infinity="no upper limit")] = math.inf
    slope: Annotated[float, Range(0, 10), Search(0.7, 2)] = 1.0
    start: Annotated[
        float, Range(1e-9, 1e9, infinity="the largest level of the process"), Search(1, math.inf, log=True, level=True)
    ] = math.inf
    end: Annotated[float, Range(0, 1e9), Search(0, 0.3, log=True, level=True)] = 0.0
    prior_norm: Annotated[Literal["drawn", "exact"], Search()] = "drawn"
    data: StationaryGaussian | None = None

    def __post_init__(self) -> None:
        if self.end >= self.start:
            raise OptionError("end", f"must be below start, got {self.end:g} and {self.start:g}")
        if self.eta_from > self.eta_to:
            raise OptionError("eta_from", f"must be at most eta_to, got {self.eta_from:g} and {self.eta_to:g}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def title(self) -> str:
        return f"preconditioned {'SDE' if self.eta else 'ODE'}({self.order})"

    @property
    def detail(self) -> str:
        parts = [super().detail]
        if self.order == 2:
            parts.append(f"{self.weight} weight")
        if self.stochastic:
            parts.append(f"η={self.eta:g}")
        if self.slope != 1 and self.order == 2:
            parts.append(f"slope × {self.slope:g}")
        start = "" if self.start == math.inf else f" from {self.start:g}"
        end = f" to {self.end:g}" if self.end else ""
        if start or end:
            parts.append(f"σ{start}{end}")
        if (self.eta_from, self.eta_to) != (0, math.inf) and self.stochastic:
            parts.append(f"for σ in [{self.eta_from:g}, {self.eta_to:g}]")
        if self.prior_norm == "exact":
            parts.append("prior of exact norm")
        return ", ".join(parts)

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {} if self.data is None else {"start": dict(self.data.provenance)}

    def with_statistics(
        self, statistics: Callable[[], DatasetStatistics], data_range: tuple[float, float], process: Process
    ) -> Self:
        if self.data is not None or self._whole(process):
            return self
        return replace(self, data=statistics().gaussian(data_range))

    def _whole(self, process: Process) -> bool:
        """Whether the walk begins at the process's own prior.

        A `start` that equals sigma_max up to rounding begins at the Gaussian of the data, as `variance` assumes.
        """
        _, largest = noise_range(process)
        return self.start > largest and not math.isclose(self.start, largest)

    def levels(self, process: Process) -> list[Interval]:
        """The T intervals from the largest noise level over the smallest to 0. T is at most the number of levels of the
        process."""
        if self.iterations > (most := len(process.ladder)):
            raise OptionError("iterations", f"must be at most {most}, the noise levels of the model, got {self.iterations}")
        smallest, largest = noise_range(process)
        if self.start <= smallest:
            raise OptionError("start", f"must be above {smallest:g}, the smallest noise level of the model, got {self.start:g}")
        if self.end >= largest:
            raise OptionError("end", f"must be below {largest:g}, the largest noise level of the model, got {self.end:g}")
        return intervals(karras_levels(max(self.end, smallest), min(self.start, largest), self.iterations, self.rho))

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        x = super().prior(noise, process, preconditioner)
        # The norm of z: x is z times a number, and sqrt(d) is the norm that the law of z has.
        sigma = process.prior_std / process.scale(torch.ones(1, dtype=torch.float64)).item()
        if self.prior_norm == "exact":
            x = x * (sigma * x[0].numel() ** 0.5 / torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True))
        if self._whole(process):
            return x
        if self.data is None:
            raise OptionError("start", "needs the statistics of the data: give them to `with_statistics`, or leave start out")
        if (known := tuple(self.data.mean.shape)) != (shape := tuple(x.shape[1:])):
            raise OptionError("start", f"needs statistics of images of the shape {shape}, and those of the data are of {known}")
        return self.data.noised(x / sigma, self.start)

    def check(self, levels: list[Interval], preconditioner: Preconditioner) -> list[str]:
        """Refuse a space filter, and an omega at which the steps diverge. Warn about an omega near that, and about an idle
        filter."""
        spectrum = spectrum_of(preconditioner, self.title)
        doubts = []
        acts = self.eta and any(between(sigma, self.eta_from, self.eta_to) for sigma, _ in levels)
        if not acts and isinstance(spectrum.gain, Tensor):
            doubts.append("the filter changes nothing: it acts on the Langevin half of the equation, which eta leaves out here")
        if not isinstance(spectrum.turn, Tensor):
            return doubts
        turns, gains = _distinct(spectrum)
        bare = replace(self, data=None)  # the cache keeps it
        reached = [_most_variance(bare, tuple(levels), gains, tuple(factor * turn for turn in turns)) for factor in (1, 2)]
        told = f"a Gaussian comes out with up to {{:.2g}} times its variance at T = {len(levels)} with the {self.weight} weight"
        remedy = "take a smaller one, more iterations or weight='midpoint'"
        if reached[0] > DIVERGED:
            raise PDSError(f"omega is too large for these steps, {told.format(reached[0])}: {remedy}")
        if reached[1] > DIVERGED:
            doubts.append(f"omega is within a factor of two of where the steps diverge, {told.format(reached[1])}: {remedy}")
        return doubts

    def step(self, before: float | None, sigma: float, below: float, spectrum: Spectrum) -> Step:
        """The coefficients of a step from `sigma` to `below`; `before` is the level of the evaluation before."""
        g = self.eta * spectrum.gain if self.eta and between(sigma, self.eta_from, self.eta_to) else 0.0
        c: Any = 1 + g if isinstance(spectrum.turn, float) and not spectrum.turn else 1 + g + 1j * spectrum.turn
        if below == 0:
            return Step(0.0, None, 0.0)
        kept: Any = (below / sigma) ** c
        noise = below * (1 - (below / sigma) ** (2 * g)) ** 0.5
        if self.order == 1 or before is None or not self.slope:
            return Step(kept, None, noise)
        h, h_before = math.log(sigma / below), math.log(before / sigma)
        if self.weight == "midpoint":
            return Step(kept, 2 * (h_before / h) / self.slope, noise)
        return Step(kept, h_before / (h / (1 - kept) - 1 / c) / self.slope, noise)

    def walk(self, x: Tensor, task: Task[list[Interval]]) -> Steps:
        D_before, before = x, None
        spectrum = spectrum_of(task.preconditioner, self.title)
        for sigma, below in task.levels:
            D = task.denoised(x, sigma)
            x = self.advanced(x, D, D_before, self.step(before, sigma, below, spectrum), spectrum, lambda: task.noise.normal())
            D_before, before = D, sigma
            yield sigma, x

    @staticmethod
    def advanced(x: Tensor, D: Tensor, D_before: Tensor, step: Step, spectrum: Spectrum, draw: Callable[[], Tensor]) -> Tensor:
        """x after a step, from the denoised images of this evaluation and the one before; `draw` is called where noise acts."""
        kept, span, noise = step
        into, back = spectrum.transforms(x)
        state, target = into(x), into(D)
        if span is not None:
            target = target + (target - into(D_before)) / _like(span, target)
        kept = _like(kept, target)
        state = kept * state + (1 - kept) * target
        if isinstance(noise, Tensor) or noise:
            state = state + _like(noise, target) * into(draw())
        return back(state)

    def variance(
        self,
        levels: list[Interval],
        power: Tensor,
        gain: Number = 1.0,
        turn: Number = 0.0,
        share: Callable[[float, Tensor], Tensor] | None = None,
        initial: float = 1.0,
    ) -> Tensor:
        """The variance of Fourier modes after these steps, with the exact score of a Gaussian, by its recursion.

        Args:
            levels: from `levels`, with or without the last, to 0.
            power: variance p of the data in each mode, float64.
            gain, turn: eigenvalue of P P^T, and of omega S without its i; numbers or like `power`.
            share: maps (sigma, k) to the part of the exact noise that a network predicts. The mode has k times the exact
                standard deviation. None is the exact score.
            initial: standard deviation of the noise at the start, in units of its level.

        Returns:
            The variance after the last step, like `power`. The exact one is p + sigma^2 at a level sigma, and p^2 / (p +
            sigma^2) after the step from sigma to 0. A walk from `start` begins with the exact variance, another walk with
            sigma_max^2.
        """
        V = (initial * levels[0].sigma) ** 2 + (power if math.isclose(levels[0].sigma, self.start) else torch.zeros_like(power))
        # E[x D_before*] and E[D_before D_before*].
        C, W = torch.zeros_like(power, dtype=torch.complex128), torch.zeros_like(power)
        before = None
        for sigma, below in levels:
            kept, span, noise = self.step(before, sigma, below, Spectrum(gain, turn))
            kept, slope = (torch.as_tensor(v, dtype=torch.complex128) for v in (kept, 0 if span is None else (1 - kept) / span))
            noise_part = sigma**2 / (power + sigma**2)
            if share is not None:
                noise_part = noise_part * share(sigma, (V / (power + sigma**2)).clamp(min=1e-12).sqrt())
            K = 1 - noise_part
            A = kept + (1 - kept + slope) * K
            V, C, W = (
                A.abs() ** 2 * V + slope.abs() ** 2 * W - 2 * (A * slope.conj() * C).real + noise**2,
                K * (A * V - slope * C.conj()),
                K**2 * V,
            )
            before = sigma
        return V


DIVERGED = 10.0  # times the variance of a Gaussian: below it steps are inexact, above it they grow from step to step
MOST_MODES = 256


def _distinct(spectrum: Spectrum) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(turn, gain) of some modes: the extremes and those between in even steps."""
    gain, turn = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in spectrum)
    gain, turn = (v.flatten() for v in torch.broadcast_tensors(gain, turn.abs()))
    order = torch.argsort(turn)
    some = torch.linspace(0, len(order) - 1, min(len(order), MOST_MODES)).round().long()
    chosen = torch.cat([order[some], gain.argmin()[None], gain.argmax()[None]]).unique()
    return tuple(turn[chosen].tolist()), tuple(gain[chosen].tolist())


@functools.lru_cache(maxsize=64)
def _most_variance(
    sampler: PreconditionedSDE, levels: tuple[Interval, ...], gains: tuple[float, ...], turns: tuple[float, ...]
) -> float:
    """The variance of a Gaussian with the exact score, in units of the exact one: the largest over modes and over powers."""
    kept = [level for level in levels if level.below]
    if not kept:
        return 1.0
    low, high = kept[-1].below ** 2, kept[0].sigma ** 2
    power = torch.logspace(math.log10(low), math.log10(high), 61, dtype=torch.float64)
    gain, turn = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (gains, turns))
    grown = sampler.variance(kept, power.expand(len(gains), -1), gain, turn) / (power + low)
    return grown.max().item() if grown.isfinite().all() else math.inf


def _like(value: Number, spectrum: Tensor) -> Number:
    """A coefficient on the device and in the precision of what it multiplies."""
    if not isinstance(value, Tensor):
        return value
    precision = spectrum.real.dtype if not value.is_complex() else spectrum.dtype
    return value.to(spectrum.device, precision)
