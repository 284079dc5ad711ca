"""The project's one cache folder, and the only place that downloads anything."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import urllib.request
from pathlib import Path

from pds.errors import MissingError, PDSError
from pds.files import atomic_path, make_once, sha256

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte


def cache_folder() -> Path:
    """Folder of downloaded files: $PDS_CACHE, else $XDG_CACHE_HOME/pds, else ~/.cache/pds (it need not exist)."""
    if explicit := os.environ.get("PDS_CACHE"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pds"


def fetch(url: str, path: Path, what: str, checksum: str | None = None) -> Path:
    """`path`, downloaded from `url` if it is absent; the file appears only when it is whole and right.

    Args:
        url: where the file is published.
        path: where it is kept.
        what: its name in messages.
        checksum: hexadecimal SHA-256, checked at every call; None where the publisher gives none.

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
                raise OSError(f"what arrived has the sha256 {found}")

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
