"""CelebA (Liu et al., ICCV 2015): a folder of its aligned images, 178 pixels wide and 218 high."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image

from pds.data.folder import EncodedImages, ImageFolder
from pds.data.photographs import Photographs
from pds.data.preprocessing import (
    BILINEAR,
    crop_centre,
    crop_centre_down,
    nearest,
    require_size,
    shrink_exactly,
    shrink_shorter_side,
)
from pds.errors import PDSError
from pds.options import Range, options

CROP = 140  # pixels; the code of both papers cuts this square out of the middle
SPLITS = {"train": (1, 162_770), "val": (162_771, 182_637), "test": (182_638, 202_599)}
SOURCE = "img_align_celeba.zip, MD5 00d2c5bc6d35e252742224ab0c1e8fcb, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def _require_crop(image: Image.Image) -> None:
    require_size(image, CROP, f"the {CROP}x{CROP} to cut out of it: give the aligned images (218x178)")


def _ncsnv2(image: Image.Image, resolution: int) -> np.ndarray:
    """ermongroup/ncsnv2, `datasets/__init__.py`."""
    _require_crop(image)
    return np.asarray(shrink_shorter_side(crop_centre(image, CROP), resolution))


def _score_sde(image: Image.Image, resolution: int) -> np.ndarray:
    """yang-song/score_sde_pytorch, `datasets.py`. There the pixels stay real numbers; here they are rounded."""
    _require_crop(image)
    return nearest(shrink_exactly(crop_centre_down(image, CROP), resolution, BILINEAR))


@options
class CelebA(Photographs):
    """CelebA, aligned; splits "train", "val" and "test" are ranges of the numbers in file names.

    Attributes:
        root: folder with img_align_celeba in it or in its `celeba/`, or that folder itself.
    """

    split: Literal["train", "val", "test"]
    resolution: Annotated[int, Range(1, CROP)]

    methods: ClassVar = {"ncsnv2": _ncsnv2, "score_sde": _score_sde}

    def __call__(self) -> EncodedImages:
        folder = self.folder(["celeba/img_align_celeba", "img_align_celeba", "celeba"], "CelebA", SOURCE)
        images = ImageFolder(folder, self.shape, self.title("celeba"), self.split, self.preprocess)
        first, last = SPLITS[self.split]
        try:
            kept = [i for i, path in enumerate(images.paths) if first <= int(Path(path).stem) <= last]
        except ValueError as error:
            raise PDSError(f"{folder} has images not called 000001.jpg to 202599.jpg, as CelebA's are ({error})") from None
        images.paths = [images.paths[i] for i in kept]
        images.labels = None if images.labels is None else images.labels[kept]
        if not kept:
            raise PDSError(
                f"{folder} holds none of the images {first:06}.jpg to {last:06}.jpg of CelebA {self.split}: put them there"
            )
        return images
