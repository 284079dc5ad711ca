"""The report on a machine: each part in a separate process, within a time limit, into gpu.json and gpu.md.

Measured rows are kept if a part fails or is cut, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

import pds
from pds.errors import PDSError, first_line
from pds.files import atomic_path, read_json, reading, write_json
from pds.options import Range, fitted
from pds.speed.measuring import processor, synchronise
from pds.speed.parts import PARTS, Plan, Row, processes
from pds.speed.text import written

log = logging.getLogger(__name__)

FILE = "gpu.json"
PART: dict[str, Any] = {"state": str, "seconds": Annotated[float, Range(0)], "rows": dict, "cut": list[str | None]}
"""The keys of a part in the file."""


def machine(device: torch.device) -> dict[str, Any]:
    """The card, its driver and the versions, for the head of the report."""
    facts: dict[str, Any] = {"device": "CPU", "driver": None, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        facts |= {"device": known.name, "device_bytes": known.total_memory, "capability": f"{known.major}.{known.minor}"}
        facts["cudnn"] = torch.backends.cudnn.version()
        if command := shutil.which("nvidia-smi"):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
                told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
                facts["driver"] = told.split()[0]
    facts["processor"] = f"{processor()}, {os.cpu_count()} cores"
    return facts | {"python": platform.python_version(), "numpy": np.__version__, "pds": pds.__version__}


def read(folder: Path) -> dict[str, Any]:
    """The content of a folder's report: "machine", and by name of a part its "state", "seconds" and "rows"."""
    path = folder / FILE
    if not path.exists():
        return {"machine": {}, "parts": {}}
    what, fix = "a report of this version", "delete it, or give another folder"
    report = read_json(path, {"machine": dict, "parts": dict}, what, fix)
    with reading(path, what, fix):
        for part in report["parts"].values():
            for key, kind in PART.items():
                part[key] = fitted(key, part[key], kind)
            if not all(isinstance(row, dict) for row in part["rows"].values()):
                raise ValueError("it has a row that is no table")
    return report


def measure(name: str, plan: Plan, device: torch.device, folder: Path) -> None:
    """Measure the missing rows of a part. A failure becomes a row with its reason.

    Raises:
        PDSError: the report is of another machine.
        RuntimeError: this process can no longer use the device; the failure is already a row.
    """
    report = read(folder)
    here = machine(device)
    known = report["machine"].get("device", here["device"])
    if known != here["device"]:
        raise PDSError(f"the report in {folder} is of {known}, and this is {here['device']}: give another folder")
    report["machine"] = here
    part = report["parts"][name]
    for key, take in PARTS[name].rows(plan, device, folder):
        if key in part["rows"]:
            continue
        part["under_way"] = key
        write_json(folder / FILE, report)
        start = time.perf_counter()
        try:
            row = take()
        except Exception as error:  # of any kind: the next row may succeed
            row = failed(f"{type(error).__name__}: {first_line(error)}")
        part["rows"][key] = row | {"took": time.perf_counter() - start}
        del part["under_way"]
        write_json(folder / FILE, report)
        gc.collect()
        synchronise(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def failed(reason: str) -> Row:
    return {"failed": reason}


def run(folder: Path, plan: Plan, device: torch.device, parts: Sequence[str] = (), minutes: float | None = None) -> Path:
    """Measure the parts that are not done, in the order of their value, and write gpu.json and gpu.md.

    Args:
        folder: folder of the report, which is continued.
        plan: sizes of the measurements.
        device: the device to measure.
        parts: names of parts; all by default.
        minutes: time limit for everything; each part has its own limit besides.

    Returns:
        gpu.md.

    Raises:
        PDSError: there is no such part, or the folder holds something else.
    """
    if unknown := [name for name in parts if name not in PARTS]:
        raise PDSError(f"there is no part {unknown[0]}: choose from {', '.join(PARTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    for name in parts or PARTS:
        report = read(folder)
        part = report["parts"].setdefault(name, {"state": "not begun", "seconds": 0.0, "rows": {}, "cut": []})
        if part["state"] == "done":
            continue
        if time.monotonic() >= end:
            log.info("no time is left for %s", name)
            continue
        write_json(folder / FILE, report)
        log.info("%s: %s", name, PARTS[name].title)
        _part(name, plan, device, folder, min(time.monotonic() + 60 * PARTS[name].minutes, end))
        with atomic_path(folder / "gpu.md") as temporary:
            temporary.write_text(written(read(folder)), encoding="utf-8")
    return folder / "gpu.md"


def _part(name: str, plan: Plan, device: torch.device, folder: Path, end: float) -> None:
    """One part until `end`, in as many processes as it needs: after a failure of the device its process is of no use."""
    start, state = time.monotonic(), ""
    while not state:
        process = processes().Process(target=_alone, args=(name, plan, device, folder))
        process.start()
        process.join(max(0.0, end - time.monotonic()))
        cut = process.is_alive()
        if cut:
            with contextlib.suppress(ProcessLookupError):  # it may have no group of its own yet
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that it started: compilers, processes of a run
            process.kill()
            process.join()
        report = read(folder)
        part = report["parts"][name]
        key = part.pop("under_way", None)
        if cut:
            state = "its time was over"
            # Next time the row has all the time of the part. If that is too little as well, it would never end.
            if key is not None and key in part["cut"]:
                part["rows"][key] = failed(f"cut twice, after {time.monotonic() - start:.0f} s of the part's time")
            part["cut"] += [key]
        elif process.exitcode == 0:
            state = "done"
        elif key is not None:
            part["rows"][key] = failed(f"its process ended with code {process.exitcode}")
        elif part.get("ended_at") == len(part["rows"]):
            state = f"its process ended with code {process.exitcode} before a row"
        part["ended_at"] = len(part["rows"])
        if state:
            part["state"] = state
            part["seconds"] += time.monotonic() - start
        write_json(folder / FILE, report)


def _alone(name: str, plan: Plan, device: torch.device, folder: Path) -> None:
    os.setsid()
    try:
        measure(name, plan, device, folder)
    except PDSError as error:
        sys.exit(f"error: {error}")
