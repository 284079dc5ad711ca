"""The device of a run, its precision, and the choice of a GPU among several."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import shlex
import shutil
import sys

import torch

from pds.cache import cache_folder
from pds.errors import PDSError
from pds.files import lock, open_lock
from pds.lab.settings import Threads
from pds.options import checked

log = logging.getLogger(__name__)


@functools.cache
def free_gpu(uuids: tuple[str, ...]) -> int:
    """A GPU that no other process of this user has leased, leased for the life of this process.

    A lease is a lock on a file named by the GPU's UUID: its index differs between processes that see other GPUs. If no GPU is
    free, or files cannot be locked, the process id chooses one.

    Args:
        uuids: UUID of each GPU that this process sees.

    Returns:
        Its index in `uuids`; the same at every call.
    """
    if sys.platform == "win32":  # it has no such locks
        return 0
    folder = cache_folder() / f"gpus-{os.getuid()}"
    for index, uuid in enumerate(uuids):
        try:
            # Never closed here: the system closes it whenever this process ends, and the lease ends with it.
            lock(open_lock(folder / uuid), wait=False)
            return index
        except OSError as error:
            refusal = error.strerror or error
    shared = os.getpid() % len(uuids)
    log.warning("no GPU of %d is free (%s: %s): cuda:%d is shared with another process", len(uuids), folder, refusal, shared)
    return shared


def keep_memory() -> None:
    """Let glibc keep up to 256 MiB that was freed; another C library stays as it is.

    By default it gives the memory of a layer back to the system and asks for it again at each evaluation. On a CPU these page
    faults took a tenth of the quickstart's time.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 256 << 20)
        mallopt(mmap_threshold, 32 << 20)


@checked
def prepare_device(name: str, threads: Threads | None) -> torch.device:
    """The device to sample on, with torch's CPU threads set, and freed memory kept. "auto" is "cuda" if there is a GPU, one for
    each process."""
    keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if name in ("auto", "cuda") and gpus:
        if "LOCAL_RANK" in os.environ:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        uuids = tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(gpus))
        return torch.device("cuda", free_gpu(uuids) if gpus > 1 else 0)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise PDSError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise PDSError(f"device={name} asked for, but torch sees {gpus} GPUs here: use device=cpu")
    if device.type == "cuda" and (processes := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > 1:
        raise PDSError(f"device={name} is one GPU for all {processes} processes of torchrun: use device=cuda, a GPU each")
    return device


TF32 = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
"""The default of torch; an earlier point of a sweep may have set another number."""


@checked
def choose_precision(tf32: bool | None) -> None:
    """Let float32 arithmetic on a GPU round to TensorFloat-32 (True), or not (False); None is the default of torch."""
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = TF32 if tf32 is None else (tf32, tf32)


def require_compiler(key: str = "compile") -> None:
    """Refuse `key=true` without a C++ compiler; torch.compile would fail minutes later with a long error."""
    # It may be a command of several words, as "ccache g++".
    compiler = [*shlex.split(os.environ.get("CXX", "g++")), ""][0]
    if shutil.which(compiler) is None:
        raise PDSError(f"{key}=true needs a C++ compiler, and there is no {compiler} here: install it, or set {key}=false")
