"""Read run folders into one record each, and say what differs between runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from pds.dotted import dotted
from pds.errors import PDSError
from pds.evaluation.panel import better, short_name
from pds.files import parse_yaml, read_json, reading
from pds.lab.points import Point, Points
from pds.lab.runs import ASIDE, RESULT, read_config, read_result, under
from pds.lab.text import FLOOR, MISSING, is_number, rounded, with_error
from pds.options import fitted

STATES = ("done", "failed", "damaged", "skipped")
_NEEDED = ("name", "label", "vanilla", "sampler", "iterations", "nfe", "images", "seconds", "seed", "model", "metrics", "floor")
"""A result has these keys; older versions wrote no others."""
_BY_MEASURE = {"errors": dict[str, float], "left_out": dict[str, list[float]]} | {
    key: RESULT[key] for key in ("metrics", "floor")
}
"""These entries of a result are by the name of a measure; a distance that has an older name goes by that one."""


@dataclass(frozen=True)
class Run:
    """One run folder, or a point of a sweep that ended before it had one."""

    folder: Path  # for such a point, the folder that it would have
    state: str  # "done", "failed", "skipped", "running" (also after a kill) or "damaged" (unreadable)
    message: str = ""  # the reason of a failure, a skip or damage, or its last activity
    result: dict[str, Any] = field(default_factory=dict)  # content of result.json; empty unless done
    config: dict[str, Any] = field(default_factory=dict)  # resolved configuration; empty if it cannot be read
    overrides: tuple[str, ...] = ()  # the command line of its point; empty outside a sweep

    @property
    def label(self) -> str:
        """The name of the run in tables."""
        return self.result.get("label") or " ".join(self.overrides) or self.folder.name

    @property
    def vanilla(self) -> bool:
        """Whether the run is a finished one without preconditioning."""
        return self.result.get("vanilla", False)

    @property
    def measures(self) -> dict[str, float]:
        """All that was measured, by full name."""
        return self.result.get("metrics", {})

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Fréchet distances by full name, or the other distances where there are none; lower is closer to the data."""
        low = {name: value for name, value in self.measures.items() if better(name) == "low"}
        return {name: value for name, value in low.items() if not name.startswith(("kid", "fid_infinity"))} or low

    @property
    def model(self) -> str:
        """The model that a finished run sampled."""
        return self.result.get("model", MISSING)

    @property
    def weights(self) -> str:
        """The weights file as it was given, with 8 digits of its hash, and of that of the code of an own network."""
        file = (self.result.get("checkpoint") or {}).get("file") or ""
        return " ".join(filter(None, [str(file), *(digest[:8] for digest in self.kind[1:3])]))

    def blocks(self, measure: str) -> list[float]:
        """Return a measure without each block of images in turn; empty if it is not known."""
        return self.result.get("left_out", {}).get(measure, [])

    def number(self, key: str) -> float:
        """Return a measure by its full name, or a number of result.json."""
        return float(self.measures[key] if key in self.measures else self.result[key])

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration by dotted key, without a sweep's bookkeeping. A point without a folder gives its command line."""
        return dotted(self.config, {"sweep"}) if self.config else dict(map(_override, self.overrides))

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """Model, weights, code beside them and reference; only runs with equal ones may be compared."""
        weights = self.flat.get("fingerprint.weights") or (self.result.get("checkpoint") or {}).get("sha256")
        return self.model, str(weights or ""), str(self.flat.get("fingerprint.beside_weights") or ""), self.reference

    @property
    def reference(self) -> str:
        """The digest of the reference; only distances to one reference may be compared."""
        return str(self.flat.get("fingerprint.reference"))

    @cached_property
    def values(self) -> dict[str, Any]:
        """The part of `flat` that tells settings apart: without `ASIDE` and without null."""
        return {key: value for key, value in self.flat.items() if value is not None and not under(key, ASIDE)}


def _override(text: str) -> tuple[str, Any]:
    key, _, value = text.lstrip("+~").partition("=")
    try:
        return key, parse_yaml(f"value: {value}", {"value": Any})["value"]
    except Exception:  # Hydra's grammar is larger than YAML's
        return key, value


def token(value: Any) -> float | str:
    """Return a stand-in for a value; equal values share it. 1 equals 1.0 and does not equal true."""
    return float(value) if is_number(value) else json.dumps(value, sort_keys=True)


