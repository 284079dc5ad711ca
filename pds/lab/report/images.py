"""The page's pictures: grids and strips of generated images from the same noise, and filters."""

from __future__ import annotations

import base64
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pds.lab.report.pictures import filter_picture, space_picture
from pds.lab.report.runs import RunSummary, common, model, several_models
from pds.pictures import GAP, image_grid

MANY = 12
"""Runs beyond which a page shows strips instead of grids."""

_INLINE_SIDE = 1600
"""Longest side in pixels of an inlined grid: larger ones are shown scaled, their file is beside the report."""
_STRIP_IMAGES, _STRIP_SIDE = 10, 64
_FEW_PIXELS = 32
"""Side up to which images are shown as pixels, and strips of them kept exactly."""

Distances = Callable[[RunSummary], str]


def images_section(done: Sequence[RunSummary], distances: Distances) -> str:
    """Images of every run: its grid, or of many runs a strip each."""
    return _strips(done, distances) if len(done) > MANY else _grids(done, distances)


def _grids(done: Sequence[RunSummary], distances: Distances) -> str:
    figures = []
    for run in done:
        path = run.folder / "grid.png"
        if path.exists():
            title = model(run) if several_models(done) else ""
            facts = ", ".join(filter(None, (title, str(run.result.get("sampler", "")), distances(run))))
            caption = f"{escape(run.label)}<br><span class=note>{escape(facts)}</span>"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{_grid(path, run.label)}</figure>")
    if not figures:
        return ""
    same = common(run.result.get("seed") for run in done) is not None
    note = (
        "Images at the same place started from the same noise."
        if same
        else "The runs have different seeds: images at the same place are unrelated."
    )
    note += " The first images, not chosen ones."
    return f"<section><h2>Images</h2><p class=note>{note}</p><div class=figures>{''.join(figures)}</div></section>"


def _strips(done: Sequence[RunSummary], distances: Distances) -> str:
    seeds = list(dict.fromkeys(run.result.get("seed") for run in done))
    parts = []
    for seed in seeds:
        figures = []
        for run in (run for run in done if run.result.get("seed") == seed):
            images = _first_images(run.folder / "samples" / "shard-00000.npz", _STRIP_IMAGES)
            if images is not None:
                facts = [model(run)] if several_models(done) else []
                facts += [str(run.result.get("sampler", "")), f"T = {run.result.get('iterations')}", distances(run)]
                caption = f"{escape(run.label)}<br><span class=note>{escape(', '.join(filter(None, facts)))}</span>"
                figures.append(f"<figure><figcaption>{caption}</figcaption>{_strip(images, run.label)}</figure>")
        if figures:
            head = f"<h3>Seed {escape(str(seed))}</h3>" if len(seeds) > 1 else ""
            parts.append(f"{head}<div class=strips>{''.join(figures)}</div>")
    if not parts:
        return ""
    note = "The images of a column started from the same noise. The first images, not chosen ones; grid.png of a run has more."
    return f"<section><h2>Images</h2><p class=note>{note}</p>{''.join(parts)}</section>"


def _first_images(path: Path, count: int) -> np.ndarray | None:
    """(n, C, H, W) uint8, the first of a shard; None where there is no shard that can be read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
            # Shards of large images have hundreds of megabytes: read no more than is shown.
            np.lib.format.read_magic(file)
            (n, *shape), fortran, dtype = np.lib.format.read_array_header_1_0(file)
            n = min(n, count)
            if dtype != np.uint8 or fortran or len(shape) != 3:
                return None
            return np.frombuffer(file.read(n * math.prod(shape)), np.uint8).reshape(n, *shape)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _strip(images: np.ndarray, label: str) -> str:
    n, channels, *sides = images.shape
    if max(sides) > _STRIP_SIDE:
        height, width = (max(1, round(side * _STRIP_SIDE / max(sides))) for side in sides)
        mode = (lambda a: a[0]) if channels == 1 else (lambda a: a.transpose(1, 2, 0))
        small = [Image.fromarray(mode(image)).resize((width, height), Image.Resampling.LANCZOS) for image in images]
        images = np.stack([np.asarray(i).reshape(height, width, channels).transpose(2, 0, 1) for i in small])
    picture = image_grid(torch.from_numpy(images.copy()), n)
    exact = max(sides) <= _FEW_PIXELS
    kind, content = (
        ("png", _encoded(picture, "PNG", optimize=True)) if exact else ("jpeg", _encoded(picture, "JPEG", quality=92))
    )
    shown = f"{100 * n / _STRIP_IMAGES:.0f}%"
    style = "pixels" if exact else "photo"
    alt = f"First {n} images: {label}"
    return inlined(kind, content, alt, style, picture.width - GAP, picture.height, f' style="width:{shown}"')


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _grid(path: Path, label: str) -> str:
    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
            if max(width, height) <= _INLINE_SIDE:
                kind, content = "png", path.read_bytes()
            else:
                small = image.convert("RGB")
                small.thumbnail((_INLINE_SIDE, _INLINE_SIDE), Image.Resampling.LANCZOS)
                kind, content = "jpeg", _encoded(small, "JPEG", quality=92)
    except (OSError, SyntaxError) as error:  # Pillow calls a damaged PNG a SyntaxError
        return f"<p>grid.png cannot be read ({escape(str(error))})</p>"
    # Few pixels are shown as pixels; many are left to the browser's smooth scaling.
    style = "pixels" if width < 700 else "photo"
    return inlined(kind, content, f"Grid of generated images: {label}", style, width, height)


def filters_section(done: Sequence[RunSummary]) -> str:
    """The filters R and A of the runs, equal ones once."""
    figures: dict[bytes, str] = {}
    left_out = 0
    for run in done:
        path = run.folder / "filter.npz"
        if not path.exists():
            continue
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in _DRAWINGS if name in file}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            figures[str(path).encode()] = f"<p>{escape(run.label)}: filter.npz cannot be read ({escape(str(error))})</p>"
            continue
        for name, values in arrays.items():
            key = name.encode() + values.tobytes()
            if key in figures:
                continue
            if len(figures) >= MANY:
                left_out += 1
                continue
            picture = _DRAWINGS[name](values)
            alt = f"{name} filter of {run.label}"
            content = _encoded(picture, "PNG", optimize=True)
            image = inlined("png", content, alt, "plot", picture.width // 2, picture.height // 2)
            caption = f"{escape(run.label)}<br><span class=note>{_SYMBOLS[name]}</span>"
            figures[key] = f"<figure><figcaption>{caption}</figcaption>{image}</figure>"
    if not figures:
        return ""
    more = f"<p class=note>{left_out} more are in the filter.npz of their runs.</p>" if left_out else ""
    return (
        "<section><h2>Filters</h2><p class=note>Zero frequency is in the centre. At each frequency PDS multiplies the "
        "noise by 1/R and the drift by 1/R²: where R &lt; 1 a coordinate moves faster than in the vanilla sampler, "
        "where R &gt; 1 slower; R = 1 everywhere is vanilla. Runs with equal filters show them once.</p>"
        f"<div class=figures>{''.join(figures.values())}</div>{more}</section>"
    )


_DRAWINGS = {"frequency": filter_picture, "space": space_picture}
_SYMBOLS = {"frequency": "R, frequency plane", "space": "A, pixel plane"}


def inlined(kind: str, content: bytes, alt: str, style: str, width: int, height: int, more: str = "") -> str:
    """An <img> that holds its picture."""
    data = base64.b64encode(content).decode()
    return f'<img class={style}{more} width={width} height={height} alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'
