"""The project's one cache folder, and the only place that downloads anything."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pds.errors import MissingError, PDSError
from pds.files import atomic_path, lock, open_lock, sha256, user_path

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte


def cache_folder() -> Path:
    """Folder of downloaded files: $PDS_CACHE, else $XDG_CACHE_HOME/pds, else ~/.cache/pds (it need not exist)."""
    explicit = os.environ.get("PDS_CACHE")
    folder = explicit or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pds"
    return user_path(folder, "set PDS_CACHE to a folder that you can write")


def make_once(path: Path, make: Callable[[], None]) -> None:
    """Call `make` to write `path` unless the file is there. Among this user's processes on a machine, one makes it and the
    others wait.

    Raises:
        PDSError: there is no folder for the lock. Errors of `make` come through.
    """
    if path.is_file():
        return
    # The lock lies in the user's own folder, where nobody else can put a link of this name. It is never deleted:
    # else a waiting process would lock the old file, and the next process a new one.
    name = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()
    lock_file = cache_folder() / "locks" / name[:32]
    try:
        descriptor = open_lock(lock_file)
    except OSError as error:
        raise PDSError(
            f"cannot write to {lock_file.parent} ({error.strerror or error}): set PDS_CACHE to a folder that you can write"
        ) from None
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks; then two processes make the same file
            lock(descriptor)
        if not path.is_file():
            make()
    finally:
        os.close(descriptor)


def fetch(url: str, path: Path, what: str, checksum: str | None = None) -> Path:
    """`path`, downloaded from `url` if it is absent. The file appears only when it is whole and right.

    Args:
        url: address of the published file.
        path: place of the file here.
        what: its name in messages.
        checksum: hexadecimal SHA-256, checked at every call; None if the publisher gives none.

    Raises:
        PDSError: the file is absent and cannot be downloaded, or is not the published one.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    expected = f"sha256 {checksum}" if checksum else "no published checksum"

    def download() -> None:
        log.info("%s is not in the cache: downloading %s to %s", what, url, path)
        with atomic_path(path) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(temporary, "wb") as file:
                length = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file)
            if length is not None and temporary.stat().st_size != int(length):
                raise OSError(f"{temporary.stat().st_size} of {length} bytes arrived")
            if checksum and (found := sha256(temporary)) != checksum:
                raise OSError(f"the downloaded file has the sha256 {found}")

    try:
        make_once(path, download)
    except (OSError, http.client.HTTPException) as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise MissingError(
            f"{what} is missing and could not be downloaded ({error}): put the file from {url} ({expected}) at {path}"
        ) from None
    if checksum and (found := sha256(path)) != checksum:
        raise PDSError(
            f"{path} is not the published {what} (its sha256 is {found}, expected {checksum}): "
            f"delete it, or put the file from {url} there"
        )
    return path
