"""Weights as safetensors. Files of this project also hold the configuration that they were made with, and a digest of their
content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pds.files import MOST_YAML, DamagedError, atomic_path, locate, open_regular, parse_json, parse_yaml, reading

MOST = 1 << 42  # bytes of a weights file
DIGEST = "sha256"  # key of the digest in the metadata
# Older files, such as the shipped mnist_ncsn, hold the paths of classes; the names of these have changed since.
TITLES = {
    "VarianceExploding": "VE",
    "VariancePreserving": "VP",
    "SubVariancePreserving": "sub-VP",
    "CriticallyDamped": "CLD",
}


def state_digest(state: Mapping[str, Tensor], facts: Mapping[str, str] = MappingProxyType({})) -> str:
    """Hexadecimal SHA-256 of tensors with their names, types and shapes, and of the text that belongs to them."""
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write weights as safetensors, atomically.

    Args:
        state: tensors by name.
        path: the file.
        metadata: "config", a configuration as JSON (see `as_configuration`); "weights", which is "ema" for an average.
    """
    content = save(
        {name: value.contiguous() for name, value in state.items()}, {**metadata, DIGEST: state_digest(state, metadata)}
    )
    with atomic_path(path) as temporary:
        # `save_file` would give the file a mode that lets only its owner read it.
        temporary.write_bytes(content)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        PDSError: the file is absent or cut, or its digest, if it has one, is of other tensors or other metadata.
    """
    with reading(path, "a whole safetensors file", "fetch it again"):
        open_regular(path, MOST).close()
        with safe_open(path, framework="pt") as file:
            state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        said = metadata.pop(DIGEST, None)
        if said is not None and said != state_digest(state, metadata):
            raise DamagedError(f"{path} is damaged: its tensors have another digest than it says; fetch it again")
    return state, metadata


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Return the configuration that a file of this project was made with, as nested plain values; empty if the file has none.

    "model" has "kind", the name of the function that makes the network ("ncsn", "ncsnv2", "ncsnpp"), and the arguments of that
    function. Its "process" has "kind" ("VE", "VP", "sub-VP", "CLD") and the arguments of the process. "dataset" has "name",
    "shape" (C, H, W), and "statistics_file".

    Args:
        path: a file in any format, or "asset:NAME".

    Raises:
        PDSError: the file is absent or damaged.
    """
    path = locate(path)
    if path.suffix != ".safetensors":
        return {}
    with reading(path, "a whole safetensors file", "fetch it again"):
        open_regular(path, MOST).close()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    return configuration_of(metadata, path)


def configuration_of(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The configuration among the metadata of a safetensors file; see `read_configuration`."""
    text = metadata.get("config", "{}")
    with reading(path, "a file with a table of options as its metadata `config`", "fetch it again"):
        # Older files, such as the shipped mnist_ncsn, hold YAML, by dotted keys.
        found = parse_json(text, {}) if text.startswith("{") else as_configuration(_flat(text) or parse_yaml(text, {}))
        if not all(isinstance(found.get(part, {}), dict) for part in ("model", "dataset")):
            raise ValueError("its model or its dataset is no table")
        return found


_NUMBER = re.compile(r"-?(0|[1-9]\d{0,15})(\.\d{1,15})?|true|false|null")
_WORD = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_]([\w.:/-]*\w)?")


def _flat(text: str) -> dict[str, Any] | None:
    """The table in `text`, which is the YAML of this project's older files: a scalar or a list of scalars a key. None for other
    text. So the files that ship need no parser of YAML."""
    if len(text) > MOST_YAML:
        return None
    table: dict[str, Any] = {}
    last = ""

    def scalar(word: str) -> Any:
        if _NUMBER.fullmatch(word):
            return json.loads(word)
        if not _WORD.fullmatch(word):
            raise ValueError
        return word

    try:
        for line in text.removesuffix("\n").split("\n"):
            if line.startswith("- "):
                table[last].append(scalar(line[2:]))
                continue
            key, _, value = line.removesuffix(":").partition(": ")
            if not _WORD.fullmatch(key) or key in table:
                return None
            last, table[key] = key, scalar(value) if value else []
    except (ValueError, KeyError, AttributeError):
        return None
    return None if [] in table.values() else table


def as_configuration(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted key, as nested tables: the path of a class becomes its kind, so that classes can move.

    Raises:
        ValueError: one key is another's beginning, or a path is no text.
    """
    configuration: dict[str, Any] = {}
    for key, value in options.items():
        *parents, leaf = key.split(".")
        if leaf == "_target_":
            name = str(value).rpartition(".")[2]
            leaf, value = "kind", TITLES.get(name, name)
        elif leaf.startswith("_"):  # how Hydra is to call it
            continue
        table = configuration
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ValueError(f"it has {key} beside {parent}")
        if leaf in table:
            raise ValueError(f"it has {key} twice")
        table[leaf] = value
    return configuration
