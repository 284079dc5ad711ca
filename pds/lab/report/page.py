"""Write report.html: one file without dependencies, to look at, to keep and to send."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pds.errors import PDSError
from pds.lab.report.pictures import Picture, filters_of, grid_of, strip_of
from pds.lab.report.runs import STATES, Run, Runs, differing, grouped, read_runs
from pds.lab.report.settings import Comparable, Number, Setting, T, comparables, one_a_seed, repeated, symbol
from pds.lab.report.table import FACTS, WORDS, Grid, SideBySide, long_form, plain_columns, side_by_side, write_table
from pds.lab.text import FLOOR, MISSING, csv_table, rounded, significant, write_text

if TYPE_CHECKING:
    from pds.lab.charts import Chart

log = logging.getLogger(__name__)

_FILES, _STRICT = jinja2.FileSystemLoader(Path(__file__).parents[1]), jinja2.StrictUndefined
_TEMPLATES = jinja2.Environment(loader=_FILES, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=_STRICT)
_TEMPLATES.filters["told"] = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

MANY = 12  # with more runs than this a page shows strips instead of grids, and folds its long tables


class Figures(dict[str, "Chart"]):
    """The charts of a page by the names of their files."""

    def draw(self, kind: str, name: str, *arguments: Any) -> Chart:
        """Draw a chart; metrics of several models share a name, so a number follows."""
        from pds.lab.report import charts  # matplotlib takes a second, for which a page without charts need not wait

        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        name = next(n for i in itertools.count(1) if (n := name if i == 1 else f"{name}-{i}") not in self)
        self[name] = getattr(charts, kind)(name, *arguments)
        return self[name]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html atomically, and return its path: it compares all runs of the experiment in `folder`.

    The page holds its pictures, runs no script, loads nothing, and follows the reader's light or dark setting. Beside it stand
    summary.csv, with one row a run, and the charts as `figures/*.svg`. Runs that fill a paper's table also get table.md and
    table.csv. A part that cannot be made becomes a sentence on the page.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`, or the files cannot be written.
    """
    runs, figures, notes = read_runs(folder), Figures(), list[str]()
    done = runs.done

    def part(what: str, empty: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make one part; its failure must not prevent the rest of the page."""
        try:
            return make(*arguments)
        except Exception as error:
            log.warning("%s cannot be shown: %s", what, error, exc_info=not isinstance(error, PDSError))
            notes.append(f"{what} cannot be shown: {error}")
            return empty

    table = part("The table", {"table": None, "grid": None, "cells": [], "rows_chart": None}, _table, folder, figures)
    swept = part("What was swept over", [], _swept, runs, figures, {T} if table["rows_chart"] else set())
    configured, facts = [run for run in runs if run.config], [_facts(run) for run in done]
    own, strips = differing(facts), len(done) > MANY
    page = {
        "done": done,
        "title": next((run.result["experiment"] for run in done if run.result.get("experiment")), folder.resolve().name),
        "verdicts": part("The verdict", [], _verdicts, done),
        "search": (folder / "tuning.html").exists(),
        "lost": _lost(runs),
        "notes": notes,
        **table,
        "columns": plain_columns(done),
        "ranked": {name: done.ranked(name) for name in done.metrics},
        "lowest": {name: done.lowest(name) for name in done.metrics},
        "texts": {name: done.texts(name) for name in done.metrics},
        "foremost": _foremost(done) if strips else [],
        "measures": part("The measures", [], _measures, done, figures),
        "swept": swept,
        "strips": strips,
        "images": part("The images", {}, _images, done, strips),
        "filters": part("The filters", [], _filters, done, figures),
        "configured": configured,
        "differences": differing([run.flat for run in configured]),
        "shared": {key: value for key, value in facts[0].items() if key not in own} if facts else {},
        "methods": {run.result["sampler"]: run.result["source"] for run in done if run.result.get("source")},
        "own": {**own, "run directory": [run.folder.name for run in done]},
        "points": runs.points,
        "states": Counter(point.state for point in runs.points),
        "commands": grouped((run.result["command"], run.label) for run in runs if run.result.get("command")),
        **{"FLOOR": FLOOR, "T": T, "many": MANY, "words": WORDS},
        **{"repeated": repeated, "significant": significant, "symbol": symbol},
    }
    for drawn in figures.values():
        write_text(folder / "figures" / f"{drawn.name}.svg", drawn.svg)
    write_text(folder / "summary.csv", csv_table(_summary(runs)))
    return write_html(folder / "report.html", "report/page.html", page)


def write_html(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Write a page atomically, from the file of its template within `pds/lab`; return its path."""
    write_text(path, _TEMPLATES.get_template(template).render(content))
    return path


def _summary(runs: Runs) -> list[list[Any]]:
    """Return one row a run: its facts, every metric by its full name, every swept key."""
    found = comparables(runs)
    # Without a finished run, the keys that differ between all.
    keys = (
        dict.fromkeys(k for comparable in found for k in comparable.keys) if found else differing([run.values for run in runs])
    )
    measures = list(dict.fromkeys(name for run in runs for name in run.measures))
    weights = ["weights"] if runs.several_weights else []
    rows: list[list[Any]] = [["name", "label", "state", "seed", *weights, *FACTS, *measures, *keys, "message"]]
    for run in runs:
        name = run.folder.name if run.folder.exists() else ""
        seed = run.result.get("seed", run.config.get("seed"))
        numbers = [*map(run.result.get, FACTS.values()), *map(run.measures.get, measures), *map(run.values.get, keys)]
        rows.append([name, run.label, run.state, seed, *([run.weights] if weights else []), *numbers, run.message])
    return rows


def _verdicts(done: Runs) -> list[dict[str, Any]]:
    """Return the best preconditioned setting of each model, reference and metric beside the best vanilla one like it, if any.

    The best has the lowest mean over its seeds: the lowest of many runs would be the luckiest seed.
    """
    found: list[dict[str, Any]] = []
    groups = grouped(((run.model, run.reference, name), run) for run in done for name in done.metrics if name in run.measures)
    for (model, _, metric), having in groups.items():
        alike = Runs(tuple(having))
        repeats = {runs[0].folder: one_a_seed(runs) for runs in map(alike.repeats, alike)}
        ranked = sorted((Setting(runs, metric) for runs in repeats.values()), key=lambda setting: setting.number)
        pds = next((setting for setting in ranked if not setting.vanilla), None)
        base = next((setting for setting in ranked if pds and setting.vanilla and setting.like(pds)), None)
        if pds and base:
            single = alike.texts(metric)
            texts = {s.runs[0].folder: single[s.number] if s.spread is None else s.over_seeds for s in ranked}
            facts = {"ranked": ranked, "texts": texts, "compared": pds.against(base)}
            found.append({"model": model, "metric": metric, "pds": pds, "base": base, **facts})
    return found


def _lost(runs: Runs) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the labels of runs without a result, by state and message; waiting and running points are counted elsewhere."""
    failed = [run for run in runs if run.state in ("failed", "damaged")]
    others = [run for run in runs if run.state == "skipped" or (run.state not in STATES and not run.overrides)]
    groups = {"failed": failed, "skipped": others}
    return {kind: grouped(((run.state, run.message), run.label) for run in group) for kind, group in groups.items()}


def _table(folder: Path, figures: Figures) -> dict[str, Any]:
    """Return the table that the runs fill, and its chart where the rows of a grid are curves."""
    table, lines = write_table(folder) or (None, [])
    grid, cells = Grid.of(table, lines) if table else None, long_form(lines) if lines else []
    # A figure of images has no printed numbers, and a waiting table has no measured ones.
    kept = [i for i, (head, *texts) in enumerate(zip(*cells, strict=True)) if head == "note" or set(texts) != {MISSING}]
    drawn = figures.draw("rows", f"{grid.quantity}-against-NFE", grid) if grid and grid.curves() else None
    return {"table": table, "grid": grid, "cells": [[row[i] for i in kept] for row in cells], "rows_chart": drawn}


def _foremost(done: Runs) -> list[int]:
    """Return the places of the lowest runs of each model and metric, vanilla ones and others apart."""
    groups = grouped(((name, run.model, run.vanilla), run.folder) for name in done.metrics for run in done.ranked(name))
    first = {folder for folders in groups.values() for folder in folders[: MANY // 3]}
    return [i for i, run in enumerate(done) if run.folder in first]


def _swept(runs: Runs, figures: Figures, without: Collection[str]) -> list[tuple[Comparable, dict[str, Any]]]:
    """Return the comparables with means over seeds or charts, these by the swept keys; the keys `without` get no curves."""
    swept = []
    for comparable in comparables(runs):
        curves, maps, name = dict[str, Any](), dict[tuple[str, str], Any](), comparable.quantity
        for x in comparable.axes:
            if x not in without and (found := comparable.curves(x)):
                drawn = figures.draw("against", f"{name}-against-{'T' if x == T else x}", comparable, x, found)
                curves[x] = drawn, len(found.lines), found.left_out
        for x, y in itertools.combinations(comparable.axes, 2):
            kept, left_out = comparable.heat_maps(x, y)
            charts = [figures.draw("heat_map", f"{name}-over-{x}-and-{y}", comparable, (x, y), one, kept) for one in kept]
            maps |= {(x, y): (charts, left_out)} if charts else {}
        best = figures.draw("best_alphas", f"{name}-best-alpha-against-T", comparable) if comparable.best_alphas() else None
        parts = {
            "means": _means(comparable) if repeated(comparable.settings) else [],
            "curves": curves,
            "maps": maps,
            "best": best,
        }
        swept += [(comparable, parts)] if any(parts.values()) else []
    return swept


def _means(comparable: Comparable) -> list[list[Any]]:
    """Return rows of means and deviations over the seeds, vanilla first."""
    settings = sorted(comparable.settings, key=lambda setting: (not setting.vanilla, setting.number))
    means = zip(settings, rounded((s.number for s in settings), [s.error for s in settings]), strict=True)
    return [[comparable.label([s]), Number.of(mean, s.spread), str(len(s.runs))] for s, mean in means]


def _measures(done: Runs, figures: Figures) -> list[tuple[SideBySide, Chart | None]]:
    """Return the tables of measures, each with a picture of precision against recall where every row has both."""
    found = []
    for table in side_by_side(done):
        both = all({"precision", "recall"} <= row.keys() for row in table.rows.values())
        name = f"precision-against-recall_{table.name}"
        found.append((table, figures.draw("precision_recall", name, table) if both else None))
    return found


def _images(done: Runs, strips: bool) -> dict[int | None, list[tuple[Run, Picture | str]]]:
    """Return the grid of every run, or the strips by seed."""
    found = [(run, or_message(strip_of if strips else grid_of, run)) for run in done]
    return grouped((run.result["seed"] if strips else None, (run, picture)) for run, picture in found if picture is not None)


def or_message(read: Callable[[Run], Any], run: Run) -> Any:
    """Read a picture; a damaged one becomes a sentence and hides no other."""
    try:
        return read(run)
    except Exception as error:  # Pillow may raise anything
        return f"This cannot be shown: {error}"


def _filters(done: Runs, figures: Figures) -> list[tuple[str, str, Chart | None]]:
    """Return the filters R and A of the runs, equal ones once."""
    found: dict[Any, tuple[str, str, Chart | None]] = {}
    for run in done:
        planes = or_message(filters_of, run)
        if isinstance(planes, str):
            found[run.folder] = (run.label, planes, None)
            continue
        for kind, values in planes.items():
            if (key := (kind, values.tobytes())) not in found:
                picture = figures.draw("filter_plane", f"filter-{len(found)}", kind, values) if len(found) < MANY else None
                found[key] = (run.label, "R, frequency plane" if kind == "frequency" else "A, pixel plane", picture)
    return list(found.values())


def _facts(run: Run) -> dict[str, Any]:
    known, weights = run.result.get, run.result.get("checkpoint") or {}
    facts = {"model": run.model, "checkpoint": weights.get("file"), "checkpoint SHA-256": weights.get("sha256")}
    facts |= {"seed": known("seed"), "commit": known("commit"), "device": known("device")}
    facts |= {"images/s": known("images_per_second"), "finished": known("finished")}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in known("versions", {}).items())
    return {key: value for key, value in facts.items() if value not in (None, "")}
