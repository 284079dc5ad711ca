"""All measures of runs side by side, with the best of each and those level with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pds.evaluation.panel import better, long_name, parts
from pds.lab.report.runs import Runs, grouped
from pds.lab.report.settings import Number, Panel, Setting
from pds.lab.text import rounded

ARROWS = {"low": " ↓", "high": " ↑", "": ""}


@dataclass(frozen=True)
class SideBySide:
    """Settings of one kind, by label and by measure, whose measures are of the same features, resize and image count."""

    name: str  # the common part of the measures' names
    model: str
    measures: list[str]
    rows: dict[str, dict[str, Setting]]

    @property
    def table(self) -> list[list[Any]]:
        """Rows of numbers with their errors, under a row of heads."""
        ends = {measure: better(f"{measure}_") for measure in self.measures}
        columns = [_column([row.get(measure) for row in self.rows.values()], end) for measure, end in ends.items()]
        heads = ["setting", *(measure + ARROWS[end] for measure, end in ends.items())]
        return [heads, *map(list, zip(self.rows, *columns, strict=True))]


def _column(settings: Sequence[Setting | None], end: str) -> list[Number]:
    errors, numbers = ([getattr(s, key, None) for s in settings] for key in ("error", "number"))
    present = [setting for setting in settings if setting]
    best = (min if end == "low" else max)(present, key=lambda s: s.number) if end and len(present) > 1 else None

    def kind(setting: Setting | None) -> str:
        found = setting.against(best) if setting and best else None
        return "best" if setting and setting is best else "level" * bool(found and found.level)

    texts = zip(settings, rounded(numbers, errors), errors, strict=True)
    return [Number.of(text, error, kind(setting)) for setting, text, error in texts]


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
