"""The measurements of a report on a machine. Each part is an iterator of rows: a key, and a function that measures the row.

Rows are measured one after the other, and each is kept at once. So a part can end anywhere and go on later.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from pds.cards import CARDS, load
from pds.data.images import ArrayImages, to_uint8, to_unit
from pds.evaluation.metric import classifier_metric
from pds.generation import ImageSampler, Processes, generate
from pds.models.classifier import DigitClassifier, ObjectClassifier
from pds.models.scores import Model
from pds.preconditioning.filters import StatisticsFilter
from pds.preconditioning.preconditioner import Identity, Preconditioner, build_preconditioner
from pds.preconditioning.solenoids import NoSolenoid
from pds.samplers.predictor_corrector import EulerMaruyama, PredictorCorrector, ReverseDiffusion
from pds.score import Labelled
from pds.shards import Shard, shards
from pds.speed.measuring import BLOCK, attainable, bandwidth, operations, peak_memory, synchronise, time_in_turns, traffic
from pds.speed.operator import Iteration, stand_in_statistics
from pds.speed.options import FASTEST, OPTIONS, Option
from pds.training import Trainer

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]

# Options that make a published network small enough for a test on a CPU.
_TINY = {"shape": (3, 16, 16), "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,)}


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        small: tiny networks: a test of the report, no measurement.
        options: names in `OPTIONS`.
        repeats: repeats of each timing.
        block: shortest duration of a timing in seconds.
        product: rows of the square matrices in a product; None for those of `attainable`.
        copy: bytes of a copy.
        images, seeds, steps: images, seeds and steps of a distance.
        run: images of the run.
        batch: batch size of the run and of training.
        training: steps of training.
    """

    small: bool = False
    options: tuple[str, ...] = tuple(OPTIONS)
    repeats: int = 5
    block: float = BLOCK
    product: int | None = None
    copy: int = 1 << 32
    images: int = 2048
    seeds: int = 3
    steps: int = 100
    run: int = 50_000
    batch: int = 512
    training: int = 201

    def model(self, card: str) -> Model:
        """A published network with random weights, the same each time."""
        torch.manual_seed(0)
        return CARDS[card].make(**{**CARDS[card].options, **(_TINY if self.small else {})})

    def batches(self, size: int) -> list[int]:
        """Batch sizes to try for images of this height, ascending."""
        if self.small:
            return [1, 2]
        return {32: [1, 16, 64, 256, 1024], 256: [1, 4, 16, 64]}.get(size, [1, 2, 4, 8])


SMALL = Plan(
    small=True,
    options=("plain", "float32", "bf16 graph"),
    repeats=1,
    block=0.001,
    product=64,
    copy=1 << 20,
    images=40,
    seeds=1,
    steps=2,
    run=12,
    batch=4,
    training=3,
)


def peaks(plan: Plan, device: torch.device, folder: Path) -> Rows:
    """Matrix products in each precision, and the bandwidth of a copy."""

    def product(option: Option, dtype: torch.dtype) -> Row:
        with option.precision():
            return {"operations_per_second": attainable(device, dtype, plan.product, plan.block)}

    yield "float32", lambda: product(Option(), torch.float32)
    yield "tf32", lambda: product(Option(tf32="all"), torch.float32)
    yield "bf16", lambda: product(Option(), torch.bfloat16)
    yield "copy", lambda: {"bytes_per_second": bandwidth(device, plan.copy, plan.block)}


