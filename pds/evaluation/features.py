"""Feature extractors: images to the vectors that a Fréchet distance compares."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pds.cache import cache_folder, fetch
from pds.data.images import to_unit
from pds.errors import OptionError, PDSError
from pds.files import locate, sha256
from pds.models.checkpoints import load_weights
from pds.models.classifier import Classifier, DigitClassifier
from pds.options import shown

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class FeatureExtractor(Protocol):
    """Images to features; each image is treated alone, so features do not depend on how images are grouped.

    Attributes:
        name: what the features are, as it stands in metric names.
        dimension: D, the length of a feature vector.
        provenance: what a feature depends on besides the image: "features" (the name), "resize", "weights_sha256".
    """

    name: str
    dimension: int
    provenance: dict[str, str]

    @property
    def logits(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Gives (n, classes) logits of (n, D) features, by the network's last layer; None where it has none."""

    def __call__(self, images: Tensor) -> np.ndarray:
        """(n, D) float32 features of (n, C, H, W) uint8 images; other images raise `PDSError`."""
        ...


def _in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, size: int, dimension: int) -> np.ndarray:
    """`function` on at most `size` images at a time, to bound memory."""
    features = np.empty((len(images), dimension), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), size):
            features[start : start + size] = function(images[start : start + size]).float().cpu().numpy()
    return features


class ClassifierFeatures:
    """The penultimate layer of one of the project's own classifiers: works offline, for images of its data set alone.

    Args:
        classifier: which network.
        device: where it runs.
        weights: its safetensors file; the shipped one by default.
    """

    chunk = 500

    def __init__(
        self, classifier: type[Classifier] = DigitClassifier, device: str | torch.device = "cpu", weights: Path | None = None
    ) -> None:
        self.name, self.dimension = f"{classifier.data}_classifier", classifier.dimension
        weights = weights or locate(f"asset:{classifier_file(classifier)}")
        self.device = torch.device(device)
        self.network = classifier()  # type: ignore[call-arg]
        load_weights(self.network, weights)
        self.network.to(self.device).eval()
        self.provenance = {"features": self.name, "resize": "none", "weights_sha256": sha256(weights)}

    def __call__(self, images: Tensor) -> np.ndarray:
        shape = self.network.shape
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise PDSError(
                f"{self.name} features need uint8 images of shape (n, {', '.join(map(str, shape))}), got {images.dtype} "
                f"{tuple(images.shape)}: take Inception features, or none, for other images"
            )
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _features(self, images: Tensor) -> Tensor:
        return self.network.features(to_unit(images.to(self.device)))

    @torch.inference_mode()
    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, classes) logits of (n, D) features."""
        return self.network.head(torch.from_numpy(features).to(self.device).relu()).cpu().numpy()


def classifier_file(classifier: type[Classifier]) -> str:
    """The name of a classifier's weights file."""
    return f"{classifier.data}_classifier.safetensors"


class InceptionFeatures:
    """Clean-FID's features in its mode "clean": its antialiased resize to 299x299, then the TorchScript Inception of the
    original FID (Parmar et al., *On Aliased Resizing and Surprising Subtleties in GAN Evaluation*, CVPR 2022).

    Images of one channel are repeated to three.

    Args:
        device: where the network runs; the resize runs on the CPU, on as many threads as torch uses.
        cache: folder of the weights, the project's cache by default; they are downloaded into it if absent.
        checksum: SHA-256 that the weights file must have.

    Raises:
        PDSError: the weights are absent and cannot be downloaded, or are other ones.
    """

    name = "inception"
    dimension = 2048
    chunk = 32
    logits = None  # the TorchScript file gives features alone

    def __init__(self, device: str | torch.device = "cpu", cache: Path | None = None, checksum: str = INCEPTION_SHA256) -> None:
        from cleanfid.downloads_helper import inception_url
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        folder = cache or cache_folder()
        # TorchScript is code: only the file with the published checksum is ever loaded.
        fetch(inception_url, folder / INCEPTION_FILE, "the Inception network of clean-fid", checksum)
        self.device = torch.device(device)
        self.network = InceptionV3W(str(folder), download=False).to(self.device).eval()
        self.resize = build_resizer("clean")
        # Pillow, which resizes, leaves Python to the other threads meanwhile.
        self.threads = ThreadPoolExecutor(torch.get_num_threads())
        self.provenance = {"features": self.name, "resize": "clean", "weights_sha256": checksum}

    def __call__(self, images: Tensor) -> np.ndarray:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            found = f"{images.dtype} {tuple(images.shape)}"
            raise PDSError(f"{self.name} features need uint8 images of shape (n, 1 or 3, H, W), got {found}")
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _features(self, images: Tensor) -> Tensor:
        arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack(list(self.threads.map(self.resize, arrays)))
        return self.network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device))


def extractor(name: str, device: str | torch.device = "cpu", cache: Path | None = None) -> FeatureExtractor:
    """The extractor of a name.

    Args:
        name: mnist_classifier or inception_clean.
        device: where it runs.
        cache: folder of downloaded weights; the project's by default.
    """
    if name == "mnist_classifier":
        return ClassifierFeatures(DigitClassifier, device)
    if name == "inception_clean":
        return InceptionFeatures(device, cache)
    raise OptionError("features", f"must be one of mnist_classifier, inception_clean, got {shown(name)}")
