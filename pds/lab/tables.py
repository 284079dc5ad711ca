"""The papers' tables: from a table's file to the runs that fill it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from pds.errors import PDSError
from pds.files import user_path
from pds.lab import grammar, reference, schema
from pds.lab.cli import configured, prepare, with_trackers
from pds.lab.config import CONF, resolved
from pds.lab.paper_table import Cell, Table
from pds.lab.points import Point
from pds.lab.report import overview
from pds.lab.report.table import write_table
from pds.lab.runs import group_folder
from pds.lab.settings import Reproduce, settings
from pds.lab.sweep import run_or_point
from pds.lab.terminal import command_line, show
from pds.options import fitted, options_of

OF_CELLS = ("experiment", "model", "dataset", "sampler", "filter", "solenoid", "remedy", "guidance")
"""Groups whose choices a table makes; another choice for all its cells would make other cells under the same names."""
TABLES = sorted(path.stem for path in (CONF / "table").glob("*.yaml"))
OURS = ["table", *options_of(Reproduce)]
SUFFIXES = (".pth", ".pt", ".safetensors", "")  # the last is a folder of diffusers


def reproduce(arguments: list[str]) -> None:
    """Write the cells of a table to table.json, and run them as one sweep; its end shows the table.

    Args:
        arguments: keys of conf/reproduce.yaml, of Hydra (its launcher), or overrides of every run.
    """
    if told := reference.help_text("reproduce", arguments):
        show(told)
        return
    arguments = [grammar.typed(argument) for argument in arguments]
    groups = {argument: key(argument).split(".")[0].split("/")[0] for argument in arguments}
    ours = [argument for argument, group in groups.items() if group in OURS]
    engine = [argument for argument, group in groups.items() if group == "hydra"]
    runs = with_trackers([argument for argument, group in groups.items() if group not in {*OURS, "hydra"}])
    names = [argument.partition("=")[2] for argument in arguments if key(argument) == "table"]
    if not names or names[0] not in TABLES:
        raise PDSError(f"give table=..., one of {', '.join(TABLES)}")
    prepare()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("reproduce", ours))
    stated = config["table"]
    for path, form, values in (("table", schema.TableConfig, stated), ("table.small", schema.SmallForm, stated["small"])):
        for name, kind in get_type_hints(form).items():
            if kind is not schema.SmallForm:
                fitted(f"{path}.{name}", values[name], kind)  # a reference may stand for a value of any type
    group = f"tables/{names[0]}{'_small' if config['small'] else ''}"
    folder = group_folder(config["outputs"], group)
    table, points = plan(config, runs, command_line([sys.argv[0], *arguments]))
    if points:  # a command that is refused leaves the table of an earlier one alone
        with initialize_config_dir(str(CONF), version_base="1.3"):
            grammar.require_known(compose("run", [*points[0], *engine]))
    table.write(folder)
    if not points:
        write_table(folder)
        show(f"\n{overview(folder)}")
        raise PDSError("no cell of this table can run here; its small form can: small=true")
    node = {"_target_": "hydra_plugins.points.PointsSweeper", "points": points, "command": table.command}
    ConfigStore.instance().store(group="hydra/sweeper", name="table", node=node)
    sweep = configured("run", run_or_point)
    sweep(["-m", "hydra/sweeper=table", f"group={group}", f"outputs={config['outputs']}", *engine])


def plan(config: dict[str, Any], given: list[str], command: str) -> tuple[Table, list[list[str]]]:
    """The table of a resolved configuration, and the overrides of each run that fills it."""
    form = config["table"]["small"] if config["small"] else config["table"]
    printed = config["table"]["images"]
    specs, cells = specified(config["table"], config["small"]), []
    columns: dict[str, list[list[str]]] = {column: [] for row in config["table"]["rows"].values() for column in row["columns"]}
    settings(Reproduce, config)
    taken = {key(o) for spec in specs for o in spec.get("run", [])} | {key(o) for o in form["base"]} - {"shard_size"}
    for override in given:
        if key(override) in taken or key(override) in ("group", "seed", "sweep", *OF_CELLS):
            hint = "seeds=[...] gives the seeds" if key(override) == "seed" else "it says what the cells of this table are"
            raise PDSError(f"{override} cannot be given to this table: {hint}; use experiments/run.py for other runs")
    for spec in specs:
        checkpoint, missing = find_checkpoint(spec.get("checkpoint"), config)
        runs = []
        if "run" in spec and not missing:
            images = [f"images={config['images']}"] if config["images"] else [] if config["small"] else [f"images={printed}"]
            common = [*form["base"], *spec["run"], *checkpoint, *images, *given]
            last = {key(override): override for override in common}
            runs = [[*last.values(), f"seed={seed}"] for seed in config["seeds"]]
        columns.setdefault(spec["column"], []).extend(runs)
        digests = tuple(Point.of(overrides).digest for overrides in runs)
        cells.append(Cell(spec["row"], spec["column"], spec.get("printed"), digests, missing))
    lacking = {spec["checkpoint"] for spec, cell in zip(specs, cells, strict=True) if cell.missing}
    where = [f"{name}.pth: {config['origins'][name]}; put it into {config['checkpoints']}" for name in sorted(lacking)]
    about = {name: config["table"][name] for name in ("title", "source", "quantity", "metric", "images", "note")}
    another = config["small"] and form["another_model"]
    about["title"] += " (small form: what ships with this package)" if config["small"] else ""
    # One column after the other: in a table over T the cheap cells come first.
    points = list(itertools.chain(*columns.values()))
    return Table(**about, another_model=another, command=command, cells=tuple(cells), missing=where), points


def key(override: str) -> str:
    """Return the key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def specified(table: dict[str, Any], small: bool) -> list[dict[str, Any]]:
    """The cells of a table's form: its listed cells, and those of its rows."""
    if small and not table["rows"]:
        return list(expanded(table["small"]["cells"]))
    return [*([] if small else expanded(table["cells"])), *in_rows(table, table["small"]["columns"] if small else None)]


def in_rows(table: dict[str, Any], columns: list[str] | None) -> Iterator[dict[str, Any]]:
    """The cells of a table's rows, in some columns; a table that builds on another leaves out a cell by `null`."""
    checkpoint = {} if columns is not None or table["checkpoint"] is None else {"checkpoint": table["checkpoint"]}
    for row, about in table["rows"].items():
        for column, run in about["columns"].items():
            if run is not None and (columns is None or column in columns):
                yield {"row": row, "column": column, "run": [*about["run"], *run], **checkpoint}


def expanded(cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cells with `vary` become one for each combination of its values; `{key}` in row and column is the value."""
    for cell in cells:
        vary = cell.get("vary", {})
        for values in itertools.product(*vary.values()):
            chosen = dict(zip(vary, values, strict=True))
            row, column = cell["row"], cell["column"]
            for name, value in chosen.items():
                row, column = (text.replace(f"{{{name}}}", str(value)) for text in (row, column))
            overrides = {"run": [*cell["run"], *(f"{k}={v}" for k, v in chosen.items())]} if "run" in cell else {}
            yield {**cell, **overrides, "row": row, "column": column}


def find_checkpoint(name: str | None, config: dict[str, Any]) -> tuple[list[str], str]:
    """The override for an official checkpoint, or the name of a missing one; neither for models that ship with this package."""
    if name is None:
        return [], ""
    folder = user_path(config["checkpoints"])
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return [f"model.checkpoint={path}"], ""
    return [], f"checkpoint {name}"
