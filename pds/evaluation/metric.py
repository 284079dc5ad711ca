"""A Fréchet distance with its name: features, reference and image count belong to the number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pds.cache import cache_folder
from pds.data.dataset import Dataset
from pds.errors import PDSError
from pds.evaluation.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.reference import Reference, shipped_reference
from pds.files import user_path
from pds.models.classifier import Classifier, DigitClassifier
from pds.options import checked


@dataclass(frozen=True, eq=False)
class FrechetMetric:
    """The Fréchet distance of samples to a reference.

    Attributes:
        features: extractor for the samples.
        reference: what they are compared with; made with other features it raises `PDSError`.
        prefix: the metric's name without the image count, e.g. "clean_fid_inception".
    """

    features: FeatureExtractor
    reference: Reference
    prefix: str

    def __post_init__(self) -> None:
        self.reference.require(self.features)

    def name(self, count: int) -> str:
        """The metric's name for `count` images: whole thousands as "50k", other counts in full."""
        return f"{self.prefix}_{count // 1000}k" if count and count % 1000 == 0 else f"{self.prefix}_{count}"

    def measure(self, features: np.ndarray) -> float:
        """Distance of (N, D) features to the reference; it is biased upwards, the more so the smaller N."""
        return frechet_distance(FeatureStatistics.from_features(features), self.reference.statistics)

    def floor(self, count: int) -> tuple[str, float] | None:
        """Name and distance of up to `count` held-out real images: what perfect samples would measure.

        None if the reference has no held-out images. The name tells when there were fewer of them than `count`.
        """
        if self.reference.held_out is None:
            return None
        real = self.reference.held_out[:count]
        return self.name(len(real)), self.measure(real)


def classifier_metric(classifier: type[Classifier], device: str = "cpu") -> FrechetMetric:
    """The offline metric of a data set: shipped classifier, shipped reference. Comparable with no published FID."""
    features = ClassifierFeatures(classifier, device)
    return FrechetMetric(features, shipped_reference(classifier), f"fid_{features.name}")


# What conf/metric names: each is given the data set and the device by position, and takes from them what it needs.


def no_metric(dataset: Dataset | None = None, device: str = "cpu", /) -> None:
    """No distance: the images only."""


def mnist_classifier_metric(dataset: Dataset | None = None, device: str = "cpu", /) -> FrechetMetric:
    """The offline metric for MNIST."""
    return classifier_metric(DigitClassifier, device)


@checked
def clean_fid_metric(dataset: Dataset, device: str = "cpu", /, *, cache: str | Path | None = None) -> FrechetMetric:
    """Clean-FID to the reference of a data set, which is found or made at once.

    Args:
        dataset: names its reference, and has the images when that must be made.
        device: where the Inception network runs.
        cache: folder of downloaded and made files; the project's by default.
    """
    if dataset.reference is None:
        raise PDSError(f"{dataset.name} names no reference for Clean-FID: choose one that is made or published")
    folder = cache_folder() if cache is None else user_path(cache)
    features = InceptionFeatures(device, folder)
    reference = dataset.reference(lambda: dataset.images, features, folder)
    return FrechetMetric(features, reference, "clean_fid_inception")
