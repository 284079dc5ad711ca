"""PDS in the variance-exploding pipelines of Hugging Face diffusers: a scheduler that takes the place of theirs.

    pipe = ScoreSdeVePipeline.from_pretrained(folder)
    pipe.scheduler = PDSVeScheduler.from_config(pipe.scheduler.config, alpha=5, statistics="statistics.npz")
    images = pipe(num_inference_steps=100).images

A pipeline that is saved with this scheduler names this module in its `model_index.json`. diffusers looks it up among the
modules that are imported, so import it before `from_pretrained`, or pass `scheduler=PDSVeScheduler.from_pretrained(...)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.preconditioning.filters import Filter, NoFilter, ParametricFilter, StatisticsFilter
from pds.preconditioning.preconditioner import Preconditioner, build_preconditioner
from pds.preconditioning.solenoids import NoSolenoid
from pds.processes.forward import VarianceExploding, integration_times
from pds.samplers.predictor_corrector import Langevin, PredictorCorrector, ReverseDiffusion

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_sde_ve import SdeVeOutput

    # diffusers, loading a pipeline with this scheduler, asks this module for SchedulerMixin by that name.
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise PDSError(
        f"pds.integrations.diffusers needs diffusers ({error}): install it with pip install 'pds-lab[diffusers]'"
    ) from None

Generators = torch.Generator | list[torch.Generator] | None
"""One generator, one an image, or torch's global one."""


class PDSVeScheduler(SchedulerMixin, ConfigMixin):
    """`ScoreSdeVeScheduler` of diffusers with a preconditioner: reverse diffusion and Langevin corrector of [SDE].

    A trajectory is that of `pds.samplers.predictor_corrector.PredictorCorrector` with `ReverseDiffusion`, `Langevin` and
    `end=sampling_eps`, for the same draws. Without a filter it is that of `ScoreSdeVeScheduler` to float32 rounding. Steps
    are computed in float32 and returned in the dtype of the sample.

    Args:
        num_train_timesteps: N of the published sampler; the steps that are set before `set_timesteps` is called.
        snr: r of the corrector's step size.
        sigma_min, sigma_max: smallest and largest noise level, in units of the data range.
        sampling_eps: last time of the integration, in (0, 1). The published 1e-5 N / T makes other noise labels and nothing
            else: 0.2% at the last of T = N / 20.
        correct_steps: corrector steps an iteration, run by the pipeline; 0 is no corrector.
        alpha: filter from statistics, see `StatisticsFilter`; needs `statistics`.
        statistics: path of a file that `DatasetStatistics.save` wrote, of the shape of the images; or "asset:NAME".
        pixels: space filter from the same statistics, see `StatisticsFilter`; "none" if not given.
        r, lam: parametric filter, see `ParametricFilter`.
        region: of the parametric filter; "outside_low" if not given.
        norms: "batch", the corrector's norms averaged over the batch as diffusers and the published code do, so that the
            filter alone is what changes when this scheduler replaces theirs; or "image", by which an image does not depend
            on those sampled with it. One and the same for a batch of 1.

    Attributes:
        timesteps: (T,) times, descending from 1.
        sigmas: (T,) the noise level at each, which the network is told.
        discrete_sigmas: (T,) the noise levels between which the predictor steps, ascending; `add_noise` indexes them.

    Raises:
        PDSError: for both kinds of filter, half of one, values out of range (called as in `conf/`), or a file that holds no
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
        self._filter = _chosen_filter(
            {"alpha": alpha, "statistics": statistics, "pixels": pixels}, {"r": r, "lam": lam, "region": region}
        )
        self._statistics = None if statistics is None else DatasetStatistics.load(statistics)
        self._corrector = Langevin(snr, norms=norms)
        self._built: tuple[object, Preconditioner] | None = None
        self.set_timesteps(num_train_timesteps)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float | _Prior:
        """What a pipeline multiplies standard normal noise by to get its start: sigma_max, with a filter sigma_max P."""
        return self.config.sigma_max if isinstance(self._filter, NoFilter) else _Prior(self)

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: torch.device | str | None = None
    ) -> None:
        """Spread T = `num_inference_steps` iterations, at least 2, from time 1 to `sampling_eps`.

        Args:
            num_inference_steps: T.
            sampling_eps: last time; that of the config if not given.
            device: where to keep `timesteps`.
        """
        self._end = self.config.sampling_eps if sampling_eps is None else sampling_eps
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
        if num_inference_steps < 2:
            raise PDSError(f"num_inference_steps must be at least 2, got {num_inference_steps}")
        process = self._process(num_inference_steps, sigma_min, sigma_max)
        end = self._end if sampling_eps is None else sampling_eps
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
        # The level only gives alpha_t, which is 1 at every level of a VE process.
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
        """`step_pred`, with the noise left out of the last `prev_sample`: the pipelines that call `step` alone return that.

        They sample without a corrector, which needs an evaluation of the network for itself.
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

    def _preconditioner(self, x: Tensor) -> Preconditioner:
        """P for images like x, kept until they change: a scheduler learns their shape and device from the samples."""
        wanted = (tuple(x.shape[1:]), x.device)
        if self._built is None or self._built[0] != wanted:
            P = build_preconditioner(self._filter, NoSolenoid(), wanted[0], lambda: self._statistics, x.device)
            self._built = (wanted, P)
        return self._built[1]


class _Prior:
    """sigma_max P, as a factor of noise.

    Pipelines draw their start as `noise * scheduler.init_noise_sigma`, before they call the scheduler for the first time:
    this product is the only place where the prior can go through P. Not a float, which torch would take as the number it is.
    """

    def __init__(self, scheduler: PDSVeScheduler) -> None:
        self.scheduler = scheduler

    def __float__(self) -> float:
        return float(self.scheduler.config.sigma_max)

    def __mul__(self, z: Tensor) -> Tensor:
        return (float(self) * self.scheduler._preconditioner(z).noise(z.float())).to(z.dtype)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{float(self):g} P"


def _chosen_filter(statistical: dict[str, object], parametric: dict[str, object]) -> Filter:
    """The filter of the keys that are given, those that are None left to its own defaults."""
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
