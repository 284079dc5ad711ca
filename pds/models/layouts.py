"""How people arrange weights in a file: the copies of a network that it holds, and which of them to take.

A copy is a prefix under which every trained parameter of the network is found: "model.module." or "state_dict.net._orig_mod."
alike. So neither the tables that a file nests nor what wraps the network needs to be known beforehand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pds.errors import OptionError
from pds.models.torch_files import Inert
from pds.options import shown

Which = Literal["ema", "raw"] | None
"""Which weights of a file to take: "ema", their exponential moving average; "raw", those of its last iteration; None, the
average where there is one."""

LIST = ("model", "optimizer", "epoch", "step", "ema")  # what [NCSN] and [NCSNv2] save, without names
AVERAGE = re.compile(r"(?<![a-z])(emas?|ewma|averag(?:e|es|ed|er|ing)|shadow|swa|polyak|(?<!exp_)avg)(?![a-z])")
SPARE = re.compile(r"(?<![a-z])(online|collected|backup)(?![a-z])")  # raw weights beside an average that keeps them
EXACT = {"ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "shadow", "shadow_params"}
COUNTER = "n_averaged"  # of torch's `AveragedModel`
DEPTH, LENGTH = 5, 1000  # of tables in tables, and of the name that they give a tensor


class Leaf(NamedTuple):
    """What is no table: a tensor, a list of them, or something else.

    Attributes:
        path: its keys, joined by dots.
        table: the path of the table that holds it, with a dot behind.
        value: it.
    """

    path: str
    table: str
    value: Any

    @property
    def averaged(self) -> bool:
        """Whether its path speaks of an average."""
        return _averaged(self.path)


class Copy(NamedTuple):
    """A network in a file.

    Attributes:
        prefix: what stands before the names of its parameters.
        averaged: whether the prefix speaks of an average.
        state: its tensors by name, and those beside them.
        found: how many of the trained parameters it has.
    """

    prefix: str
    averaged: bool
    state: dict[str, Any]
    found: int


class Chosen(NamedTuple):
    """The weights to load.

    Attributes:
        layout: "list", "dict" or "state dict", as in `Checkpoint`.
        ema: whether they are an average; None where the file does not tell.
        state: tensors by name; something else in the place of one where the file has it there.
    """

    layout: str
    ema: bool | None
    state: dict[str, Any]


def choose(content: Any, trained: Mapping[str, Sequence[int]], path: Path, which: Which = None) -> Chosen:
    """The weights to load, of those that a file holds.

    Args:
        content: of the file: nested lists and dictionaries of tensors.
        trained: shapes of the network's trained parameters, by name, in order.
        path: what messages call the file.
        which: see `Which`; an average is taken where there is nothing else.

    Returns:
        The best that there is, which may be of another network.

    Raises:
        OptionError: it has no tensors, an average that cannot be matched, several copies, or not those that were asked for.
    """
    leaves = list(_leaves(dict(zip(LIST, content, strict=False)) if isinstance(content, (list, tuple)) else content))
    copies = _copies(leaves, trained)
    if not copies:
        inert = next((leaf.value.name for leaf in leaves if isinstance(leaf.value, Inert)), None)
        code = f" but holds code ({inert}), which is never executed here" if inert else ""
        raise OptionError("checkpoint", f"{path} has no table of tensors by name{code}: give the state_dict of a network")
    # A table alone does not tell what it is.
    alone = all(not leaf.table for leaf in leaves if isinstance(leaf.value, Tensor))
    layout = "list" if isinstance(content, (list, tuple)) else "state dict" if alone else "dict"
    whole = [copy for copy in copies if copy.found == len(trained)]
    if not whole:
        return Chosen(layout, None, copies[0].state)
    averages = [copy for copy in whole if copy.averaged]
    raw = [copy for copy in whole if not copy.averaged]
    raw = [copy for copy in raw if not SPARE.search(copy.prefix)] or raw
    if which == "raw" and raw:
        averages = []
    else:
        _require_matched(leaves, whole, trained, path)
    for found in (averages, raw):
        # Names alone may also be those of a part of a larger network.
        fit = [copy for copy in found if all(_shape(copy.state[name]) == list(shape) for name, shape in trained.items())]
        found[:] = fit or found[:1]
        if len(found) > 1:
            names = ", ".join(shown(copy.prefix.rstrip(".")) for copy in found)
            raise OptionError("checkpoint", f"{path} holds the network several times (under {names}): keep one of them")
    # Buffers and parameters that are not trained often have no average.
    state = (raw[0].state if raw else {}) | (averages[0].state if averages else {})
    return Chosen(layout, True if averages else None if alone and len(whole) == 1 else False, state)


def _leaves(content: Any, path: str = "", depth: int = 0) -> Iterator[Leaf]:
    if not isinstance(content, dict):
        yield Leaf("", "", content)
        return
    for key, value in content.items():
        name = f"{path}{key}"
        if len(name) > LENGTH or value is None:
            continue
        if isinstance(value, dict) and depth < DEPTH:
            yield from _leaves(value, f"{name}.", depth + 1)
        else:
            yield Leaf(name, path, value)


def _copies(leaves: list[Leaf], trained: Collection[str]) -> list[Copy]:
    """Every whole copy, or the nearest to one; where no parameter is found at all, the largest table."""
    names, found = set(trained), Counter[str]()
    tables: dict[str, dict[str, Any]] = {}
    holders: dict[str, set[str]] = {}
    for leaf in leaves:
        tables.setdefault(leaf.table, {})[leaf.path] = leaf.value
        parts = leaf.path.split(".") if isinstance(leaf.value, Tensor) else []
        for i in range(len(parts)):
            if (name := ".".join(parts[i:])) in names:
                prefix = leaf.path.removesuffix(name)
                found[prefix] += 1
                holders.setdefault(prefix, set()).add(leaf.table)
    counters = [leaf.path.removesuffix(COUNTER) for leaf in leaves if leaf.path.endswith(COUNTER)]
    # Others keep an average as a list, in the order of the parameters.
    copies = [
        Copy(leaf.path, True, dict(zip(trained, leaf.value, strict=True)), len(trained))
        for leaf in leaves
        if _averaged(leaf.path) and _listed(leaf.value) and len(leaf.value) == len(trained)
    ]
    if not found and tables:
        sizes = {table: sum(isinstance(value, Tensor) for value in held.values()) for table, held in tables.items()}
        largest = max(sizes, key=sizes.__getitem__)
        if sizes[largest]:
            found[largest] = 0
            holders[largest] = {largest}
    whole = [prefix for prefix, count in found.items() if count == len(trained)]
    for prefix in whole or [prefix for prefix, _ in found.most_common(1)]:
        held = {path: value for table in holders[prefix] for path, value in tables[table].items() if path.startswith(prefix)}
        state = {path.removeprefix(prefix): value for path, value in held.items()}
        averaged = _averaged(prefix) or any(prefix.startswith(f"{before}module.") for before in counters)
        copies.append(Copy(prefix, averaged, _tensors(state, names), found[prefix]))
    return copies


def _tensors(state: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """What is no tensor is left out, unless it stands in the place of one."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor) or name in names}


