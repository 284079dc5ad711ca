"""Many images from one sampler: in shards that are skipped when present and shared by processes.

The noise of image i depends on (seed, i) alone (`pds.noise`). So a run gives the same images after a kill and a restart, with
other batches, and spread over processes.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pds.conditioning import CLASS_ALONE, Guidance
from pds.data.images import from_range, to_uint8
from pds.errors import PDSError, first_line, out_of_memory
from pds.models.scores import Model
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity, Preconditioner
from pds.processes.forward import Process
from pds.progress import progress_bar
from pds.samplers.sampler import Callback, Sampler, no_callback
from pds.score import CountedScore, Labelled, Score, score_at
from pds.shards import Shard, ShardWriter

log = logging.getLogger(__name__)

BAR = "{l_bar}{bar}| {n:.0f}/{total} img [{elapsed}<{remaining}, {rate_fmt}]"

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that processes of one run wait for one another to start. Imports from a slow disk take minutes."""

PROCESSES = 65_535
NUMBERS = {"RANK": PROCESSES, "WORLD_SIZE": PROCESSES, "MASTER_PORT": 65_535}
"""The greatest value of each number that `torchrun` puts into the environment."""


class DivergedError(PDSError):
    """Image values that are not finite: these settings do not sample."""


@dataclass(frozen=True)
class Processes:
    """This process among those of one run.

    Attributes:
        rank: 0 <= rank < size.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def check() -> None:
        """Check torchrun's environment variables. With wrong ones `join` would wait for processes that never start.

        Raises:
            PDSError: the environment has a RANK without the other variables of `torchrun`, or with wrong ones.
        """
        if "RANK" not in os.environ:
            return
        numbers = NUMBERS | {name: PROCESSES for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in os.environ}
        here = {name: os.environ.get(name, "") for name in ("MASTER_ADDR", *numbers)}
        absent = [name for name, value in here.items() if not value]
        # Python reads no number of thousands of digits.
        wrong = [n for n, most in numbers.items() if not here[n].isdecimal() or len(here[n]) > 5 or int(here[n]) > most]
        what = ""
        if absent:
            what = f"is set, and {absent[0]} is not"
        elif wrong:
            what = f"is set, and {wrong[0]} is no number from 0 to {numbers[wrong[0]]}"
        elif int(here["RANK"]) >= int(here["WORLD_SIZE"]):
            what = "counts from 0, and is not below WORLD_SIZE"
        if what:
            raise PDSError(f"RANK {what}: start the processes with torchrun, or unset RANK to run in one")

    @classmethod
    def join(cls) -> Processes:
        """The processes that `torchrun` started (gloo: they exchange only their errors), or this one alone.

        Raises:
            PDSError: as `check`.
        """
        cls.check()
        if "RANK" not in os.environ:
            return cls()
        if not dist.is_initialized():
            # Processes wait for one another only at the end of a run, for as long as the slowest takes.
            dist.init_process_group("gloo", **cls._rendezvous(), timeout=timedelta(days=30))
            # A process that exits while gloo's threads run is now and then aborted.
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def _rendezvous() -> dict[str, Any]:
        """Rank, number and common store of the processes, once all have come; a `PDSError` names those that have not come in
        time."""
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun keeps the store itself, through all attempts; otherwise the first process does.
        leads = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        fix = "start all of them with torchrun, or unset RANK to run in one"
        wait, absent = timedelta(seconds=PATIENCE), "the first"
        try:
            store: Store = TCPStore(host, port, size, leads, wait, wait_for_workers=False)
            store = PrefixStore(f"pds/{attempt}", store)
            store.set(f"here/{rank}", "")
            try:
                store.wait([f"here/{other}" for other in range(size)], wait)
            except RuntimeError:
                absent = ", ".join(str(other) for other in range(size) if not store.check([f"here/{other}"]))
                raise
        except (RuntimeError, ValueError) as error:
            late = f"{absent}, which did not come ({first_line(error)})"
            raise PDSError(f"process {rank} of {size} waited at {host}:{port} for {late}: {fix}") from None
        return {"store": store, "rank": rank, "world_size": size}

    def barrier(self, error: Exception | None = None) -> None:
        """Wait for all processes. If one of them failed, raise its error in every process."""
        said: list[str | None] = [None if error is None else str(error) or type(error).__name__] * self.size
        if self.size > 1:
            dist.all_gather_object(said, said[0])
        first = next(filter(None, said), None)
        if first is not None:
            raise error or PDSError(first)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all processes at the end of the block. If one of them failed, raise its error in every process."""
        error = None
        try:
            yield
        except Exception as raised:  # of any kind: the others would wait for this one
            error = raised
        self.barrier(error)

    def broadcast(self, make: Callable[[], T]) -> T:
        """Return the value of `make` from the first process, which alone calls it. An error there is raised in every
        process."""
        made: list[Any] = [None]
        with self.together():
            if self.rank == 0:
                made = [make()]
        if self.size > 1:
            dist.broadcast_object_list(made)
        return made[0]


