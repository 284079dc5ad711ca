"""From a composed configuration to objects, with every refusal as one sentence."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from hydra._internal.utils import _locate
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pds.conditioning import Guidance
from pds.data.dataset import Dataset
from pds.errors import OptionError, PDSError, first_line, out_of_memory
from pds.lab import grammar
from pds.lab.tracking import Tracker
from pds.models.scores import Model
from pds.options import offers, options_of
from pds.preconditioning.filters import Filter
from pds.preconditioning.solenoids import Solenoid
from pds.samplers.sampler import Sampler
from pds.training import Trainer

# Files of conf/hydra/launcher have the names of the plugins' own. Hydra takes these for their types, and would warn.
warnings.filterwarnings("ignore", message="\n'hydra/launcher/.* is validated against ConfigStore schema")
# In these files ${gpus:LEAST,MOST} is the number of GPUs of this machine, within these bounds.
OmegaConf.register_new_resolver("gpus", lambda least, most=math.inf: min(max(torch.cuda.device_count(), least), most))
CONF = Path(__file__).resolve().parents[2] / "conf"


def build(node: DictConfig, *given: Any) -> Any:
    """The object that a configuration node describes; `given` are the positional-only arguments of its target.

    Raises:
        OptionError: an argument has an invalid value; the message has its key.
        PDSError: the library's refusals, unchanged; refusals of values by Python or torch, with the node's key; a target is
            Python's own.
    """
    with contextlib.suppress(OmegaConfBaseException):  # `instantiate` reports it
        _require_no_python(OmegaConf.to_container(node, resolve=True), _key(node))
    try:
        made = instantiate(node, _convert_="all", _partial_=bool(given))
        made = made(*given) if given else made
    except InstantiationException as error:
        # Hydra's message ends with the key of the node that could not be made: this node or one inside it.
        told = re.search(r"\nfull_key: (\S+)\Z", str(error))
        part = OmegaConf.select(node._get_root(), told[1]) if told else node
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):
            what = first_line(error).partition(", set env var")[0]
            raise PDSError(f"{_key(part)} cannot be made: {what}{_choices(_key(part))}") from error
        said = _as_user_error(part, error.__cause__)
        raise said from said.__cause__
    except OF_VALUES as error:
        said = _as_user_error(node, error)
        raise said from said.__cause__
    if (kind := KINDS.get(_key(node))) is not None and not offers(made, kind):
        raise PDSError(f"{_key(node)} must be a {kind.__name__}, and {_class(node)} makes none{_choices(_key(node))}")
    return made


def _require_no_python(plain: Any, key: str) -> None:
    """Refuse targets of Python itself, such as `os.system`, by whatever path: nothing here is made of them, and a
    configuration may be someone else's."""
    if isinstance(plain, dict):
        target = str(plain.get("_target_", ""))
        if _home(target).partition(".")[0] in sys.stdlib_module_names:
            raise PDSError(f"{key}._target_={target} is Python's own, and is never called here{_choices(key)}")
    if isinstance(plain, (dict, list)):
        for name, inner in plain.items() if isinstance(plain, dict) else enumerate(plain):
            _require_no_python(inner, f"{key}.{name}")


def _home(target: str) -> str:
    """The module of a target: a path may lead through a module of ours that imports one of Python's."""
    if target.partition(".")[0] in sys.stdlib_module_names:  # its import alone may do something
        return target
    try:
        found = _locate(target)  # `get_object` would log that there is none
    except Exception:  # `build` reports it
        return ""
    return str(getattr(found, "__module__", None) or getattr(found, "__name__", ""))


def build_model(node: DictConfig) -> Model:
    """The model that a node describes; errors as in `build`, and a `PDSError` if its target makes something else."""
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


KINDS: dict[str, Any] = {
    "dataset": Dataset,
    "filter": Filter,
    "guidance": Guidance,
    "sampler": Sampler,
    "solenoid": Solenoid,
    "tracker": Tracker,
    "trainer": Trainer,
}
"""The types that the nodes of these keys must make."""


def _as_user_error(node: DictConfig, error: BaseException) -> BaseException:
    """Return the error to raise instead of the constructor's, which is the cause of its sentence."""
    if isinstance(error, OptionError):
        option = error.under(_holder(node, error.name.partition(".")[0]) or _key(node))
        told: BaseException = OptionError(option.name, f"{option.problem}{_choices(option.name)}", option.fix)
        told.__cause__ = error.__cause__
        return told
    if isinstance(error, PDSError) or not isinstance(error, OF_VALUES):
        return error
    if out_of_memory(error):
        return PDSError(f"{_key(node)} needs more memory than there is: give smaller values, of model.width above all")
    choices = _choices(_key(node)) if isinstance(error, TypeError) else ""
    told = PDSError(
        f"{_key(node)}, a {_class(node)}, cannot be made of these values: {type(error).__name__}: {first_line(error)}{choices}"
    )
    told.__cause__ = error
    return told


def _class(node: DictConfig) -> str:
    return str(node.get("_target_"))


def _choices(key: str) -> str:
    """The end of a sentence: the choices for the node of this key, where it is one that is chosen."""
    group = key.replace(".", "/")
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    names = loader.get_group_options(group) if loader else []
    return f": choose {group}={', '.join(names)}" if names else ""


@contextlib.contextmanager
def keyed(node: DictConfig) -> Iterator[None]:
    """Add the key to a refused option: the option belongs to the node, or to a node inside it."""
    try:
        yield
    except OptionError as error:
        if error.name.startswith(f"{_key(node)}."):
            raise
        said = _as_user_error(node, error)
        raise said from said.__cause__


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
        raise PDSError(f"the configuration cannot be resolved: {first_line(error)}") from None


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value is `???`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else key)
    elif node == "???":
        yield prefix
