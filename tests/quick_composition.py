"""Quick compositions for the tests, which make hundreds: what Hydra would make anew for each one is kept.

The results are those of Hydra alone (lab/test_composition.py). Programs that a test starts compose by Hydra alone.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import omegaconf._utils
import omegaconf.base
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.grammar_parser import parse

_map, _load = defaults_list._create_interpolation_map, OmegaConf.load
# Nothing writes into the tree that an interpolation is parsed into.
_parse = functools.lru_cache(4096)(parse)
_read: dict[str, DictConfig | ListConfig] = {}


def hasten() -> None:
    """Make all compositions of this process quick; a second call changes nothing."""
    # Each composition copies its sources, and the store with them. It then takes copies of the nodes out of the store.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    omegaconf.base.Metadata.__deepcopy__ = _copied  # type: ignore[attr-defined]
    defaults_list._create_interpolation_map = _choices  # type: ignore[assignment]
    OmegaConf.load = staticmethod(_loaded)  # type: ignore[method-assign]
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = _parse  # type: ignore[attr-defined]


def _copied(metadata: Any, memo: dict[int, Any]) -> Any:
    """A copy of what OmegaConf knows about a node. Python's own goes through each attribute, and most are types and names."""
    made, kept = object.__new__(type(metadata)), copy.deepcopy(metadata.resolver_cache, memo)
    made.__dict__.update(metadata.__dict__, flags=dict(metadata.flags or {}), resolver_cache=kept)
    return made


def _choices(overrides: Any, entries: list[Any], self_added: bool) -> DictConfig:
    """The choices that ${...} in a list of defaults may name. Hydra lists them for files without one too."""
    if any("${" in str(vars(entry)) for entry in entries):
        return _map(overrides, entries, self_added)
    return OmegaConf.create()


def _loaded(file_: Any) -> DictConfig | ListConfig:
    """The content of a file. The same text is read once, and each caller has a copy, as Hydra changes what it is given."""
    if not hasattr(file_, "read"):
        return _load(file_)
    text = file_.read()
    if text not in _read:
        file_.seek(0)
        _read[text] = _load(file_)
    return copy.deepcopy(_read[text])
