"""The runs of an experiment, as their directories tell them, and the table that compares them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pds.errors import PDSError
from pds.lab.points import Point, Points
from pds.lab.report.markdown import markdown_table

MISSING = "–"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML has it; a report reads every configuration of a group."""
FLOOR = "real data (floor)"


@dataclass(frozen=True)
class RunSummary:
    """One run directory, or a point of a sweep that ended before it had one.

    Attributes:
        folder: the run directory; of such a point, where it would be.
        state: "done", "failed", "skipped" or "running" (which is also what a killed run says).
        message: why it failed or was skipped, or what it was doing.
        result: content of result.json; empty unless done.
        config: resolved configuration; empty if it cannot be read.
        overrides: what the command line of its point gave; empty of a run outside a sweep.
    """

    folder: Path
    state: str
    message: str
    result: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What to call the run in a table."""
        return str(self.result.get("label") or self.result.get("name") or " ".join(self.overrides) or self.folder.name)

    @property
    def vanilla(self) -> bool:
        """Whether the run is a finished one without preconditioning."""
        return bool(self.result.get("vanilla"))

    @property
    def metrics(self) -> dict[str, float]:
        """Distances by full metric name; lower is closer to the data."""
        return self.result.get("metrics", {})


def read_runs(folder: Path) -> list[RunSummary]:
    """All runs of the experiment in `folder`: vanilla first, then by distance, failed, skipped and unfinished ones last.

    Runs of different metrics are ordered one after the other, never by comparing the two; those of a model stay together.
    A point of a sweep that failed or was skipped is among them, once, whether or not it came to a run directory.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`.
    """
    folders = sorted(p for p in folder.glob("*/") if (p / "status.json").exists() or (p / "result.json").exists())
    points = Points(folder).read()
    if not folders and not points:
        raise PDSError(f"no runs in {folder}: give the folder of one experiment, outputs/<experiment>")
    runs = _with_points(folder, [_read_run(p) for p in folders], points)
    order = {name: index for index, name in enumerate(metric_names(runs))}

    def distance(run: RunSummary) -> tuple[int, float]:
        name, value = next(iter(run.metrics.items()), ("", math.inf))
        return order.get(name, len(order)), value if math.isfinite(value) else math.inf

    best = {title: min(distance(run) for run in runs if model(run) == title) for title in map(model, runs)}

    def key(run: RunSummary) -> tuple[int, int, float, str, bool, float, str]:
        metric, value = distance(run)
        state = _STATES.index(run.state) if run.state in _STATES else len(_STATES)
        return state, metric, best[model(run)][1], model(run), not run.vanilla, value, run.label

    return sorted(runs, key=key)


_STATES = ("done", "failed", "skipped")


def _with_points(folder: Path, runs: Sequence[RunSummary], points: Sequence[Point]) -> list[RunSummary]:
    """`runs` with what the points of a sweep know of them, and the points that ended without a run directory."""
    by_name = {run.folder.name: run for run in runs}
    for point in points:
        run = by_name.get(point.run)
        if run is not None:
            # A run that was repeated alone is done, whatever its point said before.
            ended = point.state in ("failed", "skipped") and run.state != "done"
            told = {"state": point.state, "message": point.message} if ended else {}
            by_name[point.run] = replace(run, overrides=point.overrides or (point.title,), **told)
        elif point.state in ("failed", "skipped"):
            name = point.run or f"points/{point.digest}"
            by_name[name] = RunSummary(folder / name, point.state, point.message, overrides=point.overrides or (point.title,))
    return list(by_name.values())


def model(run: RunSummary) -> str:
    """The model a finished run sampled, for tables."""
    return str(run.result.get("model", MISSING))


def several_models(runs: Sequence[RunSummary]) -> bool:
    """Whether tables need to say which model a run sampled."""
    return len({model(run) for run in runs if run.result}) > 1


def metric_names(runs: Sequence[RunSummary]) -> list[str]:
    """Every metric that some run has, in the order in which the runs name them."""
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def floors(runs: Sequence[RunSummary]) -> dict[str, float]:
    """Distance of real data to real data by metric, where a run knows it."""
    known: dict[str, float] = {}
    for run in runs:
        known = {**run.result.get("floor", {}), **known}
    return {name: known[name] for name in metric_names(runs) if name in known}


def other_floors(runs: Sequence[RunSummary]) -> list[str]:
    """One line for each floor that no run's metric is named like, since there are fewer real images than samples."""
    names = metric_names(runs)
    known = {name: value for run in runs for name, value in run.result.get("floor", {}).items() if name not in names}
    return [f"{FLOOR}: {name} = {rounded([value])[0]}" for name, value in known.items()]


def baseline(run: RunSummary, runs: Sequence[RunSummary], metric: str) -> float | None:
    """Distance of the best vanilla run that `run` may be compared with: same metric, sampler, NFE, images and model."""
    if run.vanilla or metric not in run.metrics:
        return None
    same = ("sampler", "nfe", "images", "model", "checkpoint", "seed")
    distances = [
        other.metrics[metric]
        for other in runs
        if other.vanilla and metric in other.metrics and all(other.result.get(k) == run.result.get(k) for k in same)
    ]
    return min(distances, default=None)


def rounded(values: Sequence[float | None]) -> list[str]:
    """The numbers of one column with the same count of decimals, three significant digits for the smallest."""
    finite = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    decimals = min(6, max(1, 2 - math.floor(math.log10(min(finite))))) if finite else 1
    return [MISSING if v is None else f"{v:.{decimals}f}" for v in values]


def significant(value: float) -> str:
    """Three significant digits or all those before the point, never with an exponent."""
    rounded = abs(float(f"{value:.3g}"))
    decimals = 2 - math.floor(math.log10(rounded)) if rounded and math.isfinite(rounded) else 0
    return f"{value:.{min(max(0, decimals), 6)}f}"


def timing(images: set[int | None], devices: set[str | None]) -> str:
    """What the seconds of some runs are of, by all their image counts and devices."""
    of = f"seconds for {min(images):,} images" if len(images) == 1 and None not in images else "seconds"
    return f"{of}, on {len(devices)} kinds of device" if len(devices) > 1 else of


def format_table(runs: Sequence[RunSummary]) -> str:
    """The comparison as a Markdown table that also reads well in a terminal.

    One column a metric, under its full name; then a row for real data against real data, where known, and a line for
    each run that has no result, with its message.
    """
    unfinished = [f"{run.state}: {run.label}: {run.message}".strip(": ") for run in runs if run.state != "done"]
    runs = [run for run in runs if run.state == "done"]
    if not runs:
        return "\n".join(unfinished)
    names, floor = metric_names(runs), floors(runs)
    seeds = [str(run.result.get("seed", MISSING)) for run in runs]
    columns = {
        "run": [run.label for run in runs],
        **({"model": [model(run) for run in runs]} if several_models(runs) else {}),
        "sampler": [str(run.result.get("sampler", MISSING)) for run in runs],
        "T": [str(run.result.get("iterations", MISSING)) for run in runs],
        "NFE": [str(run.result.get("nfe", MISSING)) for run in runs],
        **({"seed": seeds} if len(set(seeds)) > 1 else {}),
        "images": [str(run.result.get("images", MISSING)) for run in runs],
        "seconds": rounded([run.result.get("seconds") for run in runs]),
        **{n: rounded([*(run.metrics.get(n) for run in runs), floor.get(n)]) for n in names},
    }
    for name in columns:
        if floor and name not in names:
            columns[name].append(FLOOR if name == "run" else "")
        elif not floor and name in names:
            columns[name].pop()
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    lines = [markdown_table(rows, [name not in ("run", "model", "sampler") for name in columns])]
    lines += ["", *other_floors(runs)] if other_floors(runs) else []
    if unfinished:
        lines += ["", *unfinished]
    return "\n".join(lines)


def differing(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys on which nested dictionaries differ, each with a value a dictionary (`MISSING` where absent)."""
    flat = [flatten(value) for value in values]
    rows = {key: [f.get(key, MISSING) for f in flat] for key in dict.fromkeys(key for f in flat for key in f)}
    return {key: row for key, row in rows.items() if any(type(v) is not type(row[0]) or v != row[0] for v in row)}


def common(values: Iterable[Any]) -> Any:
    """The value that all share, or None."""
    first, *others = values
    return first if all(other == first for other in others) else None


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _read_run(folder: Path) -> RunSummary:
    """A run directory that cannot be read is a failed run that says so: it must not hide the others."""
    config: dict[str, Any] = {}
    try:
        if (folder / "config.yaml").exists():
            config = yaml.load((folder / "config.yaml").read_text(), _LOADER) or {}
        status = json.loads((folder / "status.json").read_text())
        state, message = str(status["state"]), str(status.get("message", ""))
        result = json.loads((folder / "result.json").read_text()) if state == "done" else {}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        return RunSummary(folder, "failed", f"unreadable run directory: {type(error).__name__}: {error}", {}, config)
    return RunSummary(folder, state, message, result, config)
