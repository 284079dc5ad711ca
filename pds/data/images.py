"""Every data set as the rest of the library sees it: an indexable source of uint8 images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pds.errors import MissingError, PDSError


class ImageSource(Protocol):
    """A finite, ordered set of images of one shape.

    Attributes:
        name: the data set's name, as it stands in provenance and file names.
        split: "train" or "test" (folders: "all").
        shape: (C, H, W) of every image.
        fingerprint: tells these images from others of the same name, split, shape and number, in provenance. It takes seconds
            for any number of images.
        labels: (N,) the class of each image, counted from 0; None without classes.
    """

    name: str
    split: str
    shape: tuple[int, int, int]
    labels: np.ndarray | None

    @property
    def fingerprint(self) -> dict[str, str]: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """(n, C, H, W) uint8 images at `indices`, in that order."""
        ...


class ArrayImages:
    """An image source held in memory as one (N, C, H, W) uint8 array."""

    def __init__(self, name: str, split: str, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.name, self.split = name, split
        self.images, self.labels = images, labels
        self.shape = tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        return {"images_sha256": hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()}

    def read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(self.images[np.asarray(indices)])


def read_in_batches(images: ImageSource, indices: np.ndarray) -> Iterator[Tensor]:
    """The uint8 images at `indices`, in that order, some at a time: 32 MB at most, and at least one."""
    size = max(1, min(500, 2**25 // math.prod(images.shape)))
    for start in range(0, len(indices), size):
        yield images.read(indices[start : start + size])


def image_digest(chunks: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of uint8 images, in order."""
    digest = hashlib.sha256()
    for images in chunks:
        digest.update(images.contiguous().numpy())
    return digest.hexdigest()


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Samples as uint8: clamped to [0, 1], scaled by 255 and rounded, as the NCSN family and PDS save images."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) images, each mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def to_range(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Images in [0, 1] in units of a network, whose data range is (black, white)."""
    black, white = data_range
    return black + (white - black) * images


def from_range(x: Tensor, data_range: tuple[float, float]) -> Tensor:
    """The inverse of `to_range`."""
    black, white = data_range
    return (x - black) / (white - black)


def as_uint8(images: Tensor) -> Tensor:
    """(n, C, H, W) images in memory as uint8, from uint8 or from floats from 0 (black) to 1 (white).

    Raises:
        PDSError: they are neither.
    """
    if images.ndim != 4 or not images.numel():
        raise PDSError(f"images must have the shape (n, C, H, W) with n at least 1 and no side of 0, got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point() or not (images.min() >= 0 and images.max() <= 1):
        raise PDSError("images must be uint8, or floats from 0 (black) to 1 (white)")
    return to_uint8(images)


def require_file(root: Path, candidates: Sequence[str], what: str, where_from: str) -> Path:
    """The first of `candidates` that exists under `root`; else a `MissingError` that says where to get the file and where to
    put it."""
    for name in candidates:
        if (root / name).is_file():
            return root / name
    raise MissingError(f"{what} not found: put {candidates[0]} into {root} ({where_from}), or give another root")
