"""The common part of the data sets of photographs: a size and a preprocessing to choose, and folders to look in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image

from pds.data.decoding import SUFFIXES
from pds.data.folder import EncodedImages
from pds.errors import MissingError
from pds.files import user_path
from pds.options import Range, options


@options
class Photographs(ABC):
    """The choice of images and their preprocessing: checked when made, opened when called.

    Attributes:
        root: folder to look in.
        split: the part of the data set.
        resolution: height and width of the images, in pixels.
        preprocessing: the code that cuts and shrinks them: "ncsnv2" or "score_sde" (the code of NCSN++).
    """

    root: str | Path
    split: str
    resolution: Annotated[int, Range(1, 8192)]
    preprocessing: Literal["ncsnv2", "score_sde"]

    methods: ClassVar[Mapping[str, Callable[[Image.Image, int], np.ndarray]]]

    @abstractmethod
    def __call__(self) -> EncodedImages:
        """The images. A `PDSError` names a missing file, its origin and its place."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (3, self.resolution, self.resolution)

    def title(self, name: str) -> str:
        """Return the name in provenance of the images of data set `name`, with their preprocessing."""
        return f"{name}_{self.resolution}_{self.preprocessing}"

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 pixels made of one RGB photograph."""
        return self.methods[self.preprocessing](image, self.resolution)

    def folder(self, candidates: Sequence[str], what: str, where_from: str) -> Path:
        """The first of `candidates` that exists below the root; else the root, if it is one of them or holds images itself."""
        root = user_path(self.root)
        for name in candidates:
            if (root / name).is_dir():
                return root / name
        own = any(root.parts[-len(parts) :] == parts for parts in (Path(name).parts for name in candidates))
        if root.is_dir() and (
            own or os.path.lexists(root / "data.mdb") or any(p.suffix.lower() in SUFFIXES for p in root.iterdir())
        ):
            return root
        raise MissingError(
            f"{what} not found: put the folder {' or '.join(candidates[:2])} into {root} ({where_from}), or give another root"
        )
