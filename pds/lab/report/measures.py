"""All measures of runs side by side, with the best of each and those level with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pds.evaluation.panel import better, long_name, parts
from pds.lab.report.runs import Runs, grouped
from pds.lab.report.settings import Panel, Setting
from pds.lab.text import markdown_table, rounded, with_error

ARROWS = {"low": " ↓", "high": " ↑", "": ""}


@dataclass(frozen=True)
class SideBySide:
    """Settings of one kind by their measures of the same features, resize and image count.

    `rows` holds the settings by label, each by measure.
    """

    name: str  # what the names of the measures share
    model: str
    measures: list[str]
    rows: dict[str, dict[str, Setting]]

    @property
    def heads(self) -> list[str]:
        return [measure + ARROWS[better(f"{measure}_")] for measure in self.measures]

    def cells(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Yield each label with a text and a kind for every measure: "best", "level" with it, or ""."""
        columns = [self._column([row.get(measure) for row in self.rows.values()], measure) for measure in self.measures]
        yield from zip(self.rows, map(list, zip(*columns, strict=True)), strict=True)

    def _column(self, settings: list[Setting | None], measure: str) -> list[tuple[str, str]]:
        errors = [setting.error if setting else None for setting in settings]
        numbers = [setting.number if setting else None for setting in settings]
        texts = map(with_error, rounded(numbers, errors), errors)
        present, end = [setting for setting in settings if setting], better(f"{measure}_")
        best = (min if end == "low" else max)(present, key=lambda s: s.number) if end and len(present) > 1 else None

        def kind(setting: Setting | None) -> str:
            if setting is None or best is None:
                return ""
            found = setting.against(best)
            return "best" if setting is best else "level" * bool(found and found.level)

        return [(text, kind(setting)) for text, setting in zip(texts, settings, strict=True)]

    def __str__(self) -> str:
        """The table for a terminal: the best is bold, ≈ is level with it."""
        marks = {"best": "**{}**", "level": "{} ≈", "": "{}"}
        rows = [[label, *(marks[kind].format(text) for text, kind in cells)] for label, cells in self.cells()]
        return f"{self.name}\n\n" + markdown_table([["setting", *self.heads], *rows], [False, *[True] * len(self.measures)])


def side_by_side(runs: Runs) -> list[SideBySide]:
    """Return a table for each kind of runs and each features, resize and image count that has several measures."""
    found = []
    known = [run for run in runs.done if run.config]
    named = [(run, name, split) for run in known for name in run.measures if (split := parts(long_name(name)))]
    groups: dict[Any, list[Any]] = grouped(((run.kind, split[1]), (run, name, split[0])) for run, name, split in named)
    for ((model, *_), rest), measured in groups.items():
        names = {measure: name for _, name, measure in measured}
        if len(names) == 1:
            continue
        alike = {run.folder: run for run, _, _ in measured}
        panel = Panel(next(iter(names.values())), Runs(tuple(alike.values())), Runs(()))
        rows: dict[str, dict[str, Setting]] = {}
        for setting in panel.settings:
            label = panel.label([setting])
            label = label if label not in rows else f"{label} ({setting.runs[0].folder.name})"
            having = {name: tuple(run for run in setting.runs if name in run.measures) for name in names.values()}
            rows[label] = {m: Setting(having[name], name, setting.values) for m, name in names.items() if having[name]}
        found.append(SideBySide(rest, model, list(names), rows))
    return found
