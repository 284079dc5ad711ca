"""How the shipped MNIST classifier and its reference statistics were made."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pds.data.images import ArrayImages, image_digest, to_unit
from pds.data.mnist import mnist
from pds.evaluation.features import CLASSIFIER_FILE, ClassifierFeatures
from pds.evaluation.frechet import FeatureStatistics
from pds.evaluation.reference import MNIST_REFERENCE_FILE, Reference, write_reference
from pds.files import atomic_path
from pds.models.classifier import DigitClassifier

log = logging.getLogger(__name__)

HELD_OUT = 10_000


def random_shift(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """(n, 1, H, W) images, each moved by up to `reach` pixels in both directions, zeros moving in."""
    n, _, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach))
    top, left = torch.randint(2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.inference_mode()
def accuracy(classifier: DigitClassifier, images: ArrayImages) -> float:
    """Share of `images` (which have labels) that the classifier names rightly."""
    classifier.eval()
    indices = np.arange(len(images))
    chunks = np.array_split(indices, math.ceil(len(images) / 500))
    predicted = torch.cat([classifier(to_unit(images.read(chunk))).argmax(dim=1) for chunk in chunks])
    return float((predicted.numpy() == images.labels).mean())


def train_classifier(
    images: ArrayImages,
    test_images: ArrayImages,
    epochs: int = 8,
    seed: int = 0,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
) -> tuple[dict[str, Tensor], float]:
    """Train a `DigitClassifier` on the CPU: Adam, one-cycle learning rate, random shifts of up to two pixels.

    Args:
        images: training images with labels.
        test_images: images with labels for the accuracy; nothing is chosen by it.
        epochs: passes over the training images.
        seed: of initial weights, order and shifts.
        batch_size: images a step.
        learning_rate: peak of the cycle.

    Returns:
        The state dict with its floating-point entries in float16, and the test accuracy of exactly those weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitClassifier().to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(np.asarray(images.labels, dtype=np.int64))
    steps = len(images) // batch_size
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)[: steps * batch_size].view(steps, batch_size)
        for batch in tqdm(order, unit="it", desc=f"classifier, epoch {epoch + 1} of {epochs}"):
            x = to_unit(random_shift(images.read(batch.numpy()), 2, generator))
            loss = F.cross_entropy(classifier(x.contiguous(memory_format=torch.channels_last)), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    state = {
        name: (v.half() if v.is_floating_point() else v).clone(memory_format=torch.contiguous_format)
        for name, v in classifier.state_dict().items()
    }
    classifier.load_state_dict(state)
    return state, accuracy(classifier, test_images)


def build_classifier(root: str | Path, folder: Path, epochs: int = 8, seed: int = 0) -> None:
    """Train the MNIST classifier on all training images and write `mnist_classifier.safetensors` into `folder`.

    With one machine and one number of threads, `seed` fixes every byte. `root` is as for `pds.data.mnist.mnist`.
    """
    test = mnist(root, "test")
    state, test_accuracy = train_classifier(mnist(root, "train"), test, epochs, seed)
    log.info("test accuracy of the classifier, with its weights in float16: %.4f", test_accuracy)
    provenance = {
        "model": f"{DigitClassifier.__module__}.{DigitClassifier.__name__}",
        "test_accuracy": test_accuracy,
        "test_images": len(test),
        "training": f"MNIST train, 60,000 images, {epochs} epochs, seed {seed}",
        "torch": torch.__version__,
    }
    with atomic_path(folder / CLASSIFIER_FILE) as temporary:
        # One key: safetensors does not keep the order of several, and the file is to be reproducible.
        temporary.write_bytes(save(state, metadata={"provenance": json.dumps(provenance)}))


def build_reference(root: str | Path, folder: Path, seed: int = 0) -> None:
    """Write `mnist_reference.npz` into `folder`, made with the classifier that lies there.

    The statistics describe a random half of the training set; `held_out` are features of `HELD_OUT` images of the other
    half. The classifier has seen both halves alike, so their distance is what real data measure: the floor.
    The halves are random because neighbours in MNIST are not alike: its even and its odd images lie at a distance of 44
    from each other, random halves at 0.4.
    """
    train, features = mnist(root, "train"), ClassifierFeatures("cpu", folder / CLASSIFIER_FILE)
    half = len(train) // 2
    order = np.random.default_rng(seed).permutation(len(train))
    described, held_out = np.sort(order[:half]), order[half : half + HELD_OUT]
    images = train.read(described)
    provenance = {
        "dataset": train.name,
        "split": train.split,
        "images": f"p[:{half}], ascending, of p = numpy.random.default_rng({seed}).permutation({len(train)})",
        "count": half,
        "images_sha256": image_digest([images]),
        "held_out": f"p[{half}:{half + HELD_OUT}], in float16",
        **features.provenance,
    }
    statistics = FeatureStatistics.from_features(features(images))
    reference = Reference(statistics, features.name, provenance, features(train.read(held_out)).astype(np.float16))
    write_reference(folder / MNIST_REFERENCE_FILE, reference)


def build_mnist_assets(root: str | Path, folder: Path) -> None:
    """Make both files that `pds/assets` ships for the evaluation on MNIST: the classifier, then its reference.

    Args:
        root: folder of the MNIST files, see `pds.data.mnist.mnist`.
        folder: where they are written.
    """
    build_classifier(root, folder)
    build_reference(root, folder)
