"""Pictures for the page: grids and strips of generated images, as data addresses."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pds.files import Array, read_bytes, read_npz
from pds.lab.report.runs import Run
from pds.pictures import GAP, image_grid, visible

_LONGEST = 1600  # side of a grid on the page, in pixels; larger grids are scaled down, and their files stay as they are
_FEW_PIXELS = 32  # images up to this side are shown pixel by pixel, and their strips are kept exactly
_STRIP_IMAGES, _STRIP_SIDE = 10, 64
_PLANE = Array("float", ("C", "H", "W"), optional=True)
FILTERS = {"frequency": _PLANE, "space": _PLANE}
SHARD = {"images": Array("uint8", ("n", "C", "H", "W"))}


class Picture(NamedTuple):
    """An image on the page."""

    data: str  # its content as an address
    width: int
    height: int
    exact: bool  # shown pixel by pixel
    share: int = 100  # part of the width of a strip, in per cent


def grid_of(run: Run) -> Picture | None:
    """Return the grid of a run's first images; None without a file."""
    path = run.folder / "grid.png"
    if not path.exists():
        return None
    content = read_bytes(path)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
        image, size = opened.convert("RGB"), opened.size
    if max(size) <= _LONGEST:
        return _picture(content, size, size[0] < 700)
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return _picture(image, size, False)


def strip_of(run: Run) -> Picture | None:
    """Return a run's very first images in one row; None without a file."""
    path = run.folder / "samples" / "shard-00000.npz"
    if not path.exists():
        return None
    fix = "delete it and run its command again"
    images = read_npz(path, SHARD, "a shard", fix, rows=_STRIP_IMAGES, others=True, most=1 << 40)["images"]
    images = visible(torch.from_numpy(images)).numpy()
    n, _, *sides = images.shape
    if max(sides) > _STRIP_SIDE:
        size = tuple(max(1, round(side * _STRIP_SIDE / max(sides))) for side in reversed(sides))
        pixels = (tile[0] if len(tile) == 1 else tile.transpose(1, 2, 0) for tile in images)
        tiles = [Image.fromarray(one).resize(size, Image.Resampling.LANCZOS) for one in pixels]
        images = np.stack([np.atleast_3d(np.asarray(tile)).transpose(2, 0, 1) for tile in tiles])
    row = image_grid(torch.from_numpy(images), n)
    return _picture(row, (row.width - GAP, row.height), max(sides) <= _FEW_PIXELS, 100 * n // _STRIP_IMAGES)


def filters_of(run: Run) -> dict[str, np.ndarray]:
    """Return R ("frequency") and A ("space") of a run, if it has them."""
    path, fix = run.folder / "filter.npz", "delete it; only its picture is lost"
    return read_npz(path, FILTERS, "the filters of a run", fix) if path.exists() else {}


def _picture(content: Image.Image | bytes, size: tuple[int, int], exact: bool, share: int = 100) -> Picture:
    """Return a picture from a PNG file's content, or from an image; an inexact one becomes JPEG."""
    kind, buffer = "png" if exact or isinstance(content, bytes) else "jpeg", io.BytesIO()
    if isinstance(content, bytes):
        buffer.write(content)
    else:
        content.save(buffer, kind, **({"optimize": True} if exact else {"quality": 92}))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *size, exact, share)
