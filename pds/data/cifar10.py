"""CIFAR-10 (Krizhevsky, 2009) in its published python or binary batches, or as JPEG files."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pds.data.folder import ImageFolder
from pds.data.images import ArrayImages, require_file
from pds.errors import PDSError
from pds.files import read_bytes, user_path
from pds.options import checked, shown

SOURCE = (
    "from cifar-10-python.tar.gz, MD5 c58f30108f718f92721af3b95e74349a, or cifar-10-binary.tar.gz, MD5 "
    "c32a1d4ab5d03f1284b67883e8d87530, at https://www.cs.toronto.edu/~kriz/cifar.html"
)
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
IMAGES_PER_BATCH = 10_000
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MOST = 2 * IMAGES_PER_BATCH * (1 + PIXELS)  # bytes of a batch
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _ArraysOnly(pickle.Unpickler):
    """The published python batches are pickles of arrays and lists. Nothing else in them is ever looked up."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _python_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(read_bytes(path, MOST)), encoding="bytes").load()
        return np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except PDSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise PDSError(f"{path} is not a CIFAR-10 python batch ({shown(str(error))}): fetch it again") from None


def _binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.frombuffer(read_bytes(path, MOST), np.uint8)
    if len(raw) != IMAGES_PER_BATCH * (1 + PIXELS):
        whole = IMAGES_PER_BATCH * (1 + PIXELS)
        raise PDSError(f"{path} has {len(raw)} bytes, a CIFAR-10 binary batch has {whole}: fetch it again")
    rows = raw.reshape(IMAGES_PER_BATCH, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0]


@checked
def cifar10(root: str | Path, split: Literal["train", "test"] = "train") -> ArrayImages:
    """CIFAR-10 as an image source of shape (3, 32, 32) with labels.

    Args:
        root: folder with cifar-10-batches-py or cifar-10-batches-bin in it, or one of these.
        split: "train" (50,000 images) or "test" (10,000).
    """
    root = user_path(root)
    folder = next((root / sub for sub in ("cifar-10-batches-py", "cifar-10-batches-bin") if (root / sub).is_dir()), root)
    images, labels = [], []
    for name in BATCHES[split]:
        path = require_file(folder, [name, f"{name}.bin"], f"CIFAR-10 {split} batch {name}", SOURCE)
        data, label = (_binary_batch if path.suffix == ".bin" else _python_batch)(path)
        kinds = (data.dtype == np.uint8, np.issubdtype(label.dtype, np.integer))
        if not all(kinds) or data.shape != (IMAGES_PER_BATCH, PIXELS) or label.shape != (IMAGES_PER_BATCH,):
            raise PDSError(f"{path} holds {data.dtype} images of shape {data.shape}: it is not a CIFAR-10 batch")
        if label.min() < 0 or label.max() > 9:
            raise PDSError(f"{path} has labels up to {label.max()}: CIFAR-10 has 0 to 9")
        images.append(data.reshape(-1, *SHAPE))
        labels.append(label)
    return ArrayImages("cifar10", split, np.concatenate(images), np.concatenate(labels))


@checked
def cifar10_jpeg(root: str | Path, split: Literal["train", "test"] = "train") -> ArrayImages:
    """A copy of CIFAR-10 as JPEG files, with labels. JPEG loses detail, so this copy is another data set.

    Args:
        root: folder of <split>/<class>/*.jpg, or a folder with that folder as cifar10-jpeg/.
        split: "train" (50,000 images) or "test" (10,000).

    Raises:
        PDSError: the classes or the numbers of images are not those of CIFAR-10.
    """
    root = user_path(root)
    root = root / "cifar10-jpeg" if (root / "cifar10-jpeg").is_dir() else root
    files = ImageFolder(root / split, SHAPE, "cifar10_jpeg", split)
    classes, labels, counts = np.unique([Path(path).parts[0] for path in files.paths], return_inverse=True, return_counts=True)
    each = len(BATCHES[split]) * IMAGES_PER_BATCH // len(CLASSES)
    if tuple(classes) != CLASSES or set(counts) != {each}:
        raise PDSError(f"{root / split} must hold {each} images in each of {', '.join(CLASSES)}: unpack it again")
    return ArrayImages(files.name, split, files.read(range(len(files))).numpy(), labels.astype(np.uint8))
