"""Hydra's refusals of a command line, each in one sentence with the right form or the valid choices."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pds.errors import PDSError, escaped, first_line

SPECIAL = "= , ( ) [ ] { }"
OPTIONAL = ("local", "published")
"""Groups that a configuration has if there is a file."""
ABSENT = ("remedy", "guidance")
"""Groups of which a configuration has no choice unless one is given."""
SINGLE = ("model", "dataset", "sampler", "filter", "solenoid", "remedy", "guidance", "metric")
"""Groups of which a configuration has one choice."""
OPEN = re.compile(r"(model\.arguments|sampler\.options)[.=]")
"""Tables that take any key, so that a key need not be there to be set."""


def sentence(error: Exception) -> str | None:
    """Return the fault of the command line in a sentence; None for an error with another cause."""
    if isinstance(error, InstantiationException):
        # Ours have their sentence already. Of Hydra's own parts the command line is the only source.
        part = re.search(r"\nfull_key: (hydra\.\S+)\Z", str(error))
        return part and f"{part[1]} cannot be made of these values: {first_line(error.__cause__ or error)}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return _no_choice(error)
    if isinstance(error, ConfigCompositionException):
        return _refused(error)
    if (file := _local(error, "load_config", "full_path")) is not None:
        why = escaped(" ".join(str(error).split()) or type(error).__name__, 300)
        return f"{file} is no configuration ({why}): mend it"
    if isinstance(error, HydraException | OmegaConfBaseException) or _raised_in_hydra(error):
        # Its error for a number too large for a float does not name the override.
        if (override := _local(error, "_apply_overrides_to_config", "override")) is not None:
            return f"{override.input_line} is not possible: {first_line(error)}"
        if "Config group override must be a string" in str(error):
            choice = _local(error, "__init__", "override")
            if choice is not None and choice.value() is None and choice.key_or_group in ABSENT:
                return f"{choice.input_line} names no choice: leave {choice.key_or_group} out to have none"
            return "the command line cannot be used: a choice is a name, as in metric=none; --list GROUP shows them"
        return f"the command line cannot be used: {first_line(error)}"
    return None


def _raised_in_hydra(error: Exception) -> bool:
    modules = (frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__))
    # Hydra also gives Python what Python refuses, such as a path with a NUL in it.
    others = [name for name in modules if name not in sys.stdlib_module_names]
    return others[-1:] in (["hydra"], ["omegaconf"], ["antlr4"])


def _local(error: BaseException, function: str, name: str) -> Any:
    """A variable of a function of Hydra that the error came through; None if it came another way."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == function and name in frame.f_locals:
            return frame.f_locals[name]
    return None


def quoted(override: str) -> str | None:
    """The override with its value quoted, for Hydra and for a shell; None if quotes do not help."""
    key, equals, value = override.partition("=")
    if not equals:
        return None
    # The user quoted the text already.
    value = value.strip("'\"")
    safe = value.replace("\\", "\\\\").replace('"', '\\"')
    text = f'{key}="{safe}"'
    try:
        parsed = OverridesParser.create().parse_override(text).value()
    except HydraException:
        return None
    return shlex.quote(text) if str(parsed) == value else None


def typed(override: str) -> str:
    """The override as it was meant.

    A value that needs quotes only for its letters gets them. So does a name or a path that Hydra would read as a number:
    group=2024_01 would become 202401. A table that takes any key gets a new one.

    Raises:
        PDSError: it sets an empty table, or a group to a list. Hydra would add nothing to what is there, and say nothing.
    """
    key, equals, value = override.partition("=")
    if key in SINGLE and value.startswith("["):
        several = "metric=panel computes several measures" if key == "metric" else f"-m {key}=A,B tries several"
        raise PDSError(f"{override} gives a list, and {key} takes one choice: {several}")
    if re.fullmatch(r"\{\s*\}", value.strip()):
        raise PDSError(f"{key}={{}} changes nothing: leave it out, or give a name or values, as in {key}={{option:value}}")
    if OPEN.match(override):
        override = f"++{override}"
    if not equals or set(value) & set("=()[]{}'\"\\"):
        return override
    if key.lstrip("+") in _texts():
        return f"{key}={','.join(map(_text, value.split(',')))}"
    if override.isascii() or "," in value:
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        fix = quoted(override)
        return override if fix is None else shlex.split(fix)[0]
    return override


def _texts() -> Collection[str]:
    from pds.lab.schema import texts  # which imports this module

    return texts()


def _text(value: str) -> str:
    """The value of a name or a path, in quotes where Hydra would read something else; blanks around it are Hydra's."""
    value = value.strip()
    try:
        read = OverridesParser.create().parse_override(f"name={value}").value()
    except HydraException:
        return value if value.isascii() else f'"{value}"'
    return value if read is None or str(read) == value else f'"{value}"'


def _as_in(override: str) -> str:
    fix = quoted(override)
    return f", as in {fix}" if fix else ""


def _unreadable(override: str | None) -> str:
    override = override or ""
    if "=" not in override.lstrip("~"):
        return f"{override} sets nothing: write KEY=VALUE, or -m and --help as the only words without a value"
    return f"{override} cannot be read: quote a value with letters beyond ASCII or any of {SPECIAL} in it{_as_in(override)}"


