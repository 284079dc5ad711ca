"""Run folders: named by their settings, resumed by the command that made them, never mixed."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml

import pds
from pds.dotted import dotted
from pds.errors import MissingError, PDSError, escaped
from pds.files import (
    DamagedError,
    atomic_path,
    json_digest,
    open_regular,
    read_json,
    read_yaml,
    reading,
    remembered,
    remove_leftovers,
    user_path,
    write_json,
)
from pds.lab.config import defaults
from pds.lab.terminal import command_line
from pds.options import Range, shown
from pds.speed.measuring import processor

log = logging.getLogger(__name__)

# Keys that make no difference, grouped by the reason. Each caller leaves out the groups that it may ignore.

# Place and speed: these keys may differ between two commands that make the same images, up to the rounding of the device.
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
# How images are measured.
MEASURING = {"metric", "dataset.reference", "fingerprint.reference", "fingerprint.seen"}
# Facts of a fingerprint that settings share: `Run.kind` tells networks apart, and the others follow from options and T.
SHARED = {f"fingerprint.{name}" for name in ("weights", "beside_weights", "filters", "sampler.eta", "filter.alpha")}
# Also ignored when settings are told apart: names, the seed of a repeat, and keys whose effect other keys show.
ASIDE = PLACE | MEASURING | SHARED | {"name", "published", "seed", "shard_size", "filter.reference"}
# Keys that a configuration computes from T. They count only if one T has several values.
OF_T = ("sampler.end", "filter.iterations")


def says_where(override: str) -> bool:
    """Whether an override concerns only place, speed or records."""
    key = override.lstrip("+~").partition("=")[0]
    return key in PLACE or key.startswith(("hydra", "tracker.", "tracker@", "sweep."))


def under(key: str, names: Collection[str]) -> bool:
    """Whether a dotted key, or a node above it, is among `names`."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


MOVED: dict[str, str] = {"pds.lab.tracking.WandbTracker": "pds.lab.trackers.wandb.WandbTracker"}
"""Class paths in configurations of older runs, and the present paths of these classes. No line is ever deleted."""

_FIRST = {now: first for first, now in MOVED.items()}

# Defaults of keys that are no option of a class.
_ROOT = {"bf16": False}


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration by dotted key, without the keys of place and speed: the images depend on the rest."""
    return dotted(config, PLACE)


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """`identity` in the form of every version of this library: without options at their default, and by the first path of a
    class.

    So a class that moves renames no run. Neither does a new option whose default keeps the behaviour.
    """
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str, known: dict[str, Any]) -> None:
        target = MOVED.get(str(node.get("_target_")), str(node.get("_target_")))
        known = known or _defaults(target)
        # Outside a class, as in the fingerprint, a key that is null counts as absent.
        none = object() if "_target_" in node else None
        for key, value in node.items():
            name = prefix + key
            # The published settings of a model are the origin of values that also stand in the configuration.
            if name in PLACE or name == "published" or key in ("_partial_", "_convert_", "_recursive_"):
                continue
            if key == "_target_":
                flat[name] = _FIRST.get(target, target)
            elif _same(value, known.get(key, none)):
                continue
            elif isinstance(value, dict):
                walk(value, name + ".", {})
            else:
                flat[name] = _number(value)

    walk(config, "", _ROOT)
    return flat


def _defaults(target: str) -> dict[str, Any]:
    # Only classes of this library: a path in a foreign file must not import arbitrary code.
    if not target.startswith("pds."):
        return {}
    try:
        return defaults(target)
    except Exception:  # there is no such class
        return {}


def _same(value: Any, default: Any) -> bool:
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _number(value: Any) -> Any:
    """Whole numbers as such: 7 and 7.0 in files are equal."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sampled(config: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that the images of a run depend on, without their number and their measurement."""
    return {key: value for key, value in essence(config).items() if key != "images" and not under(key, MEASURING)}


def _measured(config: dict[str, Any]) -> dict[str, Any]:
    """The facts that the features of given images depend on: the reference, which describes its features, or the metric
    itself."""
    found = essence(config)
    reference = {key: value for key, value in found.items() if key.startswith("fingerprint.reference")}
    return reference or {key: value for key, value in found.items() if key.startswith("metric.")}


def samples_digest(config: dict[str, Any]) -> str:
    """16 digits of the hash of all that the images of a run depend on."""
    return json_digest(_sampled(config))


def group_folder(outputs: str, group: str, key: str = "group") -> Path:
    """The folder of a group of runs.

    Args:
        outputs: folder of all groups, as the user wrote it.
        group: name of the folder in it.
        key: the option that gave the name, for messages.

    Raises:
        PDSError: the folder would not be inside `outputs`, or the name is not valid.
    """
    parts = Path(group).parts
    if not parts or not group.isprintable() or Path(group).is_absolute() or ".." in parts:
        raise PDSError(f"{key}={shown(group)} is no name of a folder inside outputs: use letters, digits, - and _")
    if key == "group" and parts[0] == "train":
        raise PDSError(f"{key}={shown(group)} is the folder of trainings: give another name")
    return user_path(outputs) / group


def run_name(overrides: Sequence[str], config: dict[str, Any]) -> str:
    """Return a run's name: its experiment, the values given on its command line, 8 digits of the hash of its essence."""
    given = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "experiment":
            given.append(value)
        elif key != "debug" and not says_where(override):
            given.append(f"{key}={value}")
    slug = re.sub(r"[^A-Za-z0-9=.,_+-]+", "_", ",".join(sorted(given)))[:100] or "default"
    return f"{slug}-{json_digest(essence(config))[:8]}"


