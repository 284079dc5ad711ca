"""The right strength of a filter: the noise that a network does not see, and the effect of the filter with an exact score."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pds.data.dataset import Dataset
from pds.data.statistics import choose_images
from pds.errors import PDSError
from pds.evaluation.denoising import denoising_errors
from pds.evaluation.excess_noise import (
    FACTORS,
    NoiseResponse,
    NoiseTrack,
    alpha_of_gain,
    excess_noise,
    follow,
    highest_frequencies,
    last_without_data,
    least_gain,
    require_noise,
    response_of,
)
from pds.evaluation.gaussian import sampled_law
from pds.files import user_path
from pds.lab.config import build, build_model, resolved
from pds.lab.devices import prepare_device
from pds.lab.settings import ExcessNoise, Gaussian, settings
from pds.lab.terminal import show
from pds.lab.text import MISSING, write_text
from pds.models.scores import Model
from pds.noise import ImageNoise
from pds.preconditioning.filters import Filter, NoFilter
from pds.preconditioning.preconditioner import Identity, Preconditioner, build_preconditioner
from pds.preconditioning.solenoids import NoSolenoid
from pds.samplers.predictor_corrector import Level, PredictorCorrector

T = "sampler.iterations"
PARTS = ("filter", "solenoid", "sampler")


def show_excess_noise(cfg: DictConfig) -> None:
    """Measure the response of one network, then predict and sample its excess noise, a line for each number of iterations."""
    resolved(cfg)
    settings(ExcessNoise, cfg)
    device = prepare_device(cfg.device, cfg.threads)
    model = build_model(cfg.model)
    dataset: Dataset = build(cfg.dataset)
    sampler, filter = build(cfg.sampler), build(cfg.filter)
    _require_followed(model, dataset, sampler, filter)
    # Settings that cannot be sampled are refused here, before any sampling.
    ImageNoise(cfg.seed, torch.zeros(1, dtype=torch.long), model.shape)
    filters = [_with_iterations(cfg, iterations, model)[1] for iterations in cfg.iterations]
    model.score.to(device)
    images = dataset.images.read(choose_images(dataset.images, cfg.images, 0))
    response = response_of(model, images)
    require_noise(response, "excess noise")
    _show_response(model, response, cfg.images)
    _show_denoising(model, images, dataset)
    show(f"\nNoise in the highest frequencies of {sampler.title}, in units of its level,")
    show("where the data begin to show in them:\n")
    named = [name for name in ("vanilla", " / ".join(dict.fromkeys(one.title for one in filters))) if name]
    told = [f"{name}, {how}" for name in named for how in ("predicted", "sampled")]
    _row(["T", "sigma there", *told, "least gain", "alpha for it"], head=True)
    tracks: list[NoiseTrack] = []
    for iterations in cfg.iterations:
        cells, followed = _line(cfg, iterations, model, dataset, response, device)
        _row(cells)
        tracks += followed
    show(
        "\nLeast gain: the least 1 / R^2 there with which the noise is below twice its level at the end of the run, or below"
        "\n1.1 times what an exact score leaves; alpha for it: that of the weakest statistics filter that has it. inf, none: no"
        "\ngain up to 8 does, take more iterations."
    )
    picture = user_path(cfg.outputs) / "excess_noise.svg"
    write_text(picture, _drawn(tracks))
    show(f"\npicture  {picture}")


def _show_response(model: Model, response: NoiseResponse, images: int) -> None:
    """The table of the noise that the network predicts."""
    show(f"\n{model.title}: noise it predicts where there is k times as much as its level says, averaged over {images}")
    show("images (an exact score of pure noise: k; a network that does not see the excess: the same for every k):\n")
    _row(["sigma", *(f"k = {k:g}" for k in FACTORS)], head=True)
    for sigma, values in zip(reversed(response.sigmas), reversed(response.values), strict=True):
        _row([f"{sigma:.3g}", *(f"{value:.2f}" for value in values)])


def _show_denoising(model: Model, images: torch.Tensor, dataset: Dataset) -> None:
    """The table of the network's errors, level by level."""
    show("\nMean squared error of the denoised image, a pixel. Where the linear guess is no worse, a walk may start below")
    show("(sampler.start):\n")
    _row(["sigma", "network", "in the data range", "remedy=seen_noise", "linear guess"], head=True)
    for sigma, *errors in denoising_errors(model, images, dataset.statistics):
        _row([f"{sigma:.3g}", *(f"{value:.3g}" for value in errors)])


def _drawn(tracks: list[NoiseTrack]) -> str:
    """Predicted (lines) and sampled (marks) noise against the noise level; a colour for each T, dashes for a filter."""
    from pds.lab.charts import Column, Series, lines, ramp  # matplotlib takes a second to load

    lengths = sorted({track.iterations for track in tracks})
    tones = dict(zip(lengths, ramp(len(lengths)), strict=True))
    series = []
    for track in tracks:
        tone = {"color": tones[track.iterations]}
        label, dash = f"T = {track.iterations}, {track.what}", "-" if track.what == "vanilla" else "--"
        series.append(Series(label, [track.sigmas], track.predicted, {"linestyle": dash, **tone}))
        series.append(Series("", [track.sigmas], track.sampled, {"linestyle": "none", "marker": ".", "markersize": 4, **tone}))
    column = Column("σ (noise level; sampling goes to the right)", log_range=1)
    layout: dict[str, Any] = {"size": (660, 300), "descending": True}
    return lines("excess_noise", "Noise in units of its level", "noise / σ", [column], series, **layout).svg