def speed(card: str, plan: Plan, device: torch.device, folder: Path) -> Rows:
    """One iteration of the published sampler of a network, in every way to evaluate it, by batch size; then its profile."""

    @functools.lru_cache(maxsize=1)
    def made(name: str) -> tuple[Model, Labelled]:
        model = plan.model(card)
        return model, OPTIONS[name].score(model, device)

    def iteration(name: str, batch: int) -> Iteration:
        model, score = made(name)
        return Iteration.of(model, score, CARDS[card].sampler, StatisticsFilter(5.0), NoSolenoid(), batch, device)

    @torch.no_grad()
    def timed(name: str, batch: int) -> Row:
        with OPTIONS[name].precision():
            step = iteration(name, batch)
            parts, difference = step.parts()
            times = time_in_turns(parts, plan.repeats, device, plan.block)
            with peak_memory(device) as peak:
                parts["pds"]()
        evaluations = step.sampler.nfe_per_iteration
        median = {part: statistics.median(values) for part, values in times.items()}
        return {
            "batch": batch,
            "milliseconds": median,
            "spread": {part: (max(values) - min(values)) / 2 for part, values in times.items()},
            "evaluations_per_second": {kind: batch * evaluations / (1e-3 * median[kind]) for kind in ("vanilla", "pds")},
            "images_per_second_at_100": {kind: batch / (1e-3 * median[kind] * 100) for kind in ("vanilla", "pds")},
            "largest_difference": difference,
            "peak_bytes": peak.total,
        }

    @torch.no_grad()
    def counted() -> Row:
        step = iteration("float32", 1)
        return {"operations": operations(step.score, step.x), "bytes": traffic(step.score, step.x)}

    def profiled(name: str, batch: int) -> Row:
        with OPTIONS[name].precision():
            model, score = made(name)
            sampler = CARDS[card].sampler
            assert isinstance(sampler, PredictorCorrector)
            return step_profile(model, score, sampler, batch, device)

    batches = plan.batches(plan.model(card).shape[1])
    yield "operations and bytes of an image", counted
    for name in plan.options:
        for batch in batches[::2] if OPTIONS[name].compile else batches:
            yield f"{name}, batch {batch}", functools.partial(timed, name, batch)
        if name in ("float32", FASTEST):
            yield f"profile of {name}, batch {batches[1]}", functools.partial(profiled, name, batches[1])


LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@torch.no_grad()
def step_profile(model: Model, score: Labelled, sampler: PredictorCorrector, batch: int, device: torch.device) -> Row:
    """The cost of one step of a run with PDS on the host and the device: waits, launches, and the longest operations.

    A step is the difference of two runs, of 6 and of 2 steps, over 4, so that start and end do not count.
    """
    P = _operator(model, StatisticsFilter(5.0), device)

    def run(steps: int) -> None:
        few = PredictorCorrector(steps, sampler.predictor, sampler.corrector)
        ImageSampler.of(model, score, few, P, 0, device)(range(batch))
        synchronise(device)

    def seen(steps: int) -> Any:
        gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler:
            run(steps)
        return profiler.key_averages()

    run(2)
    few, many = seen(2), seen(6)
    before = {event.key: event.count for event in few}
    per_step = {event.key: (event.count - before.get(event.key, 0)) / 4 for event in many}
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    row: Row = {
        "waits": sum(per_step.get(name, 0.0) for name in WAITS),
        "launches": sum(count for name, count in per_step.items() if name.startswith(LAUNCHES)),
        "table": many.table(sort_by=order, row_limit=15, max_name_column_width=60),
    }
    if device.type == "cuda":
        row["warned"] = (_warned(run, 6) - _warned(run, 2)) / 4
    return row


def _warned(run: Callable[[int], None], steps: int) -> int:
    """Synchronising operations as `torch.cuda.set_sync_debug_mode` sees them; it does not see events."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def _operator(model: Model, filter: StatisticsFilter, device: torch.device) -> Preconditioner:
    """P of a filter, from the model's statistics or their stand-in."""
    return build_preconditioner(
        filter, NoSolenoid(), model.shape, lambda: model.statistics or stand_in_statistics(model.shape), device
    )


