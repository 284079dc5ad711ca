"""The comparison of a group of runs as a table, and a paper's table beside what was measured here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from pds.files import parse_json, read_bytes, reading, write_json
from pds.lab.points import Point
from pds.lab.report.runs import FLOOR, Run, Runs, read_runs
from pds.lab.report.settings import Line, Setting
from pds.lab.report.text import MISSING, csv_table, markdown_table, rounded, sentence, significant, write_text
from pds.options import fitted

FILE = "table.json"
HEADS = ("row", "column", "printed", "measured", "difference", "images", "T", "NFE", "seconds", "metric", "note")
WORDS = ("row", "column", "metric", "note", "run", "model", "sampler", "setting")
"""Columns that hold no numbers."""


def format_table(runs: Runs) -> str:
    """The comparison as a Markdown table that also reads well in a terminal.

    One column a metric, under its full name; then a row for real data against real data, where known, and a line for each
    run that has no result, with its message.
    """
    unfinished = "\n".join(f"{run.state}: {run.label}: {run.message}".strip(": ") for run in runs if run.state != "done")
    done = runs.done
    if not len(done):
        return unfinished
    floors = [f"{done.texts(name).get(done.floors.get(name), MISSING)}" for name in done.metrics]
    rows = [[*plain_columns(done), "seconds", *done.metrics]]
    for run, seconds in zip(done, rounded(run.number("seconds") for run in done), strict=True):
        distances = [done.texts(name).get(run.metrics.get(name), MISSING) for name in done.metrics]
        rows.append([*(str(of(run)) for of in plain_columns(done).values()), seconds, *distances])
    if any(text != MISSING for text in floors):
        rows.append([FLOOR, *[""] * (len(rows[0]) - 1 - len(floors)), *floors])
    table = markdown_table(rows, [head not in WORDS for head in rows[0]])
    return "\n\n".join(filter(None, [table, "\n".join(done.other_floors), unfinished]))


def plain_columns(done: Runs) -> dict[str, Any]:
    """What a table says of a run besides its seconds and distances, by the head of the column."""
    seeds = {"seed": lambda run: run.result["seed"]} if done.common("seed") is None else {}
    return {
        "run": lambda run: run.label,
        **({"model": lambda run: run.model} if len(done.models) > 1 else {}),
        "sampler": lambda run: run.result["sampler"],
        "T": lambda run: run.result["iterations"],
        "NFE": lambda run: run.result["nfe"],
        **seeds,
        "images": lambda run: run.result["images"],
    }


def timing(runs: Sequence[Run]) -> str:
    """What the seconds of some runs are of, by all their image counts and devices."""
    images, devices = ({run.result.get(key) for run in runs} for key in ("images", "device"))
    of = f"seconds for {min(images):,} images" if len(images) == 1 else "seconds"
    return f"{of}, on {len(devices)} kinds of device" if len(devices) > 1 else of


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
        """The table of a folder, where there is one.

        Raises:
            PDSError: its file is damaged.
        """
        if not (folder / FILE).exists():
            return None
        with reading(folder / FILE, "a table", "run the command that made it again"):
            values = parse_json(read_bytes(folder / FILE), {"cells": list})
            cells = tuple(_made(Cell, {**cell, "points": tuple(cell["points"])}) for cell in values["cells"])
            return _made(cls, {**values, "cells": cells})

    def about(self) -> list[str]:
        """What a reader must know beside the numbers."""
        note = [sentence(self.note)] if self.note and not self.another_model else []
        origin = "Printed" if any(cell.printed is not None for cell in self.cells) else "Source"
        return [f"{origin}: {self.source}.", *note, *(f"Missing: {line}." for line in self.missing)]


@dataclass(frozen=True)
class Measured:
    """A cell as it was measured.

    Attributes:
        cell: the cell.
        notes: why it is no like for like comparison, or not measured.
        setting: its runs; None where there are none.
        alike: whether measured and printed are of one kind.
    """

    cell: Cell
    notes: list[str]
    setting: Setting | None = None
    alike: bool = False

    @property
    def number(self) -> float | None:
        """Mean over the seeds."""
        return self.setting and self.setting.number

    @property
    def difference(self) -> float | None:
        """Measured less printed, where the two are of one kind."""
        return self.setting.number - self.cell.printed if self.alike and self.cell.printed is not None else None

    @property
    def seconds(self) -> float | None:
        """Of sampling, mean over the seeds."""
        return self.setting and self.setting.mean("seconds")

    def known(self, key: str) -> Any:
        """What result.json of its first seed has; None without one."""
        return self.setting and self.setting.runs[0].result.get(key)


def _made(kind: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: fitted(name, value, hints[name]) for name, value in values.items()})


def fill(table: Table, points: Sequence[Point], runs: Iterable[Run]) -> list[Measured]:
    """Every cell with what `runs` measured, `points` being those of the table's sweep."""
    by_digest = {point.digest: point for point in points}
    done = {run.folder.name: run for run in runs if run.state == "done"}
    return [_fill(table, cell, [by_digest.get(digest) for digest in cell.points], done) for cell in table.cells]


