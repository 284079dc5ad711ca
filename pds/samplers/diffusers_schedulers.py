"""The schedulers of diffusers as samplers of VP models. They run as they are; none is written anew.

A scheduler of diffusers walks down some of N levels of a VP state Y = sqrt(abar) x, abar = 1 / (1 + sigma^2). It needs the
noise prediction e = -sigma s(x, sigma). A score depends on sigma alone, so a model of any process has such states. The N levels
are the ladder of the process, given as `trained_betas`: beta_i = 1 - abar_i / abar_{i-1}, the smallest sigma first, abar_{-1} =
1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import field, replace
from importlib import metadata
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pds.errors import MissingError, OptionError, PDSError
from pds.noise import NoiseSource
from pds.options import fitted, options, options_of
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.samplers.sampler import Sampler, Steps, Task

if TYPE_CHECKING:
    from typing_extensions import Self

    from pds.data.statistics import DatasetStatistics

TITLES = {
    "DDIMScheduler": "DDIM",
    "DDPMScheduler": "DDPM",
    "DPMSolverMultistepScheduler": "DPM-Solver",
    "UniPCMultistepScheduler": "UniPC",
}
"""The schedulers that are known to work here. Each takes one score evaluation a step."""

_OF_THE_MODEL = {
    *("num_train_timesteps", "trained_betas", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr"),
    *("prediction_type", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),
}
"""Options that describe the model. Here the process and the score describe it."""


class SchedulerLevel(NamedTuple):
    """One iteration.

    Attributes:
        scheduler: a scheduler with its timesteps set and no step taken. A scheduler has state, so each call takes a copy.
        timestep: the scheduler's name of the iteration.
        sigma: of the state before it, in pixel units of the model.
        below: of the state after it; 0 at the end, unless the options say otherwise.
    """

    scheduler: Any
    timestep: int
    sigma: float
    below: float


class DataRange(NamedTuple):
    """The pixel values of black and white in a model; a plain pair would be an option."""

    black: float
    white: float


@options
class DiffusersScheduler(Sampler[list[SchedulerLevel]]):
    """A scheduler of diffusers, run by its own `set_timesteps` and `step`.

    The start is Y ~ N(0, I). `step` takes and gives Y; between two steps the state is x, in units of the data. The score is
    evaluated at the sigma of the state, not at that of a rounded timestep. This matters for Karras levels.

    diffusers keeps abar in float32. Its sigmas agree with the ladder to a relative 1e-6 above 1, 3e-5 above 0.1 and 4e-4 about
    0.01. Below 2e-4, where sub-VP ends, they are 0. Its steps between its own levels are off by less than 1e-4.

    Attributes:
        iterations: T, at most N, one score evaluation each; when stochastic, one uniform draw in all (`image_generators`).
        scheduler: name of its class in diffusers, one of `TITLES`.
        options: options of its constructor; the others keep their defaults. By default DDIM and DDPM clip the image that they
            predict to [-1, 1] (`clip_sample`), which is wrong for data in [0, 1]. Both do not start at the largest sigma
            (`timestep_spacing`).
        data_range: of the model, from `with_statistics`.
    """

    source: ClassVar[str] = (
        "diffusers; Song, Meng & Ermon, ICLR 2021 (DDIM); Ho, Jain & Abbeel, NeurIPS 2020 (DDPM); Lu et al., arXiv:2211.01095 "
        "(DPM-Solver++); Zhao et al., NeurIPS 2023 (UniPC)"
    )

    scheduler: Literal["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
    options: Mapping[str, Any] = field(default_factory=dict)
    data_range: DataRange | None = field(default=None, compare=False)

    def with_statistics(
        self, statistics: Callable[[], DatasetStatistics], data_range: tuple[float, float], process: Process
    ) -> Self:
        return replace(self, data_range=DataRange(*data_range))

    @property
    def stochastic(self) -> bool:
        return self.scheduler == "DDPMScheduler" or str(self.options.get("algorithm_type")).startswith("sde-")

    @property
    def title(self) -> str:
        """A title that differs from those of this package's samplers."""
        if self.scheduler != "DPMSolverMultistepScheduler":
            return f"{TITLES[self.scheduler]} (diffusers)"
        algorithm = str(self.options.get("algorithm_type", "dpmsolver++"))
        name = algorithm.replace("sde-", "SDE-").replace("dpmsolver", TITLES[self.scheduler])
        return f"{name}({self.options.get('solver_order', 2)}M) (diffusers)"

    @property
    def detail(self) -> str:
        told = {name: value for name, value in self.options.items() if name not in ("algorithm_type", "solver_order")}
        given = (name if value is True else f"{name}={value}" for name, value in told.items() if value is not False)
        return ", ".join(given) or "defaults"

    def levels(self, process: Process) -> list[SchedulerLevel]:
        """Timesteps and noise levels of each of the T iterations."""
        sigmas = process.ladder.flip(0)
        T, N = self.iterations, len(sigmas)
        if N < T:
            raise OptionError("iterations", f"must be at most {N}, the noise levels of the model, got {T}")
        make = self._constructor()
        # From logarithms: the difference of abar would lose the smallest beta to cancellation.
        betas = -(-sigmas.square().log1p()).diff(prepend=sigmas.new_zeros(1)).expm1()
        try:
            scheduler = make(num_train_timesteps=N, trained_betas=betas.tolist(), prediction_type="epsilon", **self.options)
            levels = _walk(scheduler, T)
            # Some options fail only in a step.
            nothing = torch.zeros(1, 1, 2, 2)
            _step(
                deepcopy(scheduler), levels[0], nothing, nothing, {"generator": [torch.Generator()]} if self.stochastic else {}
            )
        except Exception as error:  # a scheduler may raise anything
            said = " ".join(str(error).split())
            raise PDSError(f"{self.scheduler} does not take these options, {dict(self.options)}: {said}") from error
        if not _descends(levels, T):
            fewer = next((count for count in range(T - 1, 0, -1) if _descends(_walk(scheduler, count), count)), None)
            fix = "take another scheduler, no smaller number works" if fewer is None else f"use {fewer} or other options"
            raise OptionError(
                "iterations",
                f"must be another number: {self.scheduler} cannot walk down {T} of the {N} noise levels of the model: its "
                f"rounding takes one twice or one too many; {fix}",
            )
        return levels

    def _constructor(self) -> type:
        """The class in diffusers, which is slow to import and may be absent."""
        try:
            import diffusers
        except ImportError:
            raise MissingError(f"{self.title} needs diffusers: install it with pip install 'pds-lab[diffusers]'") from None
        make = getattr(diffusers, self.scheduler)
        known = options_of(make)
        choices = known.keys() - _OF_THE_MODEL
        if unknown := sorted(self.options.keys() - choices):
            taken = ", ".join(sorted(choices))
            raise OptionError(f"options.{unknown[0]}", f"is no option of {self.scheduler} here, which takes {taken}")
        if str(variance := self.options.get("variance_type")).startswith("learned"):
            raise OptionError("options.variance_type", f"must be fixed, got {variance}: a score has no variance")
        for name, value in self.options.items():
            # diffusers takes any value: a text is true, and not a number is a number.
            fitted(
                f"options.{name}", "nan" if isinstance(value, float) and math.isnan(value) else value, known[name].annotation
            )
        return make

    def check(self, levels: list[SchedulerLevel], preconditioner: Preconditioner) -> list[str]:
        """Say when DDIM's steps do not meet, and when a scheduler clips the data."""
        doubts = super().check(levels, preconditioner)
        config = levels[0].scheduler.config
        N, limits = config.num_train_timesteps, {"clip_sample": config.get("clip_sample_range", 1.0), "thresholding": 1.0}
        for option, most in limits.items():
            if config.get(option) and self.data_range and max(map(abs, self.data_range)) > most:
                doubts.append(
                    f"{self.title} clips each predicted image to [{-most:g}, {most:g}], and the data of the model are in "
                    f"[{self.data_range.black:g}, {self.data_range.white:g}]: switch its {option} off"
                )
        # DDIM steps N // T timesteps down, whether or not the next timestep is there.
        stride = N // len(levels)
        if self.scheduler == "DDIMScheduler" and any(a.timestep - b.timestep != stride for a, b in pairwise(levels)):
            doubts.append(
                f"each step of {self.title} goes {stride} of the {N} noise levels down, and does not end where the next step "
                f"begins at T = {len(levels)}: use a divisor of {N} and timestep_spacing=trailing"
            )
        return doubts

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """sqrt(1 + sigma_T^2) z, of the VP state Y = z."""
        return (1 + self.levels(process)[0].sigma ** 2) ** 0.5 * noise.normal()

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"diffusers": metadata.version("diffusers")}

    def walk(self, x: Tensor, task: Task[list[SchedulerLevel]]) -> Steps:
        scheduler = deepcopy(task.levels[0].scheduler)
        drawn = {"generator": image_generators(task.noise)} if self.stochastic else {}
        for level in task.levels:
            x = _step(scheduler, level, -level.sigma * task.score(x, level.sigma), x, drawn)
            yield level.sigma, x