def precision(plan: Plan, device: torch.device, folder: Path) -> Rows:
    """The distance of the shipped networks for each way with another rounding, at equal noise, over seeds."""
    samplers = {
        "mnist_ncsnpp": (PredictorCorrector(plan.steps, ReverseDiffusion(), None), StatisticsFilter(3.0)),
        "mnist_ddpmpp": (PredictorCorrector(plan.steps, EulerMaruyama(), None), None),
    }
    panel = functools.cache(lambda: classifier_metric(DigitClassifier, device=str(device)))

    @torch.no_grad()
    def distance(network: str, name: str, seed: int) -> Row:
        model, (sampler, filter) = load(f"asset:{network}", device="cpu"), samplers[network]
        P = Identity() if filter is None else _operator(model, filter, device)
        score = OPTIONS[name].score(model, device)
        make = ImageSampler.of(model, score, sampler, P, seed, device)
        size = min(512, plan.images)
        starts = range(0, plan.images, size)
        with OPTIONS[name].precision():
            drawn = [to_uint8(make(range(start, min(start + size, plan.images)))[0]).cpu() for start in starts]
        with Option().precision():
            ((measure, value),) = panel().measure(panel().features(torch.cat(drawn))).metrics.items()
        return {"network": network, "option": name, "seed": seed, "measure": measure, "distance": value}

    rounding = [name for name in plan.options if not OPTIONS[name].plain and OPTIONS[name].compile in ("", "default")]
    for name in rounding:
        for network in samplers:
            for seed in range(plan.seeds):
                yield f"{network}, {name}, seed {seed}", functools.partial(distance, network, name, seed)


def _run_of(plan: Plan, device: torch.device) -> ImageSampler:
    """Ten steps of a CIFAR-10 network with random weights, by the fastest way that is safe everywhere."""
    model = plan.model("ncsnpp_cifar10")
    score = OPTIONS[FASTEST].score(model, device)
    few = PredictorCorrector(10, ReverseDiffusion(), None)
    return ImageSampler.of(model, score, few, Identity(), 0, device)


