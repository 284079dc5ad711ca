"""Pictures of images: several of them on one canvas."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pds.errors import PDSError
from pds.options import Count, Range, checked

GAP = 2
"""Pixels between two images, and around all of them."""
_GAP_GREY = 128


def visible(images: Tensor) -> Tensor:
    """(n, C, H, W) images as grey or RGB ones: channels that are neither lie beside each other, (n, 1, H, C W)."""
    n, channels, height, width = images.shape
    return images if channels in (1, 3) else images.transpose(1, 2).reshape(n, 1, height, channels * width)


def image_grid(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images in reading order, with a thin grey gap around each.

    Args:
        images: (n, C, H, W) uint8, grey for C = 1, RGB for C = 3. Other channels lie beside each other in grey.
        columns: images a row; a last row that is not full is filled with grey.
        scale: side of the square that a pixel becomes.
    """
    images = visible(images)
    n, channels, height, width = images.shape
    if images.dtype != torch.uint8 or n < 1:
        raise ValueError(f"expected (n, C, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}")
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    rows, height, width = -(-n // columns), height * scale, width * scale
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), _GAP_GREY, np.uint8)
    tiles = images.cpu().numpy().transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


@checked
def grid(*rows: Tensor, columns: Count = 8, scale: Annotated[int, Range(1, 256)] = 2) -> Image.Image:
    """Several sets of images, one below the other. Each set begins a new line.

    Args:
        rows: (n, C, H, W) uint8 images each, all of one C, H and W, as `Samples.images` is.
        columns: images a line.
        scale: side of the square that a pixel becomes.

    Raises:
        PDSError: there are no images, or they are not uint8 images of one shape.
    """
    if not rows or not all(isinstance(row, Tensor) and row.ndim == 4 and len(row) for row in rows):
        raise PDSError("a grid needs at least one tensor of (n, C, H, W) images")
    if len({row.shape[1:] for row in rows}) > 1 or any(row.dtype != torch.uint8 for row in rows):
        given = ", ".join(f"{tuple(row.shape)} {str(row.dtype).removeprefix('torch.')}" for row in rows)
        raise PDSError(f"a grid needs uint8 images of one shape, got {given}")
    columns = min(columns, max(map(len, rows)))
    full = [torch.cat([row.cpu(), row.new_full((-len(row) % columns, *row.shape[1:]), _GAP_GREY).cpu()]) for row in rows]
    return image_grid(torch.cat(full), columns, scale)
