"""Reading weights into a network: files of this project (safetensors) and the authors' checkpoint files.

Nothing here unpickles code: `torch.load` runs with `weights_only=True`, and files that need more are refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pds.errors import PDSError
from pds.files import atomic_path, locate, sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file.

    Attributes:
        state: parameters and buffers by name, without a `module.` prefix.
        layout: "safetensors", "list" (NCSN: [model, optimizer, ...]) or "state dict".
        ema: whether these are exponential moving averages; None where the layout does not tell.
        path: the file.
        sha256: of the file's bytes.
    """

    state: dict[str, Tensor]
    layout: str
    ema: bool | None
    path: Path
    sha256: str


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file and find its layout.

    Raises:
        PDSError: for a missing, truncated or hostile file, or one without tensors by name.
    """
    path = locate(path)
    if not path.is_file():
        raise PDSError(f"checkpoint {path} does not exist: set model.checkpoint to a weights file")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise PDSError(f"{path} is not a whole safetensors file ({_first_line(error)}): fetch it again") from None
        layout, ema = "safetensors", None
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # A file that is no checkpoint fails in any way the unpickler can fail.
            raise PDSError(
                f"{path} cannot be read as plain weights ({_first_line(error)}): it is truncated, no checkpoint, or "
                "holds code, which is never executed here"
            ) from None
        # [NCSN] saves [model state, optimizer state]; its weights are no averages.
        is_list = isinstance(content, (list, tuple)) and len(content) > 0
        state, layout, ema = (content[0], "list", False) if is_list else (content, "state dict", None)
    if not (isinstance(state, dict) and state and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        raise PDSError(f"{path} holds no table of tensors by name: it is not a checkpoint of a network this project knows")
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    return Checkpoint(plain, layout, ema, path, sha256(path))


def load_weights(network: nn.Module, path: str | Path) -> Checkpoint:
    """Load a checkpoint file into `network`, all of it or nothing.

    Raises:
        PDSError: naming the first parameter that is missing, unknown, of another shape or not finite.
    """
    checkpoint = read_checkpoint(path)
    expected = network.state_dict()
    for name, value in expected.items():
        if name not in checkpoint.state:
            raise PDSError(f"{path} has no parameter {name} {tuple(value.shape)}: it is a checkpoint of another network")
        found = checkpoint.state[name]
        if found.shape != value.shape:
            raise PDSError(
                f"{path} has {name} of shape {tuple(found.shape)} where the model has {tuple(value.shape)}: it is a checkpoint "
                "of another width, number of levels or number of channels"
            )
        if not torch.isfinite(found).all():
            raise PDSError(f"{path} has values in {name} that are not finite: fetch it again")
    unknown = next((name for name in checkpoint.state if name not in expected), None)
    if unknown is not None:
        raise PDSError(f"{path} has a parameter {unknown} that the model does not have: it is a checkpoint of another network")
    network.load_state_dict({name: value.to(expected[name].dtype) for name, value in checkpoint.state.items()})
    log.info("weights read from %s (layout: %s, sha256 %s)", path, checkpoint.layout, checkpoint.sha256[:12])
    return checkpoint


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write weights as safetensors, atomically, with where they come from as metadata."""
    with atomic_path(path) as temporary:
        # `save_file` would give the file a mode that only its owner can read.
        temporary.write_bytes(save({name: value.contiguous() for name, value in state.items()}, metadata=metadata))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
