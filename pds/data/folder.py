"""Sources of encoded images, decoded when asked for; folders of image files."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pds.data.decoding import FORMATS, MOST_BYTES, SUFFIXES, check_header, decoded, decoded_anew
from pds.errors import MissingError, OptionError, PDSError
from pds.files import open_regular, read_bytes, user_path
from pds.options import Shape, checked

THREADS = min(8, os.cpu_count() or 1)
SAMPLED = 64

Preprocess = Callable[[Image.Image], np.ndarray]


class EncodedImages(ABC):
    """An image source of encoded files (PNG, JPEG, WebP): each is read, decoded and preprocessed when asked for.

    Args:
        name: the data set's name.
        split: its split.
        shape: (C, H, W) that every image must have in the end; C is 1 (grey) or 3 (RGB).
        preprocess: makes (H, W) or (H, W, C) uint8 pixels of a decoded grey or RGB image; None takes it as it is. It refuses an
            image by a `PDSError` that goes on from the image's name.
    """

    def __init__(self, name: str, split: str, shape: Sequence[int], preprocess: Preprocess | None) -> None:
        self.name, self.split, self.shape = name, split, (shape[0], shape[1], shape[2])
        self.preprocess = preprocess
        if self.shape[0] not in (1, 3):
            raise OptionError("shape", f"must start with 1 (grey) or 3 (RGB) for image files, got {list(shape)}")

    labels: np.ndarray | None = None

    @property
    @abstractmethod
    def names(self) -> Sequence[bytes]:
        """The name of each image, in order."""

    @abstractmethod
    def encoded(self, i: int) -> bytes:
        """The file of image i; a `PDSError` names the image if it cannot be read."""

    @abstractmethod
    def place(self, i: int) -> str:
        """The place of image i, for messages."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hash of all names and of the bytes of 64 files spread over them. A data set may hold millions of files.

        The hash differs from an older version's if that version decoded one of the 64 files to other pixels.
        """
        digest = hashlib.sha256(b"\0".join(self.names))
        for i in np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int):
            file = self.encoded(i)
            digest.update(file)
            if decoded_anew(file):
                digest.update(b"2026-11")
        return {"files_sha256": digest.hexdigest()}

    def read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        images = np.empty((len(indices), *self.shape), np.uint8)

        def decode(position: int) -> None:
            images[position] = self._image(indices[position])

        # Decoding and resizing leave Python's lock alone, so threads share them out.
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(decode, range(len(indices))):
                pass
        return torch.from_numpy(images)

    def _image(self, i: int) -> np.ndarray:
        channels, height, width = self.shape
        file = self.encoded(i)
        try:
            image = decoded(file, channels, None if self.preprocess else (height, width))
            pixels = np.asarray(image) if self.preprocess is None else self.preprocess(image)
        except PDSError as refusal:
            raise PDSError(f"{self.place(i)} {refusal}") from None
        if pixels.shape[:2] != (height, width):
            raise PDSError(f"{self.place(i)} becomes {pixels.shape[0]}x{pixels.shape[1]}, the data set is {height}x{width}")
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def image_paths(root: Path) -> Iterator[str]:
    """Paths of the image files below `root`, relative to it; linked folders are followed, and no folder is read twice.

    Names that begin with a dot are skipped: macOS and Jupyter leave such files and folders beside images.

    Raises:
        PDSError: a link leads to a folder around `root`, and so to all that lies beside it.
    """
    seen, home = set(), os.path.realpath(root)
    for folder, inner, files in os.walk(root, followlinks=True):
        if os.path.islink(folder) and home.startswith(os.path.join(os.path.realpath(folder), "")):
            raise PDSError(f"{folder} leads to {os.path.realpath(folder)}, which holds {root} itself: remove the link")
        facts = os.stat(folder)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if (facts.st_dev, facts.st_ino) in seen:
            inner.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for file in files:
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield os.path.relpath(os.path.join(folder, file), root)


class ImageFolder(EncodedImages):
    """All images below a folder, in the order of their paths. If all images lie in subfolders, the subfolders are their
    classes.

    Args:
        root: the folder; searched recursively, linked folders too.
        shape: (C, H, W) that every image must have in the end; C is 1 (grey) or 3 (RGB).
        name: its name in provenance; the folder's name when not given.
        split: name of the choice of images in provenance.
        preprocess: see `EncodedImages`.
    """

    @checked
    def __init__(
        self,
        root: str | Path,
        shape: Shape,
        name: str | None = None,
        split: str = "all",
        preprocess: Preprocess | None = None,
    ) -> None:
        self.root = user_path(root)
        super().__init__(name or self.root.name, split, shape, preprocess)
        if not self.root.is_dir():
            raise MissingError(f"image folder {self.root} does not exist: give a folder of {list(shape)} images as its root")
        self.paths = sorted(image_paths(self.root))
        if not self.paths:
            raise PDSError(f"image folder {self.root} holds no images ({', '.join(sorted(SUFFIXES))})")
        folders = [path.partition(os.sep)[0] for path in self.paths if os.sep in path]
        if len(folders) == len(self.paths):
            self.labels = np.unique(folders, return_inverse=True)[1]

    @property
    def names(self) -> Sequence[bytes]:
        return [os.fsencode(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, i: int) -> bytes:
        return read_bytes(self.root / self.paths[i], MOST_BYTES)

    def place(self, i: int) -> str:
        return str(self.root / self.paths[i])

    def check_headers(self) -> None:
        """Look at the header of every file before a long work, which would meet a wrong image after hours.

        50,000 small JPEG files took 12 s on two CPU cores.

        Raises:
            PDSError: a file is no image, is animated or, where nothing crops the images, has another size; it names the file.
        """
        size = None if self.preprocess else (self.shape[1], self.shape[2])

        def check(i: int) -> None:
            with open_regular(self.root / self.paths[i], MOST_BYTES) as file:
                try:
                    check_header(file, size)
                except PDSError as refusal:
                    raise PDSError(f"{self.place(i)} {refusal}") from None

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(check, range(len(self))):
                pass


def folder_of_images(root: str | Path) -> ImageFolder:
    """All images below a folder, of the shape of the first image, and grey if the first is grey.

    Raises:
        PDSError: the folder or its images are absent, or the first image cannot be read.
    """
    if not user_path(root).is_dir():
        raise MissingError(f"image folder {root} does not exist")
    folder = ImageFolder(root, (3, 1, 1))
    file = folder.encoded(0)
    try:
        first = decoded(file, 3)
    except PDSError as refusal:
        raise PDSError(f"{folder.place(0)} {refusal}") from None
    with Image.open(io.BytesIO(file), formats=tuple(FORMATS)) as opened:
        grey = opened.mode in ("1", "L", "I", "I;16")
    return ImageFolder(root, (1 if grey else 3, first.height, first.width))
