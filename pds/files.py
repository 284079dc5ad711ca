"""Files: written whole or not at all, and checked before anything of them is used.

A file may be damaged, hostile or no file at all. `read_npz`, `read_json` and `read_yaml` know the expected content, take no
memory for more, and report anything else as one `DamagedError`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from pds.errors import MissingError, PDSError, UnwritableError, escaped
from pds.options import fitted, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

# The errors of a disk or a folder that cannot be written; a download in the block may fail with others.
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT}
_UNWRITABLE |= {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ESTALE}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report in one sentence that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UnwritableError(
            f"cannot write {path} ({error.strerror}): make room, or choose a folder that you can write to, and run the same "
            "command again; what is finished is kept"
        ) from None


@contextlib.contextmanager
def appending(path: Path) -> Iterator[None]:
    """Make the folder of a file that the block opens to append to.

    Raises:
        PDSError: the file cannot be written, or it is a pipe or a device; opening such a file may never end.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not path.is_file():
            raise PDSError(f"{path} is no regular file: delete it and run the same command again")
        yield


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path`. It is renamed to `path` when the block ends well, and removed when the block
    fails.

    Raises:
        PDSError: the disk is full, or the folder cannot be written.
    """
    # Process ids are not enough: machines and containers that share a disk have equal ones.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # a lost disk must not hide the original error
                temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder: those that nobody has written to for a day."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.tmp"):
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name) and time.time() - path.stat().st_mtime > 86_400:
                path.unlink(missing_ok=True)


ASSETS = Path(__file__).parent / "assets"


def user_path(path: str | Path, fix: str = "write the whole path") -> Path:
    """A path as the user wrote it, with `~` and `~name` replaced by the home folder.

    Raises:
        PDSError: there is no such home folder, or no file can have this name.
    """
    try:
        os.fsencode(path)
        if not str(path):
            raise ValueError("it is empty")
        if "\0" in str(path):
            raise ValueError("embedded null character")
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:
        raise PDSError(f"{shown(str(path))} is no path ({error}): {fix}") from None


def locate(path: str | Path) -> Path:
    """A path as the user wrote it; "asset:NAME" is a file that ships with this package, weights if it has no suffix.

    Raises:
        DamagedError: a file that ships is not the one that shipped.
    """
    text = str(path)
    name = text.removeprefix("asset:")
    found = user_path(text) if name == text else ASSETS / (name if "." in name else f"{name}.safetensors")
    digest = _pinned(ASSETS).get(found.name) if found.parent == ASSETS else None
    if digest is not None and (not found.is_file() or sha256(found) != digest):
        raise DamagedError(f"{found} is not the file that shipped with this package: install the package again")
    return found


PINNED = "SHA256SUMS"


def _pinned(folder: Path) -> dict[str, str]:
    """The digest of each file that ships, by name."""
    lines = (folder / PINNED).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


def pin(path: Path) -> None:
    """Write the digest of a file for shipping into the table beside it, if there is one."""
    table = path.parent / PINNED
    if not table.exists():
        return
    digests = _pinned(path.parent) | {path.name: sha256(path)}
    with atomic_path(table) as temporary:
        temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())), encoding="utf-8")


class DamagedError(PDSError):
    """A file is cut, damaged, of another kind, or is a folder, a pipe or a device instead of a file."""


MOST = 1 << 30  # bytes of a file or of its unpacked arrays, unless a reader is told otherwise
MOST_TEXT = 1 << 26  # bytes of a JSON file; thousands of runs have some kilobytes each
MOST_YAML = 1 << 20
DEPTH = 64  # of nested lists and tables
DIGITS = 25  # of a whole number: more than 64 bits have


@contextlib.contextmanager
def reading(path: Path, what: str, fix: str) -> Iterator[None]:
    """Report any error in the block, which reads `path` or checks its content, as one `DamagedError`.

    Args:
        path: the file.
        what: the expected content, as in "a statistics file".
        fix: advice to the user.
    """
    try:
        yield
    except (DamagedError, MissingError):
        raise
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: give {what}") from None
    # Damaged bytes may raise anything. A bug that hides here still names its file and its error.
    except (Exception, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = escaped(" ".join(reason.split()), 200) or type(error).__name__
        raise DamagedError(f"{path} is not {what} ({reason}): {fix}") from None


def open_regular(path: Path, most: int = MOST) -> BinaryIO:
    """A file to read, never a folder, a pipe or a device: reading or even opening these may not end.

    Args:
        path: the file, or a link to one.
        most: the largest size, in bytes.

    Raises:
        MissingError: there is no such file.
        DamagedError: it is something else, has more bytes, or may not be read.
    """
    with reading(path, "a file that can be read here", "give another"):
        return _open(path, most)


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """The whole content of a file; arguments and errors as in `open_regular`."""
    with reading(path, "a file that can be read here", "give another"):
        return _read(path, most)


def _open(path: Path, most: int) -> BinaryIO:
    # Without this flag, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        if facts.st_size > most:
            raise ValueError(f"it has {facts.st_size:,} bytes, and may have {most:,}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _read(path: Path, most: int) -> bytes:
    with _open(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it grew beyond {most:,} bytes while it was read")
    return content


@dataclass(frozen=True)
class Array:
    """The type, shape and range of an array in a file.

    Attributes:
        kind: name of its dtype, or "float" of any width, or "str", or "bytes".
        shape: each axis's length, or a name; axes of one name in one file have one length.
        low, high: its least and greatest value; floats must be finite in any case.
        optional: whether the array may be absent.
    """

    kind: str
    shape: tuple[int | str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Whether an array of this dtype will do."""
        kinds = {"float": "f", "str": "U", "bytes": "S"}
        return dtype.isnative and (dtype.kind == kinds[self.kind] if self.kind in kinds else dtype == np.dtype(self.kind))

    def require_values(self, array: np.ndarray) -> None:
        """Raise ValueError for values that are out of range."""
        if self.kind == "str":
            str(array).encode()  # refuses half of a surrogate pair, which is no text
        elif array.size and self.kind != "bytes":
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("its values are not finite")
            if array.min() < self.low or array.max() > self.high:
                raise ValueError(f"its values lie from {array.min():g} to {array.max():g}")


def read_npz(
    path: Path,
    schema: Mapping[str, Array],
    what: str,
    fix: str,
    rows: int | None = None,
    others: bool = False,
    most: int = MOST,
) -> dict[str, np.ndarray]:
    """The arrays of an npz file with those of `schema` and no others.

    The sizes in its headers are compared with one another, with the schema and with `most` before memory is taken. No pickle is
    read.

    Args:
        path: the file.
        schema: type, shape and range of its arrays, by name.
        what: the expected content, as in "a statistics file".
        fix: advice to the user if the file is something else.
        rows: read no more than the first `rows` along the first axis.
        others: whether it may hold other arrays, which are not read.
        most: the largest size of the file, and of its unpacked content, in bytes.

    Raises:
        MissingError: there is no such file.
        DamagedError: it is anything else.
    """
    with reading(path, what, fix), _open(path, most) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        required = {name for name, array in schema.items() if not array.optional}
        if missing := sorted(required - members.keys()):
            raise ValueError(f"it has no {', '.join(missing)}")
        if len(members) != len(archive.infolist()) or not (others or members.keys() <= schema.keys()):
            raise ValueError(f"it holds {shown(sorted(members))}")
        if sum(member.file_size for name, member in members.items() if name in schema) > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
        arrays: dict[str, np.ndarray] = {}
        lengths: dict[str, int] = {}
        for name in schema:
            if name in members:
                try:
                    arrays[name] = _read_array(archive, members[name], schema[name], lengths, rows)
                except (Exception, MemoryError) as error:
                    raise ValueError(f"{name}: {str(error) or type(error).__name__}") from None
        return arrays


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, wanted: Array, lengths: dict[str, int], rows: int | None
) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed in a way that numpy does not use")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(file)
        if not wanted.fits(dtype) or not dtype.itemsize:
            raise ValueError(f"it is {shown(dtype)}, not {wanted.kind}")
        if len(shape) != len(wanted.shape):
            raise ValueError(f"it has {len(shape)} axes, not {len(wanted.shape)}")
        for axis, n in zip(wanted.shape, shape, strict=True):
            length = lengths.setdefault(axis, n) if isinstance(axis, str) else axis
            if n != length:
                raise ValueError(f"its shape is {shown(shape)}, with {n} instead of {length}")
        size = math.prod(shape) * dtype.itemsize
        # Deflate packs 1032 bytes into one at best.
        if size != member.file_size - file.tell() or member.file_size > 1032 * (member.compress_size + 1):
            raise ValueError(f"its header speaks of {size:,} bytes, the file of {member.file_size - file.tell():,}")
        whole = rows is None or not shape or rows >= shape[0]
        if rows is not None and not whole:
            if fortran:
                raise ValueError("its first axis is not its slowest")
            shape = (rows, *shape[1:])
        content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        view, filled = memoryview(content), 0
        while filled < len(content):
            block = file.read(min(1 << 20, len(content) - filled))
            if not block:
                raise EOFError("it is cut")
            view[filled : filled + len(block)] = block
            filled += len(block)
    array = content.view(dtype).reshape(shape, order="F" if fortran else "C")
    wanted.require_values(array)
    return array


def parse_json(text: str | bytes, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The table that `text` holds as JSON, or ValueError.

    Args:
        text: UTF-8.
        keys: keys that it must have, with the annotation of their values, as in {"images": int}; there may be others.
    """

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"a number is {text[:20]}")
        return number

    text = text if isinstance(text, str) else text.decode("utf-8")
    return _table(json.loads(text, parse_float=finite, parse_constant=finite), keys)


def _table(value: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`value` if it is a table of plain values with these keys, not too deep. The output of a parser may be anything."""
    if not isinstance(value, dict):
        raise ValueError("it holds no table of keys")
    unseen, depth = [value], 0
    while unseen:
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")
        inner: list[Any] = []
        for item in unseen:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise ValueError("it has keys that are no text")
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                item.encode()  # refuses half of a surrogate pair, which cannot be written to a file
            elif isinstance(item, int) and abs(item) >= 10**DIGITS:
                raise ValueError(f"a number has more than {DIGITS} digits")
            elif not isinstance(item, (bool, int, float, type(None))):
                raise ValueError(f"it holds a {type(item).__name__}")
        unseen, depth = inner, depth + 1
    for key, annotation in keys.items():
        if key not in value:
            raise ValueError(f"it has no {key}")
        value[key] = fitted(key, value[key], annotation)
    return value


def read_json(path: Path, keys: Mapping[str, Any], what: str, fix: str) -> dict[str, Any]:
    """The table in a file of JSON; `keys` as in `parse_json`, other arguments and errors as in `read_npz`."""
    with reading(path, what, fix):
        return parse_json(_read(path, MOST_TEXT), keys)


def parse_yaml(text: str | bytes, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The table that `text` holds as YAML of plain values, without aliases, or ValueError; arguments as in `parse_json`."""
    import yaml  # of the lab; the library itself meets it in old files alone

    text = text if isinstance(text, str) else text.decode("utf-8")
    if len(text) > MOST_YAML:
        raise ValueError(f"it has more than {MOST_YAML:,} characters")
    depth, loader = 0, _yaml_loader()
    # Events come one by one. The composer recurses without a limit in C, and aliases multiply its work.
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias")
    return _table(yaml.load(text, loader), keys)


@functools.cache
def _yaml_loader() -> Any:
    import yaml

    safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(safe):  # type: ignore[misc]
        """The safe loader, with numbers of a limited length: numbers to the base of 60 take time in the square of their
        length."""

    def number(kind: str) -> Any:
        construct = Loader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]

        def constructed(loader: Any, node: Any) -> Any:
            if len(node.value) > 2 * DIGITS:
                raise ValueError(f"a number has {len(node.value):,} digits")
            return construct(loader, node)

        return constructed

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number(kind))
    return Loader


def read_yaml(path: Path, keys: Mapping[str, Any], what: str, fix: str) -> dict[str, Any]:
    """The table in a file of YAML; arguments and errors as in `read_json`."""
    with reading(path, what, fix):
        return parse_yaml(_read(path, MOST_YAML), keys)


def open_lock(path: Path) -> int:
    """Descriptor of a file to lock, made if it is absent. It is never a pipe, and never a link, whose target would be opened.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EEXIST, "it is no regular file: delete it", str(path))
    return descriptor


def lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed or this process ends; nothing on Windows.

    Raises:
        BlockingIOError: another process has the lock, and this one is not to wait.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock while the block runs; yields whether this process has the lock, which may fail without `wait`."""
    descriptor = open_lock(path)
    try:
        try:
            lock(descriptor, wait)
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def json_digest(value: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


AT_REST = 3_000_000_000  # ns; the coarsest clock, that of FAT, ticks every 2 s


def remembered(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """`read` of a file, from memory if this process has read the file and it has not changed."""
    known = functools.lru_cache(1024)(lambda path, *facts: read(path))

    @functools.wraps(read)
    def call(path: Path) -> T:
        try:
            facts = path.stat()
        except OSError:  # `read` reports it
            return read(path)
        # A file written a moment ago may be written again within a tick of the file system's clock, and look unchanged.
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) <= AT_REST:
            return read(path)
        return known(path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)

    return call


@remembered
def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path, most=1 << 50) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