@dataclass(frozen=True)
class ImageSampler:
    """The maker of image i from (seed, i): score, sampler, process, preconditioner.

    Attributes:
        score: the network as a score; it takes labels if there are any.
        sampler: a sampler of `pds.samplers`.
        process: forward process of the model.
        preconditioner: P and S; `Identity()` is the vanilla sampler.
        shape: (C, H, W).
        seed: seed of all noise.
        device: where to sample.
        data_range: pixel values of black and white in the model's state.
        compiled: whether the network is compiled at its first call with each batch size.
        labels: (n,) int64: image i is of class labels[i mod n]; None for images without classes.
        guidance: guidance towards the labels.
        classes: number of classes that the network takes; 0 for none.
    """

    score: Labelled
    sampler: Sampler[Any]
    process: Process
    preconditioner: Preconditioner
    shape: tuple[int, int, int]
    seed: int
    device: torch.device
    data_range: tuple[float, float] = (0.0, 1.0)
    compiled: bool = False
    labels: Tensor | None = None
    guidance: Guidance = CLASS_ALONE
    classes: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        score: Labelled,
        sampler: Sampler[Any],
        preconditioner: Preconditioner,
        seed: int,
        device: torch.device,
        *,
        compiled: bool = False,
        labels: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> ImageSampler:
        """The maker of images of a model; `score` is that of the model, as it is or compiled or on `device`."""
        process, shape, data_range, classes = model.process, model.shape, model.data_range, model.classes
        guided = guidance or CLASS_ALONE
        return cls(score, sampler, process, preconditioner, shape, seed, device, data_range, compiled, labels, guided, classes)

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], callback: Callback = no_callback) -> tuple[Tensor, float]:
        """Images by index.

        Args:
            indices: image indices; the batch.
            callback: called with (iteration, sigma, x) after each iteration.

        Returns:
            (len(indices), C, H, W) float32, black at 0 and white at 1, not clamped; and the score evaluations that an image
            took, on average.

        Raises:
            DivergedError: a step gives values that are not finite; the message has the step, the level and the likely cause.
        """
        counted = CountedScore(self.score)
        score = self._conditioned(counted, indices)
        noise = ImageNoise(self.seed, torch.tensor(indices, device=self.device), self.shape)
        levels = self.sampler.levels(self.process)
        x = self.sampler.prior(noise, self.process, self.preconditioner)

        asked: list[tuple[Callable[[], bool], str]] = []
        filtered = " (take smaller or more steps)"
        if not isinstance(self.preconditioner, Identity):
            filtered = " for this filter and solenoid (take smaller or more steps, a weaker filter or a lower omega)"

        def require_finite() -> None:
            while asked:
                finite, when = asked.pop()
                if not finite():
                    raise DivergedError(
                        f"image values are not finite after {when}: the step is too large{filtered} or the weights are broken"
                    )

        def watch(iteration: int, sigma: float, x: Tensor) -> None:
            # Check the previous iteration: reading this one now would stall the GPU.
            require_finite()
            asked.append((_finite(x), f"step {iteration + 1} of {len(levels)} (sigma = {sigma:.4g})"))
            callback(iteration, sigma, x)

        try:
            x = self.sampler(score, x, levels, self.preconditioner, noise, watch)
        finally:  # values that are not finite may have caused the failure
            require_finite()
        asked.append((_finite(x), "the final denoising"))
        require_finite()
        # Images, not calls: an adaptive sampler stops evaluating an image that has arrived.
        return from_range(x, self.data_range), counted.images / len(indices)

    def _conditioned(self, score: Labelled, indices: Sequence[int]) -> Score:
        """The score of the images of a batch."""
        if self.labels is None:
            return score
        chosen = torch.tensor(indices) % len(self.labels)
        return self.guidance(score, self.labels[chosen].to(self.device), self.classes)

    @torch.no_grad()
    def warm_up(self, count: int) -> None:
        """Make one evaluation, so that a GPU and a compiled network do their one-time work for batches of `count` images
        now."""
        if self.device.type == "cuda" or self.compiled:
            noise = ImageNoise(self.seed, torch.arange(count, device=self.device), self.shape)
            # With the shape of the sampler's states.
            x = self.sampler.prior(noise, self.process, self.preconditioner)
            largest = self.process.sigma(torch.ones(1, dtype=torch.float64)).item()
            score_at(self._conditioned(self.score, range(count)), x, largest)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _finite(x: Tensor) -> Callable[[], bool]:
    """Whether all values are finite. A GPU answers when its queued work is done."""
    # One reduction: a sum is finite only if every value is.
    flag = x.sum().isfinite().to("cpu", non_blocking=True)
    if not x.is_cuda:
        return lambda: bool(flag)
    copied = torch.cuda.current_stream(x.device).record_event()

    def answer() -> bool:
        copied.synchronize()
        return bool(flag)

    return answer


