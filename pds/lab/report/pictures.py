"""Pictures without a plotting library: filters in their plane with axes and a colour bar."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (116, 125, 137)
"""Text colour that reads on white and on near-black; the pictures themselves are transparent around their data."""
_COLOURS = np.frombuffer(bytes.fromhex("160b39 420a68 781c6d b0315b de563c f78a18 fac63a fcffa4"), np.uint8).reshape(-1, 3)
"""Dark violet to pale yellow; lightness only rises, so that the order of values survives in grey."""
_SIDE = 448
_FONT_SIZE = 25


def filter_picture(frequency: np.ndarray) -> Image.Image:
    """A frequency filter R, DC in the centre, axes in cycles/pixel.

    Args:
        frequency: (C, H, W) in FFT layout, DC at [0, 0].

    Returns:
        A transparent RGBA picture at twice the size it is meant to be shown at; one panel when all channels are equal,
        else one panel a channel on a common scale.
    """
    height, width = frequency.shape[-2:]
    # A pixel's centre is at index + 1/2; DC is index n // 2 of the shifted layout.
    ticks = [[((n // 2 + 0.5 + f * n) / n, f"{f:g}") for f in (-0.5, -0.25, 0, 0.25, 0.5)] for n in (width, height)]
    return _panels(np.fft.fftshift(frequency, axes=(-2, -1)), "R", ticks[0], ticks[1], "cycles/pixel")


def space_picture(space: np.ndarray) -> Image.Image:
    """A space filter A, axes in pixels; see `filter_picture`.

    Args:
        space: (C, H, W).
    """
    ticks = [[((i + 0.5) / n, str(i)) for i in (0, n // 2, n - 1)] for n in (space.shape[-1], space.shape[-2])]
    return _panels(space, "A", ticks[0], ticks[1], "pixel")


def _panels(
    values: np.ndarray, symbol: str, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]], unit: str
) -> Image.Image:
    values = np.asarray(values, np.float64)
    panels = [values.mean(axis=0)] if np.allclose(values, values[:1]) else list(values)
    low, high = min(p.min() for p in panels), max(p.max() for p in panels)
    zoom = _SIDE / max(values.shape[-2:])
    zoom = max(1, int(zoom)) if zoom >= 1 else zoom
    width, height = (round(n * zoom) for n in values.shape[:0:-1])
    left, top, right, bottom, apart, bar = 90, 40, 112, 80, 30, 24
    font = ImageFont.load_default(_FONT_SIZE)
    size = (left + len(panels) * (width + apart) + bar + right, top + height + bottom)
    picture = Image.new("RGBA", size, (*_INK, 0))
    draw = ImageDraw.Draw(picture)
    for number, panel in enumerate(panels):
        x0 = left + number * (width + apart)
        heat = Image.fromarray(colours((panel - low) / (high - low) if high > low else np.full_like(panel, 0.5)))
        picture.paste(heat.resize((width, height), Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX), (x0, top))
        draw.rectangle((x0 - 1, top - 1, x0 + width, top + height), outline=_INK)
        for position, text in x_ticks:
            x = x0 + min(position * width, width - 1)
            draw.line([(x, top + height), (x, top + height + 6)], _INK, 2)
            draw.text((x, top + height + 10), text, _INK, font, anchor="mt")
        draw.text((x0 + width / 2, top + height + 44), unit, _INK, font, anchor="mt")
        if len(panels) > 1:
            draw.text((x0 + width / 2, top - 8), f"channel {number}", _INK, font, anchor="mb")
    for position, text in y_ticks:
        y = top + min(position * height, height - 1)
        draw.line([(left - 6, y), (left, y)], _INK, 2)
        draw.text((left - 16, y), text, _INK, font, anchor="rm")
    x = left + len(panels) * (width + apart)
    shades = np.linspace(1, 0, height) if high > low else np.full(height, 0.5)
    picture.paste(Image.fromarray(colours(np.repeat(shades[:, None], bar, axis=1))), (x, top))
    draw.rectangle((x - 1, top - 1, x + bar, top + height), outline=_INK)
    draw.text((x + bar / 2, top - 8), symbol, _INK, font, anchor="mb")
    marks = [low, high] if high > low else [low]
    # 1 leaves a coordinate as it is: worth a mark where there is room for it.
    if low < 1 < high and 0.08 < (1 - low) / (high - low) < 0.92:
        marks.append(1.0)
    for value in marks:
        y = top + (height - 1) * ((high - value) / (high - low) if high > low else 0.5)
        draw.text((x + bar + 12, y), f"{value:.3g}", _INK, font, anchor="lm")
    return picture


def colours(values: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of `values` in [0, 1]."""
    anchors = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, anchors, c) for c in _COLOURS.T], axis=-1).round().astype(np.uint8)