def differing(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys on which dictionaries differ, each with one value a dictionary (`MISSING` where absent)."""
    rows = {key: [flat.get(key, MISSING) for flat in values] for key in dict.fromkeys(key for flat in values for key in flat)}
    return {key: row for key, row in rows.items() if len(set(map(token, row))) > 1}


def grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """Return lists of the second of each pair, by the first."""
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


@dataclass(frozen=True)
class Runs:
    """The runs of an experiment: vanilla first, then by distance; failed, damaged, skipped and unfinished ones last.

    Runs of different metrics are ordered one after the other, never by comparing the two; those of a model stay together.
    Among `runs` are the points that failed or were skipped before they had a folder; `points` are all of the group's sweeps.
    """

    runs: tuple[Run, ...]
    points: tuple[Point, ...] = ()

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def where(self, keep: Callable[[Run], bool]) -> Runs:
        """Return the runs that `keep` takes."""
        return Runs(tuple(filter(keep, self.runs)), self.points)

    @cached_property
    def done(self) -> Runs:
        """The finished runs."""
        return self.where(lambda run: run.state == "done")

    @cached_property
    def models(self) -> list[str]:
        """The models that the finished runs sampled."""
        return list(dict.fromkeys(run.model for run in self.done))

    @cached_property
    def several_weights(self) -> bool:
        """Whether runs of one model have different weights or code, so that its name does not tell them apart."""
        return len({(run.model, run.weights) for run in self.done}) > len(self.models)

    @cached_property
    def metrics(self) -> list[str]:
        """Every distance that some run has, in the order in which the runs name them."""
        return list(dict.fromkeys(name for run in self for name in run.metrics))

    @cached_property
    def floors(self) -> dict[str, float]:
        """Distance of real data to real data by metric, where a run knows it and all runs have one reference."""
        found = [(run, run.result.get("floor", {})) for run in reversed(self.runs)]
        references = grouped((name, run.reference) for run, floor in found for name in (*run.measures, *floor))
        return {name: value for _, floor in found for name, value in floor.items() if len(set(references[name])) == 1}

    @property
    def other_floors(self) -> list[str]:
        """One line for each floor whose name no metric has, because there were fewer real images than samples."""
        return [f"{FLOOR}: {name} = {rounded([v])[0]}" for name, v in self.floors.items() if name not in self.metrics]

    def common(self, key: str) -> Any:
        """Return the value of result.json that all runs share, or None."""
        values = {token(run.result.get(key)): run.result.get(key) for run in self}
        return next(iter(values.values())) if len(values) == 1 else None

    def texts(self, metric: str) -> dict[float | None, str]:
        """Return the text of every distance of one metric, rounded alike wherever it appears; None reads `MISSING`."""
        values = [*(run.measures.get(metric) for run in self), self.floors.get(metric)]
        errors = [*(run.result.get("errors", {}).get(metric) for run in self), None]
        return dict(zip(values, map(with_error, rounded(values, errors), errors), strict=True))

    def ranked(self, metric: str) -> list[Run]:
        """Return the runs with a distance, the lowest first."""
        return sorted((run for run in self if metric in run.measures), key=lambda run: run.measures[metric])

    def lowest(self, metric: str) -> dict[str, float]:
        """Return the lowest distance to each reference."""
        return {run.reference: run.measures[metric] for run in reversed(self.ranked(metric))}

    def baseline(self, run: Run, metric: str) -> Run | None:
        """Return the vanilla run of the lowest distance with the kind, sampler, NFE and seed of `run`; None without one."""
        facts = itemgetter("sampler", "nfe", "seed")
        alike = self.where(lambda r: r.vanilla and r.kind == run.kind and facts(r.result) == facts(run.result))
        return next(iter(alike.ranked(metric)), None) if metric in run.measures and not run.vanilla else None

    def repeats(self, run: Run) -> tuple[Run, ...]:
        """Return the runs that differ from `run` in their seed alone, and `run` itself."""
        return tuple(other for other in self if other.kind == run.kind and other.values == run.values) if run.config else (run,)


def read_runs(folder: Path) -> Runs:
    """Read all runs of the experiment in `folder`, and each failed or skipped point of its sweeps once.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`.
    """
    folders = sorted(p for p in folder.glob("*/") if os.path.exists(p / "status.json") or os.path.exists(p / "result.json"))
    by_name = {path.name: _read_run(path) for path in folders}

    def damaged(path: Path, error: PDSError) -> None:
        by_name[f"points/{path.stem}"] = Run(path, "damaged", str(error))

    points = Points(folder).read(damaged)
    for point in points:
        name, lost = point.run or f"points/{point.digest}", point.state in ("failed", "skipped")
        if run := by_name.get(name, Run(folder / name, point.state) if lost else None):
            # A run that was repeated alone is done, for any earlier state of its point.
            told: dict[str, Any] = {"state": point.state, "message": point.message} if lost and run.state != "done" else {}
            by_name[name] = replace(run, overrides=point.overrides or (point.title,), **told)
    if not by_name and not points:
        raise PDSError(f"no runs in {folder}: give the folder of one experiment, outputs/<experiment>")
    runs = Runs(tuple(by_name.values()), tuple(points))

    def distance(run: Run) -> tuple[int, float]:
        name, value = next(iter(run.metrics.items()), ("", 0.0))
        return runs.metrics.index(name) if name else len(runs.metrics), value

    best = {model: min(map(distance, alike)) for model, alike in grouped((run.model, run) for run in runs).items()}

    def order(run: Run) -> tuple[Any, ...]:
        metric, value = distance(run)
        return [*STATES, run.state].index(run.state), metric, best[run.model][1], run.model, not run.vanilla, value, run.label

    return replace(runs, runs=tuple(sorted(runs, key=order)))


def _read_run(folder: Path) -> Run:
    """Read one folder; a damaged one becomes a run with the state "damaged", and hides no other."""
    config, result = {}, {}
    try:
        if os.path.exists(folder / "config.yaml"):
            config = read_config(folder / "config.yaml")
        fix = "delete its folder and run its command again"
        alone = not os.path.exists(folder / "status.json")  # a result tells by itself that its run is done
        status = {"state": "done"} if alone else read_json(folder / "status.json", {"state": str}, "the status of a run", fix)
        if status["state"] == "done":
            result, kinds = read_result(folder, {key: RESULT[key] for key in _NEEDED}), RESULT | _BY_MEASURE
            with reading(folder / "result.json", "the result of a run", fix):
                for key in kinds.keys() & result.keys():
                    fitted(key, result[key], kinds[key])
            result |= {key: {short_name(n): v for n, v in result.get(key, {}).items()} for key in _BY_MEASURE}
        return Run(folder, status["state"], str(status.get("message") or ""), result, config)
    except PDSError as error:
        return Run(folder, "damaged", str(error), {}, config)
