"""Many images from one sampler: in shards that are skipped when present and shared by processes.

The noise of image i depends on (seed, i) alone (`pds.noise`), so a run that is killed, restarted, batched otherwise or
spread over processes gives the images of one that never was.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from pds.data.images import to_uint8
from pds.errors import PDSError
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.samplers.sampler import Sampler
from pds.score import CountedScore, Score
from pds.shards import Shard, ShardWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """This process among those of one run.

    Attributes:
        rank: 0 <= rank < size.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Processes:
        """The processes that `torchrun` started (gloo: they exchange nothing but their errors), or this one alone."""
        if "RANK" not in os.environ:
            return cls()
        if not dist.is_initialized():
            # They wait for one another at the end of a run only, for as long as the slowest takes.
            dist.init_process_group("gloo", timeout=timedelta(days=30))
            # A process that leaves with gloo's threads running is now and then aborted on its way out.
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    def agree(self, error: Exception | None = None) -> None:
        """Wait until every process is here, and raise in all of them what went wrong in any."""
        said: list[str | None] = [None if error is None else str(error) or type(error).__name__] * self.size
        if self.size > 1:
            dist.all_gather_object(said, said[0])
        first = next(filter(None, said), None)
        if first is not None:
            raise error or PDSError(first)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for one another at the end of the block, and raise in all processes what went wrong in any."""
        error = None
        try:
            yield
        except Exception as raised:  # whatever it is: the others would wait for this one
            error = raised
        self.agree(error)


@dataclass(frozen=True)
class ImageSampler:
    """Everything that makes image i out of (seed, i): score, sampler, process, preconditioner.

    Attributes:
        score: the network as a score.
        sampler: a sampler of `pds.samplers`.
        process: forward process of the model.
        preconditioner: P and S; `Identity()` is the vanilla sampler.
        shape: (C, H, W).
        seed: seed of all noise.
        device: where to sample.
        data_range: pixel values of black and white in the model's state.
    """

    score: Score
    sampler: Sampler
    process: Process
    preconditioner: Preconditioner
    shape: tuple[int, int, int]
    seed: int
    device: torch.device
    data_range: tuple[float, float] = (0.0, 1.0)

    @torch.no_grad()
    def __call__(self, indices: range, on_step: Callable[[], None] = lambda: None) -> tuple[Tensor, float]:
        """Images by index.

        Args:
            indices: image indices; the batch.
            on_step: called after each iteration.

        Returns:
            (len(indices), C, H, W) float32, black at 0 and white at 1, not clamped; and the score evaluations that an image
            took, on average.

        Raises:
            PDSError: when a step gives values that are not finite: with the step, the level and the likely cause.
        """
        score = CountedScore(self.score)
        noise = ImageNoise(self.seed, torch.tensor(indices, device=self.device), self.shape)
        levels = self.sampler.levels(self.process)
        x = self.sampler.prior(noise, self.process, self.preconditioner)

        def require_finite(x: Tensor, when: str) -> None:
            # One reduction a step: a sum is finite only if every value is.
            if not torch.isfinite(x.sum()):
                raise PDSError(
                    f"image values are not finite after {when}: the step is too large for this filter and solenoid (take "
                    "smaller or more steps, a weaker filter or a lower solenoid.omega) or the weights are broken"
                )

        def watch(iteration: int, sigma: float, x: Tensor) -> None:
            require_finite(x, f"step {iteration + 1} of {len(levels)} (sigma = {sigma:.4g})")
            on_step()

        x = self.sampler(score, x, levels, self.preconditioner, noise, watch)
        require_finite(x, "the final denoising")
        black, white = self.data_range
        # Not the calls: an adaptive sampler evaluates an image no more once it has arrived.
        return (x - black) / (white - black), score.images / len(indices)


def generate(
    sample: ImageSampler,
    todo: list[Shard],
    batch_size: int,
    annotate: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda images: {},
    processes: Processes = Processes(),
    on_shard: Callable[[Shard, float], None] = lambda shard, seconds: None,
) -> None:
    """Sample the shards that are missing; every process takes its part of them.

    A shard is written, and on a GPU annotated, in a thread of its own while the next one is sampled.

    Args:
        sample: makes images by index.
        todo: all shards of the run; those whose file exists are skipped.
        batch_size: images sampled at once; it does not change them.
        annotate: arrays, such as features, to keep beside a shard's (n, C, H, W) uint8 images in its file.
        processes: this process among those of the run. All of them return together, or all of them raise.
        on_shard: called with each shard that this process wrote and the seconds its sampling took.

    Raises:
        PDSError: for values that are not finite, a GPU whose memory is too small, or a disk that is full; finished shards stay.
    """
    if batch_size < 1:
        raise PDSError(f"batch_size must be at least 1, got {batch_size}")
    # Listed before anyone starts: a shard that another process finishes meanwhile does not shift the shares.
    missing = [shard for shard in todo if not shard.path.exists()]
    processes.agree()
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
    form = "{l_bar}{bar}| {n:.0f}/{total} img [{elapsed}<{remaining}, {rate_fmt}]"
    written, lines = 0, show_progress and "TQDM_DISABLE" in os.environ
    disable = lines or not show_progress

    def on_written(shard: Shard, seconds: float) -> None:
        nonlocal written
        on_shard(shard, seconds)
        written += len(shard.indices)
        if lines:
            log.info("%d of %d images", written, total)

    # On a CPU it would take the cores from sampling, and a second team of OpenMP threads slows the first even when it rests.
    aside = sample.device.type != "cpu"
    with (
        ShardWriter(annotate, aside, on_written) as writer,
        tqdm(desc="sample", total=total, unit="img", bar_format=form, disable=disable) as bar,
    ):
        for shard in mine:
            start, parts, evaluations = time.perf_counter(), [], 0.0
            for batch in _batches(shard.indices, batch_size):
                writer.settle()
                end = bar.n + len(batch)
                try:
                    x, nfe = sample(batch, lambda share=len(batch) / steps, end=end: bar.update(min(share, end - bar.n)))
                except torch.cuda.OutOfMemoryError:
                    kept = "" if sample.sampler.mixes_batch else "; finished shards are kept"
                    raise PDSError(
                        f"the GPU has too little memory for {len(batch)} images at once: run the same command again with "
                        f"batch_size={max(1, len(batch) // 2)}{kept}"
                    ) from None
                bar.update(end - bar.n)  # an adaptive sampler may need fewer steps
                evaluations += nfe * len(batch)
                parts.append(to_uint8(x).cpu())
            images, seconds = torch.cat(parts).numpy(), time.perf_counter() - start
            writer.write(shard, {"images": images, "nfe": evaluations / len(images), "seconds": seconds})


def _batches(indices: range, size: int) -> Iterator[range]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