def _require_matched(leaves: list[Leaf], whole: list[Copy], trained: Collection[str], path: Path) -> None:
    """Refuse an average that is none of the copies, rather than take other weights in its place."""
    for leaf in leaves:
        if not leaf.averaged or leaf.path.endswith(COUNTER) or SPARE.search(leaf.path):
            continue
        parts = leaf.path.split(".")
        ends = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
        root = next(end for end in ends if _averaged(end))
        last = root.rpartition(".")[2]
        weights = leaf.value.ndim > 0 if isinstance(leaf.value, Tensor) else _listed(leaf.value) or last in EXACT
        if isinstance(leaf.value, Inert):
            weights = last in EXACT or _averaged(leaf.value.name)
        if not weights or any(f"{copy.prefix}.".startswith(f"{root}.") for copy in whole):
            continue
        if any(leaf.path.startswith(copy.prefix) and leaf.path.removeprefix(copy.prefix) in copy.state for copy in whole):
            continue
        if _listed(leaf.value):
            why = f"averages {len(leaf.value)} parameters where the model trains {len(trained)}"
        else:
            tails = {x.path for x in leaves if x.path.startswith(root)}
            missing = next(
                (name for name in trained if not any(tail.endswith(f".{name}") for tail in tails)), next(iter(trained))
            )
            why = f"has no average of the parameter {missing}"
        raise OptionError(
            "checkpoint",
            f"{path} {why} under {shown(root)}, and other weights are taken only if asked for",
            {"weights": "raw"},
        )


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None


def _averaged(path: str) -> bool:
    """Whether a path speaks of an average, and not of the raw weights that some averages keep."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", path).lower()
    return AVERAGE.search(words) is not None and SPARE.search(words) is None


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Tensor) for item in value)
