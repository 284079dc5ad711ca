"""A table of a paper beside what was measured here: printed, measured, difference."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pds.errors import PDSError
from pds.files import atomic_path, write_json
from pds.lab.points import Point, Points
from pds.lab.report.markdown import markdown_table
from pds.lab.report.runs import FLOOR, MISSING, RunSummary, common, format_table, read_runs, rounded, significant, timing

FILE = "table.json"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        row, column: where it stands.
        printed: the paper's number; None where there is none.
        points: digests of the points that measure it, one a seed (`pds.lab.points`); empty when it is not measured.
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
class Measured:
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
        vanilla: whether its runs are measured ones without preconditioning.
        floor: distance of real data to real data under the same name, where a run knows it.
        device: where a seed was sampled.
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
    vanilla: bool = False
    floor: float | None = None
    device: str = ""

    @property
    def finite(self) -> bool:
        """Whether there is a number to draw and to compare."""
        return self.measured is not None and math.isfinite(self.measured)


def fill(table: Table, points: Sequence[Point], runs: Sequence[RunSummary]) -> list[Measured]:
    """Every cell with what its runs measured.

    Args:
        table: what is asked for.
        points: the points of its sweep.
        runs: the runs beside it.
    """
    by_digest = {point.digest: point for point in points}
    results = {run.folder.name: run.result for run in runs if run.state == "done"}
    return [_fill(table, cell, [by_digest.get(digest) for digest in cell.points], results) for cell in table.cells]


def _fill(table: Table, cell: Cell, points: Sequence[Point | None], results: dict[str, dict[str, Any]]) -> Measured:
    if not cell.points:
        return Measured(cell, notes=[f"missing: {cell.missing}" if cell.missing else "as printed"])
    ended = [point for point in points if point and point.state == "done"]
    done = [results[point.run] for point in ended if point.run in results]
    # One sentence where all seeds say the same.
    states = {f"{p.state}: {p.message}" if p.message else p.state for p in points if p and p.state != "done"}
    notes = sorted(states) + (["not started"] if None in points else [])
    notes += ["a run is gone: run the command again"] if len(done) < len(ended) else []
    if not done:
        return Measured(cell, notes=notes)
    first = done[0]
    name = "seconds" if table.quantity == "seconds" else next(iter(first["metrics"]), "")
    if not name:
        return Measured(cell, notes=[*notes, "no distance: the runs have metric=none"])
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
    return Measured(
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
        bool(first.get("vanilla")),
        first.get("floor", {}).get(name),
        first.get("device", ""),
    )


HEADS = ("row", "column", "printed", "measured", "difference", "images", "T", "NFE", "seconds", "metric", "note")


def texts(lines: Sequence[Measured]) -> list[list[str]]:
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


@dataclass(frozen=True)
class Grid:
    """A table that is read across and down: one line a row, one column a column, nothing printed to compare with.

    Attributes:
        table: what it asks for.
        lines: its cells by row and column, in the table's order.
    """

    table: Table
    lines: dict[tuple[str, str], Measured]

    @classmethod
    def of(cls, table: Table, lines: Sequence[Measured]) -> Grid | None:
        """None where one line a cell says more: with printed numbers, or with rows that share few columns."""
        places = {(line.cell.row, line.cell.column): line for line in lines}
        counts = [Counter(place[side] for place in places) for side in (0, 1)]
        shared = all(sum(count > 1 for count in side.values()) > 1 for side in counts)
        full = 2 * len(places) >= math.prod(map(len, counts))
        printed = any(line.cell.printed is not None for line in lines)
        return cls(table, places) if shared and full and not printed and len(places) == len(lines) else None

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.lines))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.lines))

    @property
    def metric(self) -> str:
        """Full name of what was measured; empty where that differs or is not known yet."""
        return _only({line.metric for line in self._measured})

    @property
    def floor(self) -> float | None:
        """Distance of real data to real data, where known."""
        return next((line.floor for line in self._measured if line.floor is not None), None) if self.metric else None

    @property
    def several_seeds(self) -> bool:
        return any(line.deviation is not None for line in self._measured)

    @property
    def timed(self) -> bool:
        """Whether the seconds are worth a grid of their own."""
        return self.table.quantity != "seconds" and bool(self._measured)

    @property
    def timing(self) -> str:
        """What the seconds are of."""
        return timing(*({getattr(line, key) for line in self._measured} for key in ("images", "device")))

    @property
    def _measured(self) -> list[Measured]:
        return [line for line in self.lines.values() if line.measured is not None]

    def blocks(self) -> dict[str, list[list[tuple[str, str, str]]]]:
        """What stands in its cells, by what it is: the quantity measured, then the seconds where they are worth it.

        Rows of cells (text, deviation over the seeds, kind), the kind being "best" of its column, "failing", "soft" or "".
        """
        lowest = self.lowest()

        def measured(place: tuple[str, str], line: Measured) -> tuple[str, str, str]:
            text, spread = in_cell(line)
            return text, spread, "best" if place in lowest else "" if line.finite else "failing" if text == "failed" else "soft"

        def seconds(place: tuple[str, str], line: Measured) -> tuple[str, str, str]:
            return MISSING if line.seconds is None else significant(line.seconds), "", "soft"

        shown = {self.metric or self.table.quantity: measured, **({"seconds": seconds} if self.timed else {})}
        places = [[(row, column) for column in self.columns] for row in self.rows]
        return {
            head: [[cell(at, self.lines[at]) if at in self.lines else ("", "", "") for at in row] for row in places]
            for head, cell in shown.items()
        }

    def lowest(self) -> set[tuple[str, str]]:
        """Where the lowest number of each column stands, of those columns that can be compared."""
        found: set[tuple[str, str]] = set()
        for column in self.columns if self.metric else []:
            numbers = {place: line.measured for place, line in self.lines.items() if place[1] == column and line.finite}
            if len(numbers) > 1:
                found |= {place for place, value in numbers.items() if value == min(numbers.values())}
        return found

    def curves(self) -> dict[str, list[Measured]]:
        """The distances of each row by rising NFE; none where the table is not about distances that can be compared.

        A row without a number has none, and a grid whose rows stay at one NFE no curves at all.
        """
        if self.table.quantity != "distance" or not self.metric:
            return {}
        rows = {row: [line for place, line in self.lines.items() if place[0] == row and line.finite] for row in self.rows}
        curves = {row: sorted(lines, key=lambda line: line.nfe) for row, lines in rows.items() if lines}
        return curves if any(lines[0].nfe < lines[-1].nfe for lines in curves.values()) else {}

    def usual(self, key: str) -> list[int | None]:
        """Of each column what most of its rows have of "iterations" or "nfe"; None where nothing is known."""
        known = [[getattr(line, key) for place, line in self.lines.items() if place[1] == column] for column in self.columns]
        return [statistics.mode(values) if (values := [v for v in found if v is not None]) else None for found in known]

    def sentences(self) -> list[str]:
        """What the cells have in common, how T and NFE follow the columns, and what only some cells have to say."""
        told, facts = [], [self._facts(line) for line in self._measured]
        shared = [fact for fact in facts[0] if all(fact in others for others in facts)] if facts else []
        if facts:
            seeds = f"mean ± standard deviation over {max(line.seeds for line in self._measured)} seeds"
            told.append(_sentence(f"measured: {'; '.join([*shared, seeds] if self.several_seeds else shared)}"))
            device = _only({line.device for line in self._measured})
            told += [_sentence(f"{self.timing}, on {device}" if device else self.timing)] if self.timed else []
            told += [_sentence(f"{FLOOR}: {significant(self.floor)}")] if self.floor is not None else []
            told += [self._steps("T", "iterations"), self._steps("NFE", "nfe")]
        others: dict[str, list[tuple[str, str]]] = {}
        for place, line in self.lines.items():
            for fact in self._facts(line):
                if fact not in shared:
                    others.setdefault(fact, []).append(place)
        return told + [f"{self._named(places)}: {fact.rstrip('.')}." for fact, places in others.items()]

    def _facts(self, line: Measured) -> list[str]:
        if line.measured is None:
            # A cell itself says what has no message.
            return [note for note in line.notes if ":" in note]
        # The notes say where it is another number.
        images = [f"{line.images:,} images"] if line.images == self.table.images else []
        return [line.metric, *images, *line.notes]

    def _steps(self, head: str, key: str) -> str:
        usual = self.usual(key)
        others: dict[tuple[int | None, ...], list[str]] = {}
        for row in self.rows:
            own = tuple(getattr(self.lines.get((row, column)), key, None) for column in self.columns)
            if any(value not in (None, most) for value, most in zip(own, usual, strict=True)):
                others.setdefault(own, []).append(row)

        def listed(values: Sequence[int | None]) -> str:
            texts = [MISSING if value is None else str(value) for value in values]
            return common(texts) or ", ".join(texts)

        parts = [listed(usual), *(f"{' and '.join(rows)}: {listed(own)}" for own, rows in others.items())]
        return f"{head}: {'; '.join(parts)}."

    def _named(self, places: Sequence[tuple[str, str]], most: int = 4) -> str:
        """Cells by their rows, whole rows by their name alone, and only their number where they are in many rows."""
        rows: dict[str, list[str]] = {}
        for row, column in places:
            rows.setdefault(row, []).append(column)
        if len(rows) > most:
            return f"{len(places)} cells"
        whole = Counter(row for row, _ in self.lines)
        return "; ".join(row if len(own) == whole[row] else f"{row} ({', '.join(own)})" for row, own in rows.items())


def _only(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def in_cell(line: Measured) -> tuple[str, str]:
    """What a cell of a grid shows: its number, or in a word why there is none, and the deviation over the seeds."""
    if line.measured is None:
        return line.notes[0].partition(":")[0], ""
    if not line.finite:
        return "not finite", ""
    number = significant(line.measured)
    decimals = len(number.partition(".")[2])
    return number, "" if line.deviation is None else f"{line.deviation:.{decimals}f}"


def markdown(table: Table, lines: Sequence[Measured]) -> str:
    """The table with its title and how to make it again: a grid where it is one, else one line a cell."""
    grid = Grid.of(table, lines)
    if grid is None:
        number = [head not in ("row", "column", "metric", "note") for head in HEADS]
        bodies, about = [markdown_table([list(HEADS), *texts(lines)], number)], about_table(table)
    else:
        bodies, about = _grid_bodies(grid), [*grid.sentences(), *about_table(table)]
    return "\n\n".join([f"**{table.title}**", *bodies, "\n".join(f"- {sentence}" for sentence in about)]) + "\n"


def _grid_bodies(grid: Grid) -> list[str]:
    def shown(text: str, spread: str, kind: str) -> str:
        # Without spaces, so that five columns with deviations fit a terminal.
        text = "±".join(filter(None, (text, spread)))
        return f"**{text}**" if kind == "best" else text

    return [
        markdown_table(
            [
                [head, *grid.columns],
                *([row, *(shown(*cell) for cell in cells)] for row, cells in zip(grid.rows, block, strict=True)),
            ],
            [False] + [True] * len(grid.columns),
        )
        for head, block in grid.blocks().items()
    ]


def about_table(table: Table) -> list[str]:
    """What a reader must know beside the numbers."""
    note = [_sentence(table.note)] if table.note and not table.another_model else []
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


def table_lines(folder: Path, table: Table) -> list[Measured]:
    """The lines of the table of a folder, with what its runs say by now."""
    points = Points(folder).read()
    return fill(table, points, read_runs(folder) if points else [])


def _csv(lines: Sequence[Measured]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "printed", "measured", "deviation", "seeds", "difference", *HEADS[5:]])
    for line in lines:
        cell = line.cell
        numbers = [cell.printed, line.measured, line.deviation, line.seeds, line.difference]
        values = [*numbers, line.images, line.iterations, line.nfe, line.seconds, line.metric, "; ".join(line.notes)]
        writer.writerow([cell.row, cell.column, *("" if value is None else value for value in values)])
    return out.getvalue()
