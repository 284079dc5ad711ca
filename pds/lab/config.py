"""From a composed configuration to objects, with every refusal as one sentence."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pds.errors import OptionError, PDSError, out_of_memory
from pds.lab import grammar
from pds.models.checkpoints import first_line
from pds.models.scores import Model
from pds.options import options_of

log = logging.getLogger(__name__)

# Files of conf/hydra/launcher have the names of the plugins' own. Hydra takes these for their types, and would warn.
warnings.filterwarnings("ignore", message="\n'hydra/launcher/.* is validated against ConfigStore schema")
# In these files ${gpus:LEAST,MOST} is the number of GPUs of this machine, within these bounds.
OmegaConf.register_new_resolver("gpus", lambda least, most=math.inf: min(max(torch.cuda.device_count(), least), most))
CONF = Path(__file__).resolve().parents[2] / "conf"


def build(node: DictConfig, *given: Any) -> Any:
    """The object that a configuration node describes; `given` are the positional-only arguments of its target.

    Raises:
        OptionError: an argument has an invalid value; the message has its key.
        PDSError: the library's refusals, unchanged; refusals of values by Python or torch, with the node's key.
    """
    try:
        made = instantiate(node, _convert_="all", _partial_=bool(given))
        return made(*given) if given else made
    except InstantiationException as error:
        # Hydra's message ends with the key of the node that could not be made: this node or one inside it.
        told = re.search(r"\nfull_key: (\S+)\Z", str(error))
        part = OmegaConf.select(node._get_root(), told[1]) if told else node
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):
            raise PDSError(f"{_key(part)} cannot be made: {first_line(error)}") from error
        raise _told(part, error.__cause__) from error.__cause__.__cause__
    except OF_VALUES as error:
        raise _told(node, error) from error.__cause__


def build_model(node: DictConfig) -> Model:
    """The model that a node describes; errors as of `build`, and a `PDSError` if its target makes something else."""
    model = build(node)
    if not isinstance(model, Model):
        raise PDSError(
            f"{_key(node)} makes a {type(model).__name__}, not a model: give a network of your own as model=own "
            "model.make=FILE.py:NAME"
        )
    return model


OF_VALUES = (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError)
"""Python and torch raise these about values. Another exception in a constructor is a defect of this project, and stays a
traceback."""


def _told(node: DictConfig, error: BaseException) -> BaseException:
    """Return the error to raise instead of the constructor's."""
    if isinstance(error, OptionError):
        return error.under(_holder(node, error.name.partition(".")[0]) or _key(node))
    if isinstance(error, PDSError) or not isinstance(error, OF_VALUES):
        return error
    if out_of_memory(error):
        return PDSError(f"{_key(node)} needs more memory than there is: give smaller values, of model.width above all")
    log.debug("%s could not be made", _key(node), exc_info=error)
    return PDSError(f"{_key(node)} cannot be made of these values: {type(error).__name__}: {first_line(error)}")


@contextlib.contextmanager
def keyed(node: DictConfig) -> Iterator[None]:
    """Add the key to a refused option: the option belongs to the node, or to a node inside it."""
    try:
        yield
    except OptionError as error:
        if error.name.startswith(f"{_key(node)}."):
            raise
        raise _told(node, error) from error.__cause__


def _holder(node: DictConfig, name: str) -> str | None:
    """The key of the first node, from the outermost in, that has an option of this name."""
    if name in node:
        return _key(node)
    inner = (child for child in map(node._get_node, node) if isinstance(child, DictConfig) and not child._is_none())
    return next(filter(None, (_holder(child, name) for child in inner)), None)


def _key(node: DictConfig) -> str:
    return node._get_full_key("") or "the configuration"


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
    """The configuration as plain values, all of them known and given."""
    grammar.require_known(cfg)
    missing = next(_missing(OmegaConf.to_container(cfg, resolve=False)), None)
    if missing is not None:
        raise PDSError(f"{missing} has no value: give {missing}=... on the command line")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, PDSError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:  # an error of our resolver, below one of OmegaConf's for each interpolation
            raise cause from None
        raise PDSError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value is `???`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else key)
    elif node == "???":
        yield prefix
