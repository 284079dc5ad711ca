"""A table of a paper beside what was measured here: printed, measured, difference."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pds.errors import PDSError
from pds.files import atomic_path, write_json
from pds.points import Point, Points
from pds.reporting.runs import MISSING, RunSummary, format_table, read_runs, rounded

FILE = "table.json"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        row, column: where it stands.
        printed: the paper's number; None where there is none.
        points: digests of the points that measure it, one a seed (`pds.points`); empty when it is not measured.
        missing: what it needs and is not there.
    """

    row: str
    column: str
    printed: float | None = None
    points: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Table:
    """What a table asks for; `table.json` in the folder of its runs.

    Attributes:
        title: what it shows.
        source: the paper that prints it.
        quantity: "distance" or "seconds".
        metric: features and reference of the printed distance, as in a metric's name without the image count.
        images: the images of a printed cell.
        note: what else makes printed and measured differ.
        another_model: whether the measured model is not the printed one.
        command: makes the table again.
        cells: its cells.
        missing: where the missing files are published and belong.
    """

    title: str
    source: str
    quantity: str
    metric: str
    images: int
    note: str
    another_model: bool
    command: str
    cells: tuple[Cell, ...]
    missing: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Put it into the folder of its runs."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Table | None:
        """The table of a folder, where there is one."""
        if not (folder / FILE).exists():
            return None
        try:
            values = json.loads((folder / FILE).read_text())
            cells = tuple(Cell(**{**cell, "points": tuple(cell["points"])}) for cell in values["cells"])
            return cls(**{**values, "cells": cells})
        except (ValueError, KeyError, TypeError) as error:
            raise PDSError(f"{folder / FILE} is damaged ({error}): run the command that made it again") from None


@dataclass(frozen=True)
class Line:
    """A cell as it was measured; what is not known is None.

    Attributes:
        cell: the cell.
        measured: mean over the seeds.
        seeds: how many were measured.
        deviation: standard deviation over the seeds, of two or more.
        difference: measured less printed, where the two are of one kind.
        images, iterations, nfe: of a seed.
        seconds: of sampling, mean over the seeds.
        metric: full name of the distance, or "seconds".
        notes: why it is no like for like comparison, or not measured.
    """

    cell: Cell
    measured: float | None = None
    seeds: int = 0
    deviation: float | None = None
    difference: float | None = None
    images: int | None = None
    iterations: int | None = None
    nfe: int | None = None
    seconds: float | None = None
    metric: str = ""
    notes: list[str] = field(default_factory=list)


def fill(table: Table, points: Sequence[Point], runs: Sequence[RunSummary]) -> list[Line]:
    """Every cell with what its runs measured.

    Args:
        table: what is asked for.
        points: the points of its sweep.
        runs: the runs beside it.
    """
    by_digest = {point.digest: point for point in points}
    results = {run.folder.name: run.result for run in runs if run.state == "done"}
    return [_fill(table, cell, [by_digest.get(digest) for digest in cell.points], results) for cell in table.cells]


def _fill(table: Table, cell: Cell, points: Sequence[Point | None], results: dict[str, dict[str, Any]]) -> Line:
    if not cell.points:
        return Line(cell, notes=[f"missing: {cell.missing}" if cell.missing else "as printed"])
    ended = [point for point in points if point and point.state == "done"]
    done = [results[point.run] for point in ended if point.run in results]
    # One sentence where all seeds say the same.
    states = {f"{p.state}: {p.message}" if p.message else p.state for p in points if p and p.state != "done"}
    notes = sorted(states) + (["not started"] if None in points else [])
    notes += ["a run is gone: run the command again"] if len(done) < len(ended) else []
    if not done:
        return Line(cell, notes=notes)
    first = done[0]
    name = "seconds" if table.quantity == "seconds" else next(iter(first["metrics"]), "")
    if not name:
        return Line(cell, notes=[*notes, "no distance was measured (metric=none)"])
    values = [r["seconds"] if name == "seconds" else r["metrics"][name] for r in done if name in ("seconds", *r["metrics"])]
    if len(values) < len(points):
        notes.append(f"{len(values)} of {len(points)} seeds")
    if name == "seconds":
        notes.append(f"measured on {first['device']}")
    alike = name == "seconds" or name.startswith(table.metric)
    if not alike:
        notes.append(f"other features than {table.metric}'s")
    if first["images"] != table.images:
        notes.append(f"{first['images']:,} images instead of {table.images:,}")
        alike = alike and name != "seconds"
    if table.another_model:
        notes.append("another model")
    elif table.note and cell.printed is not None:
        notes.append(table.note)
    measured = statistics.mean(values)
    return Line(
        cell,
        measured,
        len(values),
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        measured - cell.printed if cell.printed is not None and alike and not table.another_model else None,
        first["images"],
        first["iterations"],
        first["nfe"],
        statistics.mean(result["seconds"] for result in done),
        name,
        notes,
    )


