"""Write report.html: one file that needs nothing else, to look at, to keep and to send."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2

from pds.lab.report.measures import SideBySide, side_by_side
from pds.lab.report.pictures import Picture, filters_of, grid_of, strip_of
from pds.lab.report.runs import STATES, Run, Runs, differing, grouped, read_runs
from pds.lab.report.settings import Panel, Setting, T, panels, repeated, symbol
from pds.lab.report.table import WORDS, Grid, long_form, plain_columns, write_table
from pds.lab.text import FLOOR, MISSING, csv_table, rounded, significant, with_decimals_of, write_text

if TYPE_CHECKING:
    from pds.lab.charts import Chart

log = logging.getLogger(__name__)
Made = TypeVar("Made")

MANY = 12  # with more runs than this a page shows strips instead of grids, and folds its long tables


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html atomically, and return its path: it compares all runs of the experiment in `folder`.

    The page holds its pictures, runs no script, loads nothing, and follows the reader's light or dark setting. Beside it stand
    summary.csv, with one row a run, and the charts as `figures/*.svg`. Runs that fill a paper's table also get table.md and
    table.csv. A part that cannot be made becomes a sentence on the page.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`, or the files cannot be written.
    """
    runs = read_runs(folder)
    done, notes = runs.done, list[str]()

    def part(what: str, empty: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make one part; its failure must not cost the rest of the page."""
        try:
            return make(*arguments)
        except Exception as error:
            log.warning("%s cannot be shown", what, exc_info=True)
            notes.append(f"{what} cannot be shown: {error}")
            return empty

    table = part("The table", {"table": None, "grid": None, "cells": [], "rows_chart": None}, _table, folder)
    swept = part("What was swept over", {}, _swept, runs, {T} if table["rows_chart"] else set())
    configured, facts = [run for run in runs if run.config], [_facts(run) for run in done]
    labels = [run.label if run.state == "done" else f"{run.label} ({run.state})" for run in configured]
    rows = differing([{k: v for k, v in run.flat.items() if not k.startswith("sweep.")} for run in configured])
    own, strips, foremost = differing(facts), len(done) > MANY, _foremost(done)
    page = {
        "title": next((run.result["experiment"] for run in done if run.result.get("experiment")), folder.resolve().name),
        "lede": part("The verdict", [], lambda: [_summed_up(done), *_verdicts(done)]),
        "lost": _lost(runs),
        "notes": notes,
        **table,
        "columns": plain_columns(done),
        "measures": part("The measures", [], _measures, done),
        "lowest": {r.folder for m in done.metrics for r in done if r.metrics.get(m) == done.ranked(m)[0].metrics[m]},
        "foremost": [i for i, run in enumerate(done) if strips and run.folder in foremost],
        "swept": swept,
        "strips": strips,
        "images": part("The images", {}, _images, done, strip_of if strips else grid_of),
        "filters": part("The filters", [], _filters, done),
        "differences": _comparison(labels, rows) if rows else None,
        "shared": {key: value for key, value in facts[0].items() if key not in own} if facts else {},
        "methods": {run.result["sampler"]: run.result["source"] for run in done if run.result.get("source")},
        "own": _comparison([run.label for run in done], {**own, "run directory": [run.folder.name for run in done]}),
        "points": runs.points,
        "states": Counter(point.state for point in runs.points),
        "sweeps": list(dict.fromkeys(point.command for point in runs.points if point.command)),
        "commands": grouped((run.result["command"], run.label) for run in runs if run.result.get("command")),
    }
    alone = [table["rows_chart"], *(chart for _, chart in page["measures"])]
    charts = [*alone, *(c for parts in swept.values() for one in parts for c in one.get("charts", []))]
    for drawn in filter(None, charts):
        write_text(folder / "figures" / f"{drawn.name}.svg", drawn.svg)
    write_text(folder / "summary.csv", csv_table(_summary(runs)))
    write_text(folder / "report.html", _template().render(page, done=done))
    return folder / "report.html"


@functools.cache
def _template() -> jinja2.Template:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)
    environment.filters["told"] = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    environment.globals |= {"FLOOR": FLOOR, "words": WORDS, "many": MANY, "repeated": repeated}
    return environment.get_template("page.html")


def _chart(kind: str, *arguments: Any) -> Chart:
    from pds.lab.report import charts  # matplotlib takes a second, for which a page without charts need not wait

    return getattr(charts, kind)(*arguments)


def _summary(runs: Runs) -> list[list[Any]]:
    """Return one row a run: its facts, every metric by its full name, every swept key."""
    facts = {"model": "model", "sampler": "sampler", "T": "iterations", "NFE": "nfe", "images": "images", "seconds": "seconds"}
    found = panels(runs)
    # Without a finished run, what differs between all.
    keys = dict.fromkeys(k for panel in found for k in panel.keys) if found else differing([run.values for run in runs])
    measures = list(dict.fromkeys(name for run in runs for name in run.measures))
    rows: list[list[Any]] = [["name", "label", "state", "seed", *facts, *measures, *keys, "message"]]
    for run in runs:
        name, seed = run.folder.name * run.folder.exists(), run.result.get("seed", run.config.get("seed"))
        numbers = [*map(run.result.get, facts.values()), *map(run.measures.get, measures), *map(run.values.get, keys)]
        rows.append([name, run.label, run.state, seed, *numbers, run.message])
    return rows


def _summed_up(done: Runs) -> str:
    if not len(done):
        return "No run has finished yet."
    keys = ("model", "sampler", "iterations", "nfe", "images", "seed")
    model, sampler, iterations, nfe, images, seed = map(done.common, keys)
    steps = f"{iterations} iterations ({nfe} score evaluations)" if nfe and iterations else "several lengths"
    each = f"{images} images each" if images else "images as listed"
    noise = "from different seeds" if seed is None else f"from the same noise (seed {seed})"
    what = f"{model or 'several models'} with {sampler or 'several samplers'}"
    return f"{len(done)} {'run' if len(done) == 1 else 'runs'} of {what}, {steps}, {each}, {noise}."


def _verdicts(done: Runs) -> Iterator[str]:
    """Say for each model and metric whether PDS is closer to the data, whichever way the numbers fall."""
    for model, metric in itertools.product(done.models, done.metrics):
        if verdict := _verdict(Runs(tuple(run for run in done if run.model == model)), metric):
            yield f"{model}: {verdict}" if len(done.models) > 1 else verdict


def _verdict(done: Runs, metric: str) -> str:
    """Return the sentence of one metric; empty without a run to compare with."""
    ranked, texts = done.ranked(metric), done.texts(metric)
    pds = next((run for run in ranked if not run.vanilla), None)
    base = done.baseline(pds, metric) if pds else None
    if pds is None or base is None:
        return ""

    reference = base.metrics[metric]
    found = Setting(done.repeats(pds), metric).against(Setting(done.repeats(base), metric))
    value, first, same = pds.metrics[metric], ranked[0], "the same sampler without preconditioning"
    number, without = texts[value], texts[reference]
    if found is not None and found.level:
        reach = f"the 95% interval of the difference, {significant(found.low)} to {significant(found.high)}, holds 0"
        return f"Level: {metric} {number} at best with PDS ({pds.label}), {without} without preconditioning; {reach}."
    if value > reference:
        best = f"{metric} {number} at best ({pds.label}), against {without} without preconditioning"
        return f"No preconditioned run is closer to the data than vanilla: {best}."
    if pds is first:
        rivals = [run for run in ranked if run.vanilla and run.metrics[metric] < reference]
        rival = f" ({rivals[0].result['sampler']}: {texts[rivals[0].metrics[metric]]})" if rivals else ""
        return f"{pds.label} is closest to the data: {metric} {number}, against {without} of {same}{rival}."
    closest = f"{first.label} ({first.result['sampler']}) is closest: {texts[first.metrics[metric]]}"
    return f"{pds.label} is closer to the data than {same} ({metric} {number} against {without}), but {closest}."


def _lost(runs: Runs) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the labels of runs without a result, by state and message; waiting and running points are counted elsewhere."""
    failed = [run for run in runs if run.state in ("failed", "damaged")]
    others = [run for run in runs if run.state == "skipped" or (run.state not in STATES and not run.overrides)]
    groups = {"failed": failed, "skipped": others}
    return {kind: grouped(((run.state, run.message), run.label) for run in group) for kind, group in groups.items()}


def _table(folder: Path) -> dict[str, Any]:
    """Return the table that the runs fill, and its chart where the rows of a grid are curves."""
    table, lines = write_table(folder) or (None, [])
    grid, cells = Grid.of(table, lines) if table else None, long_form(lines) if lines else []
    # A figure of images has nothing printed, and a table that waits nothing measured.
    kept = [i for i, (head, *texts) in enumerate(zip(*cells, strict=True)) if head == "note" or set(texts) != {MISSING}]
    drawn = _chart("rows", f"{grid.quantity}-against-NFE", grid) if grid and grid.curves() else None
    return {"table": table, "grid": grid, "cells": [[row[i] for i in kept] for row in cells], "rows_chart": drawn}


def _foremost(done: Runs) -> set[Path]:
    """Return the folders of the lowest runs of each model and metric, vanilla ones and others apart."""
    groups = grouped(((name, run.model, run.vanilla), run.folder) for name in done.metrics for run in done.ranked(name))
    return {folder for folders in groups.values() for folder in folders[: MANY // 3]}


def _swept(runs: Runs, without: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the parts of each section about the sweep; the keys `without` get no curves.

    A part has a note, and rows (label, mean ± deviation, seeds), or a head and charts.
    """
    parts: dict[str, list[dict[str, Any]]] = {"Over the seeds": [], "Curves": [], "Heat maps": [], "The best α against T": []}
    seeds, curves, maps, bests = parts.values()
    several, names, lowest = len(runs.done.models) > 1, Counter[str](), "those with the lowest distances"

    def chart(kind: str, name: str, *arguments: Any) -> Chart:
        """Draw a chart; metrics of several models share a name, so a number follows."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        names[name] += 1
        return _chart(kind, name if names[name] == 1 else f"{name}-{names[name]}", *arguments)

    for panel in panels(runs):
        metric, note = panel.quantity, panel.quantity + (f", {panel.runs.models[0]}" if several else "")
        if repeated(panel.settings):
            seeds.append({"note": note, "rows": _means(panel)})
        for x in panel.axes:
            if x not in without and (found := panel.curves(x)):
                name, head = ("T", "T, NFE and seconds") if x == T else (x, symbol(x))
                left = f"; of {len(found.lines) + found.left_out} lines {lowest}" * bool(found.left_out)
                charts = [chart("against", f"{metric}-against-{name}", panel, found)]
                curves.append({"note": note + left, "head": f"Against {head}", "charts": charts})
        for x, y in itertools.combinations(panel.axes, 2):
            kept, left_out = panel.heat_maps(x, y)
            numbers = [s.number for one in kept for s in one.cells.values()]
            charts = [chart("heat_map", f"{metric}-over-{x}-and-{y}", panel, m, min(numbers), max(numbers)) for m in kept]
            vanilla = [s for s in panel.settings if s.runs[0].vanilla and x not in s.values and y not in s.values]
            facts = [note, *(f"{panel.label([s])} {significant(s.number)}" for s in vanilla[:4])]
            facts += [f"of {len(kept) + left_out} maps {lowest}"] * bool(left_out)
            maps += [{"note": "; ".join(facts), "head": f"Over {symbol(x)} and {symbol(y)}", "charts": charts}] * bool(kept)
        if panel.best_alphas():
            charts = [chart("best_alphas", f"{metric}-best-alpha-against-T", panel)]
            bests.append({"note": note, "head": "By", "charts": charts, "line": bool(panel.references())})
    return {title: found for title, found in parts.items() if found}


def _measures(done: Runs) -> list[tuple[SideBySide, Chart | None]]:
    """Return the tables of measures, each with a picture of precision against recall where every row has both."""
    found: list[tuple[SideBySide, Chart | None]] = []
    for table in side_by_side(done):
        drawn = all({"precision", "recall"} <= row.keys() for row in table.rows.values())
        name = f"precision-against-recall_{table.name}" + (f"-{len(found)}" if found else "")
        found.append((table, _chart("precision_recall", name, table) if drawn else None))
    return found


def _means(panel: Panel) -> list[tuple[str, str, int]]:
    settings = sorted(panel.settings, key=lambda setting: (not setting.runs[0].vanilla, setting.number))
    rows = []
    means = rounded((s.number for s in settings), [s.error for s in settings])
    for setting, mean in zip(settings, means, strict=True):
        spread = "" if setting.spread is None else f" ± {with_decimals_of(mean, setting.spread)}"
        rows.append((panel.label([setting]), mean + spread, len(setting.runs)))
    return rows


def _images(done: Runs, picture: Callable[[Run], Picture | None]) -> dict[Any, list[tuple[Run, Picture | str]]]:
    """Return the picture of every run, strips by seed."""
    found = [(run, _seen(picture, run)) for run in done]
    return grouped((run.result["seed"] * (picture is strip_of), (run, seen)) for run, seen in found if seen is not None)


def _seen(read: Callable[[Run], Made], run: Run) -> Made | str:
    """Read a picture; a damaged one becomes a sentence and costs no other."""
    try:
        return read(run)
    except Exception as error:  # Pillow raises anything
        return f"This cannot be shown: {error}"


def _filters(done: Runs) -> list[tuple[str, str, Chart | None]]:
    """Return the filters R and A of the runs, equal ones once."""
    found: dict[Any, tuple[str, str, Chart | None]] = {}
    for run in done:
        planes = _seen(filters_of, run)
        if isinstance(planes, str):
            found[run.folder] = (run.label, planes, None)
            continue
        for kind, values in planes.items():
            if (key := (kind, values.tobytes())) not in found:
                picture = _chart("filter_plane", f"filter-{len(found)}", kind, values) if len(found) < MANY else None
                found[key] = (run.label, "R, frequency plane" if kind == "frequency" else "A, pixel plane", picture)
    return list(found.values())


def _facts(run: Run) -> dict[str, Any]:
    result, weights = run.result, run.result.get("checkpoint") or {}
    facts = {"model": run.model, "checkpoint": weights.get("file"), "checkpoint SHA-256": weights.get("sha256")}
    facts |= {key: result.get(key) for key in ("seed", "commit", "device")} | {"images/s": result.get("images_per_second")}
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    facts |= {"finished": result.get("finished"), "versions": versions}
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _comparison(labels: list[str], rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Arrange values by key and run, the longer of the two downwards; many runs are folded."""
    summary = f"{len(labels)} runs, {len(rows)} {'key' if len(rows) == 1 else 'keys'}" if len(labels) > MANY else ""
    down, by_key = len(labels) <= len(rows), [["", *labels], *([key, *values] for key, values in rows.items())]
    heads, *body = by_key if down else zip(*by_key, strict=True)
    return {"down": down, "heads": heads[1:], "rows": body, "summary": summary}
