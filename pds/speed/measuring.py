"""Times, operations, peaks and memory of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pds.score import Score

BLOCK = 0.05  # shortest duration of a timing in seconds


def processor() -> str:
    """Name of the processor, or its architecture where the system does not tell its name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait for the queued work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device, number: int = 1) -> float:
    """Wall-clock of one of `number` runs."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(number):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / number


def time_in_turns(
    parts: dict[str, Callable[[], Any]], repeats: int, device: torch.device, block: float = BLOCK
) -> dict[str, list[float]]:
    """Milliseconds of each part, `repeats` times in turn, so that a machine that slows down slows all parts.

    A timing repeats its part until it lasts `block` seconds.
    """
    numbers = dict.fromkeys(parts, 1)
    for name, run in parts.items():
        while numbers[name] * seconds(run, device, numbers[name]) < block:
            numbers[name] *= 4
    rounds = [{name: 1e3 * seconds(run, device, numbers[name]) for name, run in parts.items()} for _ in range(repeats)]
    return {name: [times[name] for times in rounds] for name in parts}


@torch.no_grad()
def operations(score: Score, x: Tensor) -> int:
    """Floating-point operations of one evaluation of one image in convolutions, matrix products and attention.

    A multiplication with its addition is two.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it loads optional packages

    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        score(x, x.new_ones(len(x)))
    return counter.get_total_flops() // len(x)


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write: each argument and each result once, views none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


@torch.no_grad()
def traffic(score: Score, x: Tensor) -> int:
    """Bytes that the operations of one eager evaluation read and write, weights included, an image of the batch."""
    with torch.compiler.set_stance("force_eager"), _Traffic() as counter:
        score(x, x.new_ones(len(x)))
    return counter.total // len(x)


def attainable(device: torch.device, dtype: torch.dtype, n: int | None = None, block: float = BLOCK) -> float:
    """Floating-point operations a second of an n x n matrix product, the best of five: the practical peak of the machine.

    By default n is 8,192 on a GPU and 2,048 on a CPU. float32 products round as convolutions do.
    """
    n = n or (8192 if device.type == "cuda" else 2048)
    a = torch.randn(n, n, device=device).to(dtype)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    # Convolutions use TensorFloat-32 by default; products of matrices use it only on request.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        milliseconds = min(time_in_turns({"product": lambda: a @ a}, 5, device, block)["product"])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * n**3 / (1e-3 * milliseconds)


def bandwidth(device: torch.device, size: int, block: float = BLOCK) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes on the device, the best of five."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * min(time_in_turns({"copy": lambda: target.copy_(source)}, 5, device, block)["copy"]))


@dataclass
class Peak:
    """Memory of a block in bytes, known at its end: the peak in total, and the peak above the level before it."""

    total: int | None = None
    added: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Memory while the block runs: of torch's tensors on a GPU, of the whole process on a CPU under Linux, else None."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.total = torch.cuda.max_memory_allocated(device)
    else:
        try:
            # The C library would reuse memory that it kept after a free, and the peak would not show it.
            ctypes.CDLL(None).malloc_trim(0)
            # Linux: this resets the high-water mark of the resident set.
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            yield peak
            return
        before = _resident("VmRSS")
        yield peak
        peak.total = _resident("VmHWM")
    peak.added = peak.total - before


def _resident(field: str) -> int:
    (kilobytes,) = re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)
