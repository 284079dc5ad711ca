"""PDS in the pipelines of Hugging Face diffusers: schedulers that take the place of theirs.

    pipe = ScoreSdeVePipeline.from_pretrained(folder)  # VE
    pipe.scheduler = PDSVeScheduler.from_config(pipe.scheduler.config, alpha=5, statistics="statistics.npz")
    images = pipe(num_inference_steps=100).images

    pipe = DiTPipeline.from_pretrained(folder)  # VP; DDPMPipeline and those with latents likewise
    pipe.scheduler = PDSScheduler.from_config(pipe.scheduler.config, r=0.2, lam=0.9)

A saved pipeline names this module in its `model_index.json`. diffusers looks the module up among the imported ones. So import
it before `from_pretrained`, or pass `scheduler=PDSVeScheduler.from_pretrained(...)`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from pds.data.folder import folder_of_images
from pds.data.images import ArrayImages, ImageSource, as_uint8, to_unit
from pds.data.statistics import DatasetStatistics, choose_images
from pds.errors import OptionError, PDSError
from pds.models.unet2d import beside_its_betas
from pds.options import MOST, Count, Length, Range, Seed, checked, fitted, shown
from pds.preconditioning.filters import Filter, NoFilter, ParametricFilter, StatisticsFilter
from pds.preconditioning.preconditioner import Identity, Preconditioner, build_preconditioner, spectrum_of
from pds.preconditioning.solenoids import NoSolenoid
from pds.processes.discrete import BetaSchedule
from pds.processes.forward import Time, VarianceExploding, integration_times
from pds.samplers.preconditioned_sde import PreconditionedSDE, Step
from pds.samplers.predictor_corrector import Langevin, PredictorCorrector, ReverseDiffusion
from pds.sampling import statistics as statistics_of

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_sde_ve import SdeVeOutput

    # When diffusers loads a pipeline with this scheduler, it asks this module for SchedulerMixin by name.
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise PDSError(
        f"pds.integrations.diffusers needs diffusers ({error}): install it with pip install 'pds-lab[diffusers]'"
    ) from None

Generators = torch.Generator | list[torch.Generator] | None
"""One generator, one an image, or torch's global one."""


class Filtered:
    """A scheduler with a filter. It makes the operator when it sees the first images."""

    _filter: Filter
    _statistics: DatasetStatistics | None
    _built: tuple[object, Preconditioner] | None = None

    def _choose(self, statistics: str | None, statistical: dict[str, object], parametric: dict[str, object]) -> None:
        if statistics is not None and not isinstance(statistics, (str, Path)):
            problem = f"must be the path of a file, got a {type(statistics).__name__}"
            raise OptionError("statistics", f"{problem}: save it by its save(path), and give that path")
        self._filter = _chosen_filter(statistical | {"statistics": statistics}, parametric)
        self._statistics = None if statistics is None else DatasetStatistics.load(statistics)

    @classmethod
    def _require_options(cls, given: Collection[str]) -> None:
        """Refuse options that the scheduler does not have. diffusers drops them: with alpha misspelt it would sample without a
        filter."""
        known = list(signature(cls.__init__).parameters)[1:]
        if unknown := next((name for name in given if name not in known), None):
            meant = get_close_matches(unknown, known, n=1)
            raise OptionError(
                unknown, f"is no option of {cls.__name__}: give {f'{meant[0]}, or ' if meant else ''}one of {', '.join(known)}"
            )

    def _preconditioner(self, x: Tensor) -> Preconditioner:
        """P for images like x, kept until their shape or device changes: a scheduler learns both from the samples."""
        if x.ndim != 4 and not isinstance(self._filter, NoFilter):
            raise PDSError(f"a filter takes samples of the shape (batch, C, H, W), got {tuple(x.shape)}")
        wanted = (tuple(x.shape[1:]), x.device)
        if self._built is None or self._built[0] != wanted:
            P = build_preconditioner(self._filter, NoSolenoid(), wanted[0], lambda: self._statistics, x.device)
            self._built = (wanted, P)
        return self._built[1]