def without_values(override: str) -> str:
    """The refusal of a sweep over a range of real numbers."""
    return f"{override} has no values to try one after the other: list them, as in 1,2,3 or range(1,4)"


def _no_choice(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group.partition("/")[0] == "experiment":  # its choices stand in groups of their own
        from pds.lab.schema import experiments  # which imports this module

        name = f"{group}/{name}".removeprefix("experiment/")
        return f"there is no experiment={name}{_meant(name, [*experiments()])}: --list experiments shows the choices"
    options = sorted(error.options or [])
    if not (group and options):
        return f"the command line cannot be used: {first_line(error)}"
    return f"there is no {group}={name}{_meant(name, options)}: choose one of {', '.join(options)}"


def require_choice(override: str, folder: Path) -> None:
    """Refuse a choice that is not there in a group of which Hydra takes that for none.

    Args:
        override: any.
        folder: of the groups.

    Raises:
        PDSError: it names the choices.
    """
    group, _, given = override.partition("=")
    if group not in OPTIONAL or set(given) & set("()[]{}"):
        return
    options = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    for name in given.split(","):
        if name.strip() not in (*options, "null"):
            known = f"choose one of {', '.join(options)}" if options else f"put {name}.yaml into {folder / group}"
            raise PDSError(f"there is no {group}={escaped(name, 80)}{_meant(name, options)}: {known}")


def _refused(error: ConfigCompositionException) -> str:
    text, cause = str(error), error.__cause__
    if found := re.match(r"Ambiguous value for argument '(.*?)'\n", text, re.DOTALL):
        given = found[1]
        return f"{given} has several values: add -m to try each, or quote a value with a comma in it{_as_in(given)}"
    if found := re.match(r"You must specify '(.*?)', e\.g(?:.*\nAvailable options:\n(.*))?", text, re.DOTALL):
        return f"{found[1]} is not given: choose one of {', '.join((found[2] or '').split())}"
    if found := re.match(r"Sweep parameters '(.*)' requires --multirun", text, re.DOTALL):
        return without_values(found[1]) if "interval(" in found[1] else f"{found[1]} has several values: add -m to try each"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return _no_key(str(cause.full_key), str(cause.key), cause.parent_node)
    if found := re.match(r"Error merging override (.*)", text):
        if "is not a ListConfig" in str(cause) and "[" not in (key := found[1]):
            return f"{key} is not possible: give a list, as in {key.replace('=', '=[')}]"
        if "is not Optional" in str(cause):
            return f"{found[1]} is not possible: give a value"
        return f"{found[1]} is not possible: {first_line(cause or error)}"
    if found := re.match(r"Could not override '(.*)'\. No match in the defaults list", text):
        return f"{found[1]} is not chosen in this configuration, and cannot be chosen otherwise"
    return f"the command line cannot be used: {first_line(error)}{f' ({first_line(cause)})' if cause else ''}"


def require_known(node: DictConfig) -> None:
    """Refuse keys that Hydra adds by a + and that no option has, options that were removed by a ~, and options of no choice.

    Raises:
        PDSError: there is such a key; the message names the first.
    """
    kind: Any = OmegaConf.get_type(node)
    if dataclasses.is_dataclass(kind):
        stated = [field.name for field in dataclasses.fields(kind) if field.name != "defaults"]
        for name in map(str, node):
            if name not in (*stated, "hydra"):
                raise PDSError(_no_key(node._get_full_key(name), name, node, stated))
        there = set(node.keys())  # `in` does not find keys without a value
        for name in stated:
            if name not in there:
                raise PDSError(f"{node._get_full_key(name)} cannot be removed: leave out ~{node._get_full_key(name)}")
    for key, child in ((key, node._get_node(key)) for key in node if key != "hydra"):
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            if node._get_parent() is None and key in SINGLE and "_target_" not in child:
                raise PDSError(_no_owner(str(key), child))
            require_known(child)


def _no_owner(group: str, node: DictConfig) -> str:
    """The refusal of options of a group without a choice, as a ~GROUP leaves those that an experiment gives."""
    given = f"{group}.{next(map(str, node))}" if len(node) else f"{group}={{}}"
    return f"{given} is given, and no {group} is chosen: give {group}=NAME (--list {group}), or leave out ~{group} or {given}"


def _no_key(full: str, key: str, parent: DictConfig, stated: Collection[str] | None = None) -> str:
    """The refusal of a key that does not exist; `stated` are the valid keys, if these differ from those of the node."""
    names = map(str, parent if stated is None else stated)
    siblings = [name for name in names if name != "hydra" and not name.startswith("_")]
    node = full.removesuffix(key).rstrip(".")
    everywhere = list(_keys(OmegaConf.to_container(parent._get_root(), resolve=False)))
    near = [name for name in everywhere if name.rpartition(".")[2] == key and name != full]
    beside = [f"{node}.{name}" if node else name for name in siblings]
    there = f"{node} has" if node else "the keys are"
    return f"there is no {full}{_meant(full, beside, near)}: {there} {', '.join(siblings) or 'none'}"


def _meant(name: str, choices: list[str], near: list[str] | None = None) -> str:
    meant = difflib.get_close_matches(name, choices, n=1, cutoff=0.6) or (near or [])[:3]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "hydra":
                yield f"{prefix}{key}"
                yield from _keys(value, f"{prefix}{key}.")