def _fill(table: Table, cell: Cell, points: Sequence[Point | None], done: dict[str, Run]) -> Measured:
    if not cell.points:
        return Measured(cell, [f"missing: {cell.missing}" if cell.missing else "as printed"])
    ended = [point for point in points if point and point.state == "done"]
    runs = [done[point.run] for point in ended if point.run in done]
    # One sentence where all seeds say the same.
    notes = sorted({f"{p.state}: {p.message}".removesuffix(": ") for p in points if p and p.state != "done"})
    notes += ["not started"] * (None in points) + ["a run is gone: run the command again"] * (len(runs) < len(ended))
    if not runs:
        return Measured(cell, notes)
    seconds = table.quantity == "seconds"
    name = "seconds" if seconds else next(iter(runs[0].metrics), "")
    if not name:
        return Measured(cell, [*notes, "no distance: the runs have metric=none"])
    setting = Setting(tuple(run for run in runs if seconds or name in run.metrics), name)
    images, alike = runs[0].result["images"], seconds or name.startswith(table.metric)
    notes += [f"{len(setting.runs)} of {len(points)} seeds"] * (len(setting.runs) < len(points))
    notes += [f"measured on {runs[0].result.get('device')}"] * seconds
    notes += [f"other features than {table.metric}'s"] * (not alike)
    notes += [f"{images:,} images instead of {table.images:,}"] * (images != table.images)
    notes += ["another model"] if table.another_model else [table.note] * bool(table.note and cell.printed is not None)
    return Measured(cell, notes, setting, alike and not table.another_model and not (seconds and images != table.images))