class PDSVeScheduler(Filtered, SchedulerMixin, ConfigMixin):
    """`ScoreSdeVeScheduler` of diffusers with a preconditioner: reverse diffusion and Langevin corrector of [SDE].

    A trajectory is that of `pds.samplers.predictor_corrector.PredictorCorrector` with `ReverseDiffusion`, `Langevin` and
    `end=sampling_eps`, for the same draws. Without a filter it is that of `ScoreSdeVeScheduler` to float32 rounding. Steps
    are computed in float32 and returned in the dtype of the sample.

    Args:
        num_train_timesteps: N of the published sampler; the number of steps before `set_timesteps` is called.
        snr: r of the corrector's step size.
        sigma_min, sigma_max: smallest and largest noise level, in pixel units of the model.
        sampling_eps: last time of the integration, in (0, 1). The published 1e-5 N / T changes only noise labels, by 0.2% at
            the last of T = N / 20.
        correct_steps: corrector steps an iteration, run by the pipeline; 0 is no corrector.
        alpha: filter from statistics, see `StatisticsFilter`; needs `statistics`.
        statistics: path of a file that `DatasetStatistics.save` wrote, of the shape of the images; or "asset:NAME".
        pixels: space filter from the same statistics, see `StatisticsFilter`; "none" if not given.
        r, lam: parametric filter, see `ParametricFilter`.
        region: of the parametric filter; "outside_low" if not given.
        norms: "batch", the corrector's norms averaged over the batch, as in diffusers and the published code. So only the
            filter changes when this scheduler replaces theirs. With "image" an image does not depend on the images sampled with
            it. Both are equal for a batch of 1.

    Attributes:
        timesteps: (T,) times, descending from 1.
        sigmas: (T,) noise level at each time; the network is given it.
        discrete_sigmas: (T,) the noise levels between which the predictor steps, ascending; `add_noise` indexes them.

    Raises:
        PDSError: there are both kinds of filter, half of one, values out of range (named as in `conf/`), or a file without
            statistics.
    """

    order = 1
    _compatibles = ["ScoreSdeVeScheduler"]  # noqa: RUF012 (the form that diffusers asks for)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
        alpha: float | None = None,
        statistics: str | None = None,
        pixels: str | None = None,
        r: float | None = None,
        lam: float | None = None,
        region: str | None = None,
        norms: str = "batch",
    ) -> None:
        self._choose(statistics, {"alpha": alpha, "pixels": pixels}, {"r": r, "lam": lam, "region": region})
        self._corrector = Langevin(snr, norms=norms)
        fitted("correct_steps", correct_steps, Annotated[int, Range(0, MOST)])
        self.set_timesteps(num_train_timesteps)

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """This scheduler from the configuration of another; what is given goes before it.

        Raises:
            PDSError: the other is no `ScoreSdeVeScheduler`.
            OptionError: an option is given that this scheduler does not have.
        """
        if not return_unused_kwargs:
            cls._require_options(kwargs)
        name = config.get("_class_name", "this scheduler")
        if not {"snr", "sampling_eps"} <= config.keys():
            raise PDSError(f"{name} is not for VE networks of [SDE]: give a ScoreSdeVeScheduler, or take PDSScheduler")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float | _Prior:
        """The factor from standard normal noise to a pipeline's start: sigma_max, with a filter sigma_max P."""
        return self.config.sigma_max if isinstance(self._filter, NoFilter) else _Prior(self, self.config.sigma_max)

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: torch.device | str | None = None
    ) -> None:
        """Spread T = `num_inference_steps` iterations, at least 2, from time 1 to `sampling_eps`.

        Args:
            num_inference_steps: T.
            sampling_eps: last time; that of the config if not given.
            device: where to keep `timesteps`.
        """
        end = self.config.sampling_eps if sampling_eps is None else sampling_eps
        self._end = fitted("sampling_eps", end, Time)
        self.set_sigmas(num_inference_steps)
        times = integration_times(self._process(num_inference_steps), num_inference_steps, self._end)
        self.timesteps = times.float().to(device)

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Set the noise levels of T iterations; `set_timesteps` has done so with those of the config.

        Args:
            num_inference_steps: T, as given to `set_timesteps`.
            sigma_min, sigma_max: other levels than those of the config. The prior keeps its own.
            sampling_eps: last time; that of `set_timesteps` if not given.
        """
        num_inference_steps = fitted("num_inference_steps", num_inference_steps, Annotated[int, Range(2, MOST)])
        process = self._process(num_inference_steps, sigma_min, sigma_max)
        end = self._end if sampling_eps is None else fitted("sampling_eps", sampling_eps, Time)
        self._sampler = PredictorCorrector(num_inference_steps, ReverseDiffusion(), self._corrector, end)
        self._levels = self._sampler.levels(process)
        self.sigmas = torch.tensor([level.sigma for level in self._levels])
        self.discrete_sigmas = process.ladder.flip(0).float()

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample as it is: a VE network takes x_t."""
        return sample

    def step_correct(
        self, model_output: Tensor, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """One Langevin step, x + a d + sqrt(2 a) P z with d = P P^T s and a = 2 (r |P z| / |d|)^2.

        Args:
            model_output: the score s, (batch, C, H, W).
            sample: x, (batch, C, H, W).
            generator: of z; a list has one for each image.
            return_dict: return a `SchedulerOutput`, or a tuple of its field.
        """
        x, s, P, z = self._inputs(model_output, sample, generator)
        # The level gives only alpha_t, which is 1 at every level of a VE process.
        prev_sample = self._sampler.correct(x, s, self._levels[0], P, z).to(sample.dtype)
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def step_pred(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SdeVeOutput | tuple[Tensor, Tensor]:
        """One step of reverse diffusion, x + P P^T G^2 s + G P z.

        Args:
            model_output: the score s, (batch, C, H, W).
            timestep: one of `timesteps`.
            sample: x, (batch, C, H, W).
            generator: of z; a list has one for each image.
            return_dict: return a `SdeVeOutput`, or a tuple of its fields.

        Returns:
            `prev_sample`, and `prev_sample_mean`, the same without its noise: the image after the last step.
        """
        x, s, P, z = self._inputs(model_output, sample, generator)
        level = self._levels[self._iteration(timestep)]
        fields = tuple(self._sampler.predict(x, s, level, P, draw).to(sample.dtype) for draw in (z, None))
        return SdeVeOutput(*fields) if return_dict else fields

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SdeVeOutput | tuple[Tensor, Tensor]:
        """`step_pred`, with the noise left out of the last `prev_sample`: pipelines that call `step` alone return that.

        These pipelines sample without a corrector; a corrector step needs its own evaluation of the network.
        """
        prev_sample, mean = self.step_pred(model_output, timestep, sample, generator, return_dict=False)
        fields = (mean if self._iteration(timestep) == len(self._levels) - 1 else prev_sample, mean)
        return SdeVeOutput(*fields) if return_dict else fields

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_0 + sigma z with sigma = `discrete_sigmas[timesteps]`, (batch,) integers."""
        sigma = self.discrete_sigmas.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + sigma[:, None, None, None] * noise

    def _process(self, levels: int, sigma_min: float | None = None, sigma_max: float | None = None) -> VarianceExploding:
        lowest = self.config.sigma_min if sigma_min is None else sigma_min
        return VarianceExploding(lowest, self.config.sigma_max if sigma_max is None else sigma_max, levels)

    def _iteration(self, timestep: Tensor | float) -> int:
        t = float(timestep)
        if not 0 < t <= 1:
            raise PDSError(f"a VE timestep is a time in (0, 1], one of scheduler.timesteps, got {t:g}")
        return int((self.timesteps - t).abs().argmin())

    def _inputs(
        self, model_output: Tensor, sample: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor, Preconditioner, Tensor]:
        z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        return sample.float(), model_output.float(), self._preconditioner(sample), z


class _Prior:
    """sigma P, as a factor of noise.

    Pipelines draw their start as `noise * scheduler.init_noise_sigma`, before they call the scheduler for the first time. Only
    in this product can the prior go through P. The factor is not a float, because torch would multiply by it itself.
    """

    def __init__(self, scheduler: Filtered, sigma: float) -> None:
        self.scheduler, self.sigma = scheduler, sigma

    def __float__(self) -> float:
        return float(self.sigma)

    def __mul__(self, z: Tensor) -> Tensor:
        return (float(self) * self.scheduler._preconditioner(z).noise(z.float())).to(z.dtype)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{float(self):g} P"


VP = (*(scheduler.name for scheduler in KarrasDiffusionSchedulers if scheduler.name != "EDMEulerScheduler"), "PDSScheduler")
WEIGHTS = {"midpoint": "midpoint", "heun": "exact"}
OTHER_KINDS = ("logrho", "bh1", "bh2")
"""Values of solver_type that DEIS and UniPC have. diffusers reads them as midpoint."""
CHAIN = {
    *("num_train_timesteps", "trained_betas", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr"),
    "prediction_type",
}
"""What a scheduler says of its network."""


class PDSScheduler(Filtered, DPMSolverMultistepScheduler):
    """`DPMSolverMultistepScheduler` of diffusers (sde-dpmsolver++, to sigma = 0) with a preconditioner, for VP networks that
    predict the noise, v or the image.

    With precondition="half" it solves the preconditioned reverse SDE as `pds.samplers.preconditioned_sde.PreconditionedSDE`
    does. This keeps the law for every filter. With "whole" it is PDS, x + P P^T f + g P z. Here f and g z are the vanilla step
    in the network's own variables. The last step, to sigma = 0, denoises without P. The start goes through P if the pipeline
    multiplies it by `init_noise_sigma`, as pipelines of Stable Diffusion do. Without a filter, eta = 1, both are the scheduler
    of diffusers to float32 rounding. It treats latents as images.

    Flow-matching networks (SD3, Flux) are refused: their states are no VP states without a change of variables.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type, variance_type, thresholding,
            dynamic_thresholding_ratio, sample_max_value, use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas,
            use_lu_lambdas, lambda_min_clipped, timestep_spacing, steps_offset, rescale_betas_zero_snr: as diffusers has them.
        solver_order: 1 or 2.
        solver_type: weight of the second order: "midpoint", or "heun", which is exact for a linear D.
        eta: strength of the Langevin half, for precondition="half" alone; 0, without a filter, is the probability flow.
        precondition: "half" or "whole".
        alpha: filter from statistics, see `StatisticsFilter`; needs `statistics`.
        statistics: path of a file that `DatasetStatistics.save` wrote, of the shape of the samples: of images, or of
            `latent_statistics`.
        r, lam, region: parametric filter, see `ParametricFilter`.

    Raises:
        PDSError: the scheduler is of other networks, both kinds of filter or half of one are given, values are out of range, or
            a file has no statistics. Statistics of another shape are refused at the first samples. This is before any
            evaluation in pipelines that call `scale_model_input` or multiply by `init_noise_sigma`, and after one in
            `DDPMPipeline`.
    """

    _compatibles = list(VP)  # noqa: RUF012 (the form that diffusers asks for)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        variance_type: str | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        lambda_min_clipped: float = -math.inf,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        solver_order: int = 2,
        solver_type: str = "midpoint",
        eta: float = 1.0,
        precondition: str = "half",
        alpha: float | None = None,
        statistics: str | None = None,
        r: float | None = None,
        lam: float | None = None,
        region: str | None = None,
    ) -> None:
        fitted("num_train_timesteps", num_train_timesteps, Count)
        if trained_betas is not None:
            known_betas = len(fitted("trained_betas", trained_betas, Annotated[list[float], Length(1, MOST)]))
            if num_train_timesteps > known_betas:
                problem = f"must be at most {known_betas}, the number of trained_betas, got {num_train_timesteps}"
                raise OptionError("num_train_timesteps", problem)
        elif beta_schedule not in get_args(BetaSchedule):
            known = ", ".join(get_args(BetaSchedule))
            raise OptionError(
                "beta_schedule", f"must be one of {known}, got {shown(beta_schedule)}: give trained_betas for others"
            )
        elif beta_schedule != "squaredcos_cap_v2":
            for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
                fitted(name, beta, Annotated[float, Range(above=0, high=1)])
        fitted("timestep_spacing", timestep_spacing, Literal["linspace", "leading", "trailing"])
        if solver_type not in (*WEIGHTS, *OTHER_KINDS):
            raise OptionError("solver_type", f"must be {' or '.join(WEIGHTS)}, got {shown(solver_type)}")
        kinds = {"karras": use_karras_sigmas, "exponential": use_exponential_sigmas, "beta": use_beta_sigmas}
        chosen = [f"use_{kind}_sigmas" for kind, used in kinds.items() if used]
        if len(chosen) > 1:
            raise PDSError(f"{chosen[0]} and {chosen[1]} cannot both be true: give one of them")
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            variance_type=variance_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            sample_max_value=sample_max_value,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            use_lu_lambdas=use_lu_lambdas,
            lambda_min_clipped=lambda_min_clipped,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            solver_order=solver_order,
            solver_type=solver_type,
            algorithm_type="sde-dpmsolver++",
            final_sigmas_type="zero",
        )
        low, high = self.betas.min().item(), self.betas.max().item()
        if not 0 < low <= high <= 1:
            raise PDSError(f"the betas must be above 0 and at most 1, and these go from {low:g} to {high:g}")
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise OptionError("prediction_type", f"must be epsilon, v_prediction or sample, got {shown(prediction_type)}")
        fitted("precondition", precondition, Literal["half", "whole"])
        if precondition == "whole" and eta != 1:
            raise OptionError(
                "eta", f"must be 1 with precondition=whole, got {shown(eta)}: the vanilla step is the reverse SDE's"
            )
        weight = WEIGHTS.get(self.config.solver_type, "midpoint")
        self._sampler = PreconditionedSDE(2, order=fitted("solver_order", solver_order, Literal[1, 2]), weight=weight, eta=eta)
        self._choose(statistics, {"alpha": alpha}, {"r": r, "lam": lam, "region": region})
        if eta == 0 and not isinstance(self._filter, NoFilter):
            raise OptionError(
                "eta", "must be above 0 with a filter, got 0: the filter acts on the Langevin half, which eta=0 leaves out"
            )
        if precondition == "whole" and not isinstance(self._filter, NoFilter):
            self.init_noise_sigma = _Prior(self, 1.0)  # type: ignore[assignment]

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """This scheduler from the configuration of another; what is given goes before it.

        The chain is the other's, also where its values are the defaults of its class. Other options that the other left at its
        defaults take those of this class, as diffusers has it.

        Raises:
            PDSError: the other is no scheduler of VP networks, or its labels or levels are not those of its betas.
            OptionError: an option is given that this scheduler does not have.
        """
        if not return_unused_kwargs:
            cls._require_options(kwargs)
        # A scheduler's own configuration has no name, and a file has one.
        name = config.get("_class_name", "this scheduler")
        flow = "Flow" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        if flow or "beta_schedule" not in config or name not in (*VP, "this scheduler"):
            flow = flow or "base_image_seq_len" in config
            raise PDSError(
                f"{name} is {'for a flow-matching network' if flow else 'not for VP networks'}: give that of a network which "
                "predicts noise, v or the image, as DDPM, DDIM, PNDM, Euler, DPM-Solver and UniPC are"
            )
        if option := beside_its_betas(config):
            raise PDSError(f"{name} has {option}: give that of a network whose labels are the levels of its betas")
        # The third order of diffusers has no meaning here.
        order = {"solver_order": min(2, config["solver_order"])} if isinstance(config.get("solver_order"), int) else {}
        # diffusers lets what the other states hide what this scheduler gives its parent.
        config = {key: value for key, value in config.items() if key not in ("algorithm_type", "final_sigmas_type")}
        # diffusers drops the values that are the other's defaults, and those of the chain hold for the network.
        config["_use_default_values"] = [key for key in config.get("_use_default_values", ()) if key not in CHAIN]
        return super().from_config(config, return_unused_kwargs, **order | kwargs)

    def set_timesteps(self, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Choose the noise levels of a walk, as diffusers does.

        Raises:
            OptionError: the number of steps is no whole number above 0, a timestep is no level of training, `timesteps` do not
                descend, or two levels are equal. With "linspace" spacing diffusers rounds T + 1 points to the levels of
                training.
        """
        if num_inference_steps is not None:
            fitted("num_inference_steps", num_inference_steps, Count)
        super().set_timesteps(num_inference_steps, *args, **kwargs)
        last = len(self.betas) - 1
        outside = next((t for t in self.timesteps.tolist() if not 0 <= t <= last), None)
        if outside is not None and num_inference_steps is None:
            raise OptionError("timesteps", f"must be from 0 to {last}, the levels of training, got {outside}")
        if outside is not None:
            problem = f"is {num_inference_steps}, and one of these steps is at {outside}, not from 0 to {last}"
            fix = ", or a smaller steps_offset" if self.config.timestep_spacing == "leading" else ""
            raise OptionError("num_inference_steps", f"{problem}: give another number{fix}")
        if not (self.sigmas.diff() < 0).all():
            if num_inference_steps is None:
                raise OptionError("timesteps", "must descend: two of them are equal, or one is above the one before it")
            trailing = self.config.timestep_spacing == "trailing"
            fix = "give fewer steps"
            fix += "" if trailing else ", or timestep_spacing='trailing' for as many steps as levels of training"
            problem = f"is {len(self.timesteps)}, and two of these steps have one noise level"
            raise OptionError("num_inference_steps", f"{problem}: {fix}")

    def index_for_timestep(self, timestep: Tensor | int, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a timestep, asked for where the pipeline has set no begin index: 0 for the first of `timesteps`.

        Karras levels and others may have equal timesteps after rounding. diffusers then takes the second, and would begin there
        and run beyond the last.
        """
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return 0 if schedule[0] == timestep else super().index_for_timestep(timestep, schedule)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample itself; a filter of another shape is refused here, before the network is called."""
        self._preconditioner(sample)
        return sample

    def dpm_solver_first_order_update(
        self, model_output: Tensor, *args: Any, sample: Tensor | None = None, noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """A step of first order; diffusers calls it from `step`, which draws the noise."""
        return self._advanced(sample, model_output, None, noise)

    def multistep_dpm_solver_second_order_update(
        self,
        model_output_list: list[Tensor],
        *args: Any,
        sample: Tensor | None = None,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """A step of second order; diffusers calls it from `step`, which draws the noise."""
        return self._advanced(sample, model_output_list[-1], model_output_list[-2], noise)

    def _advanced(self, x: Tensor | None, D: Tensor, D_before: Tensor | None, z: Tensor | None) -> Tensor:
        """x after a step, in the network's variables, x_0 / sqrt(1 + sigma^2) with noise."""
        assert x is not None and z is not None and self.step_index is not None  # `step` gives them
        sigma, below = self.sigmas[self.step_index].item(), self.sigmas[self.step_index + 1].item()
        before = None if D_before is None else self.sigmas[self.step_index - 1].item()
        D, P = D.float(), self._preconditioner(x)
        last = D if D_before is None else D_before.float()
        now, after = (1 + sigma**2) ** 0.5, (1 + below**2) ** 0.5
        if self.config.precondition == "half" or below == 0:
            spectrum = spectrum_of(P, self._sampler.title)
            step = self._sampler.step(before, sigma, below, spectrum)
            return self._sampler.advanced(now * x, D, last, step, spectrum, lambda: z) / after
        kept, span, g = self._sampler.step(before, sigma, below, Identity.spectrum)
        mean = self._sampler.advanced(now * x, D, last, Step(kept, span, 0.0), Identity.spectrum, lambda: z) / after
        return x + P.drift(mean - x) + P.noise(g / after * z)


@checked
def latent_statistics(
    vae: Any, images: str | Path | Tensor, count: Count | None = None, seed: Seed = 0, batch_size: Count = 8
) -> DatasetStatistics:
    """Statistics of latents, for `PDSScheduler`: those of images whose black and white are their least and largest value.

    Args:
        vae: the VAE of the pipeline, as `AutoencoderKL`. Images from -1 to 1 become `latent_dist`. Its samples less
            `config.shift_factor` are multiplied by `config.scaling_factor`.
        images: a folder of image files of one size; or (n, C, H, W) images, uint8 or floats in [0, 1].
        count: number of images, chosen at random; None for 200, or all if there are fewer.
        seed: seed of the choice and of the latents.
        batch_size: images encoded at once.

    Raises:
        PDSError: there are no such images, or the VAE takes others.
    """
    if isinstance(images, Tensor):
        source: ImageSource = ArrayImages("images", "all", as_uint8(images).cpu().numpy())
    else:
        source = folder_of_images(images)
    indices = choose_images(source, min(200, len(source)) if count is None else count, seed)
    generator, latents = torch.Generator().manual_seed(seed), []
    if source.shape[0] != vae.config.in_channels:
        raise PDSError(f"the VAE takes images of {vae.config.in_channels} channels, and these have {source.shape[0]}")
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        for start in range(0, len(indices), batch_size):
            x = to_unit(source.read(indices[start : start + batch_size])).to(vae.device, vae.dtype)
            drawn = vae.encode(2 * x - 1).latent_dist.sample(generator)
            latents.append((drawn.float().cpu() - shift) * vae.config.scaling_factor)
    z = torch.cat(latents)
    made = statistics_of((z - z.min()) / (z.max() - z.min()), len(z))
    return replace(
        made, name=f"latents of {source.name}", provenance=made.provenance | {"dataset": f"latents of {source.name}"}
    )


def _chosen_filter(statistical: dict[str, object], parametric: dict[str, object]) -> Filter:
    """The filter of the given keys; keys that are None take its defaults."""
    statistical, parametric = ({key: v for key, v in kind.items() if v is not None} for kind in (statistical, parametric))
    if statistical and parametric:
        raise PDSError(
            f"{', '.join(statistical)} make a filter from statistics, {', '.join(parametric)} a parametric one: give one kind"
        )
    if statistical:
        if not {"alpha", "statistics"} <= statistical.keys():
            raise PDSError(
                f"a filter from statistics needs alpha and statistics (the path of an npz), got only {', '.join(statistical)}"
            )
        return StatisticsFilter(**{key: v for key, v in statistical.items() if key != "statistics"})
    if parametric:
        if not {"r", "lam"} <= parametric.keys():
            raise PDSError(f"a parametric filter needs r and lam, got only {', '.join(parametric)}")
        return ParametricFilter(**parametric)
    return NoFilter()
