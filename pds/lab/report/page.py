"""report.html: one file that needs nothing else, to look at, to keep and to send."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from pds.lab.report import pictures
from pds.lab.report.runs import FLOOR, Run, Runs, differing, flatten, read_runs
from pds.lab.report.settings import T, panels, swept_keys, symbol
from pds.lab.report.table import HEADS, WORDS, Grid, Measured, Table, plain_columns, texts, write_table
from pds.lab.report.text import csv_table, rounded, significant, write_text

if TYPE_CHECKING:
    from pds.lab.report.charts import Chart

log = logging.getLogger(__name__)

LEVEL = 0.03
"""Relative difference of two distances below which the page calls them level."""
MANY = 12
"""Runs beyond which a page shows strips instead of grids, and folds its long tables."""


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html, atomically: the comparison of all runs of the experiment in `folder`.

    The page holds its pictures, runs no script, loads nothing, and follows the reader's light or dark setting. Beside it
    go summary.csv, one row a run, the charts as `figures/*.svg`, and, where the runs fill a paper's table, that as table.md
    and table.csv. A part that cannot be made is a sentence on the page.

    Returns:
        Path of the page.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`.
        OSError: the files cannot be written.
    """
    runs, notes = read_runs(folder), []
    done, waiting = runs.done, Counter(point.state for point in runs.points)
    if waiting["waiting"] or waiting["running"]:
        counts = f"{waiting['waiting']} wait and {waiting['running']} run (or were killed)"
        notes.append(f"Of the {len(runs.points)} points of the sweep {counts}.")

    def part(what: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Nothing that only shows something may cost the rest of the page."""
        try:
            return make(*arguments)
        except OSError:
            raise
        except Exception as error:
            log.warning("%s cannot be shown", what, exc_info=True)
            notes.append(f"{what} cannot be shown: {error}")
            return None

    table = part("The table", _table, folder)
    chart = table and table["chart"]
    swept = part("What was swept over", _swept, runs, {T} if chart else set()) or []
    page = {
        "title": next((run.result["experiment"] for run in done if run.result.get("experiment")), folder.resolve().name),
        "lede": part("The verdict", _lede, done) or [],
        "lost": _lost(runs),
        "notes": notes,
        "table": table,
        "distances": part("The distances", _distances, done),
        "swept": swept,
        # The options of one sampler say nothing of the others.
        "fold_swept": chart and swept and done.common("sampler") is None,
        "images": part("Images", _images, done),
        "filters": part("Filters", _filters, done),
        "differences": part("What differs", _differences, runs),
        "provenance": part("Where the numbers come from", _provenance, done),
        "again": _again(runs),
        "words": WORDS,
        "many": MANY,
    }
    for drawn in [*([chart] if chart else []), *(c for section in swept for one in section["parts"] for c in one["charts"])]:
        write_text(folder / "figures" / f"{drawn.name}.svg", drawn.svg)
    write_text(folder / "summary.csv", csv_table(_summary(runs)))
    write_text(folder / "report.html", _template().render(page))
    return folder / "report.html"


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, **options).get_template("page.html")


def _chart(kind: str, *arguments: Any) -> Chart:
    from pds.lab.report import charts  # matplotlib takes a second, for which a page without charts need not wait

    return getattr(charts, kind)(*arguments)


def _summary(runs: Runs) -> list[list[Any]]:
    """One row a run in their order: what it is, every metric by its full name, every swept key."""
    heads = {"model": "model", "sampler": "sampler", "T": "iterations", "NFE": "nfe", "images": "images", "seconds": "seconds"}
    keys = swept_keys(runs)
    rows = [["name", "label", "state", "seed", *heads, *runs.metrics, *keys, "message"]]
    for run in runs:
        own = [
            run.folder.name if run.folder.exists() else "",
            run.label,
            run.state,
            run.result.get("seed", run.config.get("seed")),
        ]
        own += [run.result.get(key) for key in heads.values()] + [run.metrics.get(name) for name in runs.metrics]
        rows.append([*own, *(run.values.get(key) for key in keys), run.message])
    return rows


def _lede(done: Runs) -> list[str]:
    if not len(done):
        return ["No run has finished yet."]
    model, sampler, iterations, nfe, images, seed = map(
        done.common, ("model", "sampler", "iterations", "nfe", "images", "seed")
    )
    steps = f"{iterations} iterations ({nfe} score evaluations)" if nfe and iterations else "several lengths"
    text = (
        f"{len(done)} {'run' if len(done) == 1 else 'runs'} of {model or 'several models'} with {sampler or 'several samplers'}, "
        f"{steps}, {f'{images} images each' if images else 'images as listed'}, "
        f"{'from different seeds' if seed is None else f'from the same noise (seed {seed})'}."
    )
    told = [text]
    for model in done.models:
        of_model = done.where(lambda run, model=model: run.model == model)
        verdicts = filter(None, (_verdict(of_model, name) for name in of_model.metrics))
        told += [f"{model}: {verdict}" if len(done.models) > 1 else verdict for verdict in verdicts]
    return told


def _verdict(done: Runs, metric: str) -> str:
    """What the numbers of one metric say of one model, whichever way they fall; nothing without a run to compare with."""
    ranked = done.ranked(metric)
    pds = next((run for run in ranked if not run.vanilla), None)
    reference = done.baseline(pds, metric) if pds else None
    if pds is None or reference is None:
        return ""

    def text(run: Run) -> str:
        return done.texts(metric)[run.metrics[metric]]

    value, without, first = pds.metrics[metric], done.texts(metric)[reference], ranked[0]
    if abs(value - reference) < LEVEL * reference:
        return (
            f"Level: {metric} {text(pds)} at best with PDS ({pds.label}), {without} without preconditioning; differences below "
            f"{LEVEL:.0%} are within the noise of a single run."
        )
    if value > reference:
        return (
            f"No preconditioned run is closer to the data than vanilla: {metric} {text(pds)} at best ({pds.label}), "
            f"against {without} without preconditioning."
        )
    if pds is not first:
        return (
            f"{pds.label} is closer to the data than the same sampler without preconditioning ({metric} {text(pds)} against "
            f"{without}), but {first.label} ({first.result['sampler']}) is closest: {text(first)}."
        )
    others = [run for run in ranked if run.vanilla and run.metrics[metric] < reference]
    rival = f" ({others[0].result['sampler']}: {text(others[0])})" if others else ""
    return (
        f"{pds.label} is closest to the data: {metric} {text(pds)}, against {without} of the same sampler without "
        f"preconditioning{rival}."
    )


def _lost(runs: Runs) -> dict[str, list[tuple[str, str, list[str]]]]:
    """What has no result, those of one state and message together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        # Those of a sweep that run or wait are counted apart.
        if run.state in ("failed", "damaged", "skipped") or (run.state != "done" and not run.overrides):
            groups.setdefault((run.state, run.message), []).append(run.label)
    told: dict[str, list[tuple[str, str, list[str]]]] = {"failed": [], "skipped": []}
    for (state, message), labels in groups.items():
        told["failed" if state in ("failed", "damaged") else "skipped"].append((state, message, labels))
    return told


def _table(folder: Path) -> dict[str, Any] | None:
    """The table that the runs fill, and where it is a grid whose rows are curves, their chart."""
    written: tuple[Table, list[Measured]] | None = write_table(folder)
    if written is None:
        return None
    table, lines = written
    grid, rows = Grid.of(table, lines), texts(lines)
    # A figure of images has nothing printed, and a table that waits nothing measured.
    kept = [i for i, head in enumerate(HEADS) if head == "note" or any(row[i] != "–" for row in rows)]
    return {
        "title": table.title,
        "grid": grid,
        "about": [*(grid.sentences() if grid else []), *table.about()],
        "chart": _chart("rows", f"{grid.quantity}-against-NFE", grid) if grid and grid.curves() else None,
        "heads": [HEADS[i] for i in kept],
        "rows": [[row[i] for i in kept] for row in rows],
    }


def _distances(done: Runs) -> dict[str, Any] | None:
    if not len(done):
        return None
    columns = {head: of for head, of in plain_columns(done).items() if head not in ("run", "seed")}
    every = {name: [run.metrics[name] for run in done.ranked(name)] for name in done.metrics}

    def percent(value: float | None, name: str) -> str | None:
        longest = max(every[name])
        return None if value is None or not 0 <= value <= longest else f"{100 * value / longest if longest else 0:.1f}"

    def distance(run: Run, name: str) -> tuple[str, str, str | None, str | None, str]:
        value, reference = run.metrics.get(name), done.baseline(run, name)
        text = done.texts(name).get(value, "–")
        mark = percent(done.floors.get(name), name) if value is not None else None
        return name, text, percent(value, name), mark, f"{value / reference:.2f}×" if value is not None and reference else ""

    rows = [
        {
            "label": run.label,
            "run": run.result["name"],
            "tag": run.vanilla and "vanilla" not in run.label.lower(),
            "best": any(run.metrics.get(name) == every[name][0] for name in done.metrics),
            "plain": {**{head: str(of(run)) for head, of in columns.items()}, "seconds": seconds},
            "distances": [distance(run, name) for name in done.metrics],
        }
        for run, seconds in zip(done, rounded(run.number("seconds") for run in done), strict=True)
    ]
    few = [row for row, kept in zip(rows, _foremost(done), strict=True) if kept] if len(done) > MANY else []
    floors = [
        (name, done.texts(name)[done.floors[name]] if name in done.floors else "", None, None, "") for name in done.metrics
    ]
    if any(text for _, text, *_ in floors):
        last = {"label": FLOOR, "run": "", "tag": False, "best": False, "distances": floors}
        last["plain"] = dict.fromkeys(rows[0]["plain"], "")
        rows, few = [*rows, last], [*few, last] if few else []
    heads = ["run", *rows[0]["plain"], *(head for name in done.metrics for head in (name, "ratio to vanilla"))]
    return {"heads": heads, "rows": rows, "few": few, "metrics": done.metrics, "floors": done.other_floors, "count": len(done)}


def _foremost(done: Runs) -> list[bool]:
    """Whether a run is among the lowest of its model and metric, of vanilla ones and of others."""
    kept: set[Path] = set()
    for name, model, vanilla in itertools.product(done.metrics, done.models, (True, False)):
        ranked = done.where(lambda run, model=model, vanilla=vanilla: (run.model, run.vanilla) == (model, vanilla)).ranked(name)
        kept |= {run.folder for run in ranked[: MANY // 3]}
    return [run.folder in kept for run in done]


def _swept(runs: Runs, without: Iterable[str]) -> list[dict[str, Any]]:
    """The sections that show what the group was swept over, each with its charts; no curves over the keys `without`."""
    found, several, names = panels(runs), len(runs.done.models) > 1, Counter()
    seeds, curves, maps, alphas = sections = [[], [], [], []]

    def name(text: str) -> str:
        """Of a file: metrics of several models share one."""
        text = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
        names[text] += 1
        return text if names[text] == 1 else f"{text}-{names[text]}"

    for panel in found:
        of = f"{panel.metric}, {panel.model}" if several else panel.metric
        if panel.several_seeds:
            settings = sorted(panel.settings, key=lambda s: (not s.vanilla, s.number))
            rows = []
            for setting, mean in zip(settings, rounded(s.number for s in settings), strict=True):
                spread = "" if setting.spread is None else f" ± {setting.spread:.{len(mean.partition('.')[2])}f}"
                rows.append((panel.label([setting]), mean + spread, len(setting.runs)))
            seeds.append({"rows": rows, "note": of, "charts": []})
        for x in panel.axes:
            line = None if x in without else panel.curves(x)
            if line is not None:
                what = "T, NFE and seconds" if x == T else symbol(x)
                more = f"; of {len(line.lines) + line.left_out} lines those with the lowest distances" if line.left_out else ""
                drawn = _chart("against", name(f"{panel.metric}-against-{symbol(x) if x == T else x}"), panel, line)
                curves.append({"caption": f"Against {what}", "note": of + more, "charts": [drawn]})
        for x, y in itertools.combinations(panel.axes, 2):
            kept, left_out = panel.heat_maps(x, y)
            if kept:
                numbers = [setting.number for one in kept for setting in one.cells.values()]
                shades = min(numbers), max(numbers)
                drawn = [_chart("heat_map", name(f"{panel.metric}-over-{x}-and-{y}"), panel, one, shades) for one in kept]
                vanilla = [s for s in panel.settings if s.vanilla and x not in s.values and y not in s.values]
                facts = [of, *(f"{panel.label([s])} {significant(s.number)}" for s in vanilla[:4])]
                facts += [f"of {len(kept) + left_out} maps those with the lowest distances"] if left_out else []
                maps.append({"caption": f"Over {symbol(x)} and {symbol(y)}", "note": "; ".join(facts), "charts": drawn})
        if panel.best_alphas():
            drawn = _chart("best_alphas", name(f"{panel.metric}-best-alpha-against-T"), panel)
            alphas.append({"caption": "", "note": f"by {of}", "charts": [drawn]})
    bars, means = " Bars are a standard deviation over the seeds.", " Means over the seeds, ± a standard deviation."
    told = {
        "Over the seeds": "Runs that differ in their seed only, taken together: mean ± standard deviation.",
        "Curves": "Lower is closer to the data. Grey and dashed is vanilla." + bars * bool(seeds),
        "Heat maps": "Dark is closer to the data; the frame marks the lowest of a map. Hatched cells have no result."
        + means * bool(seeds),
        "The best α against T": "The α with the lowest distance at each T. The grid is discrete: the bar reaches to the "
        "neighbours of the best, between which the optimum lies. An open marker stands at an edge of its grid and is only a "
        "bound." + " The dashed line is α ∝ T through the reference of the configuration." * any(p.references() for p in found),
    }
    return [
        {"title": title, "note": note, "parts": parts}
        for (title, note), parts in zip(told.items(), sections, strict=True)
        if parts
    ]


def _images(done: Runs) -> dict[str, Any] | None:
    """Images of every run: its grid, or of many runs a strip each."""
    strips, groups, seed = len(done) > MANY, {}, done.common("seed")
    for run in done:
        picture = _seen(pictures.strip_of if strips else pictures.grid_of, run)
        if picture is not None:
            facts = (
                [run.model] * (len(done.models) > 1) + [run.result["sampler"]] + [f"T = {run.result['iterations']}"] * strips
            )
            facts += [f"{name} {done.texts(name)[value]}" for name, value in run.metrics.items()]
            groups.setdefault(run.result["seed"] if strips else "", []).append((run.label, ", ".join(facts), picture))
    note = "Images at the same place started from the same noise."
    if strips:
        note = "The images of a column started from the same noise."
    elif seed is None:
        note = "The runs have different seeds: images at the same place are unrelated."
    return {"groups": groups, "strips": strips, "note": note} if groups else None


def _seen(read: Callable[[Run], Any], run: Run) -> Any:
    """What `read` finds, or the sentence that says why it finds nothing: a damaged picture costs that picture alone."""
    try:
        return read(run)
    except Exception as error:  # Pillow raises anything
        return f"cannot be shown: {error}"


def _filters(done: Runs) -> list[tuple[str, str, Chart | None]]:
    """The filters R and A of the runs, equal ones once."""
    found: dict[bytes, tuple[str, str, Chart | None]] = {}
    for run in done:
        planes: dict[str, np.ndarray] | str = _seen(pictures.filters_of, run)
        if isinstance(planes, str):
            found[str(run.folder).encode()] = (run.label, planes, None)
            continue
        for kind, values in planes.items():
            key = kind.encode() + values.tobytes()
            if key not in found:
                drawn = _chart("filter_plane", f"filter-{len(found)}", kind, values) if len(found) < MANY else None
                note = "R, frequency plane" if kind == "frequency" else "A, pixel plane"
                found[key] = (run.label, note, drawn)
    return list(found.values())


def _differences(runs: Runs) -> dict[str, Any] | None:
    known = runs.where(lambda run: bool(run.config))
    rows = differing([flatten({k: v for k, v in run.config.items() if k != "sweep"}) for run in known])
    return _comparison(known, rows) if rows else None


def _provenance(done: Runs) -> dict[str, Any] | None:
    facts = [
        {
            "model": run.model,
            "checkpoint": run.checkpoint.get("file"),
            "checkpoint SHA-256": run.checkpoint.get("sha256"),
            "seed": run.result["seed"],
            **{key: run.result.get(key) for key in ("commit", "device")},
            "images/s": run.result.get("images_per_second"),
            "finished": run.result.get("finished"),
            "versions": ", ".join(f"{name} {version}" for name, version in run.result.get("versions", {}).items()),
        }
        for run in done
    ]
    facts = [{key: value for key, value in own.items() if value not in (None, "")} for own in facts]
    if not facts:
        return None
    rows = differing(facts)
    return {
        "shared": {key: _text(value) for key, value in facts[0].items() if key not in rows},
        "methods": {run.result["sampler"]: run.result["source"] for run in done if run.result.get("source")},
        "own": _comparison(done, {**rows, "run directory": [run.folder.name for run in done]}),
    }


def _again(runs: Runs) -> dict[str, Any]:
    own: dict[str, list[str]] = {}
    for run in runs:
        if run.result.get("command"):
            own.setdefault(run.result["command"], []).append(run.label)
    sweeps = list(dict.fromkeys(point.command for point in runs.points if point.command))
    return {"sweeps": sweeps, "runs": own, "points": len(runs.points)}


def _comparison(runs: Runs, rows: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """A table of values by key and run, the longer of the two downwards; folded where there are many runs."""
    labels = [run.label if run.state == "done" else f"{run.label} ({run.state})" for run in runs]
    keys, cells = list(rows), [[_text(value) for value in values] for values in rows.values()]
    if len(runs) > len(rows):
        keys, labels, cells = labels, keys, list(zip(*cells, strict=True))
    summary = f"{len(runs)} runs, {len(rows)} {'key' if len(rows) == 1 else 'keys'}" if len(runs) > MANY else ""
    return {"heads": labels, "rows": list(zip(keys, cells, strict=True)), "summary": summary}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
