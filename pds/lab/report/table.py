"""Compare a group of runs in tables, and fill a paper's table with the numbers measured here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pds.errors import PDSError
from pds.evaluation.panel import better, long_name, parts
from pds.lab.paper_table import Cell, Table
from pds.lab.points import Point
from pds.lab.report.runs import Run, Runs, differing, grouped, read_runs
from pds.lab.report.settings import Comparable, Line, Number, Setting, one_a_seed
from pds.lab.text import FLOOR, MISSING, csv_table, markdown_table, rounded, sentence, significant, with_decimals_of, write_text

ARROWS = {"low": " ↓", "high": " ↑", "": ""}
WORDS = ("row", "column", "metric", "note", "run", "model", "weights", "sampler", "setting")  # columns without numbers
FACTS = {"model": "model", "sampler": "sampler", "T": "iterations", "NFE": "nfe", "images": "images", "seconds": "seconds"}
Place = tuple[str, str]


def format_table(runs: Runs) -> str:
    """Compare runs in a Markdown table that also reads well in a terminal.

    Each metric has a column under its full name. The last row is real data against real data, if known. A line follows for each
    run without a result, with its message.
    """
    done, names = runs.done, runs.done.metrics
    unfinished = "\n".join(f"{run.state}: {run.label}: {run.message}".strip(": ") for run in runs if run.state != "done")
    if not len(done):
        return unfinished
    texts, columns = {name: done.texts(name) for name in names}, {"run": [run.label for run in done]}
    columns |= plain_columns(done, "seed") | {name: [texts[name][run.measures.get(name)] for run in done] for name in names}
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    if texts.keys() & done.floors.keys():
        rows.append([FLOOR, *(texts[head][done.floors.get(head)] if head in texts else "" for head in rows[0][1:])])
    measures = [f"{found.name}\n\n{as_markdown(found.table)}" for found in side_by_side(done)]
    return "\n\n".join(filter(None, [as_markdown(rows), *measures, "\n".join(done.other_floors), unfinished]))


def as_markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Return a table, the head first; numbers stand to the right."""
    cells = [list(map(str, row)) for row in rows]
    return markdown_table(cells, [i > 0 and head not in WORDS for i, head in enumerate(cells[0])])


def plain_columns(done: Runs, *more: str) -> dict[str, list[str]]:
    """Return the plain columns of finished runs; those of the model, its options and weights, and `more`, where they differ."""
    heads = ["sampler", "T", "NFE", *(key for key in more if done.common(key) is None), "images"]
    if len(done.models) > 1:
        heads.insert(0, "model")
    columns = {head: [str(run.result[FACTS.get(head, head)]) for run in done] for head in heads}
    within = [differing(alike) for alike in grouped((run.model, run.values) for run in done).values()]
    options = dict.fromkeys(key for keys in within for key in keys if key.startswith("model."))
    told = {key.removeprefix("model."): [str(run.values.get(key, MISSING)) for run in done] for key in options}
    weights = {"weights": [run.weights for run in done]} if done.several_weights else {}
    return {**told, **weights, **columns, "seconds": rounded(run.number("seconds") for run in done)}


def timing(runs: Runs) -> str:
    """Return the number of images that the seconds are for, and the number of kinds of device."""
    of = f"seconds for {runs.common('images'):,} images" if runs.common("images") else "seconds"
    devices = {run.result.get("device") for run in runs}
    return f"{of}, on {len(devices)} kinds of device" if len(devices) > 1 else of


class SideBySide(NamedTuple):
    """Settings of one kind whose measures are of the same features, resize and image count."""

    name: str  # the common part of the measures' names
    model: str
    rows: dict[str, dict[str, Setting]]  # by label and by measure

    @property
    def table(self) -> list[list[Any]]:
        """Rows of numbers with their errors, under a row of heads; the best of a column and those level with it are marked."""
        ends = {measure: better(f"{measure}_") for row in self.rows.values() for measure in row}
        columns = [_column([row.get(measure) for row in self.rows.values()], end) for measure, end in ends.items()]
        heads = ["setting", *(measure + ARROWS[end] for measure, end in ends.items())]
        return [heads, *map(list, zip(self.rows, *columns, strict=True))]


def _column(settings: Sequence[Setting | None], end: str) -> list[Number]:
    errors, numbers = ([getattr(s, key, None) for s in settings] for key in ("error", "number"))
    present = [setting for setting in settings if setting]
    best = (min if end == "low" else max)(present, key=lambda s: s.number) if end and len(present) > 1 else None

    def kind(setting: Setting | None) -> str:
        found = setting.against(best) if setting and best else None
        if setting and setting is best:
            return "best"
        return "level" if found and found.level else ""

    return [Number.of(text, e, kind(s)) for s, text, e in zip(settings, rounded(numbers, errors), errors, strict=True)]


