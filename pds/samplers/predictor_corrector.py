"""Predictor-corrector sampling of continuous score models ([SDE] Algorithms 2-5, appendices E-G), preconditioned as in [ECCV].

Every predictor is one rule with its own coefficients, x <- x + P P^T f + omega S f_s + G P z with f = linear x + weight s(x),
f_s = weight s(x). Every corrector is a Langevin step with its own step size. P = I is the published sampler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.noise import NoiseSource
from pds.options import MOST, Range, Search, options
from pds.preconditioning.preconditioner import Identity, Preconditioner
from pds.processes.forward import Process, Time, Transitions, integration_times
from pds.samplers.sampler import Sampler, Steps, Task, amplified_noise

if TYPE_CHECKING:
    from typing_extensions import Self


class Level(NamedTuple):
    """The noise level and the coefficients of one iteration.

    Attributes:
        sigma, scale: of the score, s(x) = score(x / scale, sigma) / scale.
        std: standard deviation of the noise in x, scale * sigma.
        linear, weight, noise: of the predictor's step, x + linear x + weight s(x) + noise z.
        alpha: factor of the corrector's step.
    """

    sigma: float
    scale: float
    std: float
    linear: float
    weight: float
    noise: float
    alpha: float


class Predictor(Protocol):
    """A discretisation of the reverse-time equation.

    Attributes:
        title: what tables call it.
        published_with_filter: whether the released PDS code preconditions it.
        probability_flow: whether it discretises the ODE.
    """

    title: ClassVar[str]
    published_with_filter: ClassVar[bool]

    @property
    def probability_flow(self) -> bool: ...

    def transitions(self, process: Process, t: Tensor) -> Transitions:
        """Coefficients at (T,) descending times."""
        ...


def _reverse(f: Tensor, variance: Tensor, probability_flow: bool) -> Transitions:
    """x <- x - f x + G^2 s + G z ([SDE] Eq. 46), or the deterministic x <- x - f x + G^2 s / 2 (Eq. 47)."""
    if probability_flow:
        return Transitions(-f, variance / 2, torch.zeros_like(variance))
    return Transitions(-f, variance, variance.sqrt())


@options
class ReverseDiffusion:
    """The forward process's own discretisation, reversed ([SDE] appendix E).

    Attributes:
        probability_flow: take the deterministic ODE.
    """

    title: ClassVar[str] = "reverse diffusion"
    published_with_filter: ClassVar[bool] = True

    probability_flow: bool = False

    def transitions(self, process: Process, t: Tensor) -> Transitions:
        return _reverse(*process.steps(t), self.probability_flow)


@options
class EulerMaruyama:
    """Euler-Maruyama's step of size 1 / T ([SDE] section 4.1).

    Attributes:
        probability_flow: take Euler's step of the deterministic ODE.
    """

    title: ClassVar[str] = "Euler-Maruyama"
    published_with_filter: ClassVar[bool] = False

    probability_flow: bool = False

    def transitions(self, process: Process, t: Tensor) -> Transitions:
        f, variance = process.rates(t)
        return _reverse(f / len(t), variance / len(t), self.probability_flow)


@dataclass(frozen=True)
class Ancestral:
    """The posterior step of the discrete chain ([SDE] Eq. 4, appendix F)."""

    title: ClassVar[str] = "ancestral"
    published_with_filter: ClassVar[bool] = False
    probability_flow: ClassVar[bool] = False

    def transitions(self, process: Process, t: Tensor) -> Transitions:
        return process.ancestral(t)


class Corrector(Protocol):
    """Langevin steps at one noise level, x <- x + a d + sqrt(2 a) P z with d = P P^T s + omega S s.

    Attributes:
        title: what tables call it.
        published_with_filter: whether the released PDS code preconditions it.
        snr: r, the ratio that sets the step.
        steps: Langevin steps an iteration.
        mixes_batch: whether a step depends on the images of the batch beside its own.
    """

    title: ClassVar[str]
    published_with_filter: ClassVar[bool]

    @property
    def snr(self) -> float: ...

    @property
    def steps(self) -> int: ...

    @property
    def mixes_batch(self) -> bool: ...

    def fixed_step(self, level: Level) -> float | None:
        """a, if it does not depend on the images; else None."""
        ...

    def step_size(self, d: Tensor, Pz: Tensor, level: Level) -> Tensor | float:
        """a, a number or (batch, 1, 1, 1)."""
        ...


@options
class _LangevinSteps:
    """Options of both correctors.

    Attributes:
        snr: r, the signal-to-noise ratio that sets the step.
        steps: Langevin steps an iteration; each is a score evaluation.
    """

    snr: Annotated[float, Range(1e-9, 1e3), Search(0.05, 0.4, log=True)] = 0.16
    steps: Annotated[int, Range(1, 10_000)] = 1


@options
class Langevin(_LangevinSteps):
    """Langevin steps sized by the ratio of noise and score norms.

    a = 2 alpha (r |P z| / |d|)^2 ([SDE] Algorithms 4, 5).

    Attributes:
        norms: "image", norms of each image; or "batch", the published norms, averaged over the batch. These make an image
            depend on the images sampled with it.
    """

    title: ClassVar[str] = "Langevin"
    published_with_filter: ClassVar[bool] = True

    norms: Literal["image", "batch"] = "image"

    @property
    def mixes_batch(self) -> bool:
        return self.norms == "batch"

    def fixed_step(self, level: Level) -> None:
        return None

    def step_size(self, d: Tensor, Pz: Tensor, level: Level) -> Tensor:
        d_norm, z_norm = (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) for v in (d, Pz))
        if self.norms == "batch":
            d_norm, z_norm = d_norm.mean(), z_norm.mean()
        return 2 * level.alpha * (self.snr * z_norm / d_norm) ** 2


@options
class AnnealedLangevinSteps(_LangevinSteps):
    """Langevin steps sized by the noise level.

    a = 2 alpha (r std)^2: the step of annealed Langevin dynamics, as a corrector ([SDE] appendix G)."""

    title: ClassVar[str] = "annealed Langevin"
    published_with_filter: ClassVar[bool] = False
    mixes_batch: ClassVar[bool] = False

    def fixed_step(self, level: Level) -> float:
        return 2 * level.alpha * (self.snr * level.std) ** 2

    def step_size(self, d: Tensor, Pz: Tensor, level: Level) -> float:
        return self.fixed_step(level)


def no_predictor() -> None:
    """Langevin steps only."""


def no_corrector() -> None:
    """Predictor steps only: one score evaluation an iteration."""


@options
class PredictorCorrector(Sampler[list[Level]]):
    """Predictor-corrector sampling.

    Each of T times takes the corrector's steps, then a predictor step. Each corrector step, and each predictor step with noise,
    takes one draw.

    Attributes:
        iterations: T.
        predictor: `ReverseDiffusion`, `EulerMaruyama`, `Ancestral` or None.
        corrector: `Langevin`, `AnnealedLangevinSteps` or None. None halves the evaluations of an iteration.
        end: last time, in (0, 1); None for the published 1e-5 N / T (VE), 1e-3 N / T (VP).
        denoise: leave out the noise of the last predictor step.
        precondition: "everywhere"; or "published" as in the released PDS code. That code filters neither the ancestral and
            Euler-Maruyama predictors nor the annealed Langevin corrector.
    """

    source: ClassVar[str] = "Song et al., ICLR 2021, Algorithms 2-5; preconditioned: Ma et al., ECCV 2022, Algorithm 1"
    takes_filter: ClassVar[bool] = True

    iterations: Annotated[int, Range(2, MOST)] = 100
    predictor: Predictor | None = ReverseDiffusion()
    corrector: Corrector | None = Langevin()
    end: Time | None = None
    denoise: bool = True
    precondition: Literal["everywhere", "published"] = "everywhere"

    def __post_init__(self) -> None:
        if self.predictor is None and self.corrector is None:
            raise PDSError("a predictor-corrector sampler needs a predictor, a corrector or both, and has neither")

    @property
    def nfe_per_iteration(self) -> int:
        return (self.predictor is not None) + (0 if self.corrector is None else self.corrector.steps)

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in (self.predictor, self.corrector) if part is not None)

    @property
    def detail(self) -> str:
        parts = ["ODE"] if self.predictor is not None and self.predictor.probability_flow else []
        parts += ["no corrector"] if self.corrector is None else [f"snr={self.corrector.snr:g}"]
        if self.corrector is not None and self.corrector.steps > 1:
            parts.append(f"{self.corrector.steps} corrector steps")
        if self.mixes_batch:
            parts.append("norms of the batch")
        if self.precondition == "published":
            parts.append("published filtering")
        if self.predictor is not None and not self.denoise:
            parts.append("noisy end")
        return ", ".join(parts)

    def levels(self, process: Process) -> list[Level]:
        """Return the data of each of the T iterations."""
        t = integration_times(process, self.iterations, self.end)
        sigma, scale, zero = process.sigma(t), process.scale(t), torch.zeros_like(t)
        step = Transitions(zero, zero, zero) if self.predictor is None else self.predictor.transitions(process, t)
        alpha = zero if self.corrector is None else process.corrector_scale(t)
        columns = (sigma, scale, scale * sigma, *step, alpha)
        return [Level(*row) for row in torch.stack(columns, dim=1).tolist()]

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """std(x_1) P z: the prior goes through P, as in the released code."""
        return process.prior_std * preconditioner.noise(noise.normal())

    @property
    def mixes_batch(self) -> bool:
        return self.corrector is not None and self.corrector.mixes_batch

    def without_denoising(self) -> Self:
        return replace(self, denoise=False)

    def check(self, levels: list[Level], preconditioner: Preconditioner) -> list[str]:
        """Warn when the steps amplify the noise of a frequency without data variance.

        The steps of the Langevin corrector depend on the images, and are left out.
        """
        predicted, corrected = (
            self._filtered(part, preconditioner).stiffness()[1] for part in (self.predictor, self.corrector)
        )
        corrector = self.corrector
        fixed = corrector is not None and corrector.fixed_step(levels[0]) is not None
        if self.predictor is None and not fixed:
            return []
        # On such a mode s = -x / std^2, so its variance follows an exact recursion.
        v = predicted * levels[0].std ** 2
        for level in levels[:-1]:
            a = corrector.fixed_step(level) if corrector is not None else None
            if corrector is not None and a is not None:
                for _ in range(corrector.steps):
                    v = (1 - a * corrected / level.std**2) ** 2 * v + 2 * a * corrected
            v = (1 + predicted * (level.linear - level.weight / level.std**2)) ** 2 * v + predicted * level.noise**2
            v = min(v, 1e200)
        gain, left = max(predicted, corrected), v**0.5 / levels[-1].std
        ways = "more iterations, a weaker filter or a smaller snr" if self.corrector else "more iterations or a weaker filter"
        return amplified_noise(len(levels), gain, left, f"use {ways}")

    def _filtered(self, part: Predictor | Corrector | None, preconditioner: Preconditioner) -> Preconditioner:
        ignored = self.precondition == "published" and part is not None and not part.published_with_filter
        return Identity() if ignored else preconditioner

    def walk(self, x: Tensor, task: Task[list[Level]]) -> Steps:
        P = task.preconditioner
        for iteration, level in enumerate(task.levels):
            if self.corrector is not None:
                for _ in range(self.corrector.steps):
                    x = self.correct(x, _score(task, x, level), level, P, task.noise.normal())
            if self.predictor is not None:
                s = _score(task, x, level)
                last = self.denoise and iteration == len(task.levels) - 1
                x = self.predict(x, s, level, P, task.noise.normal() if level.noise and not last else None)
            yield level.sigma, x

    def correct(self, x: Tensor, s: Tensor, level: Level, preconditioner: Preconditioner, z: Tensor) -> Tensor:
        """One step of the corrector, x + a d + sqrt(2 a) P z, from s = s(x) and a standard normal draw z."""
        assert self.corrector is not None
        P = self._filtered(self.corrector, preconditioner)
        d, Pz = P.drift(s), P.noise(z)
        a = self.corrector.step_size(d, Pz, level)
        return x + a * d + (2 * a) ** 0.5 * Pz

    def predict(self, x: Tensor, s: Tensor, level: Level, preconditioner: Preconditioner, z: Tensor | None) -> Tensor:
        """The predictor step from s = s(x) and a standard normal draw z; None leaves the noise out."""
        P = self._filtered(self.predictor, preconditioner)
        drift = level.weight * s
        f = drift + level.linear * x if level.linear else drift
        return x + P.drift(f, drift) if z is None else P.step(x, f, level.noise, z, drift)


def _score(task: Task[list[Level]], x: Tensor, level: Level) -> Tensor:
    """s(x) of the state, from the score of x_0 + sigma z by a change of variables."""
    return task.score(x, level.sigma) if level.scale == 1 else task.score(x / level.scale, level.sigma) / level.scale
