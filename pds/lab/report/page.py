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

from pds.lab.report.pictures import Picture, filters_of, grid_of, strip_of
from pds.lab.report.runs import FLOOR, Run, Runs, differing, grouped, read_runs
from pds.lab.report.settings import Panel, T, panels, swept_keys, symbol
from pds.lab.report.table import WORDS, Grid, long_form, plain_columns, write_table
from pds.lab.text import MISSING, csv_table, decimals_of, rounded, significant, write_text

if TYPE_CHECKING:
    from pds.lab.report.charts import Chart

log = logging.getLogger(__name__)
Made = TypeVar("Made")

LEVEL = 0.03
"""Relative difference of two distances below which the page calls them level."""
MANY = 12
"""With more runs than this a page shows strips instead of grids, and folds its long tables."""
BARS = " Bars are a standard deviation over the seeds."


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html atomically: it compares all runs of the experiment in `folder`.

    The page holds its pictures, runs no script, loads nothing, and follows the reader's light or dark setting. Beside it stand
    summary.csv, with one row a run, and the charts as `figures/*.svg`. Runs that fill a paper's table also get table.md and
    table.csv. A part that cannot be made becomes a sentence on the page.

    Returns:
        Path of the page.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`, or the files cannot be written.
    """
    runs = read_runs(folder)
    done, states, notes = runs.done, Counter(point.state for point in runs.points), []
    if states["waiting"] or states["running"]:
        counts = f"{states['waiting']} wait and {states['running']} run (or were killed)"
        notes.append(f"Of the {len(runs.points)} points of the sweep {counts}.")

    def part(what: str, empty: Made, make: Callable[..., Made], *arguments: Any) -> Made:
        """Make one part; its failure must not cost the rest of the page."""
        try:
            return make(*arguments)
        except Exception as error:
            log.warning("%s cannot be shown", what, exc_info=True)
            notes.append(f"{what} cannot be shown: {error}")
            return empty

    table = part("The table", {"table": None, "grid": None, "cells": [], "rows_chart": None}, _table, folder)
    swept = part("What was swept over", [], _swept, runs, {T} if table["rows_chart"] else set())
    strips, lowest = len(done) > MANY, {name: done.ranked(name)[0].metrics[name] for name in done.metrics}
    labels = [run.label if run.state == "done" else f"{run.label} ({run.state})" for run in runs if run.config]
    rows = differing([{k: v for k, v in run.flat.items() if not k.startswith("sweep.")} for run in runs if run.config])
    facts = [_facts(run) for run in done]
    own = {**differing(facts), "run directory": [run.folder.name for run in done]}
    page = {
        "title": next((run.result["experiment"] for run in done if run.result.get("experiment")), folder.resolve().name),
        "lede": part("The verdict", [], lambda: [_summed_up(done), *_verdicts(done)]),
        "lost": _lost(runs),
        "notes": notes,
        **table,
        "columns": plain_columns(done),
        "lowest": {run.folder for name, least in lowest.items() for run in done if run.metrics.get(name) == least},
        "foremost": [i for i, run in enumerate(done) if run.folder in _foremost(done)] if strips else [],
        "swept": swept,
        "strips": strips,
        "images": part("The images", {}, _images, done, strip_of if strips else grid_of),
        "filters": part("The filters", [], _filters, done),
        "differences": _comparison(labels, rows) if rows else None,
        "shared": {key: value for key, value in facts[0].items() if key not in own} if facts else {},
        "methods": {run.result["sampler"]: run.result["source"] for run in done if run.result.get("source")},
        "own": _comparison([run.label for run in done], own),
        "points": runs.points,
        "sweeps": list(dict.fromkeys(point.command for point in runs.points if point.command)),
        "commands": grouped((run.result["command"], run.label) for run in runs if run.result.get("command")),
    }
    for drawn in [table["rows_chart"], *(c for _, _, parts in swept for one in parts for c in one["charts"])]:
        if drawn:
            write_text(folder / "figures" / f"{drawn.name}.svg", drawn.svg)
    write_text(folder / "summary.csv", csv_table(_summary(runs)))
    write_text(folder / "report.html", _template().render(page, done=done))
    return folder / "report.html"


@functools.cache
def _template() -> jinja2.Template:
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **options)
    environment.filters["told"] = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    environment.globals |= {"FLOOR": FLOOR, "BARS": BARS, "words": WORDS, "many": MANY}
    return environment.get_template("page.html")


def _chart(kind: str, *arguments: Any) -> Chart:
    from pds.lab.report import charts  # matplotlib takes a second, for which a page without charts need not wait

    return getattr(charts, kind)(*arguments)


def _summary(runs: Runs) -> list[list[Any]]:
    """Return one row a run: its facts, every metric by its full name, every swept key."""
    heads = {"model": "model", "sampler": "sampler", "T": "iterations", "NFE": "nfe", "images": "images", "seconds": "seconds"}
    keys = swept_keys(runs)
    rows = [["name", "label", "state", "seed", *heads, *runs.metrics, *keys, "message"]]
    for run in runs:
        seed = run.result.get("seed", run.config.get("seed"))
        row = [run.folder.name if run.folder.exists() else "", run.label, run.state, seed, *map(run.result.get, heads.values())]
        rows.append([*row, *map(run.metrics.get, runs.metrics), *map(run.values.get, keys), run.message])
    return rows


def _summed_up(done: Runs) -> str:
    if not len(done):
        return "No run has finished yet."
    model, sampler, iterations, nfe, images, seed = map(
        done.common, ("model", "sampler", "iterations", "nfe", "images", "seed")
    )
    steps = f"{iterations} iterations ({nfe} score evaluations)" if nfe and iterations else "several lengths"
    each = f"{images} images each" if images else "images as listed"
    noise = "from different seeds" if seed is None else f"from the same noise (seed {seed})"
    what = f"{model or 'several models'} with {sampler or 'several samplers'}"
    return f"{len(done)} {'run' if len(done) == 1 else 'runs'} of {what}, {steps}, {each}, {noise}."


def _verdicts(done: Runs) -> Iterator[str]:
    """Say for each model and metric whether PDS is closer to the data, whichever way the numbers fall."""
    for model in done.models:
        of_model = done.where(lambda run, model=model: run.model == model)
        for metric in of_model.metrics:
            if verdict := _verdict(of_model, metric):
                yield f"{model}: {verdict}" if len(done.models) > 1 else verdict


def _verdict(done: Runs, metric: str) -> str:
    """Return the sentence of one metric; empty without a run to compare with."""
    ranked, texts = done.ranked(metric), done.texts(metric)
    pds, first = next((run for run in ranked if not run.vanilla), None), ranked[0]
    reference = done.baseline(pds, metric) if pds else None
    if pds is None or reference is None:
        return ""
    value, number, without = pds.metrics[metric], texts[pds.metrics[metric]], texts[reference]
    if abs(value - reference) < LEVEL * reference:
        return (
            f"Level: {metric} {number} at best with PDS ({pds.label}), {without} without preconditioning; differences below "
            f"{LEVEL:.0%} are within the noise of a single run."
        )
    if value > reference:
        best = f"{metric} {number} at best ({pds.label}), against {without} without preconditioning"
        return f"No preconditioned run is closer to the data than vanilla: {best}."
    rivals = [r for r in ranked if r.vanilla and r.metrics[metric] < reference]
    if pds is first:
        rival = f" ({rivals[0].result['sampler']}: {texts[rivals[0].metrics[metric]]})" if rivals else ""
        against = f"against {without} of the same sampler without preconditioning{rival}"
        return f"{pds.label} is closest to the data: {metric} {number}, {against}."
    closest = f"{first.label} ({first.result['sampler']}) is closest: {texts[first.metrics[metric]]}"
    closer = f"than the same sampler without preconditioning ({metric} {number} against {without})"
    return f"{pds.label} is closer to the data {closer}, but {closest}."


def _lost(runs: Runs) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the labels of runs without a result, by state and message; waiting and running points are counted elsewhere."""
    bad = ("failed", "damaged")
    others = runs.where(lambda run: run.state == "skipped" or (run.state not in ("done", *bad) and not run.overrides))
    groups = {"failed": runs.where(lambda run: run.state in bad), "skipped": others}
    return {kind: grouped(((run.state, run.message), run.label) for run in group) for kind, group in groups.items()}


def _table(folder: Path) -> dict[str, Any]:
    """Return the table that the runs fill, and its chart where the rows of a grid are curves."""
    table, lines = write_table(folder) or (None, [])
    grid, cells = Grid.of(table, lines) if table else None, long_form(lines) if lines else []
    # A figure of images has nothing printed, and a table that waits nothing measured.
    kept = (
        [i for i, head in enumerate(cells[0]) if head == "note" or {row[i] for row in cells[1:]} != {MISSING}] if cells else []
    )
    drawn = _chart("rows", f"{grid.quantity}-against-NFE", grid) if grid and grid.curves() else None
    return {"table": table, "grid": grid, "cells": [[row[i] for i in kept] for row in cells], "rows_chart": drawn}


def _foremost(done: Runs) -> set[Path]:
    """Return the folders of the lowest runs of each model and metric, vanilla ones and others apart."""
    kinds = itertools.product(done.metrics, done.models, (True, False))
    ranked = [[r for r in done.ranked(name) if (r.model, r.vanilla) == (model, vanilla)] for name, model, vanilla in kinds]
    return {run.folder for runs in ranked for run in runs[: MANY // 3]}


def _swept(runs: Runs, without: Collection[str]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return a title, a note and parts for each section about the sweep; the keys `without` get no curves."""
    found, names = panels(runs), Counter()
    several, seeds = len(runs.done.models) > 1, any(panel.several_seeds for panel in found)

    def name(text: str) -> str:
        """Name a file; metrics of several models share a name, so a number follows."""
        text = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
        names[text] += 1
        return text if names[text] == 1 else f"{text}-{names[text]}"

    def of(panel: Panel, *facts: str) -> str:
        return "; ".join([panel.metric + (f", {panel.runs.models[0]}" if several else ""), *facts])

    def part(panel: Panel, head: str, charts: list[Chart], *facts: str) -> dict[str, Any]:
        return {"rows": [], "head": head, "note": of(panel, *facts), "charts": charts}

    means, curves, maps, bests = [], [], [], []
    for panel in found:
        if panel.several_seeds:
            means.append({"rows": _means(panel), "note": of(panel), "charts": []})
        for x in panel.axes:
            if x not in without and (line := panel.curves(x)):
                drawn = _chart("against", name(f"{panel.metric}-against-{symbol(x) if x == T else x}"), panel, line)
                left = [f"of {len(line.lines) + line.left_out} lines those with the lowest distances"] * bool(line.left_out)
                curves.append(part(panel, f"Against {'T, NFE and seconds' if x == T else symbol(x)}", [drawn], *left))
        for x, y in itertools.combinations(panel.axes, 2):
            kept, left_out = panel.heat_maps(x, y)
            file, numbers = f"{panel.metric}-over-{x}-and-{y}", [s.number for one in kept for s in one.cells.values()]
            drawn = [_chart("heat_map", name(file), panel, one, min(numbers), max(numbers)) for one in kept]
            vanilla = [s for s in panel.settings if s.vanilla and x not in s.values and y not in s.values]
            facts = [f"{panel.label([s])} {significant(s.number)}" for s in vanilla[:4]]
            facts += [f"of {len(kept) + left_out} maps those with the lowest distances"] * bool(left_out)
            maps += [part(panel, f"Over {symbol(x)} and {symbol(y)}", drawn, *facts)] * bool(kept)
        if panel.best_alphas():
            drawn = _chart("best_alphas", name(f"{panel.metric}-best-alpha-against-T"), panel)
            bests.append(part(panel, "By", [drawn]))
    hatched = "Dark is closer to the data; the frame marks the lowest of a map. Hatched cells have no result."
    grid = (
        "The α with the lowest distance at each T. The grid is discrete: the bar reaches to the neighbours of the best, and "
        "the optimum lies between them. An open marker stands at an edge of its grid and is only a bound."
    )
    line = " The dashed line is α ∝ T through the reference of the configuration." * any(panel.references() for panel in found)
    sections = [
        ("Over the seeds", "Runs that differ in their seed only, taken together: mean ± standard deviation.", means),
        ("Curves", "Lower is closer to the data. Grey and dashed is vanilla." + BARS * seeds, curves),
        ("Heat maps", hatched + " Means over the seeds, ± a standard deviation." * seeds, maps),
        ("The best α against T", grid + line, bests),
    ]
    return [section for section in sections if section[2]]


def _means(panel: Panel) -> list[tuple[str, str, int]]:
    settings = sorted(panel.settings, key=lambda setting: (not setting.vanilla, setting.number))
    rows = []
    for setting, mean in zip(settings, rounded(s.number for s in settings), strict=True):
        spread = "" if setting.spread is None else f" ± {setting.spread:.{decimals_of(mean)}f}"
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
            drawn = (kind, values.tobytes()) not in found and len(found) < MANY
            picture = _chart("filter_plane", f"filter-{len(found)}", kind, values) if drawn else None
            note = "R, frequency plane" if kind == "frequency" else "A, pixel plane"
            found.setdefault((kind, values.tobytes()), (run.label, note, picture))
    return list(found.values())


def _facts(run: Run) -> dict[str, Any]:
    result, weights = run.result, run.checkpoint
    facts = {"model": run.model, "checkpoint": weights.get("file"), "checkpoint SHA-256": weights.get("sha256")}
    facts |= {key: result.get(key) for key in ("seed", "commit", "device")} | {"images/s": result.get("images_per_second")}
    facts |= {
        "finished": result.get("finished"),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _comparison(labels: list[str], rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Arrange values by key and run, the longer of the two downwards; many runs are folded."""
    summary = f"{len(labels)} runs, {len(rows)} {'key' if len(rows) == 1 else 'keys'}" if len(labels) > MANY else ""
    down, heads, sides, cells = len(labels) <= len(rows), labels, list(rows), list(rows.values())
    if not down:
        heads, sides, cells = sides, heads, list(zip(*cells, strict=True))
    return {"down": down, "heads": heads, "rows": list(zip(sides, cells, strict=True)), "summary": summary}
