"""Shards: ranges of images and the files that hold them, each whole or absent."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pds.errors import MissingError, PDSError
from pds.files import MOST, Array, DamagedError, atomic_path, read_npz, reading

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """The content of a run's shards.

    Attributes:
        shape: (C, H, W) of an image.
        samples: digest of all that the images depend on beside their indices; empty for images of no run.
        beside: schema of their annotations; its axis "N" is that of the images.
    """

    shape: tuple[int | str, int | str, int | str] = ("C", "H", "W")
    samples: str = ""
    beside: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A range of image indices and the file that holds its images.

    Attributes:
        indices: the image indices.
        path: npz with `images` (n, C, H, W) uint8, `nfe` (of an image, on average), `seconds` spent sampling it, and its
            annotations. On a GPU earlier shards are annotated in the same time. It also has `indices` (n,), `samples` (the
            digest of its run, see `Contents`), and `taken_from` if another run sampled the images.
        contents: the expected content.
    """

    indices: range
    path: Path
    contents: Contents = Contents()

    def read(self, others: bool = False) -> dict[str, np.ndarray]:
        """Its arrays. Older files have no `indices` and no `samples`.

        Args:
            others: whether it may hold other arrays, which are not read.

        Raises:
            MissingError: there is no such file.
            DamagedError: it is damaged, or not the shard of these images.
        """
        n, shape = len(self.indices), self.contents.shape
        schema = {
            "images": Array("uint8", ("N", *shape)),
            "nfe": Array("float", low=0, high=1e9),
            "seconds": Array("float", low=1e-12),
            "indices": Array("int64", ("N",), optional=True),
            "samples": Array("str", optional=True),
            "taken_from": Array("str", optional=True),
            **self.contents.beside,
        }
        what, fix = "a whole shard of this run", "run the same command again"
        sides = [side for side in shape if isinstance(side, int)]
        # An image has no more than some thousand features.
        most = n * (math.prod(sides) + (1 << 16)) + (1 << 20) if len(sides) == len(shape) else MOST
        arrays = read_npz(self.path, schema, what, fix, others=others, most=most)
        with reading(self.path, what, fix):
            if len(arrays["images"]) != n:
                raise ValueError(f"it holds {len(arrays['images'])} images, not {n}")
            if not np.array_equal(arrays.get("indices", self.indices), self.indices):
                raise ValueError(f"it holds the images {arrays['indices'][0]} to {arrays['indices'][-1]}")
            if self.contents.samples and str(arrays.get("samples", self.contents.samples)) != self.contents.samples:
                raise ValueError("its images were sampled with other settings")
        return arrays

    def write(self, arrays: Mapping[str, Any]) -> None:
        """Write its file, whole or not at all, with the identity of the images."""
        known = {"indices": np.asarray(self.indices), "samples": np.array(self.contents.samples)}
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{**arrays, **known})


def shards(folder: Path, images: int, shard_size: int, contents: Contents = Contents()) -> list[Shard]:
    """The shards of a run of `images` images."""
    if images < 1 or shard_size < 1:
        raise PDSError(f"images and shard_size must be at least 1, got {images} and {shard_size}")
    starts = range(0, images, shard_size)
    return [
        Shard(range(start, min(start + shard_size, images)), folder / f"shard-{number:05d}.npz", contents)
        for number, start in enumerate(starts)
    ]


def read_all(todo: Sequence[Shard], make: Callable[[Shard], None]) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each shard in turn. A damaged shard is set aside and made again, and a log line says so.

    Args:
        todo: the shards of a run, which were made before.
        make: samples a shard whose file is absent.
    """
    for shard in todo:
        try:
            arrays = shard.read()
        except DamagedError as error:
            aside = shard.path.with_name(f"{shard.path.name}.damaged")
            log.warning("%s; it is made again now, and the old file kept as %s", error, aside.name)
            shard.path.replace(aside)
            make(shard)
            arrays = shard.read()
        if "samples" not in arrays:
            # The file was made before shards named their run. If it cannot be written, it is read like this again.
            with contextlib.suppress(PDSError):
                shard.write(arrays)
        yield arrays


def take_over(
    todo: Sequence[Shard], samples: Path, origin: str, annotate: Callable[[np.ndarray], dict[str, np.ndarray]] | None
) -> int:
    """Give absent shards the images that another run has sampled with the same settings.

    Args:
        todo: shards of this run.
        samples: folder of the other run's shards.
        origin: name of the other run; the shards keep it as `taken_from`.
        annotate: makes the annotations anew; None takes them over as well.

    Returns:
        Number of shards that were given images. Files that are damaged, or end before the shard does, are passed over.
    """
    given = 0
    for shard in todo:
        other = replace(shard, path=samples / shard.path.name)
        if shard.path.exists() or not other.path.exists():
            continue
        if annotate is not None:
            other = replace(other, contents=replace(shard.contents, beside={}))
        try:
            arrays = other.read(others=annotate is not None)
        except (DamagedError, MissingError):  # the other run will report it
            continue
        if annotate is not None:
            arrays |= annotate(arrays["images"])
        shard.write(arrays | {"taken_from": np.array(origin)})
        given += 1
    return given


class ShardWriter:
    """Writes shards in a separate thread, one after the other.

    Leaving the block waits for all of them. So sampled images are kept, even if the next shard fails.

    Args:
        annotate: arrays to keep beside a shard's images.
        aside: annotate in that thread as well.
        on_written: called with each written shard and the seconds of its sampling, outside of that thread.
        most: number of unwritten shards, whose images are held in memory, at which `write` waits for the first.
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
        """Queue a shard for writing, and wait until at most `most` shards are queued."""
        if not self.aside:
            arrays = arrays | self.annotate(arrays["images"])
        written = self.thread.submit(self._write, shard, arrays)
        self.unsettled.append((shard, arrays["seconds"], written))
        while len(self.unsettled) > self.most:
            self._settle_first()

    def settle(self) -> None:
        """Report a shard that has been written, or raise its error."""
        while self.unsettled and self.unsettled[0][2].done():
            self._settle_first()

    def _settle_first(self) -> None:
        shard, seconds, done = self.unsettled.popleft()
        done.result()
        self.on_written(shard, seconds)

    def _write(self, shard: Shard, arrays: dict[str, Any]) -> None:
        try:
            if self.aside:
                arrays = arrays | self.annotate(arrays["images"])
            shard.write(arrays)
        except torch.cuda.OutOfMemoryError:
            raise PDSError(
                f"the GPU has too little memory to measure {shard.path.name} while the next shard is sampled: run the same "
                "command again with a smaller batch_size"
            ) from None
