"""Pictures of images: several of them on one canvas."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP = 2
"""Pixels between two images, and around all of them."""
_GAP_GREY = 128


def image_grid(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images in reading order, with a thin grey gap around each.

    Args:
        images: (n, C, H, W) uint8, C = 1 or 3.
        columns: images a row; a last row that is not full is filled with grey.
        scale: side of the square that a pixel becomes.
    """
    n, channels, height, width = images.shape
    if images.dtype != torch.uint8 or channels not in (1, 3) or n < 1:
        raise ValueError(f"expected (n, 1 or 3, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}")
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
