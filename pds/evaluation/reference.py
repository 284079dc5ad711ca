"""Reference statistics of real images, and their provenance. Samples are compared with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np

from pds.cache import cache_folder, fetch, make_once
from pds.data.images import ImageSource, read_in_batches
from pds.data.statistics import choose_images
from pds.errors import OptionError, PDSError
from pds.evaluation.features import FeatureExtractor, InceptionFeatures
from pds.evaluation.frechet import FeatureStatistics
from pds.files import Array, atomic_path, json_digest, locate, parse_json, read_npz, reading, sha256
from pds.models.classifier import Classifier
from pds.options import Range, checked, options, shown
from pds.progress import progress_bar

log = logging.getLogger(__name__)

PUBLISHED_URL = "https://www.cs.cmu.edu/~clean-fid/stats/"
# (name, resolution) to {split: images} of clean-fid's statistics in mode "clean", as its README lists them for data sets here.
# The first split is the default.
PUBLISHED: dict[tuple[str, int], dict[str, int]] = {
    ("cifar10", 32): {"train": 50_000, "test": 10_000},
    ("ffhq", 256): {"trainval70k": 70_000, "trainval": 50_000},
    ("ffhq", 1024): {"trainval70k": 70_000, "trainval": 50_000},
    ("lsun_church", 256): {"train": 50_000, "trainfull": 126_227},
}
SEED = 0  # seed of the choice of images
KEPT = 10_000  # features of single images in a reference that is made: 82 MB of Inception
FEW = 2048  # below this number of images an Inception covariance has no full rank


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the features of real images.

    Attributes:
        statistics: their mean and covariance.
        features_name: `FeatureExtractor.name` of the features.
        provenance: facts that the statistics depend on: data set, split, count, image checksum, and the extractor's provenance.
        held_out: (M, D) features of real images that are not in the statistics, for the floor of the distance.
        kept: (K, D) float32 features of single images that are in the statistics, by default at most `KEPT`.
    """

    statistics: FeatureStatistics
    features_name: str
    provenance: dict[str, str | int]
    held_out: np.ndarray | None = None
    kept: np.ndarray | None = None

    @property
    def single(self) -> np.ndarray | None:
        """Features of single real images, for kernel distances and neighbours; None if there are statistics alone."""
        return self.kept if self.held_out is None else self.held_out.astype(np.float32)

    def require(self, features: FeatureExtractor) -> None:
        """Raise `PDSError` unless the reference was made with these features: same name, resize and weights."""
        if self.features_name != features.name or len(self.statistics.mean) != features.dimension:
            raise PDSError(
                f"the reference holds {len(self.statistics.mean)} {self.features_name} features, the metric computes "
                f"{features.dimension} {features.name} features: choose a reference made with {features.name}"
            )
        for key, value in features.provenance.items():
            if (stated := self.provenance.get(key, value)) != value:
                raise PDSError(f"the reference was made with {key} = {stated}, the metric uses {value}: make it anew")


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference as an npz file, atomically."""
    arrays = {"mean": reference.statistics.mean, "covariance": reference.statistics.covariance}
    if reference.held_out is not None:
        arrays["held_out"] = reference.held_out
    if reference.kept is not None:
        arrays["kept"] = reference.kept
    header = {"features_name": reference.features_name, "count": reference.statistics.count}
    header |= {"provenance": reference.provenance, "held_out": 0 if reference.held_out is None else len(reference.held_out)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


def read_reference(path: Path) -> Reference:
    """Read what `write_reference` wrote; another, a damaged or a truncated file raises `PDSError`."""
    what, fix = "a reference of this library", "delete it"
    schema = {
        "header": Array("str"),
        "mean": Array("float64", ("D",)),
        "covariance": Array("float64", ("D", "D")),
        "held_out": Array("float", ("M", "D"), optional=True),
        "kept": Array("float32", ("K", "D"), optional=True),
    }
    arrays = read_npz(path, schema, what, fix)
    with reading(path, what, fix):
        header = parse_json(
            str(arrays["header"]), {"features_name": str, "count": Annotated[int, Range(0)], "provenance": dict}
        )
        held_out = arrays.get("held_out")
        found = 0 if held_out is None else len(held_out)
        if header.get("held_out", found) != found:  # old files do not have this number
            raise ValueError(f"it has {found} held-out images, not {header['held_out']}")
        statistics = FeatureStatistics(arrays["mean"], arrays["covariance"], header["count"])
        return Reference(statistics, header["features_name"], header["provenance"], held_out, arrays.get("kept"))


def reference_file(classifier: type[Classifier]) -> str:
    """The name of the file with the statistics of a classifier's features."""
    return f"{classifier.data}_reference.npz"


