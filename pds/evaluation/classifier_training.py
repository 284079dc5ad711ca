"""The making of the shipped classifiers and of their reference statistics."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from pds.data.images import ArrayImages, image_digest, random_flip, to_unit
from pds.evaluation.features import ClassifierFeatures, classifier_file
from pds.evaluation.frechet import FeatureStatistics
from pds.evaluation.reference import Reference, reference_file, write_reference
from pds.files import atomic_path
from pds.models.classifier import Classifier, DigitClassifier, ObjectClassifier
from pds.progress import progress_bar

log = logging.getLogger(__name__)

HELD_OUT = 10_000


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, on the CPU: AdamW, one cycle of the learning rate or several, random shifts.

    Attributes:
        cycles: passes over the training images in each cycle of the learning rate. Each peaks at half the rate of the cycle
            before, and the optimiser starts anew (Loshchilov & Hutter, *SGDR*, ICLR 2017).
        seed: seed of initial weights, order, shifts and mirroring.
        batch_size: images a step.
        learning_rate: peak of the first cycle.
        weight_decay: of AdamW (Loshchilov & Hutter, ICLR 2019).
        smoothing: share of the target that is spread evenly over all classes.
        reach: pixels of the random shifts.
        flip: mirror each image left to right with probability 1/2.
    """

    cycles: tuple[int, ...] = (8,)
    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    smoothing: float = 0.0
    reach: int = 2
    flip: bool = False


RECIPES = {
    DigitClassifier: Recipe(),
    ObjectClassifier: Recipe(cycles=(10, 5), weight_decay=0.1, smoothing=0.1, reach=3, flip=True),
}


def random_shift(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) images, each moved by up to `reach` pixels in both directions, with zeros at the edges."""
    n, _, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    top, left = torch.randint(2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(classifier: Classifier, images: ArrayImages) -> float:
    """Share of the labelled `images` that the classifier classifies correctly."""
    classifier.eval()
    indices = np.arange(len(images))
    chunks = np.array_split(indices, math.ceil(len(images) / 500))
    predicted = torch.cat([classifier(to_unit(images.read(chunk))).argmax(dim=1) for chunk in chunks])
    return float((predicted.numpy() == images.labels).mean())


def train_classifier(
    kind: type[Classifier], images: ArrayImages, test_images: ArrayImages, recipe: Recipe
) -> tuple[dict[str, Tensor], float]:
    """Train a classifier on the CPU.

    Args:
        kind: the classifier.
        images: training images with labels.
        test_images: images with labels for the accuracy; nothing is chosen by this accuracy.
        recipe: the details of training.

    Returns:
        The state dict with its floating-point entries in float16, and the test accuracy of exactly those weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = kind().to(memory_format=torch.channels_last).train()  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(recipe.seed)
    labels = torch.from_numpy(np.asarray(images.labels, dtype=np.int64))
    size = recipe.batch_size
    steps = len(images) // size
    for cycle, epochs in enumerate(recipe.cycles):
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate / 2**cycle, total_steps=epochs * steps)
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=generator)[: steps * size].view(steps, size)
            with progress_bar(order, unit="it", desc=f"classifier, cycle {cycle + 1}, epoch {epoch + 1} of {epochs}") as bar:
                for batch in bar:
                    x = random_shift(images.read(batch.numpy()), recipe.reach, generator)
                    x = to_unit(random_flip(x, generator) if recipe.flip else x)
                    logits = classifier(x.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, labels[batch], label_smoothing=recipe.smoothing)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    state = {
        name: (v.half() if v.is_floating_point() else v).clone(memory_format=torch.contiguous_format)
        for name, v in classifier.state_dict().items()
    }
    classifier.load_state_dict(state)
    return state, accuracy(classifier, test_images)


def build_classifier(kind: type[Classifier], images: ArrayImages, test_images: ArrayImages, folder: Path) -> None:
    """Train a classifier on all training images and write its weights into `folder`.

    With one machine and one number of threads, the recipe's seed fixes every byte.
    """
    recipe = RECIPES[kind]
    state, test_accuracy = train_classifier(kind, images, test_images, recipe)
    log.info("test accuracy of the classifier, with its weights in float16: %.4f", test_accuracy)
    provenance = {
        "model": f"{kind.__module__}.{kind.__name__}",
        "test_accuracy": test_accuracy,
        "test_images": len(test_images),
        "training": f"{images.name} {images.split}, {len(images):,} images, {recipe}",
        "torch": torch.__version__,
    }
    with atomic_path(folder / classifier_file(kind)) as temporary:
        # One key: safetensors does not keep the order of several keys, and the file must be reproducible.
        temporary.write_bytes(save(state, metadata={"provenance": json.dumps(provenance)}))


def build_reference(kind: type[Classifier], images: ArrayImages, folder: Path, seed: int = 0) -> None:
    """Write the reference of a classifier's features into `folder`, made with the classifier that lies there.

    The statistics describe a random half of the training set; `held_out` are features of `HELD_OUT` images of the other
    half. The classifier has seen both halves alike, so their distance is that of real data: the floor. The halves are random
    because neighbouring images of MNIST differ in kind: even and odd images are 44 apart, random halves 0.4.
    """
    features = ClassifierFeatures(kind, "cpu", folder / classifier_file(kind))
    half = len(images) // 2
    order = np.random.default_rng(seed).permutation(len(images))
    described, held_out = images.read(np.sort(order[:half])), images.read(order[half : half + HELD_OUT])
    provenance: dict[str, str | int] = {
        "dataset": images.name,
        "split": images.split,
        "images": f"p[:{half}], ascending, of p = numpy.random.default_rng({seed}).permutation({len(images)})",
        "count": half,
        "images_sha256": image_digest([described]),
        "held_out": f"p[{half}:{half + HELD_OUT}], in float16",
        **features.provenance,
    }
    statistics = FeatureStatistics.from_features(features(described))
    reference = Reference(statistics, features.name, provenance, features(held_out).astype(np.float16))
    write_reference(folder / reference_file(kind), reference)


def build_assets(kind: type[Classifier], images: ArrayImages, test_images: ArrayImages, folder: Path) -> None:
    """Make both files for the offline metric of a data set, as `pds/assets` ships them: the classifier, then its reference.

    Args:
        kind: the classifier of the data set.
        images, test_images: its training and test images, with labels.
        folder: where the files are written.
    """
    build_classifier(kind, images, test_images, folder)
    build_reference(kind, images, folder)
