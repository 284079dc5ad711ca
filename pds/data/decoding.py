"""From the bytes of an image file to its intended pixels, by one function for every data set."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pds.errors import PDSError
from pds.options import shown

FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",)}
"""The formats of data sets. Pillow opens many more, some of them by starting other programs."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MOST_BYTES = 2**27
MOST_PIXELS = 2**26


def decoded(file: bytes, channels: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture that a viewer shows, in 8 bits a channel.

    Pixels of 16 bits are divided by 257 and rounded. A rotation in EXIF is applied. Pictures without such a form are refused:
    transparent pictures, floating-point pictures and animations.

    Args:
        file: an encoded PNG, JPEG, WebP or BMP.
        channels: 1 for grey, 3 for RGB.
        size: (height, width) of the picture, checked before its pixels take memory; None takes up to 2**26 pixels.

    Raises:
        PDSError: a phrase that goes on from the image's name, as in "is animated (12 frames): ...".
    """
    with _opened(io.BytesIO(file), size) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        _check_size(image, size, turned=True)
        return _converted(image, channels)


def check_header(file: BinaryIO, size: tuple[int, int] | None) -> None:
    """Refuse what `decoded` refuses, as far as the first bytes of a file tell; arguments and errors as there."""
    with _opened(file, size):
        pass


@contextlib.contextmanager
def _opened(file: BinaryIO, size: tuple[int, int] | None) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet; any error of the block becomes a phrase that goes on from its name."""
    try:
        with Image.open(file, formats=tuple(FORMATS)) as opened:
            _check_size(opened, size)
            if (frames := getattr(opened, "n_frames", 1)) > 1:
                raise PDSError(f"is animated ({frames} frames): keep one frame, or remove it")
            yield opened
    except PDSError:
        raise
    except UnidentifiedImageError:
        raise PDSError(f"is no {', '.join(FORMATS)} image: convert or remove it") from None
    except Exception as error:  # Pillow raises many kinds of errors on damaged files
        why = shown(str(error) or type(error).__name__).strip("'\"")
        raise PDSError(f"cannot be read as an image ({why}): remove or replace it") from None


def decoded_anew(file: bytes) -> bool:
    """Whether versions before 2026-11 decoded other pixels: they clipped 16 bits at 255, and ignored the rotation in EXIF."""
    try:
        with Image.open(io.BytesIO(file), formats=tuple(FORMATS)) as opened:
            # The rotation of a PNG may stand after its pixels. These are decoded only if the file has this word.
            return opened.mode.startswith("I") or (
                b"exif" in file.lower() and opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            )
    except Exception:  # reading the file later gives the reason
        return False


def _check_size(image: Image.Image, size: tuple[int, int] | None, turned: bool = False) -> None:
    found = (image.height, image.width)
    # The rotation of a PNG may stand in its last bytes.
    if size is not None and found != size and (turned or found != size[::-1]):
        raise PDSError(f"is {found[0]}x{found[1]}, the data set is {size[0]}x{size[1]}: remove or replace it")
    if math.prod(found) > MOST_PIXELS:
        raise PDSError(f"is {found[0]}x{found[1]}, more than {MOST_PIXELS} pixels: shrink or remove it")


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise PDSError("holds floating-point pixels of unknown range: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # Grey of 16 bits; Pillow's own conversion would clip it at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PDSError("holds more than 16 bits a channel: save it with 8 or 16")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise PDSError("is transparent: flatten it on the background that it should have")
    return image.convert("L" if channels == 1 else "RGB")
