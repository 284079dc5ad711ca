"""Compare a group of runs in a table, and fill a paper's table with the numbers measured here."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pds.lab.asked import Cell, Table
from pds.lab.points import Point
from pds.lab.report.runs import FLOOR, Run, Runs, read_runs
from pds.lab.report.settings import Line, Setting
from pds.lab.text import MISSING, csv_table, decimals_of, markdown_table, rounded, sentence, significant, write_text

WORDS = ("row", "column", "metric", "note", "run", "model", "sampler", "setting")
"""Columns without numbers."""


def format_table(runs: Runs) -> str:
    """Compare runs in a Markdown table that also reads well in a terminal.

    Each metric has a column under its full name. The last row is real data against real data, where known. A line follows for
    each run without a result, with its message.
    """
    done, names = runs.done, runs.done.metrics
    unfinished = "\n".join(f"{run.state}: {run.label}: {run.message}".strip(": ") for run in runs if run.state != "done")
    if not len(done):
        return unfinished
    columns = {"run": [run.label for run in done], **plain_columns(done, "seed"), **{n: [] for n in names}}
    for name in names:
        columns[name] = [done.texts(name)[value] for value in (*(run.metrics.get(name) for run in done), done.floors.get(name))]
    rows = [list(columns), *map(list, itertools.zip_longest(*columns.values(), fillvalue=""))]
    if names:
        rows[-1][0] = FLOOR
    rows = rows if names and set(names) & done.floors.keys() else rows[: len(done) + 1]
    table = markdown_table(rows, [head not in WORDS for head in columns])
    return "\n\n".join(filter(None, [table, "\n".join(done.other_floors), unfinished]))


def plain_columns(done: Runs, *more: str) -> dict[str, list[str]]:
    """Return the plain columns of finished runs; the keys `more` only where they differ."""
    keys = {"model": "model"} if len(done.models) > 1 else {}
    keys |= {"sampler": "sampler", "T": "iterations", "NFE": "nfe", **{key: key for key in more if done.common(key) is None}}
    columns = {head: [str(run.result[key]) for run in done] for head, key in {**keys, "images": "images"}.items()}
    return {**columns, "seconds": rounded(run.number("seconds") for run in done)}


def timing(runs: Runs) -> str:
    """Say how many images the seconds are for, and on how many kinds of device."""
    of = f"seconds for {runs.common('images'):,} images" if runs.common("images") else "seconds"
    devices = {run.result.get("device") for run in runs}
    return f"{of}, on {len(devices)} kinds of device" if len(devices) > 1 else of


@dataclass(frozen=True)
class Measured:
    """A cell as it was measured."""

    cell: Cell
    notes: list[str]  # why it is no like for like comparison, or not measured
    setting: Setting | None = None  # its runs
    alike: bool = False  # whether measured and printed are of one kind

    def known(self, key: str) -> Any:
        """Return an entry of the first seed's result.json; None without a seed."""
        return self.setting and self.setting.runs[0].result.get(key)

    @property
    def record(self) -> dict[str, Any]:
        """The facts by the heads of table.csv; None where unknown."""
        cell, setting = self.cell, self.setting
        number, spread = (setting.number, setting.spread) if setting else (None, None)
        return {
            **{"row": cell.row, "column": cell.column, "printed": cell.printed, "measured": number, "deviation": spread},
            "seeds": len(setting.runs) if setting else 0,
            "difference": number - cell.printed if self.alike and number is not None and cell.printed is not None else None,
            **{"images": self.known("images"), "T": self.known("iterations"), "NFE": self.known("nfe")},
            **{"seconds": setting and setting.mean("seconds"), "metric": setting and setting.quantity},
            "note": "; ".join(self.notes),
        }


def fill(table: Table, points: Sequence[Point], runs: Iterable[Run]) -> list[Measured]:
    """Join every cell with the runs that measured it; `points` are those of the table's sweep."""
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