def _require_followed(model: Model, dataset: Dataset, sampler: object, filter: Filter) -> None:
    """Refuse settings through which excess noise cannot be followed."""
    if not isinstance(sampler, PredictorCorrector) or sampler.predictor is None or sampler.corrector is not None:
        raise PDSError(
            "excess noise is followed through the steps of a predictor: set sampler=predictor_corrector sampler/corrector=none "
            "and one of sampler/predictor=reverse_diffusion, ancestral, euler_maruyama"
        )
    if tuple(dataset.shape) != tuple(model.shape):
        given, size = ([*map(int, shape)] for shape in (dataset.shape, model.shape))
        fix = f"give the images that it was trained on, as in dataset=folder dataset.source.root=FOLDER dataset.shape={size}"
        raise PDSError(f"the data set has images of the shape {given}, and the model of {size}: {fix}")
    if model.checkpoint is None:
        raise PDSError("model.checkpoint=null has random weights, which do not see noise: give a weights file")
    if filter.space(model.shape, lambda: dataset.statistics) is not None:
        raise PDSError("a space filter mixes the frequencies, in which excess noise is followed: set filter.pixels=none")
    if sampler.precondition == "published" and not sampler.predictor.published_with_filter and filter.title:
        raise PDSError(f"sampler.precondition=published does not filter {sampler.predictor.title} steps: set filter=none")


def _with_iterations(cfg: DictConfig, iterations: int, model: Model) -> tuple[PredictorCorrector, Filter, list[Level]]:
    """Sampler, filter and levels of one line; the filter's alpha may follow T."""
    here = cfg.copy()
    OmegaConf.update(here, T, iterations)
    sampler: PredictorCorrector = build(here.sampler)
    return sampler, build(here.filter), sampler.levels(model.process)


def _line(
    cfg: DictConfig, iterations: int, model: Model, dataset: Dataset, response: NoiseResponse, device: torch.device
) -> tuple[list[str], list[NoiseTrack]]:
    sampler, filter, levels = _with_iterations(cfg, iterations, model)
    modes = highest_frequencies(model.shape[1:])
    variance = dataset.statistics.gaussian(model.data_range).power[:, modes].mean().item()
    last = last_without_data(levels, variance)
    cells = [str(iterations), f"{levels[last].sigma:.3g}"]
    tracks = []
    for made in [NoFilter(), filter] if filter.title else [NoFilter()]:
        R = made.frequency(model.shape, lambda: dataset.statistics)
        gain = 1.0 if R is None else R[:, modes].double().pow(-2).mean().item()
        P = build_preconditioner(made, NoSolenoid(), model.shape, lambda: dataset.statistics, device)
        predicted = list(excess_noise(levels, response, gain))[: last + 1]
        noise = ImageNoise(cfg.seed, torch.arange(cfg.images, device=device), model.shape)
        sampled = follow(model.score, model.process, sampler, P, noise, modes, last)
        cells += [f"{predicted[-1]:.3g}", f"{sampled[-1]:.3g}"]
        sigmas = [level.sigma for level in levels[: last + 1]]
        tracks.append(NoiseTrack(iterations, made.title or "vanilla", sigmas, predicted, sampled))
    gain = least_gain(levels, response)
    alpha = alpha_of_gain(gain, dataset.statistics.power, modes)
    return [*cells, f"{gain:.3g}", "any" if alpha == math.inf else "none" if math.isnan(alpha) else f"{alpha:.2g}"], tracks


def show_gaussian(cfg: DictConfig) -> None:
    """Distances of one sampler on a Gaussian with the data's spectrum, with every value of one key."""
    resolved(cfg)
    settings(Gaussian, cfg)
    group, _, name = cfg.vary.rpartition(".")
    node = OmegaConf.select(cfg, group) if group else None
    if (
        cfg.vary.split(".")[0] not in PARTS
        or cfg.vary == T
        or not isinstance(node, DictConfig)
        or name not in node
        or OmegaConf.is_config(node[name])
    ):
        raise PDSError(f"vary={cfg.vary} is no key of {', '.join(PARTS)} here: choose one such as filter.alpha or filter.lam")
    model = build_model(cfg.model)
    dataset: Dataset = build(cfg.dataset)
    target = dataset.statistics.gaussian(model.data_range)

    def distance(iterations: int, value: float | None) -> float:
        """The distance of the sampler with a value of the key, or without a filter."""
        here = cfg.copy()
        OmegaConf.update(here, T, iterations)
        P: Preconditioner = Identity()
        if value is not None:
            OmegaConf.update(here, cfg.vary, value)
            P = build_preconditioner(build(here.filter), build(here.solenoid), model.shape, lambda: dataset.statistics)
        return sampled_law(build(here.sampler), target, model.process, P).distance(target)

    sampler = build(cfg.sampler)
    for index, iterations in enumerate(cfg.iterations):
        vanilla, *distances = (distance(iterations, value) for value in (None, *cfg.over))
        if index == 0:
            show(f"\nFréchet distance in pixels from a Gaussian of {cfg.dataset.name} to what {sampler.title}")
            show(f"({sampler.detail}) makes of its exact score, {model.process.title}:\n")
            _row(["T", "vanilla", *(f"{name}={value:g}" for value in cfg.over), "lowest"], head=True)
        named = zip((vanilla, *distances), ("vanilla", *(f"{value:g}" for value in cfg.over)), strict=True)
        _, best = min((one for one in named if math.isfinite(one[0])), default=(math.inf, MISSING))
        numbers = (f"{d:.3g}" if math.isfinite(d) else "diverges" for d in (vanilla, *distances))
        _row([str(iterations), *numbers, best])


def _row(cells: list[str], head: bool = False) -> None:
    """Show a line of a table as soon as there is one."""
    show(f"| {' | '.join(cells)} |")
    if head:
        show(f"|{' --: |' * len(cells)}")
