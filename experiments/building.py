"""From a composed configuration to objects, with every refusal as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pds.errors import PDSError


def build(node: DictConfig, **arguments: Any) -> Any:
    """The object a configuration node describes; the library's own refusals come through as they are."""
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, PDSError):
            raise error.__cause__ from None
        raise


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, all of them given."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise PDSError(f"{missing[0]} has no value: give {missing[0]}=... on the command line")
    return OmegaConf.to_container(cfg, resolve=True)


def choose_device(name: str, threads: int | None) -> torch.device:
    """The device to sample on, with torch's CPU threads set; "auto" is a GPU where there is one, each process its own."""
    if threads is not None:
        if threads < 1:
            raise PDSError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if name == "auto":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PDSError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PDSError(f"device={name} asked for, but torch sees {torch.cuda.device_count()} GPUs here: use device=cpu")
    return device


def entry_point(main: Callable[[], None], failures: list[str]) -> None:
    """Run a Hydra main and leave with status 1 if any of its jobs failed."""
    try:
        main()
    except OmegaConfBaseException as error:
        sys.exit(f"error: {str(error).splitlines()[0]}")
    sys.exit(1 if failures else 0)