def shipped_reference(classifier: type[Classifier]) -> Reference:
    """A classifier's features of a random half of its training set, with 10,000 held-out images of the other half."""
    return read_reference(locate(f"asset:{reference_file(classifier)}"))


def published_reference(name: str, resolution: int, split: str, cache: Path | None = None) -> Reference:
    """Clean-FID's own statistics of a data set, mode "clean".

    Args:
        name: its name in clean-fid, e.g. "cifar10", "ffhq", "lsun_church".
        resolution: resolution of the images, in pixels, e.g. 32, 256.
        split: e.g. "train", "test", "trainval70k".
        cache: where the file is kept, under `statistics/`; the project's cache by default.

    Raises:
        PDSError: the file is absent and cannot be downloaded, or holds something else.
    """
    file_name = f"{name}_clean_{split}_{resolution}.npz".lower()
    path = (cache or cache_folder()) / "statistics" / file_name
    fetch(PUBLISHED_URL + file_name, path, f"clean-fid's reference file of {name} {split} at {resolution} pixels")
    features = InceptionFeatures.dimension
    schema = {"mu": Array("float", (features,)), "sigma": Array("float", (features, features))}
    arrays = read_npz(path, schema, "a file of clean-fid statistics", "delete it", others=True)
    # The files do not say how many images they describe.
    count = PUBLISHED.get((name.lower(), resolution), {}).get(split, 0)
    provenance: dict[str, str | int] = {
        "dataset": name,
        "split": split,
        "resolution": resolution,
        **({"count": count} if count else {}),
        "features": InceptionFeatures.name,
        "resize": "clean",
        "source": PUBLISHED_URL + file_name,
        "file_sha256": sha256(path),
    }
    with reading(path, "a file of clean-fid statistics", "delete it"):
        statistics = FeatureStatistics(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64), count)
    return Reference(statistics, InceptionFeatures.name, provenance)


def _provenance(images: ImageSource, features: FeatureExtractor, count: int) -> dict[str, str | int]:
    chosen = {"seed": SEED} if count < len(images) else {}
    shape = "x".join(map(str, images.shape))
    facts: dict[str, str | int] = {"dataset": images.name, "split": images.split, "shape": shape, "count": count, **chosen}
    return facts | images.fingerprint | features.provenance


def make_reference(
    images: ImageSource,
    features: FeatureExtractor,
    cache_file: Path | None = None,
    count: int | None = None,
    keep: int | None = None,
) -> Reference:
    """Statistics of `images`, computed once.

    Args:
        images: the real images.
        features: their extractor.
        cache_file: npz file to keep the result in; read instead of computing when it describes the same images and
            features.
        count: number of images, chosen at random by a fixed seed; all images when None.
        keep: number of images whose features are kept one by one, chosen likewise; `KEPT` when None.

    Raises:
        PDSError: `cache_file` describes other images or features, or there are fewer than `count` images.
    """
    count = len(images) if count is None else count
    provenance, keep = _provenance(images, features, count), min(KEPT if keep is None else keep, count)
    if cache_file is None:
        return _compute(images, features, count, keep, provenance)
    make_once(cache_file, lambda: write_reference(cache_file, _compute(images, features, count, keep, provenance)))
    reference = read_reference(cache_file)
    for key in provenance.keys() | reference.provenance.keys():
        if reference.provenance.get(key) != provenance.get(key):
            raise PDSError(
                f"{cache_file} was made with {key} = {reference.provenance.get(key)}, not {provenance.get(key)}: "
                f"delete it or choose another file"
            )
    return reference


