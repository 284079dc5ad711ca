"""Cutting and shrinking photographs as the authors of the score models did. Pixels are RGB, 0 to 255."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pds.errors import PDSError

BILINEAR, BICUBIC, BOX = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX


def require_size(image: Image.Image, size: int, what: str) -> None:
    """Refuse an image with a side shorter than `size`, because enlarged images are no data. `what` names the size in the
    message."""
    if min(image.size) < size:
        raise PDSError(f"is {image.height}x{image.width}, smaller than {what}")


def shrink_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """The shorter side brought to `size` by Pillow's bilinear filter, which is antialiased: torchvision's `Resize(size)`."""
    width, height = image.size
    short = min(width, height)
    return image.resize((int(size * width / short), int(size * height / short)), BILINEAR)


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """The central square, halves of a pixel rounded to even: torchvision's `CenterCrop(size)`."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def crop_centre_down(image: Image.Image, size: int) -> Image.Image:
    """The central square, halves of a pixel rounded down: score_sde's crops."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def shrink_exactly(image: Image.Image, size: int, kernel: Image.Resampling) -> np.ndarray:
    """(size, size, 3) float32: an antialiased resize without rounding or clipping, as TensorFlow's `antialias=True`.

    Args:
        image: a square image.
        size: height and width of the result, in pixels.
        kernel: filter, stretched by the factor of reduction. Pillow's cubic is Keys' with a = -1/2, as TensorFlow's.
    """
    planes = [np.asarray(plane.convert("F").resize((size, size), kernel)) for plane in image.split()]
    return np.stack(planes, axis=-1)


def truncate(pixels: np.ndarray) -> np.ndarray:
    """uint8 by truncation. Values of a cubic filter below 0 or above 255 are clipped here; score_sde lets them wrap around."""
    return pixels.clip(0, 255).astype(np.uint8)


def nearest(pixels: np.ndarray) -> np.ndarray:
    """uint8 by rounding."""
    return np.rint(pixels).clip(0, 255).astype(np.uint8)
