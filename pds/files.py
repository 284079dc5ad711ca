"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary beside of `path` to write to: renamed to `path` when the block ends well, removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids are not enough: machines and containers that share a disk have equal ones.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_once(path: Path, make: Callable[[], None]) -> None:
    """Have `make` write `path` unless it is there; of this user's processes on a machine one makes it and the others wait."""
    if path.is_file():
        return
    # Not beside `path`, so that nothing is left where it could not be made.
    name = hashlib.sha256(f"{getattr(os, 'getuid', int)()} {path.resolve()}".encode()).hexdigest()
    lock_file = Path(tempfile.gettempdir()) / f"pds-{name[:32]}.lock"
    try:
        with open(lock_file, "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                make()
    finally:
        # Who opened it before this and waits finds `path` made, or makes it.
        lock_file.unlink(missing_ok=True)


ASSETS = Path(__file__).parent / "assets"


def locate(path: str | Path) -> Path:
    """A path as the user wrote it; `asset:NAME` is a file that ships with this package."""
    text = str(path)
    return ASSETS / text.removeprefix("asset:") if text.startswith("asset:") else Path(text).expanduser()


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def json_digest(value: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


AT_REST = 3_000_000_000  # ns; the coarsest clock, of FAT, ticks every 2 s


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; of a file that this process has read and that is as it was, from memory."""
    stat = path.stat()
    key = str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    # One written a moment ago may be written again within a tick of the file system's clock, and look the same.
    return _sha256(*key) if time.time_ns() - max(key[3:]) > AT_REST else _sha256.__wrapped__(*key)


@functools.lru_cache
def _sha256(path: str, *facts: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
