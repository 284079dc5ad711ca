"""From a composed configuration to objects, with every refusal as one sentence."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from pds.errors import PDSError
from pds.options import options_of

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


@functools.cache
def defaults(target: str) -> dict[str, Any]:
    """Plain values of the defaults in the signature of the class or function of this path, by key.

    Options that are objects are left out: each is a node of its own, with its own `_target_`.
    """
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    stated = {name: option.default for name, option in options_of(get_object(target)).items() if not option.required}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in stated.items() if isinstance(value, plain)
    }


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