HEADS = ("row", "column", "printed", "measured", "difference", "images", "T", "NFE", "seconds", "metric", "note")


def texts(lines: Sequence[Line]) -> list[list[str]]:
    """The cells of the finished table, as `HEADS` names them."""
    measured = rounded([line.measured for line in lines])
    differences = rounded([line.difference for line in lines])
    seconds = rounded([line.seconds for line in lines])
    rows = []
    for i, line in enumerate(lines):
        decimals = len(measured[i].partition(".")[2])
        spread = "" if line.deviation is None else f" ± {line.deviation:.{decimals}f} ({line.seeds} seeds)"
        sign = "+" if line.difference is not None and line.difference > 0 else ""
        plain = [MISSING if value is None else str(value) for value in (line.images, line.iterations, line.nfe)]
        printed = MISSING if line.cell.printed is None else f"{line.cell.printed:g}"
        numbers = [printed, measured[i] + spread, sign + differences[i], *plain, seconds[i]]
        rows.append([line.cell.row, line.cell.column, *numbers, line.metric or MISSING, "; ".join(line.notes)])
    return rows


def markdown(table: Table, lines: Sequence[Line]) -> str:
    """The table with its title and how to make it again."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [list(HEADS), *texts(lines)]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    number = [head not in ("row", "column", "metric", "note") for head in HEADS]
    rows.insert(1, ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, number, strict=True)])
    padded = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, number, strict=True)] for row in rows]
    body = "\n".join(f"| {' | '.join(row)} |" for row in padded)
    return f"**{table.title}**\n\n{body}\n\n" + "\n".join(f"- {sentence}" for sentence in about_table(table)) + "\n"


def about_table(table: Table) -> list[str]:
    """What a reader must know beside the numbers."""
    note = [f"{table.note[0].upper()}{table.note[1:]}."] if table.note and not table.another_model else []
    origin = "Printed" if any(cell.printed is not None for cell in table.cells) else "Source"
    return [f"{origin}: {table.source}.", *note, *(f"Missing: {line}." for line in table.missing)]


def overview(folder: Path) -> str:
    """What a terminal shows of a folder of runs: the paper's table they fill, else the comparison of all of them."""
    table = Table.read(folder)
    return format_table(read_runs(folder)) if table is None else markdown(table, table_lines(folder, table))


def write_table(folder: Path) -> Table | None:
    """Write table.md and table.csv beside table.json, where that is; else nothing."""
    table = Table.read(folder)
    if table is None:
        return None
    lines = table_lines(folder, table)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(f"{markdown(table, lines)}\n    {table.command}\n", encoding="utf-8")
    with atomic_path(folder / "table.csv") as temporary:
        temporary.write_text(_csv(lines), encoding="utf-8")
    return table


def table_lines(folder: Path, table: Table) -> list[Line]:
    """The lines of the table of a folder, with what its runs say by now."""
    points = Points(folder).read()
    return fill(table, points, read_runs(folder) if points else [])


def _csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "printed", "measured", "deviation", "seeds", "difference", *HEADS[5:]])
    for line in lines:
        cell = line.cell
        numbers = [cell.printed, line.measured, line.deviation, line.seeds, line.difference]
        values = [*numbers, line.images, line.iterations, line.nfe, line.seconds, line.metric, "; ".join(line.notes)]
        writer.writerow([cell.row, cell.column, *("" if value is None else value for value in values)])
    return out.getvalue()