def texts(lines: Sequence[Measured]) -> list[list[str]]:
    """The cells of the finished table, as `HEADS` names them."""
    columns = ([get(line) for line in lines] for get in (lambda m: m.number, lambda m: m.difference, lambda m: m.seconds))
    rows = []
    for line, measured, difference, seconds in zip(lines, *map(rounded, columns), strict=True):
        spread = line.setting and line.setting.spread
        if spread is not None:
            measured += f" ± {spread:.{len(measured.partition('.')[2])}f} ({len(line.setting.runs)} seeds)"
        sign = "+" * (line.difference is not None and line.difference > 0)
        plain = [MISSING if line.setting is None else str(line.known(key)) for key in ("images", "iterations", "nfe")]
        printed = MISSING if line.cell.printed is None else f"{line.cell.printed:g}"
        metric = line.setting.quantity if line.setting else MISSING
        numbers = [printed, measured, sign + difference, *plain, seconds]
        rows.append([line.cell.row, line.cell.column, *numbers, metric, "; ".join(line.notes)])
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
        full = 2 * len(places) >= math.prod(map(len, counts)) and len(places) == len(lines)
        return cls(table, places) if shared and full and all(line.cell.printed is None for line in lines) else None

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.lines))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.lines))

    @property
    def settings(self) -> list[Setting]:
        """What is measured by now."""
        return [line.setting for line in self.lines.values() if line.setting]

    @property
    def runs(self) -> Runs:
        return Runs(tuple(run for setting in self.settings for run in setting.runs))

    @property
    def quantity(self) -> str:
        """Full name of what was measured; empty where that differs or is not known yet."""
        names = {setting.quantity for setting in self.settings}
        return names.pop() if len(names) == 1 else ""

    @property
    def floor(self) -> float | None:
        """Distance of real data to real data, where known."""
        return self.runs.floors.get(self.quantity)

    @property
    def several_seeds(self) -> bool:
        return any(setting.spread is not None for setting in self.settings)

    def blocks(self) -> dict[str, list[list[tuple[str, str, str]]]]:
        """What stands in its cells, by what it is: the quantity measured, then the seconds where they are worth it.

        Rows of cells (text, deviation over the seeds, kind), the kind being "best" of its column, "failing", "soft" or "".
        """
        lowest = self.lowest()

        def measured(place: tuple[str, str], line: Measured) -> tuple[str, str, str]:
            if line.setting is None:
                word = line.notes[0].partition(":")[0]
                return word, "", "failing" if word == "failed" else "soft"
            text, spread = significant(line.number), line.setting.spread
            shown = "" if spread is None else f"{spread:.{len(text.partition('.')[2])}f}"
            return text, shown, "best" * (place in lowest)

        def seconds(place: tuple[str, str], line: Measured) -> tuple[str, str, str]:
            return MISSING if line.setting is None else significant(line.seconds), "", "soft"

        timed = self.settings and self.table.quantity != "seconds"
        heads = {self.quantity or self.table.quantity: measured, **({"seconds": seconds} if timed else {})}
        places = [[(row, column) for column in self.columns] for row in self.rows]
        return {
            head: [[cell(at, self.lines[at]) if at in self.lines else ("", "", "") for at in row] for row in places]
            for head, cell in heads.items()
        }

    def lowest(self) -> set[tuple[str, str]]:
        """Where the lowest number of each column stands, of those columns that can be compared."""
        found: set[tuple[str, str]] = set()
        for column in self.columns if self.quantity else []:
            numbers = {place: line.number for place, line in self.lines.items() if place[1] == column and line.setting}
            found |= {place for place, n in numbers.items() if n == min(numbers.values()) and len(numbers) > 1}
        return found

    def curves(self) -> list[Line]:
        """The distances of each row by rising NFE; none where the rows stay at one NFE or cannot be compared."""
        if self.table.quantity != "distance" or not self.quantity:
            return []
        rows = [[m.setting for (row, _), m in self.lines.items() if row == name and m.setting] for name in self.rows]
        found = [(name, sorted(row, key=lambda s: s.mean("nfe"))) for name, row in zip(self.rows, rows, strict=True) if row]
        rising = any(row[0].mean("nfe") < row[-1].mean("nfe") for _, row in found)
        return [Line(name, tuple(row)) for name, row in found] if rising else []

    def usual(self, key: str) -> list[Any]:
        """Of each column what most of its rows have of "iterations" or "nfe"; None where nothing is known."""
        known = [
            [m.known(key) for (_, name), m in self.lines.items() if name == column and m.setting] for column in self.columns
        ]
        return [statistics.mode(values) if values else None for values in known]

    def sentences(self) -> list[str]:
        """What the cells have in common, how T and NFE follow the columns, and what only some cells have to say."""
        told, facts = [], [self._facts(line) for line in self.lines.values() if line.setting]
        shared = [fact for fact in facts[0] if all(fact in others for others in facts)] if facts else []
        if facts:
            most = max(len(setting.runs) for setting in self.settings)
            seeds = [f"mean ± standard deviation over {most} seeds"] * self.several_seeds
            told.append(sentence(f"measured: {'; '.join(shared + seeds)}"))
            if self.table.quantity != "seconds":
                device = self.runs.common("device")
                told.append(sentence(timing(self.runs.runs) + (f", on {device}" if device else "")))
            told += [sentence(f"{FLOOR}: {significant(self.floor)}")] if self.floor is not None else []
            told += [self._steps("T", "iterations"), self._steps("NFE", "nfe")]
        others: dict[str, list[tuple[str, str]]] = {}
        for place, line in self.lines.items():
            for fact in self._facts(line):
                if fact not in shared:
                    others.setdefault(fact, []).append(place)
        return told + [f"{self._named(places)}: {fact.rstrip('.')}." for fact, places in others.items()]

    def _facts(self, line: Measured) -> list[str]:
        if line.setting is None:
            # A cell itself says what has no message.
            return [note for note in line.notes if ":" in note]
        # The notes say where it is another number.
        images = [f"{self.table.images:,} images"] * (line.known("images") == self.table.images)
        return [line.setting.quantity, *images, *line.notes]

    def _steps(self, head: str, key: str) -> str:
        usual, others = self.usual(key), {}
        for row in self.rows:
            own = tuple(self.lines[row, c].known(key) if (row, c) in self.lines else None for c in self.columns)
            if any(value not in (None, most) for value, most in zip(own, usual, strict=True)):
                others.setdefault(own, []).append(row)

        def listed(values: Sequence[int | None]) -> str:
            words = [MISSING if value is None else str(value) for value in values]
            return words[0] if len(set(words)) == 1 else ", ".join(words)

        parts = [listed(usual), *(f"{' and '.join(rows)}: {listed(own)}" for own, rows in others.items())]
        return f"{head}: {'; '.join(parts)}."

    def _named(self, places: Sequence[tuple[str, str]], most: int = 4) -> str:
        """Cells by their rows, whole rows by their name alone, and only their number where they are in many rows."""
        rows: dict[str, list[str]] = {}
        for row, column in places:
            rows.setdefault(row, []).append(column)
        whole = Counter(row for row, _ in self.lines)
        named = [row if len(own) == whole[row] else f"{row} ({', '.join(own)})" for row, own in rows.items()]
        return "; ".join(named) if len(rows) <= most else f"{len(places)} cells"