def side_by_side(runs: Runs) -> list[SideBySide]:
    """Return a table for each kind of runs and each features, resize and image count that has several measures."""
    found = []
    named = ((run, name, parts(long_name(name))) for run in runs.done if run.config for name in run.measures)
    groups = grouped(((run.kind, split[1]), (run, name, split[0])) for run, name, split in named if split)
    for ((model, *_), rest), measured in groups.items():
        names, rows = {measure: name for _, name, measure in measured}, dict[str, dict[str, Setting]]()
        comparable = Comparable("", Runs(tuple({run.folder: run for run, *_ in measured}.values())), Runs(()))
        for values, repeats in comparable.repeats:
            label = comparable.label([Setting(tuple(repeats), "", values)])
            label = label if label not in rows else f"{label} ({repeats[0].folder.name})"
            # Runs of one seed may have measured different things.
            having = {name: one_a_seed(run for run in repeats if name in run.measures) for name in names.values()}
            rows[label] = {m: Setting(having[name], name, values) for m, name in names.items() if having[name]}
        found += [SideBySide(rest, model, rows)] if len(names) > 1 else []
    return found


@dataclass(frozen=True)
class MeasuredCell:
    """A measured cell."""

    cell: Cell
    notes: list[str]  # reasons why it is no like-for-like comparison, or not measured
    setting: Setting | None = None  # its runs
    difference: float | None = None  # measured less printed, if both are of one kind

    def known(self, key: str) -> Any:
        """Return an entry of the first seed's result.json; None without a seed."""
        return self.setting and self.setting.result.get(key)

    @property
    def record(self) -> dict[str, Any]:
        """The facts by the heads of table.csv; None where unknown."""
        cell, s = self.cell, self.setting
        record = {"row": cell.row, "column": cell.column, "printed": cell.printed, "measured": s and s.number}
        record |= {"deviation": s and s.spread, "seeds": len(s.runs) if s else 0, "difference": self.difference}
        record |= {head: self.known(FACTS[head]) for head in ("images", "T", "NFE")}
        return record | {"seconds": s and s.at("seconds"), "metric": s and s.quantity, "note": "; ".join(self.notes)}


def fill(table: Table, points: Sequence[Point], runs: Iterable[Run]) -> list[MeasuredCell]:
    """Join every cell with the runs that measured it; `points` are those of the table's sweep."""
    by_digest = {point.digest: point for point in points}
    done = {run.folder.name: run for run in runs if run.state == "done"}
    return [_fill(table, cell, [by_digest.get(digest) for digest in cell.points], done) for cell in table.cells]


def _fill(table: Table, cell: Cell, points: Sequence[Point | None], done: dict[str, Run]) -> MeasuredCell:
    if not cell.points:
        return MeasuredCell(cell, [f"missing: {cell.missing}" if cell.missing else "as printed"])
    # A finished run keeps its number, also while its point waits again.
    ended = [point for point in points if point and (point.state == "done" or point.run in done)]
    runs = [done[point.run] for point in ended if point.run in done]
    # One sentence if all seeds have the same message.
    notes = sorted({f"{p.state}: {p.message}".removesuffix(": ") for p in points if p and p not in ended})
    faults = [(None in points, "not started"), (len(runs) < len(ended), "a run is gone: run the command again")]
    notes += [note for holds, note in faults if holds]
    seconds = table.quantity == "seconds"
    name = "seconds" if seconds else next((name for run in runs[:1] for name in run.metrics), "")
    if not runs or not name:
        return MeasuredCell(cell, [*notes, "no distance: the runs have metric=none"] if runs else notes)
    setting = Setting(tuple(run for run in runs if seconds or name in run.measures), name)
    images, alike = runs[0].result["images"], seconds or name.startswith(table.metric)
    doubts = [
        (any(point.state in ("waiting", "running") for point in ended), "from an earlier start"),
        (len(setting.runs) < len(points), f"{len(setting.runs)} of {len(points)} seeds"),
        (seconds, f"measured on {runs[0].result.get('device')}"),
        (not alike, f"other features than {table.metric}'s"),
        (images != table.images, f"{images:,} images instead of {table.images:,}"),
        (table.another_model, "another model"),
        (table.note and cell.printed is not None and not table.another_model, table.note),
    ]
    notes += [note for holds, note in doubts if holds]
    if cell.printed is None or not alike or table.another_model or (seconds and images != table.images):
        return MeasuredCell(cell, notes, setting)
    return MeasuredCell(cell, notes, setting, setting.number - cell.printed)