def _compute(
    images: ImageSource, features: FeatureExtractor, count: int, keep: int, provenance: dict[str, str | int]
) -> Reference:
    log.info("computing the %s statistics of %d images of %s %s", features.name, count, images.name, images.split)
    indices = np.arange(count) if count == len(images) else np.sort(choose_images(images, count, SEED))
    values = np.empty((count, features.dimension), np.float32)
    with progress_bar(total=count, unit="img", desc="reference") as bar:
        for batch in read_in_batches(images, indices):
            values[bar.n : bar.n + len(batch)] = features(batch)
            bar.update(len(batch))
    kept = values[np.sort(np.random.default_rng(SEED).permutation(count)[:keep])]
    return Reference(FeatureStatistics.from_features(values), features.name, provenance, kept=kept)


def kept_whole(images: ImageSource, features: FeatureExtractor, cache: Path) -> Reference:
    """A reference with the features of each image, made once and kept under `features/` of the cache folder."""
    key = json_digest(_provenance(images, features, len(images)))
    file = cache / "features" / f"{images.name}_{features.name}_{images.split}-{key}.npz"
    return make_reference(images, features, file, keep=len(images))


Resolution = Annotated[int, Range(1, 16_384)]
MadeOf = Annotated[int, Range(2, 100_000_000)]


class ReferenceMaker(Protocol):
    """Finds or makes the reference of a data set."""

    def __call__(self, images: Callable[[], ImageSource], features: FeatureExtractor, cache: Path) -> Reference:
        """The reference for samples of a data set.

        Args:
            images: opens the data set's files; called only if they are needed.
            features: the extractor that samples are measured with.
            cache: folder of downloaded and made files.
        """
        ...


@options
class PublishedReference:
    """Clean-FID's own statistics, downloaded once or put into the cache folder as statistics/NAME_clean_SPLIT_RESOLUTION.npz.

    Attributes:
        name: the data set's name in clean-fid, such as cifar10, ffhq or lsun_church.
        resolution: resolution of its images, in pixels.
        split: e.g. train, test, trainval70k.
    """

    name: str
    resolution: Resolution
    split: str = "train"

    def __call__(self, images: Callable[[], ImageSource], features: FeatureExtractor, cache: Path) -> Reference:
        if features.name != InceptionFeatures.name:
            raise PDSError(
                f"clean-fid publishes statistics of its Inception features alone, not of {features.name}: choose a reference "
                "that is made of the images"
            )
        return published_reference(self.name, self.resolution, self.split, cache)


@options
class MadeReference:
    """Statistics of the data set's own images, made once and kept under `references/`. The file name has all that they depend
    on.

    Attributes:
        images: number of images, chosen at random; all if there are fewer.
    """

    images: MadeOf = 50_000

    def __call__(self, images: Callable[[], ImageSource], features: FeatureExtractor, cache: Path) -> Reference:
        source = images()
        count = min(self.images, len(source))
        if count < 2:
            raise PDSError(
                f"{source.name} {source.split} has {count} image: a reference needs 2 or more, and should have 50,000"
            )
        if count < FEW:
            log.warning("the reference of %s is of %d images only: distances to it are rough", source.name, count)
        key = json_digest(_provenance(source, features, count))
        name = f"{source.name}_{features.name}_{source.split}_{count}-{key}.npz"
        return make_reference(source, features, cache / "references" / name, count)


@checked
def published_or_made(name: str, resolution: Resolution, split: str | None = None, images: MadeOf = 50_000) -> ReferenceMaker:
    """Clean-FID's own statistics of a data set, if it has them at this resolution; else a `MadeReference`.

    Args:
        name: the data set's name in clean-fid.
        resolution: resolution of its images, in pixels.
        split: split of the published statistics. None takes the split of clean-fid's comparisons: train (cifar10, lsun_church),
            trainval70k (ffhq).
        images: number of images, if statistics must be made.

    Raises:
        PDSError: clean-fid has statistics of this data set, but not of this split.
    """
    splits = PUBLISHED.get((name, resolution))
    if splits is None:
        return MadeReference(images)
    if split is not None and split not in splits:
        choices = f"{', '.join(splits)}, clean-fid's of {name} at {resolution} pixels"
        raise OptionError("split", f"must be one of {choices}, got {shown(split)}")
    return PublishedReference(name, resolution, split or next(iter(splits)))