def _step(scheduler: Any, level: SchedulerLevel, e: Tensor, x: Tensor, drawn: dict[str, Any]) -> Tensor:
    """The state after an iteration, from the noise prediction e; both states in units of the data."""
    Y = scheduler.step(e, level.timestep, x / (1 + level.sigma**2) ** 0.5, **drawn).prev_sample
    return (1 + level.below**2) ** 0.5 * Y


def image_generators(noise: NoiseSource) -> list[torch.Generator]:
    """A generator an image, for the noise that diffusers draws: it depends on (seed, image index) alone.

    The seeds are the 48 bits of the first two values of a uniform draw. The generators are on the CPU, so that an image is the
    same on every device. Torch takes 32 bits of a seed there: two of 50 000 images may share their noise after the start.
    """
    words = (noise.uniform().flatten(1)[:, :2].double() * 2**24).long().tolist()
    return [torch.Generator().manual_seed(sum(word << 24 * place for place, word in enumerate(pair))) for pair in words]


def _walk(scheduler: Any, T: int) -> list[SchedulerLevel]:
    """The iterations that a scheduler takes for T."""
    scheduler.set_timesteps(T)
    timesteps = scheduler.timesteps
    if hasattr(scheduler, "sigmas"):
        # Two Karras levels may have equal timesteps; the scheduler would take the first for both.
        scheduler.set_begin_index(0)
        sigmas = scheduler.sigmas.tolist()
    else:
        abar = [*scheduler.alphas_cumprod[timesteps].tolist(), float(getattr(scheduler, "final_alpha_cumprod", 1))]
        sigmas = [(1 / value - 1) ** 0.5 for value in abar]
    return [SchedulerLevel(scheduler, *row) for row in zip(timesteps.tolist(), sigmas[:-1], sigmas[1:], strict=True)]


def _descends(levels: list[SchedulerLevel], T: int) -> bool:
    """Whether the levels are T and each is below the last."""
    return len(levels) == T and all(level.sigma > level.below for level in levels)
