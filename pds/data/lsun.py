"""LSUN scenes (Yu et al., 2015): the published LMDB of a category, or a folder of its images."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from pds.cache import cache_folder
from pds.data.folder import EncodedImages, ImageFolder, Preprocess
from pds.data.photographs import Photographs
from pds.data.preprocessing import (
    BICUBIC,
    crop_centre,
    crop_centre_down,
    require_size,
    shrink_exactly,
    shrink_shorter_side,
    truncate,
)
from pds.errors import MissingError, OptionError, PDSError
from pds.files import Array, atomic_path, open_regular, read_npz
from pds.options import options, shown

log = logging.getLogger(__name__)

CATEGORIES = {"church": "church_outdoor", "tower": "tower", "bedroom": "bedroom"}
MOST = 1 << 50  # bytes of an LMDB; that of the bedrooms has 54 GB
PATIENCE, PATIENCE_FOR_KEYS = 30.0, 1800.0
"""Seconds for one answer. Listing the 3 million keys of the bedrooms on a slow disk takes minutes."""
SOURCE = "http://dl.yf.io/lsun/scenes/{}.zip"


def _ncsnv2(image: Image.Image, resolution: int) -> np.ndarray:
    """ermongroup/ncsnv2, `datasets/__init__.py`."""
    require_size(image, resolution, f"the resolution {resolution}")
    return np.asarray(crop_centre(shrink_shorter_side(image, resolution), resolution))


def _score_sde(image: Image.Image, resolution: int) -> np.ndarray:
    """yang-song/score_sde_pytorch, `datasets.py`, for the resolutions of NCSN++. The published images have a side of 256, so at
    256 this only crops."""
    require_size(image, resolution, f"the resolution {resolution}")
    return truncate(shrink_exactly(crop_centre_down(image, min(image.size)), resolution, BICUBIC))


@options
class LSUN(Photographs):
    """One category of LSUN; splits "train" and "val".

    Attributes:
        root: folder with the category's LMDB or image folder (church_outdoor_train_lmdb, church_outdoor_train) in it or in
            its `lsun/`, or that LMDB or image folder itself.
        category: "church", "tower" or "bedroom".
    """

    split: Literal["train", "val"]
    category: Literal["church", "tower", "bedroom"]

    methods: ClassVar = {"ncsnv2": _ncsnv2, "score_sde": _score_sde}

    def __call__(self) -> EncodedImages:
        name = f"{CATEGORIES[self.category]}_{self.split}"
        candidates = [f"lsun/{name}_lmdb", f"lsun/{name}", f"{name}_lmdb", name]
        folder = self.folder(candidates, f"LSUN {self.category} {self.split}", f"from {SOURCE.format(f'{name}_lmdb')}")
        for other in set(CATEGORIES.values()) - {CATEGORIES[self.category]}:
            if folder.name.startswith(f"{other}_"):
                raise OptionError("category", f"is {self.category}, and {folder} holds LSUN {other}: change one of them")
        title = self.title(f"lsun_{self.category}")
        if os.path.lexists(folder / "data.mdb"):
            return LMDBImages(folder, self.shape, title, self.split, self.preprocess)
        return ImageFolder(folder, self.shape, title, self.split, self.preprocess)


class LMDBImages(EncodedImages):
    """An LMDB whose values are encoded images, in the order of their keys.

    The keys are listed once and kept in the project's cache: they lie scattered in the 54 GB of the bedrooms.

    Args:
        root: folder of data.mdb.
        shape: (C, H, W) that every image must have in the end.
        name: its name in provenance.
        split: its split.
        preprocess: see `EncodedImages`.
    """

    def __init__(self, root: Path, shape: Sequence[int], name: str, split: str, preprocess: Preprocess | None = None) -> None:
        super().__init__(name, split, shape, preprocess)
        self.root = root
        self.database = _open(root.resolve())
        with self.database.needed():
            self.keys = _keys(root, self.database)

    @property
    def names(self) -> Sequence[bytes]:
        return list(self.keys)

    def encoded(self, i: int) -> bytes:
        return self.database.ask(bytes(self.keys[i]).hex(), f"{self.place(i)} cannot be read")

    def place(self, i: int) -> str:
        return f"{self.root}, key {bytes(self.keys[i]).decode(errors='replace')},"


class Database:
    """An LMDB that a separate process reads. A damaged page ends that process, never this one.

    Args:
        root: folder of data.mdb.

    Attributes:
        state: "entries", "psize", "last_pgno" and "last_txnid" of LMDB.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("lmdb_process.py"), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        self.process, self.questions, self.answers = process, process.stdin, process.stdout
        self.close = weakref.finalize(self, _end, process)  # at the latest with this process
        with self.needed():
            self.state = json.loads(self._answer(f"{root} is not a readable LMDB"))

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """End the process if the block refuses what it reads."""
        try:
            yield
        except PDSError:
            self.close()
            _open.cache_clear()
            raise

    def ask(self, question: str, problem: str, patience: float = PATIENCE) -> bytes:
        """The answer to a line; a `PDSError` starts with `problem`."""
        with self.lock:
            if self.process.poll() is None:
                with contextlib.suppress(BrokenPipeError):
                    self.questions.write(f"{question}\n".encode())
                    self.questions.flush()
            return self._answer(problem, patience)

    def _answer(self, problem: str, patience: float = PATIENCE) -> bytes:
        watch = threading.Timer(patience, self.process.kill)
        watch.start()
        try:
            length = self._length()
            failed = length == -1
            content = self._read(self._length() if failed else length)
        except EOFError:
            self.close()
            _open.cache_clear()  # another process may have better luck with other pages
            raise PDSError(f"{problem} (its pages are damaged): fetch it again") from None
        finally:
            watch.cancel()
        if failed:
            raise PDSError(f"{problem} (LMDB says {shown(content.decode(errors='replace'))}): fetch it again")
        return content

    def _length(self) -> int:
        return int.from_bytes(self._read(8), "little", signed=True)

    def _read(self, count: int) -> bytes:
        content = self.answers.read(count)
        if len(content) < count:
            raise EOFError
        return content


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@functools.lru_cache(1)  # a process for each LMDB; those that nobody uses end
def _open(root: Path) -> Database:
    if importlib.util.find_spec("lmdb") is None:
        raise MissingError(
            f"reading {root} needs the lmdb package: install it (pip install lmdb, or the extra pds-lab[lsun]), or give "
            "the images as a folder"
        )
    with open_regular(root / "data.mdb", MOST):
        size = (root / "data.mdb").stat().st_size
    database = Database(root)
    expected = (database.state["last_pgno"] + 1) * database.state["psize"]
    with database.needed():
        if size < expected:
            raise PDSError(f"{root}/data.mdb is cut off ({size} of {expected} bytes): fetch it again")
        if not database.state["entries"]:
            raise PDSError(f"{root} holds no images: fetch it again")
    return database


def _keys(root: Path, database: Database) -> np.ndarray:
    """(N,) bytes: all keys in order, from the cache if the same LMDB was listed before."""
    count = database.state["entries"]
    facts = (root.name, count, database.state["last_txnid"], (root / "data.mdb").stat().st_size)
    path = cache_folder() / "lmdb" / f"{root.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        try:
            # The archive has a CRC of the list.
            return read_npz(path, {"keys": Array("bytes", (count,))}, "a list of keys", "it is listed again")["keys"]
        except PDSError as error:
            log.warning("%s", error)
    log.info("listing the %d keys of %s once, for %s", count, root, path)
    listed, keys = database.ask("keys", f"the keys of {root} cannot be listed", PATIENCE_FOR_KEYS), []
    position = 0
    while position < len(listed):
        start = position + 2
        position = start + int.from_bytes(listed[position:start], "little")
        keys.append(listed[start:position])
    if len(keys) != count or sorted(set(keys)) != keys:
        raise PDSError(f"{root} holds {len(keys)} keys where {count} in order are due: fetch it again")
    array = np.array(keys, dtype=np.bytes_)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, keys=array)
    return array
