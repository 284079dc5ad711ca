"""Which GPU a process takes where it sees several: one that no other process has."""

from __future__ import annotations

import functools
import logging
import os

from pds.cache import cache_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@functools.cache
def free_gpu(uuids: tuple[str, ...]) -> int:
    """A GPU that no other process of this user has leased, leased for the life of this one.

    A lease is a lock on a file named by the GPU's UUID, because its number differs between processes that see other GPUs.
    Where all are leased, or files cannot be locked, processes share the GPUs by their process id.

    Args:
        uuids: UUID of each GPU that this process sees.

    Returns:
        Its index in `uuids`; the same at every call.
    """
    if fcntl is None:
        return 0
    folder = cache_folder() / f"gpus-{os.getuid()}"
    for index, uuid in enumerate(uuids):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Never closed here: the system does that however this process ends, and the lease ends with it.
            fcntl.flock(os.open(folder / uuid, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return index
        except OSError as error:
            refusal = error.strerror
    shared = os.getpid() % len(uuids)
    log.warning("no GPU of %d is free (%s: %s): cuda:%d is shared with another process", len(uuids), folder, refusal, shared)
    return shared
