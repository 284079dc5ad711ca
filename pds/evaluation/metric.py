"""The choices of metric=...: each makes a panel of measures from a data set and a device, given by position."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch

from pds.cache import cache_folder
from pds.data.dataset import Dataset
from pds.data.images import ImageSource
from pds.errors import MissingError, OptionError, PDSError
from pds.evaluation.features import CLASSIFIERS, ClassifierFeatures, FeatureExtractor, InceptionFeatures, extractor
from pds.evaluation.panel import KID_SIZE, NAMES, WITHOUT_FILES, Name, Panel, Seen
from pds.evaluation.reference import MadeReference, Reference, kept_whole, shipped_reference
from pds.files import user_path
from pds.models.classifier import Classifier, DigitClassifier, ObjectClassifier
from pds.options import Length, Range, Seed, checked


def classifier_metric(classifier: type[Classifier], dataset: Dataset | None = None, device: str = "cpu") -> Panel:
    """The offline distance in the features of a shipped classifier. Comparable with no published FID.

    Args:
        classifier: kind of the classifier.
        dataset: the data set to compare with; None is that of the classifier, whose reference ships.
        device: where the classifier runs.
    """
    features = ClassifierFeatures(classifier, device)
    return Panel(features, _reference(classifier, features, dataset, _folder(None)), short=True)


def _reference(classifier: type[Classifier], features: FeatureExtractor, dataset: Dataset | None, folder: Path) -> Reference:
    """The shipped reference for the data set of the classifier; one of its own images for another data set."""
    if dataset is None or dataset.name.removesuffix("_jpeg") == classifier.data:
        return shipped_reference(classifier)
    features(torch.zeros(1, *dataset.shape, dtype=torch.uint8))  # before any file is read
    made = dataset.reference if isinstance(dataset.reference, MadeReference) else MadeReference()
    return made(lambda: dataset.images, features, folder)


def no_metric(dataset: Dataset | None = None, device: str = "cpu", /) -> None:
    """No distance, only images."""


def mnist_classifier_metric(dataset: Dataset | None = None, device: str = "cpu", /) -> Panel:
    """The offline metric for MNIST, and for other images of 1x28x28."""
    return classifier_metric(DigitClassifier, dataset, device)


def cifar10_classifier_metric(dataset: Dataset | None = None, device: str = "cpu", /) -> Panel:
    """The offline metric for CIFAR-10, whose reference is CIFAR-10 (JPEG), and for other images of 3x32x32."""
    return classifier_metric(ObjectClassifier, dataset, device)


@checked
def clean_fid_metric(dataset: Dataset, device: str = "cpu", /, *, cache: str | Path | None = None) -> Panel:
    """Clean-FID to the reference of a data set, which is found or made at once.

    Args:
        dataset: names its reference, and has the images to make it from.
        device: where the Inception network runs.
        cache: folder of downloaded and made files; the project's by default.
    """
    if dataset.reference is None:
        raise PDSError(f"{dataset.name} names no reference for Clean-FID: choose one that is made or published")
    folder = _folder(cache)
    features = InceptionFeatures(device, folder)
    return Panel(features, dataset.reference(lambda: dataset.images, features, folder), short=True)


@checked
def panel_metric(
    dataset: Dataset,
    device: str = "cpu",
    /,
    *,
    measures: Annotated[Sequence[Name], Length(1, len(NAMES))] = WITHOUT_FILES,
    features: str = "mnist_classifier",
    kid_size: Annotated[int, Range(2, 10**6)] = KID_SIZE,
    seed: Seed = 0,
    cache: str | Path | None = None,
) -> Panel:
    """Several measures in one pass: Fréchet distance, KID, neighbours, inception score, extrapolated distance, memorisation.

    Args:
        dataset: names its reference, and has the images to make it from. Memorisation reads these images and the test images.
        device: where the network runs.
        measures: the measures; memorisation needs the data set's files. By default all others for which there are enough images
            and a network with classes.
        features: the features that they are computed from: mnist_classifier, cifar10_classifier, inception_clean (clean-fid),
            inception_tf, clip_vitb32 or dinov2_vitl14 (torch-fidelity), a function as FILE.py:NAME or module:NAME, or a
            TorchScript file.
        kid_size: images in a subset of KID; another size than 1,000 is part of the measure's name.
        seed: seed of the choice of subsets.
        cache: folder of downloaded and made files; the project's by default.
    """
    folder = _folder(cache)
    channels, height, width = dataset.shape
    made = extractor(features, (channels, height, width), device, folder)
    if features in CLASSIFIERS:
        reference = _reference(CLASSIFIERS[features], made, dataset, folder)
    else:
        reference = (dataset.reference or MadeReference())(lambda: dataset.images, made, folder)
    seen = _seen(dataset, made, folder) if "memorisation" in measures else None
    named = tuple(measures) != WITHOUT_FILES
    chosen = tuple(name for name in measures if named or name != "inception_score" or made.logits is not None)
    return Panel(made, reference, chosen, kid_size, seed, seen, device, named=named)


def _folder(cache: str | Path | None) -> Path:
    return cache_folder() if cache is None else user_path(cache)


def _seen(dataset: Dataset, features: FeatureExtractor, folder: Path) -> Seen:
    """Features of a data set's training and test images, kept in the cache."""
    source: Callable[..., ImageSource] = dataset.source
    if "split" not in inspect.signature(source).parameters:
        raise OptionError(
            "measures", f"has memorisation, and {dataset.name} has no test images apart from its training images: leave it out"
        )

    def images(name: str) -> ImageSource:
        try:
            return source(split=name)
        except MissingError as error:
            raise MissingError(
                f"memorisation needs the {name} images of {dataset.name} (a reference's held-out images are of the training "
                f"set): {error}"
            ) from None

    def describe(source: ImageSource) -> Reference:
        return kept_whole(source, features, folder)

    return Seen.of(images("train"), images("test"), describe)
