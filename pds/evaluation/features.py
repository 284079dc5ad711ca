"""Feature extractors: images to the vectors that a Fréchet distance compares."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pds.cache import cache_folder, fetch
from pds.data.images import to_unit
from pds.errors import MissingError, OptionError, PDSError
from pds.files import locate, sha256, user_path
from pds.models.checkpoints import load_weights
from pds.models.classifier import Classifier, DigitClassifier, ObjectClassifier
from pds.models.scores import evaluating
from pds.named import code_digest, named, refused
from pds.options import shown

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class FeatureExtractor(Protocol):
    """Images to features. Each image is treated alone, so features do not depend on the grouping of images.

    Attributes:
        name: name of the features in metric names.
        dimension: D, the length of a feature vector.
        provenance: facts that a feature depends on besides the image: "features" (the name), "resize", "weights_sha256".
    """

    name: str
    dimension: int
    provenance: dict[str, str]

    @property
    def logits(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Gives (n, classes) logits of (n, D) features, by the network's last layer; None for a network without classes."""

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
    """The penultimate layer of one of the project's own classifiers. It works offline, and for images of its data set alone.

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
                f"{tuple(images.shape)}: take {self._others(tuple(images.shape[1:]))}"
            )
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _others(self, shape: tuple[int, ...]) -> str:
        """The other metrics for images of this shape, for a message."""
        fitting = [name for name, kind in CLASSIFIERS.items() if kind.shape == shape and name != self.name]
        return " or ".join([*fitting, "clean_fid", "none"])

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
        _require_pictures(self.name, images)
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _features(self, images: Tensor) -> Tensor:
        arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack(list(self.threads.map(self.resize, arrays)))
        return self.network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device))


class Published(NamedTuple):
    """A network that torch-fidelity knows.

    Attributes:
        theirs: its name in torch-fidelity.
        layer: name of its features in torch-fidelity.
        name: its name in metric names.
        dimension: D.
        url: address of its weights.
        sha256: their SHA-256; None if the publisher gives none.
        file: their place below the cache folder, or below the folder of torch.hub.
    """

    theirs: str
    layer: str
    name: str
    dimension: int
    url: str
    sha256: str | None
    file: str


PUBLISHED = {
    "inception_tf": Published(
        "inception-v3-compat",
        "2048",
        "inception",
        2048,
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "clip_vitb32": Published(
        "clip-vit-b-32",
        "clip",
        "clip_vitb32",
        512,
        "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "clip-ViT-B-32.pt",
    ),
    "dinov2_vitl14": Published(
        "dinov2-vit-l-14",
        "dinov2",
        "dinov2_vitl14",
        1024,
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        None,
        "checkpoints/dinov2_vitl14_pretrain.pth",
    ),
}


class FidelityFeatures:
    """Features of the networks that torch-fidelity defines, with its resize, that of TensorFlow 1 (Obukhov et al., 2020).

    Images of one channel are repeated to three.

    Args:
        published: the network.
        device: where it runs.
        cache: folder of the weights, the project's cache by default; they are downloaded into it if absent. DINOv2 comes with
            its code through torch.hub, in the folder of torch.hub.

    Raises:
        PDSError: torch-fidelity or the weights are absent, or are other ones.
    """

    chunk = 32

    def __init__(self, published: Published, device: str | torch.device = "cpu", cache: Path | None = None) -> None:
        try:
            from torch_fidelity.utils import create_feature_extractor
        except ImportError:
            raise MissingError(f"{published.name} features need torch-fidelity: pip install 'pds-lab[features]'") from None
        self.name, self.dimension = published.name, published.dimension
        self.device, self.layer = torch.device(device), published.layer
        weights: dict[str, str] = {}
        if published.sha256 is None:
            file = fetch(published.url, Path(torch.hub.get_dir()) / published.file, f"the network {published.name}")
        else:
            file = fetch(published.url, (cache or cache_folder()) / published.file, published.name, published.sha256)
            weights = {"feature_extractor_weights_path": str(file)}
        try:
            made = create_feature_extractor(published.theirs, [published.layer], cuda=False, verbose=False, **weights)
        except (OSError, RuntimeError) as error:
            raise MissingError(
                f"{published.name} needs its code, which torch.hub could not load ({error}): put the repository "
                f"https://github.com/facebookresearch/dinov2 at {Path(torch.hub.get_dir()) / 'facebookresearch_dinov2_main'}"
            ) from None
        self.network = made.to(self.device).eval()
        self.provenance = {"features": self.name, "resize": "tf", "weights_sha256": published.sha256 or sha256(file)}

    def __call__(self, images: Tensor) -> np.ndarray:
        _require_pictures(self.name, images)
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _features(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1).to(self.device))[0].flatten(1)

    @property
    def logits(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """The classes of Inception, without bias as in its inception score; None for the other networks."""
        if self.layer != "2048":
            return None
        weight: Tensor = self.network.fc.weight.detach().cpu()
        return lambda features: (torch.from_numpy(features) @ weight.T).numpy()


def _require_pictures(name: str, images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise PDSError(f"{name} features need uint8 images of shape (n, 1 or 3, H, W), got {found}")


class OwnFeatures:
    """Features of anyone's function or TorchScript file. Both are code, and are run; their networks in evaluation mode.

    Args:
        source: FILE.py:NAME or module:NAME of a function, or a TorchScript file. It takes (n, C, H, W) uint8 images and returns
            (n, D) floats.
        shape: (C, H, W) of the images.
        device: where the images are when it is called, and where a TorchScript network runs.

    Raises:
        OptionError: there is no such function or file, it fails on a black image, or it returns something else.
    """

    chunk = 64
    logits = None

    def __init__(self, source: str, shape: tuple[int, int, int], device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        if ":" in source:
            self.function, module = named(source, "features")
            digest, name = code_digest(module), source.rpartition(":")[2]
        else:
            kept, name = user_path(source), Path(source).stem
            if not kept.is_file():
                raise OptionError("features", f"names {kept}, which is no file: give a TorchScript file")
            try:
                self.function = torch.jit.load(str(kept), map_location=self.device).eval()
            except RuntimeError as error:
                raise refused("features", f"names {kept}, which is no TorchScript file", error) from error
            digest = sha256(kept)
        self.name = re.sub(r"\W+", "_", name)
        self.source = source
        with evaluating():
            self.dimension = self._features(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        self.provenance = {"features": self.name, "resize": "none", "weights_sha256": digest or "none"}

    def __call__(self, images: Tensor) -> np.ndarray:
        return _in_chunks(self._features, images, self.chunk, self.dimension)

    def _features(self, images: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                found = self.function(images.to(self.device))
        except Exception as error:
            raise refused("features", f"{self.source} fails on images of shape {tuple(images.shape)}", error) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise OptionError("features", f"{self.source} gives {what}, not an (n, D) tensor of {len(images)} images")
        return found


CLASSIFIERS: dict[str, type[Classifier]] = {f"{kind.data}_classifier": kind for kind in (DigitClassifier, ObjectClassifier)}
CHOICES = (*CLASSIFIERS, "inception_clean", *PUBLISHED)


def extractor(
    name: str, shape: tuple[int, int, int], device: str | torch.device = "cpu", cache: Path | None = None
) -> FeatureExtractor:
    """The extractor of a name.

    Args:
        name: one of `CHOICES`, or a source of `OwnFeatures`.
        shape: (C, H, W) of the images.
        device: where it runs.
        cache: folder of downloaded weights; the project's by default.
    """
    if name in CLASSIFIERS:
        return ClassifierFeatures(CLASSIFIERS[name], device)
    if name == "inception_clean":
        return InceptionFeatures(device, cache)
    if name in PUBLISHED:
        return FidelityFeatures(PUBLISHED[name], device, cache)
    if ":" in name or Path(name).suffix in (".pt", ".pth", ".ts", ".torchscript"):
        return OwnFeatures(name, shape, device)
    raise OptionError(
        "features", f"must be one of {', '.join(CHOICES)}, FILE.py:NAME, module:NAME or FILE.pt, got {shown(name)}"
    )
