"""MNIST in its published idx files (LeCun, Cortes & Burges, 1998), packed with gzip or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from pds.data.images import ArrayImages, require_file
from pds.errors import PDSError

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
PREFIXES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
UNPACKED_MD5 = {
    "train-images-idx3": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1": "27ae3e4e09519cfbb04c329615203637",
}


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzip-packed or plain, as an array; header and length are checked."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PDSError(f"{path} is not a whole gzip file ({error}): fetch it again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise PDSError(f"{path} is not an idx file of unsigned bytes (its first bytes are {raw[:4].hex() or 'missing'})")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise PDSError(f"{path} ends inside its idx header: fetch it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape)):
        raise PDSError(f"{path} holds {len(raw) - header} bytes where its header says {shape}: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def mnist(root: str | Path, split: str = "train") -> ArrayImages:
    """MNIST as an image source of shape (1, 28, 28) with labels.

    Args:
        root: folder of the idx files, or a folder with them in `mnist/`.
        split: "train" (60,000 images) or "test" (10,000).
    """
    if split not in PREFIXES:
        raise PDSError(f"MNIST has the splits {', '.join(PREFIXES)}, not {split!r}")
    prefix, count = PREFIXES[split]
    root = Path(root).expanduser()
    folder = root / "mnist" if (root / "mnist").is_dir() else root
    arrays = []
    for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
        names = [f"{prefix}-{kind}-ubyte.gz", f"{prefix}-{kind}-ubyte", f"{prefix}-{kind.replace('-', '.')}-ubyte"]
        where_from = f"from {MIRROR}, MD5 when unpacked {UNPACKED_MD5[f'{prefix}-{kind}']}"
        path = require_file(folder, names, f"MNIST {split} {kind.split('-')[0]}", where_from)
        array = read_idx(path)
        if array.shape != shape:
            raise PDSError(f"{path} holds an array of shape {array.shape}, MNIST {split} has {shape}: fetch it again")
        arrays.append(array)
    images, labels = arrays
    if labels.max() > 9:
        raise PDSError(f"{folder} has MNIST labels up to {labels.max()}: they must be 0 to 9, fetch them again")
    return ArrayImages("mnist", split, images[:, None], labels)
