"""MNIST in its published idx files (LeCun, Cortes & Burges, 1998), packed with gzip or not."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import math
import struct
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np

from pds.data.images import ArrayImages, require_file
from pds.errors import PDSError
from pds.files import open_regular, reading, user_path
from pds.options import checked

log = logging.getLogger(__name__)

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
PREFIXES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
UNPACKED_MD5 = {
    "train-images-idx3": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1": "27ae3e4e09519cfbb04c329615203637",
}


def _idx_header(shape: tuple[int, ...]) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An idx file of unsigned bytes, gzip-packed or plain, as an array; header and length are checked.

    Args:
        path: the file.
        shape: shape of its array. No more bytes than this are unpacked.
    """
    header = _idx_header(shape)
    length = len(header) + math.prod(shape)
    packed = path.suffix == ".gz"
    with reading(path, f"a whole {'gzip' if packed else 'idx'} file", "fetch it again"), contextlib.ExitStack() as opened:
        file: IO[bytes] = opened.enter_context(open_regular(path, most=2 * length))
        file = cast(IO[bytes], opened.enter_context(gzip.open(file))) if packed else file
        raw = file.read(length)
        more = file.read(1)  # at the end of a gzip file, this checks its CRC
    if raw[:4] != header[:4]:
        raise PDSError(
            f"{path} is not an idx file of unsigned bytes in {len(shape)} dimensions (its first bytes are "
            f"{raw[:4].hex() or 'missing'}): fetch it again"
        )
    if raw[: len(header)] != header:
        found = struct.unpack(f">{len(shape)}I", raw[4 : len(header)].ljust(4 * len(shape), b"\0"))
        raise PDSError(f"{path} says that it holds an array of shape {found}, not {shape}: fetch it again")
    if len(raw) < length or more:
        raise PDSError(f"{path} holds {'more' if more else 'fewer'} bytes than an array of shape {shape}: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)


@checked
def mnist(root: str | Path, split: Literal["train", "test"] = "train") -> ArrayImages:
    """MNIST as an image source of shape (1, 28, 28) with labels.

    Args:
        root: folder of the idx files, or a folder with them in `mnist/`.
        split: "train" (60,000 images) or "test" (10,000).
    """
    prefix, count = PREFIXES[split]
    root = user_path(root)
    folder = root / "mnist" if (root / "mnist").is_dir() else root
    arrays = []
    for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
        names = [f"{prefix}-{kind}-ubyte.gz", f"{prefix}-{kind}-ubyte", f"{prefix}-{kind.replace('-', '.')}-ubyte"]
        where_from = f"from {MIRROR}, MD5 when unpacked {UNPACKED_MD5[f'{prefix}-{kind}']}"
        path = require_file(folder, names, f"MNIST {split} {kind.split('-')[0]}", where_from)
        array = read_idx(path, shape)
        content = hashlib.md5(_idx_header(shape) + array.tobytes(), usedforsecurity=False).hexdigest()
        if content != UNPACKED_MD5[f"{prefix}-{kind}"]:
            log.warning("%s is not the published file (MD5 when unpacked %s): results are not those of MNIST", path, content)
        arrays.append(array)
    images, labels = arrays
    if labels.max() > 9:
        raise PDSError(f"{folder} has MNIST labels up to {labels.max()}: they must be 0 to 9, fetch them again")
    return ArrayImages("mnist", split, images[:, None], labels)