def fingerprint(*tensors: torch.Tensor) -> str:
    """16 digits of the hash of tensors, the identity of a filter from any file or data set."""
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

    @classmethod
    def of(cls, group: Path, overrides: Sequence[str], config: dict[str, Any]) -> RunFolder:
        """The folder of a run: its own, or the folder that an older version made for the same command and configuration."""
        own = cls(group / run_name(overrides, config))
        if not own.path.exists():
            for file in sorted(group.glob(f"{own.path.name[:-8]}????????/config.yaml")):
                with contextlib.suppress(PDSError):  # its owner is unknown, and it does not matter here
                    if essence(read_config(file)) == essence(config):
                        return cls(file.parent)
        return own

    def claim(self, config: dict[str, Any], key: str = "group") -> None:
        """Make the folder this configuration's, or find that it is; `key` is the option that names it.

        Raises:
            PDSError: it belongs to another configuration (the message has the first key that differs) or cannot be written.
        """
        file = self.path / "config.yaml"
        remove_leftovers(self.path)
        if file.exists():
            found = read_config(file)
            old, new = essence(found), essence(config)
            different = next((key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)), None)
            if different is not None:
                was, due = (escaped(str(identity(whole).get(different, "its default")), 80) for whole in (found, config))
                raise PDSError(
                    f"{self.path} holds a run with {escaped(different, 80)}={was}, not {due}: delete that folder or give "
                    f"another {key}, or other outputs"
                )
            return
        with atomic_path(file) as temporary:
            # `alike` reads only this first line.
            digests = f"# samples {samples_digest(config)}\n"
            temporary.write_text(digests + yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def alike(self, config: dict[str, Any]) -> Iterator[tuple[Path, bool]]:
        """Run folders beside this one that sample the same images, in any number.

        With each comes whether it measures them by the same features. Other groups are left alone: a new group starts afresh.
        """
        marked, mine = f"# samples {samples_digest(config)}\n".encode(), _sampled(config)
        for file in sorted(self.path.parent.glob("*/config.yaml")):
            if file.parent == self.path:
                continue
            # Damage there does not concern this run.
            with contextlib.suppress(PDSError, OSError):
                with open_regular(file) as lines:
                    first = lines.readline(100)
                if first.startswith(b"# samples ") and first != marked:
                    continue
                other = read_config(file)
                if _sampled(other) == mine:
                    yield file.parent, _measured(other) == _measured(config)

    def status(self, state: str, message: str = "") -> None:
        """Write the state of the run: "running", "failed" (with the message) or "done"."""
        write_json(self.path / "status.json", {"state": state, "message": message, "pid": os.getpid(), "host": platform.node()})

    def failed(self, message: str, state: str = "failed") -> None:
        """Write that the run failed, unless its result is there: then only a tracker was left to finish."""
        if self.result() is None:
            self.status(state, message)

    def result(self, keys: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The result of a finished run, else None; a log line reports a damaged one. `keys` as in `read_result`."""
        try:
            return read_result(self.path, RESULT if keys is None else keys)
        except MissingError:
            return None
        except DamagedError as error:
            log.warning("%s", error)
            return None


RESULT: dict[str, Any] = {
    "name": str,
    "experiment": str,
    "label": str,
    "vanilla": bool,
    "sampler": str,
    "source": str,
    "iterations": Annotated[int, Range(1)],
    "nfe": int | float,
    "images": Annotated[int, Range(1)],
    "seconds": Annotated[float, Range(above=0)],
    "images_per_second": Annotated[float, Range(above=0)],
    "seed": int,
    "model": str,
    "checkpoint": dict | None,
    "metrics": dict[str, float],
    "floor": dict[str, float],
    "doubts": list[str],
    "device": str,
    "versions": dict,
    "commit": str,
    "command": str,
    "finished": str,
    "wall_clock": dict[str, float],
}
"""The keys of every result.json."""


def read_result(folder: Path, keys: Mapping[str, Any] = RESULT) -> dict[str, Any]:
    """The result of a finished run.

    Args:
        folder: the run folder.
        keys: keys of the result, with their types.

    Raises:
        MissingError: there is none.
        DamagedError: it is damaged, or another run's.
    """
    file, what, fix = folder / "result.json", "the result of this run", "run the same command again"
    with reading(file, what, fix):
        result = read_json(file, keys, what, fix)
    if result.get("name", folder.name) != folder.name:
        raise DamagedError(f"{file} is of the run {shown(result['name'])}: give its folder this name again, or delete it")
    return result


@remembered
def read_config(file: Path) -> dict[str, Any]:
    """The configuration of a run, read-only; other content is a `DamagedError`."""
    return read_yaml(file, {}, "the configuration of a run", "delete it and run the same command again")


def provenance(device: torch.device, command: Sequence[str] = ()) -> dict[str, Any]:
    """Device, versions, commit and command, for result.json; the command is this process's own if none is given."""
    packages = ("torch", "numpy", "hydra-core", "clean-fid", "wandb", "diffusers")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    # By default torch rounds to TensorFloat-32 in convolutions, and not in products.
    rounds = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    tf32 = {"tf32": rounds} if device.type == "cuda" else {}
    return {
        "device": _device_name(device),
        **tf32,
        "versions": {"pds": pds.__version__, "python": platform.python_version(), **versions},
        "commit": _commit(),
        "command": command_line(command or sys.argv),
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
    threads = torch.get_num_threads()
    return f"CPU ({processor()}, {threads} thread{'s' * (threads > 1)})"


def _commit() -> str:
    """Commit of the source tree this package runs from, "-dirty" when it was changed, or "unknown" when installed."""
    try:
        git = ["git", "-C", str(Path(pds.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