def long_form(lines: Sequence[MeasuredCell]) -> list[list[str]]:
    """Return one row a cell, under a row of heads."""
    records, errors = [line.record for line in lines], [getattr(line.setting, "error", None) for line in lines]
    columns = {head: [MISSING if r[head] is None else str(r[head]) for r in records] for head in records[0]}
    columns["printed"] = [MISSING if r["printed"] is None else f"{r['printed']:g}" for r in records]
    columns |= {head: rounded((r[head] for r in records), errors) for head in ("measured", "difference")}
    columns["seconds"] = rounded(r["seconds"] for r in records)
    for i, r in enumerate(records):
        if r["deviation"] is not None:
            columns["measured"][i] += f" ± {with_decimals_of(columns['measured'][i], r['deviation'])} ({r['seeds']} seeds)"
        columns["difference"][i] = ("+" if (r["difference"] or 0) > 0 else "") + columns["difference"][i]
    del columns["deviation"], columns["seeds"]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


class Grid:
    """A table to read across and down, without printed numbers.

    `lines` are its cells by row and column, in the table's order. `settings` and `runs` are those measured by now. `quantity`
    is the full name of the measured quantity, empty if cells differ or none is measured.
    """

    def __init__(self, table: Table, lines: dict[Place, MeasuredCell]) -> None:
        self.table, self.lines = table, lines
        self.rows, self.columns = (list(dict.fromkeys(place[side] for place in lines)) for side in (0, 1))
        self.settings = {place: line.setting for place, line in lines.items() if line.setting}
        self.runs = Runs(tuple(run for setting in self.settings.values() for run in setting.runs))
        quantities = {setting.quantity for setting in self.settings.values()}
        self.quantity = quantities.pop() if len(quantities) == 1 else ""

    @classmethod
    def of(cls, table: Table, lines: Sequence[MeasuredCell]) -> Grid | None:
        """Return None if one line a cell is clearer: with printed numbers, or with rows that have few columns in common."""
        places = {(line.cell.row, line.cell.column): line for line in lines}
        rows, columns = (Counter(place[side] for place in places) for side in (0, 1))
        shared = all(sum(count > 1 for count in side.values()) > 1 for side in (rows, columns))
        full = 2 * len(places) >= len(rows) * len(columns) and len(places) == len(lines)
        printed = any(line.cell.printed is not None for line in lines)
        return cls(table, places) if shared and full and not printed else None

    def tables(self) -> list[list[list[Any]]]:
        """Return the rows of the measured quantity, then of the seconds, each under a row of heads."""
        kinds = {self.quantity or self.table.quantity: self._number}
        if self.settings and self.table.quantity != "seconds":
            kinds["seconds"] = self._seconds
        return [
            [[head, *self.columns], *([row, *(number((row, column)) for column in self.columns)] for row in self.rows)]
            for head, number in kinds.items()
        ]

    def _number(self, place: Place) -> Number:
        if place in self.settings:
            return self.settings[place].shown._replace(kind="best" if place in self.lowest else "")
        word = self.lines[place].notes[0].partition(":")[0] if place in self.lines else ""
        return Number(word, kind="failing" if word == "failed" else "soft")

    def _seconds(self, place: Place) -> Number:
        known = significant(self.settings[place].at("seconds")) if place in self.settings else MISSING
        return Number(known if place in self.lines else "", kind="soft")

    @cached_property
    def lowest(self) -> set[Place]:
        """The places of the lowest number of each column and network; none if cells cannot be compared."""
        settings = self.settings.items() if self.quantity else ()
        columns = grouped(((place[1], setting.runs[0].kind), (setting.number, place)) for place, setting in settings)
        return {place for alike in columns.values() if len(alike) > 1 for number, place in alike if number == min(alike)[0]}

    def curves(self) -> list[Line]:
        """Return the settings of each row by rising NFE; none if rows have a single NFE or cannot be compared."""
        rows = grouped((row, setting) for (row, _), setting in self.settings.items())
        lines = [Line(row, sorted(settings, key=lambda s: s.at("nfe"))) for row, settings in rows.items()]
        rising = any(len({s.at("nfe") for s in line.settings}) > 1 for line in lines)
        return lines if self.table.quantity == "distance" and self.quantity and rising else []

    def usual(self, key: str) -> list[Any]:
        """Return the commonest "iterations" or "nfe" of each column; None where unknown."""
        known = [[self.lines[place].known(key) for place in self.settings if place[1] == c] for c in self.columns]
        return [statistics.mode(values) if values else None for values in known]

    def sentences(self) -> list[str]:
        """Return sentences about all cells, about T and NFE of the columns, and about single cells."""
        told, facts = list[str](), [self._facts(line) for line in self.lines.values() if line.setting]
        shared = [fact for fact in facts[0] if all(fact in others for others in facts)] if facts else []
        if facts:
            seeds = max(len(setting.runs) for setting in self.settings.values())
            measured = [*shared, f"mean ± standard deviation over {seeds} seeds"] if seeds > 1 else shared
            told.append(sentence(f"measured: {'; '.join(measured)}"))
            if self.table.quantity != "seconds":
                device = self.runs.common("device")
                told.append(sentence(timing(self.runs) + (f", on {device}" if device else "")))
            if self.quantity in self.runs.floors:
                told.append(sentence(f"{FLOOR}: {significant(self.runs.floors[self.quantity])}"))
            told += [self._steps("T", "iterations"), self._steps("NFE", "nfe")]
        others = grouped((f, at) for at, line in self.lines.items() for f in self._facts(line) if f not in shared)
        return told + [f"{self._named(places)}: {fact.rstrip('.')}." for fact, places in others.items()]

    def _facts(self, line: MeasuredCell) -> list[str]:
        if line.setting is None:
            # A state without a message stands in the cell itself.
            return [note for note in line.notes if ":" in note]
        # The notes name the cells with another number.
        images = [f"{self.table.images:,} images"] if line.known("images") == self.table.images else []
        return [line.setting.quantity, *images, *line.notes]

    def _steps(self, head: str, key: str) -> str:
        """Say T or NFE of each column, then the rows with others."""
        known, usual = {at: line.known(key) for at, line in self.lines.items()}, self.usual(key)
        steps = [(tuple(known.get((row, c)) for c in self.columns), row) for row in self.rows]
        others = grouped((own, row) for own, row in steps if any(v not in (None, u) for v, u in zip(own, usual, strict=True)))
        told = []
        for own, rows in [(usual, []), *others.items()]:
            words = [MISSING if value is None else str(value) for value in own]
            those = f"{' and '.join(rows)}: " if rows else ""
            told.append(those + ", ".join(words if len(set(words)) > 1 else words[:1]))
        return f"{head}: {'; '.join(told)}."

    def _named(self, places: Sequence[Place]) -> str:
        """Name cells by row; a whole row by its name alone, and cells in many rows by their number."""
        rows, whole = grouped(places), Counter(row for row, _ in self.lines)
        named = [row if len(own) == whole[row] else f"{row} ({', '.join(own)})" for row, own in rows.items()]
        return "; ".join(named) if len(rows) < 5 else f"{len(places)} cells"