def generate(
    sample: ImageSampler,
    todo: list[Shard],
    batch_size: int,
    annotate: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda images: {},
    processes: Processes = Processes(),
    on_shard: Callable[[Shard, float], None] = lambda shard, seconds: None,
) -> None:
    """Sample the shards that are missing; every process takes its part of them.

    A batch may cover several shards, unless its images depend on one another. A separate thread writes a shard, and on a GPU
    also annotates it, while the next batch is sampled. A kill loses that batch and the shards not written yet.

    Args:
        sample: makes images by index.
        todo: all shards of the run; those whose file exists are skipped.
        batch_size: images sampled at once. It does not change the images. A sampler that mixes the batch is the exception; its
            batches end with their shard.
        annotate: arrays, such as features, to keep beside a shard's (n, C, H, W) uint8 images in its file.
        processes: this process among those of the run. All of them return together, or all of them raise.
        on_shard: called with each shard that this process wrote and the seconds its sampling took.

    Raises:
        PDSError: values are not finite, the memory of a GPU is too small, or the disk is full. Finished shards stay.
    """
    if batch_size < 1:
        raise PDSError(f"batch_size must be at least 1, got {batch_size}")
    # The first process lists the missing shards before any process starts. So all processes divide the same list, even if
    # shards appear meanwhile.
    missing = [todo[i] for i in processes.broadcast(lambda: [i for i, shard in enumerate(todo) if not shard.path.exists()])]
    if present := len(todo) - len(missing):
        log.info("%d of %d shards are there already", present, len(todo))
    mine = missing[processes.rank :: processes.size]
    with processes.together():
        _sample_shards(sample, mine, batch_size, annotate, on_shard, show_progress=processes.rank == 0 and bool(mine))


def _sample_shards(
    sample: ImageSampler,
    mine: list[Shard],
    batch_size: int,
    annotate: Callable[[np.ndarray], dict[str, np.ndarray]],
    on_shard: Callable[[Shard, float], None],
    show_progress: bool,
) -> None:
    total = sum(len(shard.indices) for shard in mine)
    steps = len(sample.sampler.levels(sample.process))
    written, lines = 0, show_progress and "TQDM_DISABLE" in os.environ
    disable = lines or not show_progress

    def on_written(shard: Shard, seconds: float) -> None:
        nonlocal written
        on_shard(shard, seconds)
        written += len(shard.indices)
        if lines:
            log.info("%d of %d images", written, total)

    # On a CPU annotation would take cores from sampling. Even idle, a second team of OpenMP threads slows the first.
    aside = sample.device.type != "cpu"
    warm: set[int] = set()
    apart = sample.sampler.mixes_batch
    # As many shards as one batch fills may wait while the next batch is sampled.
    most = 1 if apart or not mine else max(1, batch_size // len(mine[0].indices))
    with (
        ShardWriter(annotate, aside, on_written, most) as writer,
        progress_bar(desc="sample", total=total, unit="img", bar_format=BAR, disable=disable, leave=None) as bar,
    ):

        def sampled(batch: list[int]) -> dict[str, np.ndarray]:
            writer.settle()
            n, end = len(batch), bar.n + len(batch)
            try:
                if n not in warm:
                    sample.warm_up(n)
                    warm.add(n)
                start = time.perf_counter()
                x, nfe = sample(batch, lambda *step: (bar.update(min(n / steps, end - bar.n)), None)[1])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                kept = "" if apart else "; finished shards are kept"
                fix = f"run the same command again with batch_size={n // 2}{kept}" if n > 1 else "take a smaller network"
                place = "the GPU" if sample.device.type == "cuda" else "this machine"
                raise PDSError(f"{place} has too little memory for {n} images at once: {fix}") from None
            bar.update(end - bar.n)  # an adaptive sampler may need fewer steps
            images = to_uint8(x).cpu().numpy()
            return {"images": images, "nfe": np.full(n, nfe), "seconds": np.full(n, (time.perf_counter() - start) / n)}

        for shard, arrays in _filled(mine, map(sampled, _batches(mine, batch_size, apart))):
            nfe, seconds = float(arrays["nfe"].mean()), float(arrays["seconds"].sum())
            writer.write(shard, {"images": arrays["images"], "nfe": nfe, "seconds": seconds})


def _batches(mine: list[Shard], size: int, apart: bool) -> Iterator[list[int]]:
    """Image indices to sample at once: across all shards, or within each shard, so that a restart has the same batches."""
    rows = [list(shard.indices) for shard in mine]
    for row in rows if apart else [list(itertools.chain(*rows))]:
        for start in range(0, len(row), size):
            yield row[start : start + size]


def _filled(mine: list[Shard], batches: Iterator[dict[str, np.ndarray]]) -> Iterator[tuple[Shard, dict[str, np.ndarray]]]:
    """Each shard with its part of the arrays of batches, a row an image, as soon as the batches cover it."""
    parts: list[dict[str, np.ndarray]] = []
    for shard in mine:
        n = len(shard.indices)
        while sum(len(part["images"]) for part in parts) < n:
            parts.append(next(batches))
        whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if len(parts) > 1 else parts[0]
        yield shard, {key: rows[:n] for key, rows in whole.items()}
        parts = [{key: rows[n:] for key, rows in whole.items()}]
