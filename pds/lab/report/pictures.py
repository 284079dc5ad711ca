"""Pictures for the page: grids and strips of generated images, as data addresses."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pds.files import Array, read_npz
from pds.lab.report.runs import Run
from pds.pictures import GAP, image_grid

_LONGEST = 1600
"""Longest side of a grid on the page, in pixels; larger grids are scaled down, and their files stay as they are."""
_STRIP_IMAGES, _STRIP_SIDE = 10, 64
_FEW_PIXELS = 32
"""Images up to this side are shown pixel by pixel, and their strips are kept exactly."""
_PLANE = Array("float", ("C", "H", "W"), optional=True)
FILTERS = {"frequency": _PLANE, "space": _PLANE}
SHARD = {"images": Array("uint8", ("n", "C", "H", "W"))}


class Picture(NamedTuple):
    """An image on the page."""

    data: str  # its content as an address
    width: int
    height: int
    exact: bool  # shown pixel by pixel
    share: int = 100  # per cent of the width that a strip has


def grid_of(run: Run) -> Picture | None:
    """Return the grid of a run's first images; None without a file."""
    path = run.folder / "grid.png"
    if not path.exists():
        return None
    with Image.open(path, formats=["PNG"]) as opened:
        opened.load()
        image: Image.Image = opened
        width, height = image.size
        if max(width, height) <= _LONGEST:
            return _picture("png", path.read_bytes(), image.size, width < 700)
        image = image.convert("RGB")
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        return _picture("jpeg", _encoded(image, "JPEG", quality=92), (width, height), False)


def strip_of(run: Run) -> Picture | None:
    """Return a run's very first images in one row; None without a file."""
    path = run.folder / "samples" / "shard-00000.npz"
    if not path.exists():
        return None
    images = read_npz(path, SHARD, "a shard", "delete it and run its command again", rows=_STRIP_IMAGES, others=True)["images"]
    n, _, *sides = images.shape
    exact = max(sides) <= _FEW_PIXELS
    if max(sides) > _STRIP_SIDE:
        size = tuple(max(1, round(side * _STRIP_SIDE / max(sides))) for side in reversed(sides))
        tiles = [Image.fromarray(tile.transpose(1, 2, 0).squeeze()).resize(size, Image.Resampling.LANCZOS) for tile in images]
        images = np.stack([np.atleast_3d(np.asarray(tile)).transpose(2, 0, 1) for tile in tiles])
    row = image_grid(torch.from_numpy(images), n)
    content = _encoded(row, "PNG", optimize=True) if exact else _encoded(row, "JPEG", quality=92)
    return _picture("png" if exact else "jpeg", content, (row.width - GAP, row.height), exact, 100 * n // _STRIP_IMAGES)


def filters_of(run: Run) -> dict[str, np.ndarray]:
    """Return R ("frequency") and A ("space") of a run, as far as it has them."""
    path: Path = run.folder / "filter.npz"
    return (
        read_npz(path, FILTERS, "the filters of a run", "delete it; nothing but its picture is lost") if path.exists() else {}
    )


def _encoded(picture: Image.Image, kind: str, **options: bool | int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture(kind: str, content: bytes, size: tuple[int, int], exact: bool, share: int = 100) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *size, exact, share)
