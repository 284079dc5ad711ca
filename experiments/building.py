"""From a composed configuration to objects, with every refusal as one sentence."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpus import free_gpu
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from pds.errors import PDSError
from pds.logs import to_terminal

log = logging.getLogger(__name__)

# Files of conf/hydra/launcher are named as the plugins' own, which Hydra takes for their types and would warn of.
warnings.filterwarnings("ignore", message="\n'hydra/launcher/.* is validated against ConfigStore schema")
# There, ${gpus:LEAST,MOST} is the number of GPUs of this machine, within these bounds.
OmegaConf.register_new_resolver("gpus", lambda least, most=math.inf: min(max(torch.cuda.device_count(), least), most))


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
    missing = next(_missing(OmegaConf.to_container(cfg, resolve=False)), None)
    if missing is not None:
        raise PDSError(f"{missing} has no value: give {missing}=... on the command line")
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except InterpolationKeyError as error:
        key = re.search(r"'published\.([^'.]+)\.", str(error))
        if key is None:
            raise PDSError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None
        table = OmegaConf.to_container(cfg.published, resolve=False)
        choices = ", ".join(name for name, value in table.items() if isinstance(value, dict))
        raise PDSError(f"the authors published this model for {choices}, not for {key[1]}: choose one of these") from None
    except OmegaConfBaseException as error:
        raise PDSError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value is `???`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else key)
    elif node == "???":
        yield prefix


def choose_device(name: str, threads: int | None) -> torch.device:
    """The device to sample on, with torch's CPU threads set; "auto" is "cuda" where there is a GPU, each process its own."""
    if threads is not None:
        if threads < 1:
            raise PDSError(f"threads must be at least 1, got {threads}")
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
"""What torch has by itself; a point of a sweep before this one may have asked for another."""


def choose_precision(tf32: bool | None) -> None:
    """Let float32 arithmetic on a GPU round to TensorFloat-32 (True), or not (False); None is as torch has it by itself."""
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = TF32 if tf32 is None else (tf32, tf32)


def require_compiler(key: str = "compile") -> None:
    """Refuse `key=true` where torch.compile would fail for want of a C++ compiler, minutes later and at length."""
    # A command, as "ccache g++" is.
    compiler = [*shlex.split(os.environ.get("CXX", "g++")), ""][0]
    if shutil.which(compiler) is None:
        raise PDSError(f"{key}=true needs a C++ compiler, and there is no {compiler} here: install it, or set {key}=false")


def show_lines(prefix: str = "") -> None:
    """Show the lines of the library and of the scripts on standard error; `prefix` as of `to_terminal`."""
    to_terminal(prefix, (__name__, "__main__"))


@contextlib.contextmanager
def one_sentence(failures: list[str]) -> Iterator[None]:
    """Tell a failure that the user can act on in one sentence, and remember it; a sweep goes on with its next point."""
    show_lines()
    try:
        yield
    except (PDSError, OSError) as error:
        log.error("error: %s", error)
        failures.append(str(error))


def entry_point(main: Callable[[], None], failures: list[str]) -> None:
    """Run a Hydra main and leave with status 1 if any of its jobs failed."""
    main()
    sys.exit(1 if failures else 0)
