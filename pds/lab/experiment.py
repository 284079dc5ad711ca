"""One run: build what a configuration describes, sample it, measure it, and leave its files."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from pds.conditioning import Guidance, labels_of
from pds.data.dataset import Dataset
from pds.errors import OptionError, PDSError, UnwritableError
from pds.evaluation.measures import class_accuracy
from pds.evaluation.panel import Panel, exact_name
from pds.files import Array, atomic_path, json_digest, write_json
from pds.generation import ImageSampler, Processes, generate
from pds.lab.config import build, build_model, keyed, resolved
from pds.lab.devices import choose_precision, prepare_device, require_compiler
from pds.lab.guessed import settled
from pds.lab.logs import log_file, spared, traced
from pds.lab.report import format_table, read_runs, write_report
from pds.lab.runs import RunFolder, fingerprint, group_folder, provenance, read_result, samples_digest
from pds.lab.settings import Run, settings
from pds.lab.terminal import script, show
from pds.lab.tracking import MetricsFile, TrackedRun, Tracker, aside
from pds.models.safetensors_files import state_digest
from pds.models.scores import LadderScore, Model, for_sampling
from pds.moments import noise_moments
from pds.noise import ImageNoise
from pds.pictures import image_grid, visible
from pds.preconditioning.filters import Filter
from pds.preconditioning.preconditioner import Identity, build_preconditioner
from pds.preconditioning.solenoids import Solenoid
from pds.samplers.sampler import Sampler
from pds.score import NoiseMoments
from pds.shards import Contents, Shard, read_all, shards, take_over

log = logging.getLogger(__name__)

GRID_IMAGES, GRID_COLUMNS = 64, 8
TABLE_IMAGES = 16


@dataclass(frozen=True)
class Experiment:
    """The objects that a configuration describes, built and checked before the first file is written."""

    model: Model
    dataset: Dataset
    filter: Filter
    sample: ImageSampler
    metric: Panel | None
    tracker: Tracker
    label: str
    doubts: list[str]
    batch_size: int
    facts: dict[str, str] = field(default_factory=dict)  # values of auto by key, and the statistics of a remedy
    panel: Panel | None = None  # `metric` before measures are left out for which there are too few images

    @classmethod
    def build(cls, cfg: DictConfig, like: Experiment | None = None) -> Experiment:
        """Build the objects. `like` has the same model, data, metric, device and precision, and lends its objects."""
        asked = settings(Run, cfg)
        device = prepare_device(cfg.device, cfg.threads)
        choose_precision(cfg.tf32)
        if cfg.compile:
            require_compiler()
        torch.manual_seed(cfg.seed)  # for random weights
        model = like.model if like else build_model(cfg.model)
        dataset: Dataset = like.dataset if like else build(cfg.dataset)
        sampler_node, filter_node, facts = settled(cfg, model, device)
        filter: Filter = build(filter_node)
        solenoid: Solenoid = build(cfg.solenoid)
        sampler: Sampler[Any] = build(sampler_node)
        with keyed(cfg.filter):
            preconditioner = build_preconditioner(filter, solenoid, model.shape, lambda: dataset.statistics, device)
        with keyed(cfg.sampler):
            doubts = sampler.check(sampler.levels(model.process), preconditioner)
        if model.checkpoint is None:
            doubts.append("model.checkpoint=null samples random weights: give a weights file")
        panel: Panel | None = like.panel if like else build(cfg.metric, dataset, str(device))
        metric = None if panel is None else _checked(panel, cfg, model)
        ImageNoise(cfg.seed, torch.zeros(1, dtype=torch.long), model.shape)
        remedy = "" if cfg.remedy is None else _remedy_label(cfg.remedy)
        guidance = _guidance(cfg, model)
        labels = labels_of(model, asked.labels, guidance)
        remedied = model if cfg.remedy is None else build(cfg.remedy, model, dataset)
        facts |= getattr(remedied.score, "provenance", {})
        score = for_sampling(remedied.score, device, cfg.bf16, cfg.compile and like is None)  # a network is compiled once

        def moments(count: int) -> NoiseMoments:
            if labels is not None:
                doubts.append("the noise moments are of the network without a class, and the images have classes")
            if remedied is not model:
                doubts.append("the noise moments are of the network without the remedy")
            return noise_moments(model, dataset, count, device, cfg.batch_size)

        with keyed(cfg.sampler):
            sampler = sampler.with_statistics(lambda: dataset.statistics, model.data_range, model.process).with_moments(moments)
        if _leaves_ladder(model, sampler, remedied is not model):
            facts["between_levels"] = "2026-11"  # older versions took the score of the nearest level
        sample = ImageSampler.of(
            model, score, sampler, preconditioner, cfg.seed, device, compiled=cfg.compile, labels=labels, guidance=guidance
        )
        what = " + ".join(title for title in (filter.title, solenoid.title) if title) or "vanilla"
        classes = () if labels is None else (f"labels {asked.labels}", guidance.title if guidance else "")
        label = ", ".join(part for part in (what, sampler.detail, remedy, *classes, "bf16" if cfg.bf16 else "") if part)
        return cls(model, dataset, filter, sample, metric, build(cfg.tracker), label, doubts, cfg.batch_size, facts, panel)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The filters R ("frequency") and A ("space"), if they exist."""
        masks = {
            "frequency": self.filter.frequency(self.model.shape, lambda: self.dataset.statistics),
            "space": self.filter.space(self.model.shape, lambda: self.dataset.statistics),
        }
        return {name: mask for name, mask in masks.items() if mask is not None}

    @property
    def fingerprint(self) -> dict[str, str | None]:
        """Facts that the numbers depend on beyond the configuration's values, above all the contents of files."""
        checkpoint, reference = self.model.checkpoint, self.metric.reference.provenance if self.metric else None
        facts: dict[str, str | None] = {
            # A network that loads its own file has no checkpoint here.
            "weights": checkpoint.sha256 if checkpoint else state_digest(self.model.score.state_dict()),
            "filters": fingerprint(*self.masks.values()),
            "reference": json_digest(reference) if reference else None,
            "batch": str(self.batch_size) if self.sample.sampler.mixes_batch else None,
        }
        if self.metric and self.metric.seen:
            facts["seen"] = json_digest(self.metric.seen.provenance)
        # Only if there are any: other runs keep the name that they had before such samplers and models existed.
        if self.sample.labels is not None:
            facts["labels"] = fingerprint(self.sample.labels)
        if self.model.beside_weights:
            facts["beside_weights"] = json_digest(self.model.beside_weights)
        facts |= self.facts
        for name, value in self.sample.sampler.provenance.items():
            facts[name] = value if isinstance(value, str) else json_digest(value)
        return facts

    @property
    def iterations(self) -> int:
        """T."""
        return len(self.sample.sampler.levels(self.model.process))

    @property
    def vanilla(self) -> bool:
        return isinstance(self.sample.preconditioner, Identity)

    @property
    def beside(self) -> dict[str, Array]:
        """The arrays that `annotate` returns."""
        return {} if self.metric is None else {"features": Array("float32", ("N", self.metric.features.dimension))}

    def annotate(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays that a shard keeps beside its images."""
        return {} if self.metric is None else {"features": self.metric.features(torch.from_numpy(images))}

    def sample_shard(self, shard: Shard) -> None:
        """Sample one shard in this process, if it is absent."""
        generate(self.sample, [shard], self.batch_size, self.annotate)


def _checked(panel: Panel, cfg: DictConfig, model: Model) -> Panel:
    """The measures for so many images, all of which can be measured on the images of this model."""
    panel.features(torch.zeros(1, *model.shape, dtype=torch.uint8))
    if cfg.images < 2:
        raise OptionError("images", "must be at least 2 to measure a distance: give more, or metric=none")
    metric = panel.within(cfg.images)
    with keyed(cfg.metric):
        metric.require(cfg.images)
    return metric


def _leaves_ladder(model: Model, sampler: Sampler[Any], remedied: bool) -> bool:
    """Whether a network on a ladder is asked between its levels, by a remedy or by the levels of the sampler."""
    if not isinstance(model.score, LadderScore):
        return False
    levels = sampler.levels(model.process)
    # Levels of unknown form count as 0, which is on no ladder.
    sigmas = levels if isinstance(levels, torch.Tensor) else torch.tensor([float(getattr(at, "sigma", 0)) for at in levels])
    ratios = sigmas.double()[:, None] / model.score.sigmas.cpu()
    return remedied or bool(((ratios - 1).abs() > 1e-6).all(1).any())


def _guidance(cfg: DictConfig, model: Model) -> Guidance | None:
    """The guidance, checked against the model."""
    guidance: Guidance | None = None if cfg.guidance is None else build(cfg.guidance)
    if guidance is not None:
        with keyed(cfg.guidance):
            guidance.check(model)
    return guidance


def _remedy_label(remedy: DictConfig) -> str:
    """Return a remedy's name in tables, with its options."""
    options = (str(key) if value is True else f"{key!s}={value}" for key, value in remedy.items() if key != "_target_")
    return " ".join([remedy._target_.rpartition(".")[2].replace("_", " "), *options])


def run(cfg: DictConfig, overrides: list[str], started: Callable[[str, bool], None] = lambda name, done: None) -> None:
    """Sample, measure and report one configuration; a finished one is only reported.

    `started` is called with the name of the run folder and whether it was done before.
    """
    processes = Processes.join()
    in_sweep = cfg.sweep.number is not None  # the end of a sweep, and now and then a point, writes the report
    with processes.together():
        config, experiment, folder, todo = prepared(cfg, overrides)
    with contextlib.ExitStack() as opened:

        def begin() -> bool:
            folder.claim(config)
            done = folder.result() is not None
            started(folder.path.name, done)
            # A finished run is also reported from where nothing can be written.
            with contextlib.suppress(*(UnwritableError,) * done):
                opened.enter_context(log_file(folder.path / "run.log"))
            return done

        done = processes.broadcast(begin)
        if processes.rank:
            if not done:
                processes.barrier()
                generate(experiment.sample, todo, cfg.batch_size, experiment.annotate, processes)
            return
        if done:
            log.info("%s is done already", folder.path)
            with contextlib.suppress(UnwritableError):
                folder.status("done")
        else:
            try:
                # The group of a sweep has the sweep's name; a point that is run alone needs this name.
                here = [f"group={cfg.group}"] if in_sweep and not any(o.startswith("group=") for o in overrides) else []
                command = [script("run.py"), *(o for o in overrides if not o.startswith("sweep.")), *here]
                sample_and_measure(cfg, config, experiment, folder, todo, processes, command)
            except (Exception, KeyboardInterrupt) as error:  # not SystemExit: a queue requeues the job
                # On a full disk these fail as well: keep the original error.
                with contextlib.suppress(Exception):
                    folder.failed(str(error) or type(error).__name__)
                    if not in_sweep:
                        write_report(folder.path.parent)
                raise
    if in_sweep:
        return
    show(f"\n{format_table(read_runs(folder.path.parent))}\n")
    show(f"images   {folder.path / 'grid.png'}\nnumbers  {folder.path / 'result.json'}")
    show_report(folder.path.parent)


def show_report(folder: Path) -> None:
    """Write the report of a folder and show its path."""
    with spared("the report"):
        show(f"report   {write_report(folder)}")


def prepared(
    cfg: DictConfig, overrides: list[str], like: Experiment | None = None
) -> tuple[dict[str, Any], Experiment, RunFolder, list[Shard]]:
    """Configuration, experiment, folder and shards of a run, before it writes anything; `like` as in `Experiment.build`."""
    config = resolved(cfg)
    group = group_folder(cfg.outputs, cfg.group)
    # Before it is built, a run has no folder of its own.
    with traced(group / "run.log"):
        experiment = Experiment.build(cfg, like)
    config["fingerprint"] = experiment.fingerprint
    folder = RunFolder.of(group, overrides, config)
    contents = Contents(experiment.model.shape, samples_digest(config), experiment.beside)
    return config, experiment, folder, shards(folder.path / "samples", cfg.images, cfg.shard_size, contents)


class StoppedError(PDSError):
    """A run that is not worth its other images."""


def measured(
    cfg: DictConfig,
    overrides: list[str],
    command: list[str],
    like: Experiment | None = None,
    look: Callable[[np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """The result of one configuration, sampled by this process alone if it is not done.

    Args:
        cfg, overrides: as in `run`.
        command: the command that makes it again.
        like: as in `Experiment.build`.
        look: called with the features of the first shard, before any other is sampled, also for a run that is done. Its
            exceptions end the run; a `StoppedError` gives the reason.
    """
    config, experiment, folder, todo = prepared(cfg, overrides, like)
    folder.claim(config)

    def first() -> np.ndarray:
        experiment.sample_shard(todo[0])
        features: np.ndarray = next(read_all(todo[:1], experiment.sample_shard))["features"]
        return features

    if (result := folder.result()) is not None:
        folder.status("done")
        if look is not None:
            look(first())
        return result
    with log_file(folder.path / "run.log"):
        try:
            take_from_others(experiment, config, folder, todo)
            if look is not None:
                look(first())
            sample_and_measure(cfg, config, experiment, folder, todo, Processes(), command)
        except (Exception, KeyboardInterrupt) as error:
            with contextlib.suppress(Exception):
                folder.failed(str(error) or type(error).__name__, "skipped" if isinstance(error, StoppedError) else "failed")
            raise
    return read_result(folder.path)


def sample_and_measure(
    cfg: DictConfig,
    config: dict[str, Any],
    experiment: Experiment,
    folder: RunFolder,
    todo: list[Shard],
    processes: Processes,
    command: list[str],
) -> None:
    """Fill the run folder: shards, then result.json, the pictures and the tracker's copies."""
    begun = time.perf_counter()
    for doubt in experiment.doubts:
        log.warning(doubt)
    log.info("%s, T = %d, %d images -> %s", experiment.label, experiment.iterations, cfg.images, folder.path)
    job_type = "vanilla" if experiment.vanilla else "pds"
    with contextlib.ExitStack() as opened:
        with processes.together():  # this may fail, and the other processes wait for it
            folder.status("running")
            take_from_others(experiment, config, folder, todo)
            metrics_file = MetricsFile(folder.path / "metrics.jsonl")
            of_run = (folder.path, folder.path.name, cfg.group, job_type, config)
            tracked = opened.enter_context(aside(experiment.tracker, *of_run))
        shard_log = ShardLog(todo, metrics_file, tracked)
        generate(experiment.sample, todo, cfg.batch_size, experiment.annotate, processes, shard_log)
        collected = Collected.of(todo, experiment.sample_shard)
        result = {
            "name": folder.path.name,
            "experiment": cfg.group,
            **result_of(experiment, collected, cfg.seed),
            **provenance(experiment.sample.device, command),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        draw(experiment, folder.path, np.stack(collected.first))
        seconds = time.perf_counter() - begun
        # The time of this process since its last start.
        result["wall_clock"] = {"seconds": seconds, "sampling": shard_log.sampling}
        log.info("%.0f s, %.1f%% of them sampling", seconds, 100 * shard_log.sampling / seconds)
        metrics_file.append({"images_done": cfg.images, **result["metrics"]})
        write_json(folder.path / "result.json", result)
        folder.status("done")
        mirror(tracked, folder.path, result, list(visible(torch.from_numpy(np.stack(collected.first))).numpy()))


def take_from_others(experiment: Experiment, config: dict[str, Any], folder: RunFolder, todo: list[Shard]) -> None:
    """Give absent shards the images that other runs of the group have sampled with the same settings."""
    for other, measured_alike in folder.alike(config):
        given = take_over(todo, other / "samples", other.name, None if measured_alike else experiment.annotate)
        if given:
            log.info("%d of %d shards are taken from %s, which sampled the same images", given, len(todo), other.name)


class ShardLog:
    """Reports each shard to the metrics file and the tracker; called with the shard and the seconds of its sampling.

    Attributes:
        sampling: seconds of sampling in all.
    """

    def __init__(self, todo: list[Shard], metrics_file: MetricsFile, tracked: TrackedRun) -> None:
        self.waiting, self.metrics_file, self.tracked = deque(todo), metrics_file, tracked
        self.done, self.sampling = 0, 0.0

    def __call__(self, shard: Shard, seconds: float) -> None:
        self.sampling += seconds
        # Up to the first absent file, whichever process writes it; so each file is looked for once.
        while self.waiting and self.waiting[0].path.exists():
            self.done += len(self.waiting.popleft().indices)
        record = {"images_done": self.done, "images_per_second": len(shard.indices) / seconds}
        self.metrics_file.append(record)
        self.tracked.log(record, step_name="images_done")


@dataclass(frozen=True)
class Collected:
    """The content of a run's shards.

    Attributes:
        arrays: arrays of each shard, without its images: all images may not fit the memory.
        first: the first images, for pictures.
        counts: number of images of each shard.
    """

    arrays: list[dict[str, np.ndarray]]
    first: list[np.ndarray]
    counts: list[int]

    @classmethod
    def of(cls, todo: list[Shard], make: Callable[[Shard], None]) -> Collected:
        """The content of finished shards; `make` samples a damaged one again."""
        arrays: list[dict[str, np.ndarray]] = []
        first: list[np.ndarray] = []
        for shard in read_all(todo, make):
            arrays.append(shard)
            first += list(arrays[-1].pop("images")[: GRID_IMAGES - len(first)].copy())
        return cls(arrays, first, [len(shard.indices) for shard in todo])

    @property
    def images(self) -> int:
        return sum(self.counts)

    @property
    def seconds(self) -> float:
        """Seconds of sampling, summed over processes."""
        return float(sum(a["seconds"] for a in self.arrays))

    @property
    def nfe(self) -> int | float:
        """Evaluations an image; adaptive samplers differ from image to image."""
        mean = float(sum(a["nfe"] * count for a, count in zip(self.arrays, self.counts, strict=True))) / self.images
        return int(mean) if mean.is_integer() else round(mean, 1)

    @property
    def origins(self) -> list[str]:
        """The runs that shards were taken from."""
        return sorted({str(a["taken_from"]) for a in self.arrays if "taken_from" in a})


def result_of(experiment: Experiment, collected: Collected, seed: int) -> dict[str, Any]:
    """Return the part of result.json about the images."""
    sampler, checkpoint = experiment.sample.sampler, experiment.model.checkpoint
    return {
        "label": experiment.label,
        "vanilla": experiment.vanilla,
        "sampler": sampler.title,
        "source": sampler.source,
        "iterations": experiment.iterations,
        "nfe": collected.nfe,
        "images": collected.images,
        "seconds": collected.seconds,
        "images_per_second": collected.images / collected.seconds,  # of one process: seconds are summed over processes
        "seed": seed,
        "model": experiment.model.title,
        "checkpoint": checkpoint
        and {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "layout": checkpoint.layout,
            "ema": checkpoint.ema,
        },
        **measure(experiment.metric, collected.arrays, experiment.sample.labels),
        **experiment.sample.sampler.provenance,
        **({"taken_from": collected.origins} if collected.origins else {}),
        "doubts": experiment.doubts,
    }


def measure(metric: Panel | None, arrays: list[dict[str, np.ndarray]], labels: torch.Tensor | None = None) -> dict[str, Any]:
    """The measures of all images by full name, with their errors, and the floor; for labelled images also the accuracy."""
    if metric is None:
        return {"metrics": {}, "floor": {}}
    features = np.concatenate([a["features"] for a in arrays])
    floor, measured = metric.floor(len(features)), metric.measure(features, progress=True)
    beside: dict[str, Any] = {}
    logits = None if labels is None or metric.features.logits is None else metric.features.logits(features)
    if labels is not None and logits is not None and labels.max() < logits.shape[1]:
        classes = labels[torch.arange(len(features)) % len(labels)].numpy()
        beside["accuracy_of_classes"] = class_accuracy(logits, classes)
        measured.metrics[exact_name("accuracy", metric.features, len(features))] = float((logits.argmax(1) == classes).mean())
    return {
        **measured._asdict(),
        **beside,
        "floor": {} if floor is None else {floor[0]: floor[1]},
        "reference": metric.reference.provenance,
        **({"seen": metric.seen.provenance} if metric.seen else {}),
    }


def draw(experiment: Experiment, folder: Path, images: np.ndarray) -> None:
    """grid.png of the images, and filter.npz if there is a filter to draw."""
    with atomic_path(folder / "grid.png") as temporary:
        image_grid(torch.from_numpy(images), GRID_COLUMNS, scale=2).save(temporary, format="PNG")
    present = {name: mask.numpy() for name, mask in experiment.masks.items()}
    if present:
        with atomic_path(folder / "filter.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **present)


def mirror(tracked: TrackedRun, folder: Path, result: dict[str, Any], images: list[np.ndarray]) -> None:
    """Copy a finished result and its first images to the tracker."""
    numbers = {"T": result["iterations"], "NFE": result["nfe"], "images": result["images"], "seconds": result["seconds"]}
    floors = {f"floor/{name}": value for name, value in result["floor"].items()}
    tracked.log({"images_done": result["images"], **result["metrics"]}, step_name="images_done")
    by_cost = {f"against_NFE/{name}": value for name, value in result["metrics"].items()}
    tracked.log({"NFE": result["nfe"], **by_cost}, step_name="NFE")
    report = (folder.parent / "report.html").absolute().as_uri()
    speed = {"images_per_second": result["images_per_second"]}
    tracked.summary({**numbers, **result["metrics"], **floors, **speed, "report": report})
    # Runs of one seed start image i from the same noise: their rows correspond.
    rows = [[index, result["seed"], image] for index, image in enumerate(images[:TABLE_IMAGES])]
    tracked.table("sample_table", ["index", "seed", "image"], rows)
    tracked.table(
        "result", ["run", *numbers, *result["metrics"]], [[result["label"], *numbers.values(), *result["metrics"].values()]]
    )
    tracked.image("samples", folder / "grid.png")
