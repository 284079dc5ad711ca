"""Reference statistics: what samples are compared with, and where it came from."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pds.cache import cache_folder, fetch
from pds.data.images import ImageSource
from pds.errors import PDSError
from pds.evaluation.features import ASSETS, FeatureExtractor, InceptionFeatures
from pds.evaluation.frechet import FeatureStatistics
from pds.files import atomic_path, sha256

log = logging.getLogger(__name__)

MNIST_REFERENCE_FILE = "mnist_reference.npz"
PUBLISHED_URL = "https://www.cs.cmu.edu/~clean-fid/stats/"
CHUNK = 500


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the features of real images.

    Attributes:
        statistics: their mean and covariance.
        features_name: `FeatureExtractor.name` of what they were made with.
        provenance: what they depend on: data set, split, count, image checksum, and the extractor's provenance.
        held_out: (M, D) features of real images that are not in the statistics, for the floor of the distance.
    """

    statistics: FeatureStatistics
    features_name: str
    provenance: dict[str, str | int]
    held_out: np.ndarray | None = None

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
    header = {"features_name": reference.features_name, "count": reference.statistics.count}
    header["provenance"] = reference.provenance
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PDSError(f"{path} is not a readable file of reference statistics ({error}): delete it") from None


def read_reference(path: Path) -> Reference:
    """Read what `write_reference` wrote; another or a truncated file raises `PDSError`."""
    arrays = _load_arrays(path)
    if not {"header", "mean", "covariance"} <= arrays.keys():
        raise PDSError(f"{path} is not a reference of this library (it holds {', '.join(arrays)}): delete it")
    header = json.loads(str(arrays["header"]))
    statistics = FeatureStatistics(arrays["mean"], arrays["covariance"], header["count"])
    return Reference(statistics, header["features_name"], header["provenance"], arrays.get("held_out"))


def shipped_mnist_reference() -> Reference:
    """MNIST classifier features of a random half of the training set, with 10,000 held-out images of the other half."""
    return read_reference(ASSETS / MNIST_REFERENCE_FILE)


def published_reference(name: str, resolution: int, split: str, cache: Path | None = None) -> Reference:
    """Clean-FID's own statistics of a data set, mode "clean".

    Args:
        name: as clean-fid calls it, e.g. "cifar10", "ffhq", "lsun_church".
        resolution: of the images, in pixels, e.g. 32, 256.
        split: e.g. "train", "test", "trainfull".
        cache: where the file is kept, under `statistics/`; the project's cache by default.

    Raises:
        PDSError: the file is absent and cannot be downloaded, or holds something else.
    """
    file_name = f"{name}_clean_{split}_{resolution}.npz".lower()
    path = (cache or cache_folder()) / "statistics" / file_name
    fetch(PUBLISHED_URL + file_name, path, f"clean-fid's reference file of {name} {split} at {resolution} pixels")
    arrays = _load_arrays(path)
    if not {"mu", "sigma"} <= arrays.keys() or arrays["mu"].shape != (InceptionFeatures.dimension,):
        raise PDSError(f"{path} does not hold clean-fid statistics (mu, sigma of 2048 features): delete it")
    provenance = {
        "dataset": name,
        "split": split,
        "resolution": resolution,
        "features": InceptionFeatures.name,
        "resize": "clean",
        "source": PUBLISHED_URL + file_name,
        "file_sha256": sha256(path),
    }
    # The files do not say how many images they describe.
    statistics = FeatureStatistics(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64), 0)
    return Reference(statistics, InceptionFeatures.name, provenance)


def image_digest(chunks: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of uint8 images, in order."""
    digest = hashlib.sha256()
    for images in chunks:
        digest.update(images.contiguous().numpy())
    return digest.hexdigest()


def make_reference(images: ImageSource, features: FeatureExtractor, cache_file: Path | None = None) -> Reference:
    """Statistics of all `images`, computed once.

    Args:
        images: the real images.
        features: their extractor.
        cache_file: npz file to keep the result in; read instead of computing when it describes the same images and
            features.

    Raises:
        PDSError: `cache_file` describes other images or features.
    """
    chunks = [np.arange(start, min(start + CHUNK, len(images))) for start in range(0, len(images), CHUNK)]
    provenance = {
        "dataset": images.name,
        "split": images.split,
        "count": len(images),
        "images_sha256": image_digest(map(images.read, chunks)),
        **features.provenance,
    }
    if cache_file is not None and cache_file.exists():
        cached = read_reference(cache_file)
        for key in provenance.keys() | cached.provenance.keys():
            if cached.provenance.get(key) != provenance.get(key):
                raise PDSError(
                    f"{cache_file} was made with {key} = {cached.provenance.get(key)}, not {provenance.get(key)}: "
                    f"delete it or choose another file"
                )
        return cached
    log.info("computing the %s statistics of %d images of %s %s", features.name, len(images), images.name, images.split)
    values = np.concatenate([features(images.read(chunk)) for chunk in chunks])
    reference = Reference(FeatureStatistics.from_features(values), features.name, provenance)
    if cache_file is not None:
        write_reference(cache_file, reference)
    return reference