def markdown(table: Table, lines: Sequence[MeasuredCell]) -> str:
    """Return the table with its title and notes: as a grid if it is one, else with one line a cell."""
    grid = Grid.of(table, lines)
    tables, about = (grid.tables(), grid.sentences()) if grid else ([long_form(lines)], [])
    notes = "\n".join(f"- {line}" for line in [*about, *table.about()])
    return "\n\n".join([f"**{table.title}**", *map(as_markdown, tables), notes]) + "\n"


def overview(folder: Path) -> str:
    """Return the text of a folder for a terminal: the paper's table that its runs fill, else their comparison."""
    try:
        found = table_lines(folder)
    except PDSError as error:  # a damaged table hides no run
        return f"{error}\n\n{format_table(read_runs(folder))}"
    return markdown(*found) if found else format_table(read_runs(folder))


def table_lines(folder: Path) -> tuple[Table, list[MeasuredCell]] | None:
    """Return a folder's table and its cells with the runs that measured them by now; None without a table."""
    table = Table.read(folder)
    runs = read_runs(folder) if (folder / "points").exists() else Runs(())
    return (table, fill(table, runs.points, runs)) if table else None


def write_table(folder: Path) -> tuple[Table, list[MeasuredCell]] | None:
    """Write table.md and table.csv beside table.json; return what `table_lines` does."""
    found = table_lines(folder)
    if found:
        write_text(folder / "table.md", f"{markdown(*found)}\n    {found[0].command}\n")
        records = [line.record for line in found[1]]
        write_text(folder / "table.csv", csv_table([list(records[0]), *(list(record.values()) for record in records)]))
    return found
