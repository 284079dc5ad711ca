"""Per-pixel and per-frequency statistics of a data set. The filters of PDS are made of them ([ECCV] section 4.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from pds.data.images import ImageSource, image_digest, read_in_batches, to_range, to_unit
from pds.errors import OptionError, PDSError
from pds.files import Array, atomic_path, json_digest, locate, parse_json, read_npz, reading, user_path
from pds.gaussian import StationaryGaussian
from pds.options import Range, options

log = logging.getLogger(__name__)

UNIT = Array("float32", ("C", "H", "W"), low=0, high=1)
POWER = Array("float32", ("C", "H", "W"), low=0)


@options
class DatasetStatistics:
    """Moments of images in [0, 1], each (C, H, W) float32.

    Attributes:
        name: the data set of the images.
        power: E|F x|^2 of the unnormalised 2-D DFT per channel, DC at [0, 0].
        mean: E[x] in each pixel.
        second_moment: E[x^2] in each pixel.
        provenance: data set, split, number of images, seed, hash of the images.
    """

    name: str
    power: Tensor
    mean: Tensor
    second_moment: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        moments = {"power": self.power, "mean": self.mean, "second_moment": self.second_moment}
        shapes = [tuple(moment.shape) for moment in moments.values()]
        if len(set(shapes)) > 1 or len(shapes[0]) != 3:
            raise PDSError(f"{', '.join(moments)} must have one shape (C, H, W), got {', '.join(map(str, shapes))}")
        wrong = next((name for name, moment in moments.items() if not moment.isfinite().all()), None)
        if wrong is not None:
            raise OptionError(wrong, "must be finite: make the statistics again, of finite images")
        wrong = next((name for name in ("power", "second_moment") if moments[name].min() < 0), None)
        if wrong is not None:
            raise OptionError(wrong, "must not be negative: it is a mean of squares")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.power.shape
        return channels, height, width

    def require_shape(self, shape: Sequence[int], whose: str) -> None:
        """Raise a `PDSError` if they are of images of another shape than (C, H, W), which is that of `whose`."""
        if self.shape != tuple(shape):
            raise PDSError(f"the statistics are of images of the shape {self.shape}, and {whose} has {tuple(shape)}")

    def gaussian(self, data_range: tuple[float, float] = (0.0, 1.0)) -> StationaryGaussian:
        """The Gaussian law with this mean and this power spectrum, in units of a data range (black, white)."""
        black, white = data_range
        mean = self.mean.double()
        power = (self.power.double() - torch.fft.fft2(mean).abs().square()) / mean[0].numel()
        # A mode that is 0 in all images (as with black margins) has a variance of rounding errors.
        power = (white - black) ** 2 * power.clamp(min=1e-12)
        return StationaryGaussian(to_range(mean, data_range), power, self.provenance)

    def save(self, path: str | Path) -> None:
        """Write as npz in float32, atomically, without pickles."""
        moments = {name: getattr(self, name).detach().float().cpu().numpy() for name in ("power", "mean", "second_moment")}
        with atomic_path(user_path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                **moments,
                provenance=np.array(json.dumps(self.provenance, sort_keys=True)),
            )

    @classmethod
    def load(cls, path: str | Path) -> DatasetStatistics:
        """Read what `save` wrote; anything else is a `PDSError`."""
        file, what, fix = locate(path), "a statistics file of this project", "make it again"
        arrays = read_npz(file, {"power": POWER, "mean": UNIT, "second_moment": UNIT, "provenance": Array("str")}, what, fix)
        with reading(file, what, fix):
            provenance = parse_json(str(arrays["provenance"]), {"dataset": str, "images": Annotated[int, Range(1)]})
            power, mean, square = (arrays[name].astype(np.float64) for name in ("power", "mean", "second_moment"))
            # Images in [0, 1] have x² <= x, and no frequency exceeds the sum of all pixels.
            if not (np.all(mean**2 <= square + 1e-5) and np.all(square <= mean + 1e-5) and np.all(power <= power[0].size ** 2)):
                raise ValueError("no images in [0, 1] have such moments")
        moments = {name: torch.from_numpy(arrays[name]) for name in ("power", "mean", "second_moment")}
        return cls(provenance["dataset"], **moments, provenance=provenance)


def choose_images(images: ImageSource, count: int, seed: int) -> np.ndarray:
    """(count,) indices of distinct images, the same for the same (len(images), count, seed)."""
    if not 1 <= count <= len(images):
        raise PDSError(
            f"{images.name} {images.split} has {len(images)} images, fewer than {count}: give it more, or ask for fewer"
        )
    return np.random.default_rng(seed).choice(len(images), count, replace=False)


def dataset_statistics(images: ImageSource, count: int = 200, seed: int = 0, cache: Path | None = None) -> DatasetStatistics:
    """Statistics of `count` random images in one pass, or from `cache` if these images were seen before.

    Args:
        images: the training images.
        count: number of images; the papers use 200.
        seed: seed of the choice.
        cache: folder of statistics files, or None. The name of a file has all that it depends on, including the hash of its
            images.
    """
    indices = choose_images(images, count, seed)
    provenance: dict[str, str | int] = {
        "dataset": images.name,
        "split": images.split,
        "images": count,
        "seed": seed,
        # Images are read twice instead of kept: 200 images of 1024x1024 in float64 would fill 5 GB.
        "images_sha256": image_digest(read_in_batches(images, indices)),
    }
    path = cache / f"{images.name}-{json_digest(provenance)}.npz" if cache else None
    if path and path.exists():
        cached = DatasetStatistics.load(path)
        if cached.provenance == provenance:
            return cached
        raise PDSError(f"{path} was made from other images ({cached.provenance}): delete it")
    power = torch.zeros(images.shape, dtype=torch.float64)
    mean, second_moment = torch.zeros_like(power), torch.zeros_like(power)
    for batch in read_in_batches(images, indices):
        x = to_unit(batch).double()
        power += torch.fft.fft2(x).abs().square().sum(0)
        mean += x.sum(0)
        second_moment += x.square().sum(0)
    power, mean, second_moment = ((total / count).float() for total in (power, mean, second_moment))
    statistics = DatasetStatistics(images.name, power, mean, second_moment, provenance)
    if path:
        statistics.save(path)
        log.info("statistics of %d images of %s written to %s", count, images.name, path)
    return statistics