def _features(device: torch.device) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    torch.manual_seed(0)
    network = ObjectClassifier().to(device).eval()

    @torch.inference_mode()
    def annotate(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": network.features(to_unit(torch.from_numpy(images).to(device))).cpu().numpy()}

    return annotate


def processes() -> Any:
    """Processes that share no CUDA context with this one, forked if possible from a process that has imported everything."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pds.speed.report"])
    return context


def _generate_as(rank: int, size: int, port: int, todo: list[Shard], plan: Plan, device: torch.device) -> None:
    """One of the processes of a run."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    generate(_run_of(plan, device), todo, plan.batch, _features(device), Processes.join())


def runner(plan: Plan, device: torch.device, folder: Path) -> Rows:
    """A run with files and features: its time and memory beside those of sampling, and whether two processes give the images of
    one."""

    @torch.no_grad()
    def alone() -> Row:
        sampling = 0.0

        def add(shard: Shard, seconds: float) -> None:
            nonlocal sampling
            sampling += seconds

        with tempfile.TemporaryDirectory(dir=folder) as place:
            sample, annotate = _run_of(plan, device), _features(device)
            start = time.perf_counter()
            generate(sample, shards(Path(place), plan.run, plan.batch), plan.batch, annotate, on_shard=add)
            seconds = time.perf_counter() - start
            written = sum(file.stat().st_size for file in Path(place).iterdir())
        return {
            "images": plan.run,
            "seconds": seconds,
            "share_not_sampling": 1 - sampling / seconds,
            "peak_host_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "bytes_written": written,
        }

    @torch.no_grad()
    def together() -> Row:
        count = 4 * plan.batch
        with tempfile.TemporaryDirectory(dir=folder) as place:
            one, two = (shards(Path(place) / name, count, plan.batch) for name in ("one", "two"))
            for todo in (one, two):
                todo[0].path.parent.mkdir()
            generate(_run_of(plan, device), one, plan.batch, _features(device))
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            context = processes()
            started = [context.Process(target=_generate_as, args=(rank, 2, port, two, plan, device)) for rank in range(2)]
            for process in started:
                process.start()
            for process in started:
                process.join()
            if any(process.exitcode for process in started):
                raise RuntimeError(f"the two processes ended with {[process.exitcode for process in started]}")
            read = [[shard.read(others=True) for shard in todo] for todo in (one, two)]
        equal = all(np.array_equal(a["images"], b["images"]) for a, b in zip(*read, strict=True))
        return {"images": count, "equal": equal}

    @torch.no_grad()
    def batched() -> Row:
        n = plan.batch
        with Option().precision():
            model = plan.model("ncsnpp_cifar10")
            score = OPTIONS["float32"].score(model, device)
            few = PredictorCorrector(10, ReverseDiffusion(), None)
            make = ImageSampler.of(model, score, few, Identity(), 0, device)
            whole, *halves = (make(part)[0] for part in (range(n), range(n // 2), range(n // 2, n)))
        moved = (whole - torch.cat(halves)).abs().max() / whole.abs().max()
        return {"batches": [n, n // 2], "largest_difference": float(moved)}

    yield f"{plan.run} images", alone
    yield "two processes", together
    yield "two batch sizes, float32", batched


def training(plan: Plan, device: torch.device, folder: Path) -> Rows:
    """Steps a second of training NCSN++ at CIFAR-10's size."""

    def rate(bf16: bool, compile: bool) -> Row:
        model = plan.model("ncsnpp_cifar10")
        batch = min(plan.batch, 128)
        drawn = np.random.default_rng(0).integers(256, size=(2 * batch, *model.shape), dtype=np.uint8)
        trainer = Trainer(
            iterations=plan.training, batch_size=batch, warmup=0, checkpoint_every=plan.training, bf16=bf16, compile=compile
        )
        told: list[tuple[float, float]] = []

        def at(metrics: dict[str, float]) -> None:
            told.append((metrics["iteration"], time.perf_counter()))

        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            start = time.perf_counter()
            trainer.fit(
                model.score, ArrayImages("drawn", "all", drawn), place / "state.pt", device, model.data_range, callback=at
            )
            end = time.perf_counter()
        finally:
            shutil.rmtree(place)
        # The first steps compile, choose algorithms and fill caches; the last writes the state.
        (first, begun), (last, done) = (told[0], told[-1]) if len(told) > 1 else ((0, start), (plan.training, end))
        per_second = (last - first) / (done - begun)
        return {"batch": batch, "steps_per_second": per_second, "images_per_second": batch * per_second}

    yield "float32", lambda: rate(bf16=False, compile=False)
    yield "bf16", lambda: rate(bf16=True, compile=False)
    if not plan.small:
        yield "bf16 compile", lambda: rate(bf16=True, compile=True)


class Part(NamedTuple):
    """A part of the report.

    Attributes:
        minutes: its time limit.
        title: title of its rows.
        rows: measures the rows, given the plan, the device, and a folder for temporary files.
    """

    minutes: float
    title: str
    rows: Callable[[Plan, torch.device, Path], Rows]


PARTS: dict[str, Part] = {
    "peaks": Part(1, "Peaks of the machine", peaks),
    "cifar10": Part(6, "NCSN++, CIFAR-10, 3x32x32", functools.partial(speed, "ncsnpp_cifar10")),
    "precision": Part(5, "The distance of the shipped networks", precision),
    "size256": Part(5, "NCSN++, 3x256x256", functools.partial(speed, "ncsnpp_church")),
    "runner": Part(4, "A run with files and features", runner),
    "size1024": Part(4, "NCSN++, 3x1024x1024", functools.partial(speed, "ncsnpp_ffhq1024")),
    "training": Part(3, "Training NCSN++, CIFAR-10", training),
    "deep": Part(4, "NCSN++ deep, CIFAR-10, 3x32x32", functools.partial(speed, "ncsnpp_cifar10_deep")),
}
"""In the order of their value."""
