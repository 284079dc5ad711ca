"""Shards: ranges of images and the files that hold them, each whole or absent."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pds.errors import PDSError
from pds.files import atomic_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A range of image indices and the file that holds its images.

    Attributes:
        indices: the image indices.
        path: npz with `images` (n, C, H, W) uint8, `nfe` (of an image, on average), `seconds` (its part of the sampling of its
            batches, on a GPU with the annotation of shards before it beside it), what it was annotated with, and
            `taken_from` where another run sampled them.
    """

    indices: range
    path: Path

    def read(self) -> dict[str, np.ndarray]:
        """Its arrays; a damaged file is a `PDSError`."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            if len(arrays["images"]) != len(self.indices):
                raise ValueError(f"{len(arrays['images'])} images instead of {len(self.indices)}")
            return arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise PDSError(f"{self.path} is damaged ({error}): delete it and run the same command again") from None


def shards(folder: Path, images: int, shard_size: int) -> list[Shard]:
    """The shards of a run of `images` images."""
    if images < 1 or shard_size < 1:
        raise PDSError(f"images and shard_size must be at least 1, got {images} and {shard_size}")
    starts = range(0, images, shard_size)
    return [
        Shard(range(start, min(start + shard_size, images)), folder / f"shard-{number:05d}.npz")
        for number, start in enumerate(starts)
    ]


def write_shard(path: Path, arrays: dict[str, Any]) -> None:
    """The file of a shard, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def take_over(
    todo: Sequence[Shard], samples: Path, origin: str, annotate: Callable[[np.ndarray], dict[str, np.ndarray]] | None
) -> int:
    """Give absent shards the images that another run has sampled with the same settings.

    Args:
        todo: shards of this run.
        samples: folder of the other run's shards.
        origin: what the other run is called; the shards keep it as `taken_from`.
        annotate: makes what is kept beside the images anew; None takes it over, too.

    Returns:
        How many shards were given. Files that are damaged, or end before the shard does, are passed over.
    """
    given = 0
    for shard in todo:
        other = Shard(shard.indices, samples / shard.path.name)
        if shard.path.exists() or not other.path.exists():
            continue
        try:
            arrays = other.read() | {"taken_from": np.array(origin)}
        except PDSError:
            continue
        if annotate is not None:
            kept = {key: arrays[key] for key in ("images", "nfe", "seconds", "taken_from")}
            arrays = kept | annotate(arrays["images"])
        write_shard(shard.path, arrays)
        given += 1
    return given


class ShardWriter:
    """Writes shards in a thread of its own, one after the other.

    Leaving the block waits for all of them: what is sampled is kept, whatever happens to the next shard.

    Args:
        annotate: arrays to keep beside a shard's images.
        aside: annotate in that thread as well.
        on_written: called with each shard that was written and the seconds of its sampling, outside of that thread.
        most: shards not yet written, whose images are held in memory, at which `write` waits for the first.
    """

    def __init__(
        self,
        annotate: Callable[[np.ndarray], dict[str, np.ndarray]],
        aside: bool,
        on_written: Callable[[Shard, float], None],
        most: int = 1,
    ) -> None:
        self.annotate, self.aside, self.on_written, self.most = annotate, aside, on_written, most
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.unsettled: deque[tuple[Shard, float, Future[None]]] = deque()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.thread:
            while self.unsettled:
                try:
                    self._settle_first()
                except Exception as lost:
                    if error is None:
                        raise
                    log.error("error: %s", lost)

    def write(self, shard: Shard, arrays: dict[str, Any]) -> None:
        """Have a shard written, and wait until no more than `most` are not."""
        if not self.aside:
            arrays = arrays | self.annotate(arrays["images"])
        written = self.thread.submit(self._write, shard.path, arrays)
        self.unsettled.append((shard, arrays["seconds"], written))
        while len(self.unsettled) > self.most:
            self._settle_first()

    def settle(self) -> None:
        """Tell of a shard that is written by now, or raise what went wrong."""
        while self.unsettled and self.unsettled[0][2].done():
            self._settle_first()

    def _settle_first(self) -> None:
        shard, seconds, done = self.unsettled.popleft()
        done.result()
        self.on_written(shard, seconds)

    def _write(self, path: Path, arrays: dict[str, Any]) -> None:
        try:
            if self.aside:
                arrays = arrays | self.annotate(arrays["images"])
            write_shard(path, arrays)
        except OSError as error:
            raise PDSError(
                f"cannot write {path.parent.parent} ({error.strerror or error}): make room and run the same command again, "
                "finished shards are kept"
            ) from None
        except torch.cuda.OutOfMemoryError:
            raise PDSError(
                f"the GPU has too little memory to measure {path.name} while the next shard is sampled: run the same command "
                "again with a smaller batch_size"
            ) from None
