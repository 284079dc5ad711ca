"""The choices and the options, from signatures and docstrings: for `--help`, for `--list`, and for docs/reference.md."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from pds import __version__
from pds.errors import PDSError
from pds.lab.config import CONF, build
from pds.lab.schema import CHOICES, PROGRAMS, PartialTarget, experiments, fields_of, is_plain, register
from pds.lab.text import markdown_table
from pds.options import described, options_of
from pds.samplers.sampler import Sampler

ALL = sorted({group.removeprefix("schema/") for group in CHOICES})
GROUPS = [group for group in ALL if group in CHOICES or (CONF / group).is_dir()]
COMMAND = "python experiments/tools/reference.py"


def summary(target: Callable[..., Any]) -> str:
    """The first sentence of a docstring."""
    text = (inspect.getdoc(target) or "").split("\n\n")[0]
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(text.split()))[0].rstrip(".:")


def meanings(target: Callable[..., Any]) -> dict[str, str]:
    """Return the meaning of each option, from the section `Attributes` or `Args` of the docstring; a class also has those of
    its bases."""
    told: dict[str, str] = {}
    for part in reversed(target.__mro__ if isinstance(target, type) else [target]):
        text = inspect.getdoc(part) if part.__doc__ else ""
        section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)*)", text or "", flags=re.MULTILINE)
        for names, said in re.findall(
            r"^    ([\w, ]+): ((?:.*\n?)(?:^     +.*\n?)*)", section[1] if section else "", re.MULTILINE
        ):
            # A command line writes null.
            told |= dict.fromkeys(names.split(", "), re.sub(r"\bNone\b", "null", " ".join(said.split())))
    return told


def options_table(target: Callable[..., Any], given: Sequence[str] = ()) -> list[tuple[str, str, str, str]]:
    """Key, default, valid values and meaning of each option that a configuration can give."""
    told, stated = meanings(target), options_of(target)
    rows = []
    for name, _, _ in fields_of(target):
        option = stated[name]
        if name not in given and is_plain(option.annotation):
            default = "" if option.required else _value(option.default)
            rows.append((name, default, described(option.annotation), told.get(name, "")))
    return rows


def _value(value: Any) -> str:
    """A default as written on a command line."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_value, value))}]"
    return (
        words[value] if value is None or isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([head, *rows], [False] * len(head))


def choices_of(group: str) -> dict[str, str]:
    """Every choice of a group, with one sentence about it."""
    if group == "experiment":
        return experiments()
    told = {path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in (CONF / group).glob("*.yaml")}
    for name, choice in CHOICES.get(group, {}).items():
        told[name] = summary(choice.target if isinstance(choice, PartialTarget) else choice)
    return dict(sorted(told.items()))


@functools.cache
def samplers_table() -> str:
    """Title, evaluations and draws of every sampler, then the sources; no line is longer than 120 characters."""
    rows, sources = [], dict[str, list[str]]()
    for name in choices_of("sampler"):
        sampler: Sampler[Any] = build(_alone(f"sampler/{name}").sampler)
        filtered, drawn = ("yes" if fact else "no" for fact in (sampler.takes_filter, sampler.stochastic))
        rows.append((f"`{name}`", sampler.title, str(sampler.nfe_per_iteration), filtered, drawn))
        sources.setdefault(sampler.source, []).append(f"`{name}`")
    told = [f"- {source}: {', '.join(names)}" for source, names in sources.items()]
    lines = [textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in told]
    table = _table(("sampler", "title", "NFE an iteration", "takes a filter", "draws noise"), rows)
    return "\n".join([table, "\nNFE are evaluations of the network. Sources:\n", *lines])


def _alone(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    with _initialized():
        return compose(name, list(overrides))


def _initialized() -> initialize_config_dir:
    register()
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(CONF), version_base="1.3")


def listing(group: str) -> str:
    """Return the text of `--list GROUP`."""
    known = {name for name in (group, group.removesuffix("s")) if name in GROUPS or (CONF / name).is_dir()}
    if not known:
        raise PDSError(f"--list takes one of {', '.join(GROUPS)}, got {group}")
    name = known.pop()
    return samplers_table() if name == "sampler" else _table((name, ""), list(choices_of(name).items()))


def help_text(program: str, arguments: Sequence[str]) -> str:
    """Return the text to print instead of running the program; empty if none is asked for."""
    if "--list" in arguments:
        return listing("".join(arguments[arguments.index("--list") + 1 :][:1]))
    if "--version" in arguments:
        return f"PDS lab {__version__}"
    return help_of(program, arguments) if {"--help", "-h"} & {*arguments} else ""


def help_of(program: str, arguments: Sequence[str]) -> str:
    """The text of `--help`: the options of the groups named in `arguments`; without one, the program's options and all
    choices."""
    kind, groups, more = PROGRAMS[program]
    chosen = [argument.partition("=")[0] for argument in arguments if argument.partition("=")[0] in GROUPS]
    if not chosen:
        parts = [inspect.getdoc(kind).partition("\n\nAttributes:")[0], _option_lines("", kind, {})]  # type: ignore[union-attr]
        optional = [key for key in more if choices_of(key)]
        parts += [f"{group}: {', '.join(choices_of(group))}" for group in (*groups, *optional)]
        return "\n\n".join([*parts, "GROUP=CHOICE --help shows the options of a choice, --list GROUP shows the choices."])
    given = [argument for argument in arguments if not argument.startswith("-")]
    if not groups:  # its other keys are overrides of runs
        own = {*options_of(kind), *more}
        program, given = "run", [override for override in given if re.split("[./=]", override.lstrip("+~"))[0] not in own]
    if "model=own" in given and not any(override.startswith("model/process=") for override in given):
        given.append("model/process=ve")  # its process must be given, and the help shows an example
    points = _points(given) if {"-m", "--multirun"} & {*arguments} else [given]
    told = (text for point in points for group in chosen for text in _nodes(group.replace("/", "."), _alone(program, point)))
    return "\n\n".join(dict.fromkeys(told))


def _points(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each combination of the choices swept over. Other keys that are swept over stay at their defaults."""
    with _initialized():
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([*overrides])
        kept = [override for override in parsed if override.key_or_group in GROUPS or not override.is_sweep_override()]
        (points,) = BasicSweeper.split_arguments(kept, None)
        return points


def _nodes(key: str, cfg: DictConfig) -> Iterator[str]:
    """The node of this key and those inside it."""
    node = OmegaConf.select(cfg, key)
    target = _target(str(node.get("_target_")))
    given = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    if target is not None:
        yield f"{key}: {summary(target)}\n" + _option_lines(f"{key}.", target, given)
    for name, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            yield from _nodes(f"{key}.{name}", cfg)


def _target(path: str) -> Callable[..., Any] | None:
    targets = (
        choice.target if isinstance(choice, PartialTarget) else choice
        for choices in CHOICES.values()
        for choice in choices.values()
    )
    return next((target for target in targets if f"{target.__module__}.{target.__qualname__}" == path), None)


def _option_lines(prefix: str, target: Callable[..., Any], given: dict[str, Any]) -> str:
    lines = []
    for name, default, may_be, meaning in options_table(target):
        value = _value(given[name]) if name in given else default
        lines += [f"  {prefix}{name}={value}", f"      {may_be}" + (f"; {meaning}" if meaning else "")]
    return "\n".join(lines)


def page() -> str:
    """docs/reference.md."""
    parts = [
        f"# Reference\n\nMade from signatures and docstrings by `{COMMAND}`. Values are given as `key=value`.",
        "## Programs",
    ]
    parts += [_section(f"### {name}", kind) for name, (kind, _, _) in PROGRAMS.items()]
    parts.append(f"## Samplers\n\n{samplers_table()}")
    for group in ALL:
        parts.append(
            "\n".join([f"## {group}\n", *(f"- `{name}`: {said}" for name, said in choices_of(group).items())]).rstrip()
        )
        absent: dict[Callable[..., Any], set[str]] = {}  # by target, the options that none of its choices has
        for choice in {**CHOICES.get(f"schema/{group}", {}), **CHOICES.get(group, {})}.values():
            target, given = (choice.target, choice.given) if isinstance(choice, PartialTarget) else (choice, ())
            absent[target] = absent.get(target, {*given}) & {*given}
        parts += [_section(f"### {one.__name__}", one, [*no]) for one, no in absent.items() if options_table(one, [*no])]
    return "\n\n".join(parts) + "\n"


def _section(head: str, target: Callable[..., Any], given: Sequence[str] = ()) -> str:
    lines = [f"{head}\n", f"{summary(target)}.\n"]
    for name, default, may_be, meaning in options_table(target, given):
        stated = f"`{name}={default}`" if default else f"`{name}`"
        lines.append(f"- {stated}, {may_be}" + (f": {meaning.rstrip('.')}." if meaning else "."))
    return "\n".join(lines)
