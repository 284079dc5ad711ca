"""Several measures of one set of features, each under an exact name: measure, features, resize and image count belong to it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from pds.data.images import ImageSource
from pds.errors import OptionError, PDSError
from pds.evaluation.features import FeatureExtractor
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.measures import (
    BLOCKS,
    blocks_of,
    frechet_limit,
    inception_score,
    jackknife_error,
    kernel_distance,
    memorisation,
    neighbours,
)
from pds.evaluation.reference import Reference

log = logging.getLogger(__name__)

Name = Literal["fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "fid_infinity", "memorisation"]
NAMES: tuple[Name, ...] = get_args(Name)
WITHOUT_FILES = tuple(name for name in NAMES if name != "memorisation")  # memorisation reads the data set
NEIGHBOURS: tuple[Name, ...] = ("precision", "recall", "density", "coverage")

KID_SIZE = 1000  # images in a subset, as in the paper
LEAST: dict[str, int] = {"fid": 2, "inception_score": 10, "fid_infinity": 20, "memorisation": 1} | dict.fromkeys(NEIGHBOURS, 6)
"""The images that each measure needs; KID needs one subset of them."""


def exact_name(measure: str, features: FeatureExtractor, count: int) -> str:
    """The name of a number, e.g. kid_mnist_classifier_native_n2048: only numbers of one name are compared."""
    resize = features.provenance["resize"]
    return f"{measure}_{features.name}_{'native' if resize == 'none' else resize}_n{count}"


def short_name(name: str) -> str:
    """The older name of a Fréchet distance, e.g. fid_mnist_classifier_2048 or clean_fid_inception_50k; other names stay."""
    found = re.fullmatch(r"fid_(?:(\w+_classifier)_native|inception_clean)_n(\d+)", name)
    if found is None:
        return name
    count = int(found[2])
    prefix = f"fid_{found[1]}" if found[1] else "clean_fid_inception"
    return f"{prefix}_{count // 1000}k" if count and count % 1000 == 0 else f"{prefix}_{count}"


def long_name(name: str) -> str:
    """The exact name of a Fréchet distance under its older name; other names stay."""
    found = re.fullmatch(r"(?:fid_(\w+_classifier)|clean_fid_inception)_(\d+)(k?)", name)
    if found is None:
        return name
    return f"fid_{f'{found[1]}_native' if found[1] else 'inception_clean'}_n{int(found[2]) * (1000 if found[3] else 1)}"


def parts(name: str) -> tuple[str, str] | None:
    """The measure of an exact name, and the rest, which is common to the measures of one panel; None for other names."""
    found = re.fullmatch(
        rf"(memorisation_(?:ratio|share)|kid\d+|{'|'.join(sorted(WITHOUT_FILES, reverse=True))})_(.+_n\d+)", name
    )
    return (found[1], found[2]) if found else None


def better(name: str) -> Literal["low", "high", ""]:
    """The values of a measure, by its exact name, that are nearer to the data; "" if neither end is."""
    if name.startswith("memorisation"):
        return ""
    return "high" if name.startswith((*(f"{measure}_" for measure in NEIGHBOURS), "inception_score_", "accuracy_")) else "low"


class Measured(NamedTuple):
    """Numbers by exact name.

    Attributes:
        metrics: the measures.
        errors: their standard errors by a jackknife over 20 blocks of images; `fid_infinity` has the error of its fit. Measures
            of fewer than 40 images, and memorisation, have none.
        left_out: the values without each of the 20 blocks, for these errors. The values of two runs from the same noise give a
            paired error of their difference.
        spreads: standard deviation over KID's subsets and over the splits of an inception score, as papers print them.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    left_out: dict[str, list[float]]
    spreads: dict[str, float]


@dataclass(frozen=True, eq=False)
class Seen:
    """Features of the images that a network was trained on, and of images of the same kind that it never saw.

    Attributes:
        training, outside: (M, D) and (K, D) features.
        provenance: provenance of both.
    """

    training: np.ndarray
    outside: np.ndarray
    provenance: dict[str, dict[str, str | int]]

    @classmethod
    def of(cls, training: ImageSource, outside: ImageSource, describe: Callable[[ImageSource], Reference]) -> Seen:
        """The features of two sources; `describe` gives a reference that keeps the features of all images.

        Raises:
            PDSError: the second is a part of the first, as a reference's held-out images are.
        """
        if outside.split == training.split or outside.fingerprint == training.fingerprint:
            raise PDSError(
                f"memorisation needs images outside the training set, and {outside.name} {outside.split} belongs to it, "
                "as do the held-out images of a reference: give a data set that has test images, or leave memorisation out"
            )
        seen, new = describe(training), describe(outside)
        assert seen.kept is not None and new.kept is not None  # as asked for
        return cls(seen.kept, new.kept, {"training": seen.provenance, "outside": new.provenance})


