"""How people arrange weights in a file: the copies of a network in it, and the choice between them.

A copy is a prefix under which every trained parameter of the network is found, such as "model.module." or
"state_dict.net._orig_mod.". So the nesting of tables in a file and the wrappers of the network need not be known beforehand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pds.errors import OptionError
from pds.models.torch_files import Inert
from pds.options import shown

Which = Literal["ema", "raw"] | None
"""Which weights of a file to take: "ema", their exponential moving average; "raw", those of its last iteration; None, the
average if the file has one."""

LIST = ("model", "optimizer", "epoch", "step", "ema")  # the items that [NCSN] and [NCSNv2] save, without names
AVERAGE = re.compile(r"(?<![a-z])(emas?|ewma|averag(?:e|es|ed|er|ing)|shadow|swa|polyak|(?<!exp_)avg)(?![a-z])")
SPARE = re.compile(r"(?<![a-z])(online|collected|backup)(?![a-z])")  # raw weights that some averages keep
EXACT = {"ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "shadow", "shadow_params"}
COUNTER = "n_averaged"  # of torch's `AveragedModel`, beside "module."
# Limits of nested tables, of the length of a tensor's name, and of tensors: a table may hold itself.
DEPTH, LENGTH, MOST = 20, 1000, 100_000


class _Leaf(NamedTuple):
    """An entry that is not a table: a tensor, a list of tensors, or something else.

    Attributes:
        path: its keys, joined by dots.
        table: the path of the table that holds it, with a dot at the end.
        value: the entry itself.
    """

    path: str
    table: str
    value: Any


class _Copy(NamedTuple):
    """A network in a file.

    Attributes:
        prefix: the beginning of its parameters' names in the file.
        averaged: whether the copy is an average.
        state: its tensors by name, and the tensors beside them.
        whole: whether the copy has every trained parameter.
    """

    prefix: str
    averaged: bool
    state: dict[str, Any]
    whole: bool


class Chosen(NamedTuple):
    """The weights to load.

    Attributes:
        layout: "list", "dict" or "state dict", as in `Checkpoint`.
        ema: whether the weights are an average; None if the file does not say.
        state: tensors by name. Where the file has something else instead of a tensor, so has this.
    """

    layout: str
    ema: bool | None
    state: dict[str, Any]


def choose_weights(
    content: Any, shapes: Mapping[str, Sequence[int]], trained: Sequence[str], path: Path, which: Which = None
) -> Chosen:
    """The weights to load from the content of a file.

    Args:
        content: content of the file: nested lists and dictionaries of tensors.
        shapes: shapes of the network's parameters, by name, in order.
        trained: names of the parameters that training changes, in order.
        path: the name of the file in messages.
        which: see `Which`; an average is taken if the file has nothing else.

    Returns:
        The best match, which may be of another network.

    Raises:
        OptionError: the file has no tensors, an average that cannot be matched, or several copies.
    """
    leaves = list(islice(_leaves(dict(zip(LIST, content, strict=False)) if _is_list(content) else content), MOST))
    if len(leaves) == MOST:
        raise OptionError("checkpoint", f"{path} has more tables than any network, so it is damaged: fetch it again")
    copies = [*_by_name(leaves, trained), *_by_order(leaves, shapes, trained)]
    if not copies:
        inert = next((leaf.value.name for leaf in leaves if isinstance(leaf.value, Inert)), None)
        code = f" but holds code ({inert}), which is never executed here" if inert else ""
        raise OptionError("checkpoint", f"{path} has no table of tensors by name{code}: give the state_dict of a network")
    # A single table does not say which kind of weights it holds.
    alone = all(not leaf.table for leaf in leaves if isinstance(leaf.value, Tensor))
    layout = "list" if _is_list(content) else "state dict" if alone else "dict"
    raw = [copy for copy in copies if copy.whole and not copy.averaged]
    averages = [copy for copy in copies if copy.whole and copy.averaged]
    if not raw and not averages:
        return Chosen(layout, None, copies[0].state)
    if which == "raw" and raw:
        chosen = _only(raw, shapes, trained, path).state
        return Chosen(layout, None if alone and not averages else False, chosen)
    _require_matched(leaves, raw, averages, trained, path)
    if not averages:
        return Chosen(layout, None if alone else False, _only(raw, shapes, trained, path).state)
    # Buffers and parameters that are not trained often have no average.
    beside = _only(raw, shapes, trained, path).state if raw else {}
    return Chosen(layout, True, beside | _only(averages, shapes, trained, path).state)


def _leaves(content: Any, path: str = "", depth: int = 0) -> Iterator[_Leaf]:
    items = content.items() if isinstance(content, dict) else [("", content)]
    for key, value in items:
        name = f"{path}{key}"
        if len(name) > LENGTH or value is None:
            continue
        if _is_list(value) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict) and depth < DEPTH:
            yield from _leaves(value, f"{name}.", depth + 1)
        else:
            yield _Leaf(name, path, value)


def _by_name(leaves: list[_Leaf], trained: Collection[str]) -> list[_Copy]:
    """Every whole copy, or else the nearest to one; the largest table, if no parameter is found at all."""
    names = set(trained)
    found: dict[str, set[str]] = {}  # names by prefix
    holders: dict[str, set[str]] = {}  # tables by prefix
    tables: dict[str, dict[str, Any]] = {}
    for leaf in leaves:
        tables.setdefault(leaf.table, {})[leaf.path] = leaf.value
        parts = leaf.path.split(".") if isinstance(leaf.value, Tensor) else []
        for name in (".".join(parts[i:]) for i in range(len(parts))):
            if name in names:
                prefix = leaf.path.removesuffix(name)
                found.setdefault(prefix, set()).add(name)
                holders.setdefault(prefix, set()).add(leaf.table)
    if not found:
        sizes = Counter(leaf.table for leaf in leaves if isinstance(leaf.value, Tensor))
        for largest, _ in sizes.most_common(1):
            found[largest], holders[largest] = set(), {largest}
    counted = tuple(f"{leaf.path.removesuffix(COUNTER)}module." for leaf in leaves if leaf.path.endswith(COUNTER))
    whole = [prefix for prefix, has in found.items() if len(has) == len(names)]
    copies = []
    for prefix in whole or sorted(found, key=lambda prefix: -len(found[prefix]))[:1]:
        held = {path: value for table in holders[prefix] for path, value in tables[table].items() if path.startswith(prefix)}
        state = {path.removeprefix(prefix): value for path, value in held.items()}
        # Values other than tensors are left out, unless the network has a tensor of that name.
        state = {name: value for name, value in state.items() if isinstance(value, Tensor) or name in names}
        copies.append(_Copy(prefix, _averaged(prefix) or prefix.startswith(counted), state, prefix in whole))
    spare = [copy for copy in copies if SPARE.search(copy.prefix)]
    return copies if len(spare) == len(copies) else [copy for copy in copies if copy not in spare]


def _by_order(leaves: list[_Leaf], shapes: Mapping[str, Sequence[int]], trained: Sequence[str]) -> list[_Copy]:
    """Averages that are lists, in the order of the trained parameters, or of all of them."""
    copies = []
    for leaf in leaves:
        if _averaged(leaf.path) and _is_listed(leaf.value):
            if len(leaf.value) == len(trained):
                copies.append(_Copy(leaf.path, True, dict(zip(trained, leaf.value, strict=True)), True))
            elif [_shape(value) for value in leaf.value] == [tuple(shape) for shape in shapes.values()]:
                copies.append(_Copy(leaf.path, True, dict(zip(shapes, leaf.value, strict=True)), True))
    return copies


def _only(copies: list[_Copy], shapes: Mapping[str, Sequence[int]], trained: Sequence[str], path: Path) -> _Copy:
    """The one copy; among copies with the names of the network, the one with its shapes."""
    fit = [copy for copy in copies if all(_shape(copy.state[name]) == tuple(shapes[name]) for name in trained)]
    if len(fit) > 1:
        names = ", ".join(shown(copy.prefix.rstrip(".")) for copy in fit)
        raise OptionError("checkpoint", f"{path} holds the network several times (under {names}): keep one of them")
    return (fit or copies)[0]


def _require_matched(leaves: list[_Leaf], raw: list[_Copy], averages: list[_Copy], trained: Sequence[str], path: Path) -> None:
    """Refuse an average that belongs to no copy; other weights must not take its place."""
    for leaf in leaves:
        if not _averaged(leaf.path) or leaf.path.endswith(COUNTER):
            continue
        parts = leaf.path.split(".")
        root = next(root for root in (".".join(parts[: i + 1]) for i in range(len(parts))) if _averaged(root))
        taken = any(f"{copy.prefix}.".startswith(f"{root}.") for copy in averages)
        ours = any(leaf.path.startswith(copy.prefix) and leaf.path.removeprefix(copy.prefix) in copy.state for copy in raw)
        if taken or ours or not _is_weights(leaf.value, root.rpartition(".")[2]):
            continue
        if _is_listed(leaf.value):
            why = f"averages {len(leaf.value)} parameters where the model trains {len(trained)}"
        else:
            there = {other.path for other in leaves if other.path.startswith(root)}
            absent = (name for name in trained if not any(path.endswith(f".{name}") for path in there))
            why = f"has no average of the parameter {next(absent, trained[0])}"
        problem = f"{path} {why} under {shown(root)}, and other weights are taken only if asked for"
        raise OptionError("checkpoint", problem, {"weights": "raw"})


def _is_weights(value: Any, key: str) -> bool:
    """Whether the value under the key of an average holds weights, instead of a decay rate or the like."""
    if isinstance(value, Tensor):
        return value.ndim > 0
    if isinstance(value, Inert):
        return key in EXACT or _averaged(value.name)
    return key in EXACT or _is_listed(value)


def _averaged(path: str) -> bool:
    """Whether a path names an average, and not the raw weights that some averages keep."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", path).lower()
    return AVERAGE.search(words) is not None and SPARE.search(words) is None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_listed(value: Any) -> bool:
    return _is_list(value) and bool(value) and all(isinstance(item, Tensor) for item in value)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