def markdown(table: Table, lines: Sequence[Measured]) -> str:
    """The table with its title and how to make it again: a grid where it is one, else one line a cell."""
    grid, about = Grid.of(table, lines), table.about()
    bodies = [[list(HEADS), *texts(lines)]]
    if grid:
        about = [*grid.sentences(), *about]
        bodies = [
            [[head, *grid.columns], *([row, *map(_in_markdown, cells)] for row, cells in zip(grid.rows, block, strict=True))]
            for head, block in grid.blocks().items()
        ]
    tables = [markdown_table(body, [i > 0 if grid else head not in WORDS for i, head in enumerate(body[0])]) for body in bodies]
    return "\n\n".join([f"**{table.title}**", *tables, "\n".join(f"- {line}" for line in about)]) + "\n"


def _in_markdown(cell: tuple[str, str, str]) -> str:
    # Without spaces, so that five columns with deviations fit a terminal.
    text = "±".join(filter(None, cell[:2]))
    return f"**{text}**" if cell[2] == "best" else text


def overview(folder: Path) -> str:
    """What a terminal shows of a folder of runs: the paper's table they fill, else the comparison of all of them."""
    table = Table.read(folder)
    return format_table(read_runs(folder)) if table is None else markdown(table, table_lines(folder, table))


def table_lines(folder: Path, table: Table) -> list[Measured]:
    """The lines of the table of a folder, with what its runs say by now; before its sweep there are none."""
    runs = read_runs(folder) if (folder / "points").exists() else Runs(())
    return fill(table, runs.points, runs)


def write_table(folder: Path) -> tuple[Table, list[Measured]] | None:
    """Write table.md and table.csv beside table.json, where that is; else nothing."""
    table = Table.read(folder)
    if table is None:
        return None
    lines = table_lines(folder, table)
    write_text(folder / "table.md", f"{markdown(table, lines)}\n    {table.command}\n")
    rows = [["row", "column", "printed", "measured", "deviation", "seeds", "difference", *HEADS[5:]]]
    for line in lines:
        cell, setting = line.cell, line.setting
        seeds = [setting.number, setting.spread, len(setting.runs)] if setting else [None, None, 0]
        plain = [line.known("images"), line.known("iterations"), line.known("nfe"), line.seconds]
        name = setting.quantity if setting else ""
        rows.append([cell.row, cell.column, cell.printed, *seeds, line.difference, *plain, name, "; ".join(line.notes)])
    write_text(folder / "table.csv", csv_table(rows))
    return table, lines