def long_form(lines: Sequence[Measured]) -> list[list[str]]:
    """Return one row a cell, under a row of heads."""
    records = [line.record for line in lines]
    columns = {head: [MISSING if r[head] is None else str(r[head]) for r in records] for head in records[0]}
    columns["printed"] = [MISSING if r["printed"] is None else f"{r['printed']:g}" for r in records]
    columns |= {head: rounded(r[head] for r in records) for head in ("measured", "difference", "seconds")}
    for i, r in enumerate(records):
        if r["deviation"] is not None:
            measured = columns["measured"][i]
            columns["measured"][i] += f" ± {r['deviation']:.{decimals_of(measured)}f} ({r['seeds']} seeds)"
        columns["difference"][i] = "+" * ((r["difference"] or 0) > 0) + columns["difference"][i]
    del columns["deviation"], columns["seeds"]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


@dataclass(frozen=True)
class Grid:
    """A table to read across and down: it has nothing printed to compare with.

    `lines` are its cells by row and column, in the table's order.
    """

    table: Table
    lines: dict[tuple[str, str], Measured]

    @classmethod
    def of(cls, table: Table, lines: Sequence[Measured]) -> Grid | None:
        """Return None where one line a cell says more: with printed numbers, or with rows that share few columns."""
        places = {(line.cell.row, line.cell.column): line for line in lines}
        counts = [Counter(place[side] for place in places) for side in (0, 1)]
        shared = all(sum(count > 1 for count in side.values()) > 1 for side in counts)
        full = 2 * len(places) >= math.prod(map(len, counts)) and len(places) == len(lines)
        return cls(table, places) if shared and full and all(line.cell.printed is None for line in lines) else None

    @cached_property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.lines))

    @cached_property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.lines))

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings measured by now."""
        return [line.setting for line in self.lines.values() if line.setting]

    @cached_property
    def runs(self) -> Runs:
        return Runs(tuple(run for setting in self.settings for run in setting.runs))

    @property
    def quantity(self) -> str:
        """The full name of the measured quantity; empty where cells differ or none is measured."""
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
        """Return the contents of the cells by quantity: the measured one, then the seconds.

        A cell is (text, deviation over the seeds, kind); the kind is "best" of its column, "failing", "soft" or "".
        """
        timed = self.settings and self.table.quantity != "seconds"
        heads = {self.quantity or self.table.quantity: self._number, **({"seconds": self._seconds} if timed else {})}
        return {
            head: [[cell((row, c)) if (row, c) in self.lines else ("", "", "") for c in self.columns] for row in self.rows]
            for head, cell in heads.items()
        }

    def _number(self, place: tuple[str, str]) -> tuple[str, str, str]:
        setting = self.lines[place].setting
        if setting is None:
            word = self.lines[place].notes[0].partition(":")[0]
            return word, "", "failing" if word == "failed" else "soft"
        text = significant(setting.number)
        spread = "" if setting.spread is None else f"{setting.spread:.{decimals_of(text)}f}"
        return text, spread, "best" * (place in self.lowest)

    def _seconds(self, place: tuple[str, str]) -> tuple[str, str, str]:
        setting = self.lines[place].setting
        return MISSING if setting is None else significant(setting.mean("seconds")), "", "soft"

    @cached_property
    def lowest(self) -> set[tuple[str, str]]:
        """The places of the lowest number in each column; none where cells cannot be compared."""
        found: set[tuple[str, str]] = set()
        for column in self.columns if self.quantity else []:
            numbers = {at: line.setting.number for at, line in self.lines.items() if at[1] == column and line.setting}
            found |= {at for at, number in numbers.items() if number == min(numbers.values()) and len(numbers) > 1}
        return found

    def curves(self) -> list[Line]:
        """Return the settings of each row by rising NFE; none where rows stay at one NFE or cannot be compared."""
        if self.table.quantity != "distance" or not self.quantity:
            return []
        rows = {name: [m.setting for (row, _), m in self.lines.items() if row == name and m.setting] for name in self.rows}
        lines = [Line(name, sorted(row, key=lambda s: s.mean("nfe"))) for name, row in rows.items() if row]
        return lines if any(len({s.mean("nfe") for s in line.settings}) > 1 for line in lines) else []

    def usual(self, key: str) -> list[Any]:
        """Return the commonest "iterations" or "nfe" of each column; None where unknown."""
        known = [[m.known(key) for (_, name), m in self.lines.items() if name == c and m.setting] for c in self.columns]
        return [statistics.mode(values) if values else None for values in known]

    def sentences(self) -> list[str]:
        """Say what the cells have in common, how T and NFE follow the columns, and what holds for some cells alone."""
        told, facts = [], [self._facts(line) for line in self.lines.values() if line.setting]
        shared = [fact for fact in facts[0] if all(fact in others for others in facts)] if facts else []
        if facts:
            seeds = f"mean ± standard deviation over {max(len(setting.runs) for setting in self.settings)} seeds"
            told.append(sentence(f"measured: {'; '.join([*shared, *[seeds] * self.several_seeds])}"))
            device = self.runs.common("device")
            told += [sentence(timing(self.runs) + (f", on {device}" if device else ""))] * (self.table.quantity != "seconds")
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
        usual = self.usual(key)
        others: dict[Any, Any] = {}
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
        """Name cells by row; a whole row by its name alone, and cells in many rows by their number."""
        rows: dict[str, list[str]] = {}
        for row, column in places:
            rows.setdefault(row, []).append(column)
        whole = Counter(row for row, _ in self.lines)
        named = [row if len(own) == whole[row] else f"{row} ({', '.join(own)})" for row, own in rows.items()]
        return "; ".join(named) if len(rows) <= most else f"{len(places)} cells"


def markdown(table: Table, lines: Sequence[Measured]) -> str:
    """Return the table with its title and notes: as a grid where it is one, else with one line a cell."""

    def shown(text: str, spread: str, kind: str) -> str:
        # Without spaces, so that five columns with deviations fit a terminal.
        text = "±".join(filter(None, (text, spread)))
        return f"**{text}**" if kind == "best" else text

    grid, about, bodies = Grid.of(table, lines), table.about(), [long_form(lines)]
    if grid:
        about, bodies = [*grid.sentences(), *about], []
        for head, block in grid.blocks().items():
            rows = [[name, *(shown(*cell) for cell in cells)] for name, cells in zip(grid.rows, block, strict=True)]
            bodies.append([[head, *grid.columns], *rows])
    tables = [markdown_table(body, [i > 0 if grid else head not in WORDS for i, head in enumerate(body[0])]) for body in bodies]
    return "\n\n".join([f"**{table.title}**", *tables, "\n".join(f"- {line}" for line in about)]) + "\n"


def overview(folder: Path) -> str:
    """Return the text a terminal shows of a folder: the paper's table its runs fill, else their comparison."""
    table = Table.read(folder)
    return format_table(read_runs(folder)) if table is None else markdown(table, table_lines(folder, table))


def table_lines(folder: Path, table: Table) -> list[Measured]:
    """Return the cells of a folder's table with the runs that measured them by now."""
    runs = read_runs(folder) if (folder / "points").exists() else Runs(())
    return fill(table, runs.points, runs)


def write_table(folder: Path) -> tuple[Table, list[Measured]] | None:
    """Write table.md and table.csv beside table.json; return None where that is absent."""
    table = Table.read(folder)
    if table is None:
        return None
    lines = table_lines(folder, table)
    records = [line.record for line in lines]
    write_text(folder / "table.md", f"{markdown(table, lines)}\n    {table.command}\n")
    write_text(folder / "table.csv", csv_table([list(records[0]), *(list(r.values()) for r in records)]))
    return table, lines
