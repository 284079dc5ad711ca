"""A folder of images, read as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pds.errors import PDSError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolder:
    """All images below a folder, in the order of their paths, read when asked for.

    Args:
        root: the folder; searched recursively.
        shape: (C, H, W) that every image must have; C is 1 (grey) or 3 (RGB).
        name: what provenance calls it; the folder's name when not given.
    """

    split = "all"

    def __init__(self, root: str | Path, shape: Sequence[int], name: str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.name = name or self.root.name
        self.shape = (shape[0], shape[1], shape[2])
        if self.shape[0] not in (1, 3):
            raise PDSError(f"image folders hold grey (1) or RGB (3) images, not {self.shape[0]} channels")
        if not self.root.is_dir():
            raise PDSError(
                f"image folder {self.root} does not exist: set dataset.source.root to a folder of {self.shape} images"
            )
        self.paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise PDSError(f"image folder {self.root} holds no images ({', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        return torch.stack([self._image(self.paths[i]) for i in indices])

    def _image(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if self.shape[0] == 1 else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise PDSError(f"{path} cannot be read as an image ({error})") from None
        if pixels.shape[:2] != self.shape[1:]:
            raise PDSError(f"{path} is {pixels.shape[0]}x{pixels.shape[1]}, the data set is {self.shape[1]}x{self.shape[2]}")
        return torch.from_numpy(pixels.reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1).copy())
