"""Flickr-Faces-HQ (Karras et al., CVPR 2019): a folder of its images."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from pds.data.folder import EncodedImages, ImageFolder
from pds.data.photographs import Photographs
from pds.data.preprocessing import BOX, crop_centre, nearest, require_size, shrink_exactly, shrink_shorter_side
from pds.errors import PDSError
from pds.options import options


def _require_face(image: Image.Image, resolution: int) -> None:
    require_size(image, resolution, f"the resolution {resolution}")
    if image.width != image.height:
        raise PDSError(f"is {image.height}x{image.width}, FFHQ has squares")


def _ncsnv2(image: Image.Image, resolution: int) -> np.ndarray:
    """ermongroup/ncsnv2 reads 256x256 images from an LMDB. It does not publish how this was made; this is its rule for LSUN."""
    _require_face(image, resolution)
    return np.asarray(crop_centre(shrink_shorter_side(image, resolution), resolution))


def _score_sde(image: Image.Image, resolution: int) -> np.ndarray:
    """yang-song/score_sde_pytorch reads the TFRecords of NVlabs/stylegan's `dataset_tool.py`: averages of 2x2, 4x4, ... pixels
    of the 1024x1024 images, rounded once at the end."""
    _require_face(image, resolution)
    return nearest(shrink_exactly(image, resolution, BOX))


@options
class FFHQ(Photographs):
    """FFHQ; its 70,000 images are one split, "all".

    Attributes:
        root: folder with images1024x1024 or ffhq in it, or a folder of square images itself.
    """

    split: Literal["all"]

    methods: ClassVar = {"ncsnv2": _ncsnv2, "score_sde": _score_sde}

    def __call__(self) -> EncodedImages:
        candidates = ["ffhq/images1024x1024", "images1024x1024", "ffhq"]
        folder = self.folder(candidates, "FFHQ", "images1024x1024 from https://github.com/NVlabs/ffhq-dataset")
        return ImageFolder(folder, self.shape, self.title("ffhq"), self.split, self.preprocess)