@dataclass(frozen=True, eq=False)
class Panel:
    """Measures of samples against a reference.

    Attributes:
        features: extractor for the samples.
        reference: the reference to compare them with; one with other features raises `PDSError`.
        measures: names of the measures.
        kid_size: images in a subset of KID; another size than 1,000 is part of its name.
        seed: seed of random choices of images.
        seen: the features that memorisation compares with.
        device: where distances between images are computed.
        short: whether Fréchet distances have their older names.
        named: whether someone asked for these very measures; others are left out where there are too few images.
    """

    features: FeatureExtractor
    reference: Reference
    measures: tuple[Name, ...] = ("fid",)
    kid_size: int = KID_SIZE
    seed: int = 0
    seen: Seen | None = field(default=None, repr=False)
    device: str = "cpu"
    short: bool = False
    named: bool = True

    def __post_init__(self) -> None:
        self.reference.require(self.features)
        of_single = [name for name in self.measures if name == "kid" or name in NEIGHBOURS]
        if of_single and self.reference.single is None:
            raise OptionError(
                "measures",
                f"has {of_single[0]}, which compares single images, and the reference holds statistics alone: choose one that "
                f"is made of the images (delete an older file of it, and it is made anew), or leave {of_single[0]} out",
            )
        if self.named and "kid" in self.measures and len(self._single) < self.kid_size:
            raise OptionError("kid_size", f"must be at most {len(self._single)}, the reference's images, got {self.kid_size}")
        if "inception_score" in self.measures and self.features.logits is None:
            raise OptionError(
                "measures",
                f"has inception_score, which needs classes, and {self.features.name} features have none: leave it out",
            )

    @property
    def _single(self) -> np.ndarray:
        single = self.reference.single
        assert single is not None  # checked above where it is needed
        return single

    def name(self, measure: str, count: int) -> str:
        """The full name of a measure of `count` images."""
        if measure == "kid" and self.kid_size != KID_SIZE:
            measure = f"kid{self.kid_size}"
        name = exact_name(measure, self.features, count)
        return short_name(name) if self.short else name

    def _least(self, measure: str) -> int:
        return self.kid_size if measure == "kid" else LEAST[measure]

    def within(self, count: int) -> Panel:
        """The panel without the measures that nobody named and that need more images than there are; a log line names them."""
        few = [] if self.named else [name for name in self.measures if self._least(name) > count]
        if few:
            needs = ", ".join(f"{name} ({self._least(name)})" for name in few)
            log.info("%d images are too few for %s: left out", count, needs)
        if not self.named and "kid" in self.measures and len(self._single) < self.kid_size:
            log.info("the reference's %d images are too few for kid (%d): left out", len(self._single), self.kid_size)
            few.append("kid")
        return replace(self, measures=tuple(name for name in self.measures if name not in few))

    def require(self, count: int) -> None:
        """Raise `OptionError` unless `count` images are enough for every measure."""
        for measure in self.measures:
            least = self._least(measure)
            if count < least:
                smaller = ", give a smaller kid_size" if measure == "kid" else ""
                raise OptionError(
                    "measures",
                    f"has {measure}, which needs at least {least} images, and there are {count}: sample more{smaller} or leave "
                    f"{measure} out",
                )

    def measure(self, features: np.ndarray, progress: bool = False) -> Measured:
        """All measures of (N, D) features. The Fréchet distance is biased upwards, the more so the smaller N.

        Args:
            features: features of the samples, in their order.
            progress: show bars for measures that take more than a second.
        """
        self.require(len(features))
        found = Measured({}, {}, {}, {})
        blocks = range(BLOCKS if len(features) >= 2 * BLOCKS else 0)

        def add(measure: str, value: float, left_out: Callable[[int], float] | None, spread: float | None = None) -> None:
            name = self.name(measure, len(features))
            found.metrics[name] = value
            if left_out is not None and blocks:
                values = [float(left_out(block)) for block in blocks]
                # Small subsets of KID may lie in one block, and without it nothing is left.
                if all(map(math.isfinite, values)):
                    found.left_out[name], found.errors[name] = values, jackknife_error(values)
            if spread is not None:
                found.spreads[name] = spread

        block_of = blocks_of(len(features))
        if "fid" in self.measures:
            whole = FeatureStatistics.from_features(features)
            add(
                "fid",
                frechet_distance(whole, self.reference.statistics),
                lambda block: frechet_distance(whole.without(features[block_of == block]), self.reference.statistics),
            )
        if "kid" in self.measures:
            kid = kernel_distance(features, self._single, size=self.kid_size, seed=self.seed, progress=progress)
            add("kid", kid.value, lambda block: kid.left_out[block], kid.spread)
        if wanted := [name for name in NEIGHBOURS if name in self.measures]:
            near = neighbours(features, self._single, device=self.device, progress=progress)
            values, left_out = near.manifold(), [near.manifold(without=block) for block in blocks]
            for name in wanted:
                add(name, getattr(values, name), lambda block, name=name: getattr(left_out[block], name))  # type: ignore[misc]
        if "inception_score" in self.measures:
            assert self.features.logits is not None  # checked when this was made
            logits = self.features.logits(features)
            score = inception_score(logits)
            add("inception_score", score.value, lambda block: inception_score(logits[block_of != block]).value, score.error)
        if "fid_infinity" in self.measures:
            limit = frechet_limit(features, self.reference.statistics, seed=self.seed)
            add("fid_infinity", limit.value, None)
            found.errors[self.name("fid_infinity", len(features))] = limit.error
        if "memorisation" in self.measures:
            assert self.seen is not None  # for the type checker
            copied = memorisation(features, self.seen.training, self.seen.outside, self.device)
            add("memorisation_ratio", copied.ratio, None)
            add("memorisation_share", copied.share, None)
        return found

    def floor(self, count: int) -> tuple[str, float] | None:
        """Name and Fréchet distance of up to `count` held-out real images: the distance of perfect samples.

        None if no distance is measured or the reference has no held-out images. The name has the number of images, which may be
        smaller than `count`.
        """
        if self.reference.held_out is None or "fid" not in self.measures:
            return None
        real = self.reference.held_out[:count]
        value = frechet_distance(FeatureStatistics.from_features(real), self.reference.statistics)
        return self.name("fid", len(real)), value
