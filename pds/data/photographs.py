"""What the data sets of photographs have in common: a size and a preprocessing to choose, and folders to look in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from pds.data.folder import SUFFIXES, EncodedImages
from pds.errors import MissingError, PDSError


@dataclass(frozen=True, kw_only=True)
class Photographs(ABC):
    """Which images to take and what to make of them: checked when made, opened when called.

    Attributes:
        root: folder to look in.
        split: the part of the data set.
        resolution: height and width of the images, in pixels.
        preprocessing: whose cutting and shrinking: "ncsnv2" or "score_sde" (the code of NCSN++).
    """

    root: str | Path
    split: str
    resolution: int
    preprocessing: str

    splits: ClassVar[Sequence[str]]
    methods: ClassVar[Mapping[str, Callable[[Image.Image, int], np.ndarray]]]

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise PDSError(f"dataset.resolution must be at least 1, got {self.resolution}")
        if self.preprocessing not in self.methods:
            raise PDSError(f"dataset.preprocessing must be one of {', '.join(self.methods)}, got {self.preprocessing!r}")
        if self.split not in self.splits:
            raise PDSError(f"dataset.source.split must be one of {', '.join(self.splits)}, got {self.split!r}")

    @abstractmethod
    def __call__(self) -> EncodedImages:
        """The images; a `PDSError` says what is missing, from where it comes and where to put it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (3, self.resolution, self.resolution)

    def title(self, name: str) -> str:
        """What provenance calls the images of data set `name`: with all that was done to them."""
        return f"{name}_{self.resolution}_{self.preprocessing}"

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 pixels made of one RGB photograph."""
        return self.methods[self.preprocessing](image, self.resolution)

    def folder(self, candidates: Sequence[str], what: str, where_from: str) -> Path:
        """The first of `candidates` that exists below the root; else the root, if it is one of them or holds images itself."""
        root = Path(self.root).expanduser()
        for name in candidates:
            if (root / name).is_dir():
                return root / name
        own = any(root.parts[-len(parts) :] == parts for parts in (Path(name).parts for name in candidates))
        if root.is_dir() and (
            own or (root / "data.mdb").is_file() or any(p.suffix.lower() in SUFFIXES for p in root.iterdir())
        ):
            return root
        raise MissingError(
            f"{what} not found: put the folder {' or '.join(candidates[:2])} into {root} ({where_from}), or set PDS_DATA or "
            "dataset.source.root"
        )
