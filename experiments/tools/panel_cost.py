"""Time and memory of the panel without memorisation, on random features: experiments/tools/panel_cost.py [IMAGES [LENGTH]]

By default 50,000 images against 50,000, of features of length 2,048. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from pds.errors import PDSError
from pds.evaluation.frechet import FeatureStatistics
from pds.evaluation.panel import NEIGHBOURS, Name, Panel
from pds.evaluation.reference import Reference
from pds.lab.cli import documented, start

GROUPS: tuple[tuple[Name, ...], ...] = (("fid",), ("fid_infinity",), ("inception_score",), ("kid",), NEIGHBOURS)
CLASSES = 1000


class RandomFeatures:
    """A stand-in for a feature network that is never run, with a random last layer."""

    name = "random"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.provenance = {"features": self.name, "resize": "none"}
        self._layer = 0.05 * np.random.default_rng(1).standard_normal((dimension, CLASSES), dtype=np.float32)

    @property
    def logits(self) -> Callable[[np.ndarray], np.ndarray]:
        return lambda features: features @ self._layer

    def __call__(self, images: Tensor) -> np.ndarray:
        raise NotImplementedError


def cost(arguments: list[str]) -> None:
    """One line for each group of measures."""
    if len(arguments) > 2 or not all(word.isascii() and word.isdigit() for word in arguments):
        raise PDSError("give at most two whole numbers: experiments/tools/panel_cost.py [IMAGES [LENGTH]]")
    images, length = [*map(int, arguments), *(50_000, 2048)[len(arguments) :]]
    draw, features = np.random.default_rng(0), RandomFeatures(length)
    samples, real = (draw.standard_normal((images, length), dtype=np.float32) for _ in range(2))
    reference = Reference(FeatureStatistics.from_features(real), features.name, dict(features.provenance), kept=real)
    for measures in GROUPS:
        wall, cpu = time.perf_counter(), time.process_time()
        Panel(features, reference, measures).measure(samples, progress=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{', '.join(measures)}: {wall:.1f} s, {cpu:.1f} CPU s, peak memory so far {peak:.1f} GiB")


if __name__ == "__main__":
    start(documented(cost, __doc__))
