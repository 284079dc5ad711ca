"""Run folders: named by what they are, resumed by the command that made them, never mixed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import pds
from pds.errors import PDSError
from pds.files import atomic_path, json_digest, write_json

# Where and how fast: what may differ between two commands that make the same images, up to the rounding of the device.
PLACE = {
    "outputs",
    "group",
    "sweep",
    "device",
    "threads",
    "batch_size",
    "compile",
    "tracker",
    "model.checkpoint",
    "metric.cache",
    "dataset.source.root",
}


def says_where(override: str) -> bool:
    """Whether an override only says where and how fast, or where it is written down."""
    key = override.lstrip("+~").partition("=")[0]
    return key in PLACE or key.startswith(("hydra", "tracker.", "sweep."))


# Left out while they are off, so that runs keep the names they had before there were such keys.
OFF = {"bf16": False, "tf32": None, "model.weights": None}


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Flat, dotted view of a resolved configuration without what only says where and how fast: what the images depend on."""

    def walk(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in node.items():
            name = prefix + key
            if name in PLACE or (name in OFF and value is OFF[name]):
                continue
            flat |= walk(value, name + ".") if isinstance(value, dict) else {name: value}
        return flat

    return walk(config, "")


def samples_digest(config: dict[str, Any]) -> str:
    """16 digits of the hash of what the images of a run depend on: its identity but for their number and their measuring."""
    beside = ("metric.", "dataset.reference.", "fingerprint.reference")
    return json_digest(
        {key: str(value) for key, value in identity(config).items() if key != "images" and not key.startswith(beside)}
    )


def metric_digest(config: dict[str, Any]) -> str:
    """16 digits of the hash of what the features of given images depend on."""
    measured = ("metric.", "fingerprint.reference")
    return json_digest({key: str(value) for key, value in identity(config).items() if key.startswith(measured)})


def run_name(overrides: Sequence[str], config: dict[str, Any]) -> str:
    """What a run is called: its experiment, the values given on its command line, 8 digits of the hash of its identity."""
    given = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "experiment":
            given.append(value)
        elif key != "debug" and not says_where(override):
            given.append(f"{key}={value}")
    slug = re.sub(r"[^A-Za-z0-9=.,_+-]+", "_", ",".join(sorted(given)))[:100] or "default"
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True, default=str).encode()).hexdigest()
    return f"{slug}-{digest[:8]}"


def fingerprint(*tensors: torch.Tensor) -> str:
    """16 digits of the hash of tensors: what a filter is, whatever file or data set it came from."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class RunFolder:
    """One run's files: config.yaml, status.json, metrics.jsonl, result.json, grid.png, filter.npz, samples/, run.log.

    Attributes:
        path: the folder.
    """

    path: Path

    def claim(self, config: dict[str, Any]) -> None:
        """Make the folder this configuration's, or find that it is.

        Raises:
            PDSError: when it belongs to another configuration (naming the first key that differs) or cannot be written.
        """
        file = self.path / "config.yaml"
        if file.exists():
            old, new = identity(yaml.safe_load(file.read_text())), identity(config)
            different = next((key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)), None)
            if different is not None:
                raise PDSError(
                    f"{self.path} holds a run with {different}={old.get(different)}, not {new.get(different)}: delete that "
                    "folder or give this run another name, group or outputs"
                )
            return
        try:
            with atomic_path(file) as temporary:
                # The first line is for `alike`, which would take long to read whole files.
                digests = f"# images {samples_digest(config)}, features {metric_digest(config)}\n"
                temporary.write_text(digests + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise PDSError(f"cannot write to {self.path} ({error.strerror}): set outputs to a folder you can write") from None

    def alike(self, config: dict[str, Any]) -> Iterator[tuple[Path, bool]]:
        """Run folders beside this one that sample the same images, as many of them as they were asked for.

        With each comes whether it measures them by the same features. Other groups are left alone: a new one starts afresh.
        """
        images, features = f"# images {samples_digest(config)}, ", f"features {metric_digest(config)}\n"
        for file in sorted(self.path.parent.glob("*/config.yaml")):
            first = ""
            with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:
                first = lines.readline()
            if first.startswith(images) and file.parent != self.path:
                yield file.parent, first == images + features

    def status(self, state: str, message: str = "") -> None:
        """Say where the run stands: "running", "failed" (with the message) or "done"."""
        write_json(self.path / "status.json", {"state": state, "message": message, "pid": os.getpid(), "host": platform.node()})

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, else None."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None


def provenance(device: torch.device, command: Sequence[str] = ()) -> dict[str, Any]:
    """Device, versions, commit and command, for result.json; the command is this process's own if none is given."""
    packages = ("torch", "numpy", "hydra-core", "clean-fid", "wandb", "diffusers")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    # Torch lets convolutions round to TensorFloat-32 unless told otherwise, and products only when told to.
    rounds = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    tf32 = {"tf32": rounds} if device.type == "cuda" else {}
    return {
        "device": _device_name(device),
        **tf32,
        "versions": {"pds": pds.__version__, "python": platform.python_version(), **versions},
        "commit": _commit(),
        "command": shlex.join(["python", *(command or sys.argv)]),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"CPU ({names[0] if names else platform.machine()}, {torch.get_num_threads()} threads)"


def _commit() -> str:
    """Commit of the source tree this package runs from, "-dirty" when it was changed, or "unknown" when installed."""
    try:
        git = ["git", "-C", str(Path(pds.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
