"""report.html: one file that needs nothing else, to look at, to keep and to send."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pds.files import atomic_path
from pds.lab.points import Point, Points
from pds.lab.report import charts, swept
from pds.lab.report.charts import Chart
from pds.lab.report.images import MANY, filters_section, images_section
from pds.lab.report.runs import (
    FLOOR,
    MISSING,
    RunSummary,
    baseline,
    common,
    differing,
    floors,
    metric_names,
    model,
    other_floors,
    read_runs,
    rounded,
    several_models,
    significant,
)
from pds.lab.report.summary import write_summary
from pds.lab.report.swept import Panel, panels, symbol
from pds.lab.report.tables import HEADS, Grid, Measured, Table, about_table, table_lines, texts, write_table

LEVEL = 0.03
"""Relative difference of two distances below which the page calls them level."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title · PDS lab</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dfe3e8; --panel: #f5f6f8;
  --accent: #8a2a63; --mark: #f6e9f1; --bar: #c3c9d1; --bad: #a3260f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ed; --soft: #9aa4b0; --line: #2c323a;
  --panel: #1b1f25; --accent: #f08fc0; --mark: #35202c; --bar: #454d58; --bad: #ff8f75; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0; font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .8rem; font-size: 1.15rem; }
p { margin: .6rem 0; max-width: 46rem; }
.lede { font-size: 1.1rem; }
.soft, .note { color: var(--soft); }
.note { font-size: .88rem; }
code, pre { font: .86em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { margin: .3rem 0 1.1rem; padding: .7rem .9rem; background: var(--panel); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .9rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
td code { display: block; min-width: 8rem; max-width: 24rem; }
.facts tbody th { position: sticky; left: 0; background: var(--page); }
.facts tbody th code { white-space: nowrap; }
thead th { font-size: .82rem; color: var(--soft); vertical-align: bottom; }
.results { width: 100%; }
.printed { font-size: .9rem; }
.printed th, .printed td { padding: .3rem .8rem; white-space: nowrap; }
.printed .number { text-align: right; }
.printed td:last-child { min-width: 14rem; white-space: normal; color: var(--soft); }
.grid { font-size: .9rem; }
.grid th, .grid td { padding: .2rem .4rem; white-space: nowrap; }
.grid thead th { text-align: right; }
.grid .apart { padding-left: 1.5rem; }
.about .note { margin: .25rem 0; max-width: 60rem; }
.about { margin: .8rem 0 1.6rem; }
.grid tbody th { position: sticky; left: 0; padding-left: 0; background: var(--page); font-weight: 400; }
.grid small { color: var(--soft); font-size: .76em; }
.grid td.best { background: var(--mark); font-weight: 600; }
.grid .failing { color: var(--bad); }
.results .number { text-align: right; }
.results tbody th { min-width: 13rem; }
.results th .note { display: block; font-weight: 400; max-width: 19rem; overflow-wrap: anywhere; }
.many th, .many td, .seeds th, .seeds td { padding-top: .25rem; padding-bottom: .25rem; }
.many th { font-size: .92rem; }
.seeds tbody th { min-width: 11rem; }
.results.many th .note { max-width: 30rem; font-size: .78rem; }
.best td, .best th { background: var(--mark); }
.tag { display: inline-block; margin-left: .45rem; padding: 0 .45rem; border: 1px solid currentColor;
  border-radius: 99px; font-size: .72rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
.tag.top { color: var(--accent); }
.distance { min-width: 8.5rem; }
.bar { display: block; position: relative; height: 4px; margin-top: .35rem; }
.bar i { display: block; height: 100%; min-width: 2px; background: var(--bar); border-radius: 2px; }
.best .bar i { background: var(--accent); }
.bar b { position: absolute; top: -3px; width: 1.5px; height: 10px; background: var(--soft); }
.failed { margin: 1.2rem 0; padding: .2rem 1rem; border-left: 3px solid var(--bad); background: var(--panel); }
.failed strong { color: var(--bad); }
.skipped { margin: 1.2rem 0; padding: .2rem 1rem; border-left: 3px solid var(--line); color: var(--soft); }
.failed code, .skipped code { font-size: .8em; }
h3 { margin: 1.6rem 0 .6rem; font-size: 1rem; }
.number { text-align: right; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); }
.chart { margin: 0 0 1.8rem; }
.chart svg { display: block; max-width: 100%; height: auto; }
.maps { display: flex; flex-wrap: wrap; gap: .4rem 2rem; }
.maps .chart { max-width: 100%; margin-bottom: 1rem; }
.strips figure { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 1rem; align-items: center;
  margin-bottom: .5rem; }
.strips figcaption { font-size: .88rem; margin: 0; }
.strips img { width: auto; }
.figures { display: grid; align-items: end; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: 2rem 1.4rem; }
figure { margin: 0; }
figcaption { margin-bottom: .45rem; line-height: 1.35; }
figure img { display: block; width: 100%; height: auto; border-radius: 3px; }
figure .plot { max-width: 24rem; }
.pixels { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.5rem; margin: 0 0 1.2rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  .strips figure { grid-template-columns: 1fr; gap: .2rem; margin-bottom: .9rem; }
  body { padding-top: 1.5rem; }
  .grid tbody th { min-width: 8rem; white-space: normal; }
  .results thead { display: none; }
  .results tr { display: block; padding: .8rem .9rem; border: 1px solid var(--line); border-radius: 8px;
    margin-bottom: .8rem; }
  .results tr.best { border-color: var(--accent); background: var(--mark); }
  .results th, .results td { display: block; padding: .1rem 0; border: 0; background: none; }
  .results tbody th { margin-bottom: .4rem; }
  .results td { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; text-align: right; }
  .results td::before { content: attr(data-name); color: var(--soft); text-align: left; overflow-wrap: anywhere; }
  .results .bar { grid-column: 1 / -1; }
  .results .empty { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
</style>
</head>
<body>
<header>
<p class="soft">PDS lab · comparison</p>
<h1>$title</h1>
$lede
</header>
<main>
$sections
</main>
</body>
</html>
""")


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html, atomically: the comparison of all runs of the experiment in `folder`.

    The page holds its pictures, runs no script, loads nothing, and follows the reader's light or dark setting. Beside it
    go summary.csv, one row a run, the charts as `figures/*.svg`, and, where the runs fill a paper's table, that as table.md
    and table.csv.

    Returns:
        Path of the page.

    Raises:
        PDSError: there is neither a run nor a sweep in `folder`.
    """
    runs, points = read_runs(folder), Points(folder).read()
    done = [run for run in runs if run.state == "done"]
    title = next((run.result["experiment"] for run in done if run.result.get("experiment")), folder.resolve().name)
    table = write_table(folder)
    table_section, table_charts = ("", []) if table is None else _table(table, table_lines(folder, table))
    shown = _swept(runs, {swept.T} if table_charts else set())
    swept_sections = "".join(section for section, _ in shown)
    if table_charts and swept_sections and common(run.result.get("sampler") for run in done) is None:
        # The options of one sampler say nothing of the others.
        swept_sections = _folded("Seeds, curves and heat maps of single options", swept_sections)
    sections = [
        _failures(runs, points),
        table_section,
        _distances(done),
        swept_sections,
        images_section(done, lambda run: ", ".join(f"{n} {_column(done, n)[v]}" for n, v in run.metrics.items())),
        filters_section(done),
        _differences(runs),
        _provenance(done),
        _again(runs, points),
    ]
    page = _PAGE.substitute(title=escape(str(title)), lede=_lede(done), sections="\n".join(filter(None, sections)))
    for chart in (*table_charts, *(chart for _, charts_ in shown for chart in charts_)):
        with atomic_path(folder / "figures" / f"{chart.name}.svg") as temporary:
            temporary.write_text(chart.on_paper(), encoding="utf-8")
    write_summary(folder / "summary.csv", runs)
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _lede(done: Sequence[RunSummary]) -> str:
    if not done:
        return '<p class="lede">No run has finished yet.</p>'
    facts = {key: common(run.result.get(key) for run in done) for key in ("model", "sampler", "iterations", "nfe")}
    images, seed = (common(run.result.get(key) for run in done) for key in ("images", "seed"))
    steps = f"{facts['iterations']} iterations ({facts['nfe']} score evaluations)" if facts["nfe"] else "several lengths"
    noise = f"from the same noise (seed {seed})" if seed is not None else "from different seeds"
    text = (
        f"{len(done)} {'run' if len(done) == 1 else 'runs'} of {facts['model'] or 'several models'} with "
        f"{facts['sampler'] or 'several samplers'}, {steps}, "
        f"{f'{images} images each' if images else 'images as listed'}, {noise}."
    )
    verdicts = []
    for title in dict.fromkeys(map(model, done)):
        of_model = [run for run in done if model(run) == title]
        prefix = f"{title}: " if several_models(done) else ""
        verdicts += [prefix + verdict for verdict in (_verdict(of_model, name) for name in metric_names(of_model)) if verdict]
    paragraphs = "".join(f"<p>{escape(verdict)}</p>" for verdict in verdicts)
    return f'<p class="lede">{escape(text)}</p>{paragraphs}'


def _verdict(done: Sequence[RunSummary], metric: str) -> str:
    """What the numbers of one metric say of one model, whichever way they fall; nothing without a run to compare with."""
    ranked = sorted((r for r in done if math.isfinite(r.metrics.get(metric, math.nan))), key=lambda r: r.metrics[metric])
    pds = next((r for r in ranked if not r.vanilla), None)
    reference = baseline(pds, done, metric) if pds else None
    if pds is None or reference is None:
        return ""
    texts = _column(done, metric)
    value, reference_text = texts[pds.metrics[metric]], texts[reference]
    if abs(pds.metrics[metric] - reference) < LEVEL * reference:
        return (
            f"Level: {metric} {value} at best with PDS ({pds.label}), {reference_text} without preconditioning; a single "
            f"measurement cannot tell apart what differs by less than {LEVEL:.0%}."
        )
    if pds.metrics[metric] < reference:
        if pds is ranked[0]:
            others = [r for r in ranked if r.vanilla and r.metrics[metric] < reference]
            rival = f" ({others[0].result.get('sampler', '')}: {texts[others[0].metrics[metric]]})" if others else ""
            return (
                f"{pds.label} is closest to the data: {metric} {value}, against {reference_text} of the same sampler without "
                f"preconditioning{rival}."
            )
        return (
            f"{pds.label} is closer to the data than the same sampler without preconditioning ({metric} {value} against "
            f"{reference_text}), but {ranked[0].label} ({ranked[0].result.get('sampler', '')}) is closest: "
            f"{texts[ranked[0].metrics[metric]]}."
        )
    return (
        f"No preconditioned run is closer to the data than vanilla: {metric} {value} at best ({pds.label}), "
        f"against {reference_text} without preconditioning."
    )


def _failures(runs: Sequence[RunSummary], points: Sequence[Point]) -> str:
    def items(shown: Sequence[RunSummary], most: int = 3) -> str:
        alike: dict[tuple[str, str], list[str]] = {}
        for run in shown:
            alike.setdefault((run.state, run.message), []).append(f"<code>{escape(run.label)}</code>")
        html = ""
        for (state, message), labels in alike.items():
            more = f"<br>and {len(labels) - most} more" if len(labels) > most else ""
            names = "<br>".join(labels[:most])
            html += f"<p><strong>{escape(state)}</strong> {names}{more}<br>{escape(message)}</p>"
        return html

    failed = [run for run in runs if run.state == "failed"]
    # Those of a sweep are counted below.
    unfinished = [run for run in runs if run.state not in ("done", "failed", "skipped") and not run.overrides]
    skipped = [run for run in runs if run.state == "skipped"]
    waiting, running = (sum(point.state == state for point in points) for state in ("waiting", "running"))
    html = f'<div class="failed">{items(failed)}</div>' if failed else ""
    html += f'<div class="skipped">{items([*unfinished, *skipped])}</div>' if unfinished or skipped else ""
    if waiting or running:
        html += f"<p>Of the {len(points)} points of the sweep {waiting} wait and {running} run (or were killed).</p>"
    return html


def _table(table: Table, lines: Sequence[Measured]) -> tuple[str, list[Chart]]:
    """The table that the runs fill, and where it is a grid whose rows are curves, their chart."""
    grid = Grid.of(table, lines)
    long = _long_form(lines)
    sentences = [*(grid.sentences() if grid else []), *about_table(table)]
    about = f"<div class=about>{''.join(f'<p class=note>{escape(sentence)}</p>' for sentence in sentences)}</div>"
    drawn = [charts.against_nfe(f"{grid.metric}-against-NFE", grid)] if grid and grid.curves() else []
    figures = ""
    if grid and drawn:
        note = "Lower is closer to the data. Thick and coloured is preconditioned, thin is not."
        note += " Bars are a standard deviation over the seeds." * grid.several_seeds
        figures = _figure(drawn[0], f"Against NFE and seconds <span class=note>{note}</span>")
    html = f"{_grid(grid)}{about}{figures}{_folded('Every cell in full', long)}" if grid else about + long
    return f"<section><h2>{escape(table.title)}</h2>{html}</section>", drawn


def _grid(grid: Grid) -> str:
    """Rows downwards, the columns twice: for what was measured and for the seconds it took."""
    blocks, columns = grid.blocks(), grid.columns

    def cell(block: int, column: int, text: str, spread: str, kind: str) -> str:
        classes = " ".join(filter(None, ("number", kind, apart(block, column))))
        return f'<td class="{classes}">{escape(text)}{f" <small>± {spread}</small>" if spread else ""}</td>'

    def apart(block: int, column: int) -> str:
        return "apart" if block and not column else ""

    groups = "".join(f'<th scope="colgroup" colspan={len(columns)}>{escape(head)}</th>' for head in blocks)
    names = "".join(
        f'<th scope="col" class="{f"number {apart(block, column)}".strip()}">{escape(name)}</th>'
        for block in range(len(blocks))
        for column, name in enumerate(columns)
    )
    body = ""
    for row, *parts in zip(grid.rows, *blocks.values(), strict=True):
        cells = (cell(block, column, *shown) for block, part in enumerate(parts) for column, shown in enumerate(part))
        body += f'<tr><th scope="row">{escape(row)}</th>{"".join(cells)}</tr>'
    head = f"<thead><tr><th rowspan=2></th>{groups}</tr><tr>{names}</tr></thead>"
    return f"<div class=scroll><table class=grid>{head}<tbody>{body}</tbody></table></div>"


def _long_form(lines: Sequence[Measured]) -> str:
    rows = texts(lines)
    # A figure of images has nothing printed, and a table that waits nothing measured.
    shown = [i for i, head in enumerate(HEADS) if head == "note" or any(row[i] != MISSING for row in rows)]
    number = [' class="number"' if HEADS[i] not in ("row", "column", "metric", "note") else "" for i in shown]
    head = "".join(f'<th scope="col"{n}>{HEADS[i]}</th>' for i, n in zip(shown, number, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{n}>{escape(row[i])}</td>' for i, n in zip(shown, number, strict=True))}</tr>" for row in rows
    )
    return f"<div class=scroll><table class=printed><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _distances(done: Sequence[RunSummary]) -> str:
    if not done:
        return ""
    names, floor = metric_names(done), floors(done)
    texts = {name: _column(done, name) for name in names}
    finite = {n: [r.metrics[n] for r in done if math.isfinite(r.metrics.get(n, math.nan))] for n in names}
    seconds = rounded([run.result.get("seconds") for run in done])
    plain = {"model": "model"} if several_models(done) else {}
    plain |= {"sampler": "sampler", "T": "iterations", "NFE": "nfe", "images": "images"}
    rows: dict[Path, str] = {}
    for index, run in enumerate(done):
        best = any(finite[n] and run.metrics.get(n) == min(finite[n]) for n in names)
        tags = '<span class="tag">vanilla</span>' if run.vanilla and "vanilla" not in run.label.lower() else ""
        tags += '<span class="tag top">lowest</span>' if best else ""
        note = f'<span class="note">{escape(str(run.result.get("name", ""))).replace(",", ",<wbr>")}</span>'
        cells = [f'<th scope="row">{escape(run.label)}{tags}{note}</th>']
        cells += [_cell(head, escape(str(run.result.get(key, MISSING)))) for head, key in plain.items()]
        cells.append(_cell("seconds", seconds[index]))
        for name in names:
            value, reference = run.metrics.get(name), baseline(run, done, name)
            text = texts[name][value] if value is not None else MISSING
            if value is not None and finite[name] and math.isfinite(value):
                text += _bar(value, max(finite[name]), floor.get(name))
            ratio = f"{value / reference:.2f}×" if value is not None and reference else ""
            cells += [_cell(name, text, "distance" if value is not None else "empty"), _cell("ratio to vanilla", ratio)]
        rows[run.folder] = f"<tr{' class=best' if best else ''}>{''.join(cells)}</tr>"
    last = ""
    if floor:
        cells = [f'<th scope="row" class="soft">{FLOOR}</th>', *(_cell("", "") for _ in range(len(plain) + 1))]
        for name in names:
            text = texts[name][floor[name]] if name in floor else ""
            cells += [_cell(name, text, "distance"), _cell("", "")]
        last = f"<tr>{''.join(cells)}</tr>"
    heads = ["run", *plain, "seconds", *(h for name in names for h in (name, "ratio to vanilla"))]
    head = "".join(
        f'<th scope="col"{"" if h in ("run", "model", "sampler") else " class=number"}>{escape(h)}</th>' for h in heads
    )
    notes = "".join(f"<p class=note><code>{escape(name)}</code>: {_metric_note(name)}</p>" for name in names)
    notes += "".join(f"<p class=note>{escape(line)}</p>" for line in other_floors(done))

    def table(shown: Iterable[RunSummary], kind: str) -> str:
        body = "".join(rows[run.folder] for run in shown) + last
        return f"<div class=scroll><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    if len(done) > MANY:
        tables = table(_foremost(done), "results many") + _folded(
            f"The lowest are shown; all {len(done)} runs", table(done, "results many")
        )
    else:
        tables = table(done, "results")
    return (
        f"<section><h2>Distance to the data</h2>{tables}"
        "<p class=note>Lower is closer. Each distance is the Fréchet distance between Gaussians fitted to the features "
        "of generated and of reference images. Its name says which features and how many images: only equal names may "
        "be compared, since fewer images give a larger distance even to a perfect sampler. The floor is that effect: "
        "real images measured in the same way (the mark on each bar). The ratio is to the best vanilla run of the same "
        "model, sampler, NFE and image count. These are single measurements: repeat with other seeds before trusting a "
        f"small difference. T is iterations, NFE is evaluations of the score network.</p>{notes}</section>"
    )


def _swept(runs: Sequence[RunSummary], without: set[str]) -> list[tuple[str, list[Chart]]]:
    """The sections that show what the group was swept over, each with its charts; no curves over the keys `without`."""
    found = panels(runs)
    names: dict[str, int] = {}

    def name(text: str) -> str:
        """Of a file: metrics of several models share one."""
        text = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
        names[text] = names.get(text, 0) + 1
        return text if names[text] == 1 else f"{text}-{names[text]}"

    curves = functools.partial(_curves, without=without)
    return [
        section
        for make in (_seeds, curves, _heat_maps, _best_alphas)
        if (section := make(found, name, several_models(runs)))[0]
    ]


Namer = Callable[[str], str]


def _of(panel: Panel, several: bool) -> str:
    return f"{panel.metric}, {panel.model}" if several else panel.metric


def _figure(chart: Chart, caption: str) -> str:
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure class=chart>{caption}<div class=scroll>{chart.on_page()}</div></figure>"


def _seeds(found: Sequence[Panel], name: Namer, several: bool) -> tuple[str, list[Chart]]:
    tables = []
    for panel in (panel for panel in found if panel.seeds[1] > 1):
        settings = sorted(panel.settings, key=lambda s: (not s.vanilla, s.distance))
        means = rounded([s.distance for s in settings])
        decimals = len(means[0].partition(".")[2])
        rows = "".join(
            f'<tr><th scope="row">{escape(panel.label([s]))}</th><td class=number>{mean}'
            f"{f' ± {s.spread:.{decimals}f}' if len(s.runs) > 1 else ''}</td><td class=number>{len(s.runs)}</td></tr>"
            for s, mean in zip(settings, means, strict=True)
        )
        head = f"<th scope=col>setting</th><th scope=col class=number>{escape(_of(panel, several))}</th>"
        head += "<th scope=col class=number>seeds</th>"
        html = f"<div class=scroll><table class=seeds><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        tables.append(_folded(f"{len(settings)} settings", html) if len(settings) > MANY else html)
    if not tables:
        return "", []
    note = "<p class=note>Runs that differ in their seed only, taken together: mean ± standard deviation.</p>"
    return f"<section><h2>Over the seeds</h2>{note}{''.join(tables)}</section>", []


def _curves(found: Sequence[Panel], name: Namer, several: bool, without: set[str]) -> tuple[str, list[Chart]]:
    drawn, figures = [], []
    for panel in found:
        for x in (x for x in panel.axes if x not in without):
            curves = panel.curves(x)
            if curves is None:
                continue
            draw = charts.against_iterations if x == swept.T else charts.against
            chart = draw(name(f"{panel.metric}-against-{symbol(x) if x == swept.T else x}"), panel, curves)
            more = (
                f"; of {len(curves.lines) + curves.left_out} lines those with the lowest distances" if curves.left_out else ""
            )
            what = "T, NFE and seconds" if x == swept.T else symbol(x)
            caption = f"Against {escape(what)} <span class=note>{escape(_of(panel, several) + more)}</span>"
            drawn.append(chart)
            figures.append(_figure(chart, caption))
    if not drawn:
        return "", []
    note = "Lower is closer to the data. Grey and dashed is vanilla."
    note += " Bars are a standard deviation over the seeds." * any(panel.seeds[1] > 1 for panel in found)
    return f"<section><h2>Curves</h2><p class=note>{note}</p>{''.join(figures)}</section>", drawn


def _heat_maps(found: Sequence[Panel], name: Namer, several: bool) -> tuple[str, list[Chart]]:
    drawn, parts = [], []
    for panel in found:
        for x, y in itertools.combinations(panel.axes, 2):
            kept, left_out = panel.heat_maps(x, y)
            if not kept:
                continue
            shades = charts.shades(kept)
            names = [name(f"{panel.metric}-over-{x}-and-{y}") for _ in kept]
            pictures = [charts.heat_map(n, panel, m, shades) for n, m in zip(names, kept, strict=True)]
            drawn += pictures
            facts = [_of(panel, several)]
            vanilla = [s for s in panel.settings if s.vanilla and x not in s.values and y not in s.values]
            facts += [f"{panel.label([s])} {significant(s.distance)}" for s in vanilla[:4]]
            facts += [f"of {len(kept) + left_out} maps those with the lowest distances"] if left_out else []
            head = f"Over {escape(symbol(x))} and {escape(symbol(y))} <span class=note>{escape('; '.join(facts))}</span>"
            parts.append(f"<p>{head}</p><div class=maps>{''.join(_figure(chart, '') for chart in pictures)}</div>")
    if not drawn:
        return "", []
    note = "Dark is closer to the data; the frame marks the lowest of a map. Hatched cells have no result."
    note += " Means over the seeds, ± a standard deviation." * any(panel.seeds[1] > 1 for panel in found)
    return f"<section><h2>Heat maps</h2><p class=note>{note}</p>{''.join(parts)}</section>", drawn


def _best_alphas(found: Sequence[Panel], name: Namer, several: bool) -> tuple[str, list[Chart]]:
    drawn, figures = [], []
    for panel in found:
        lines = panel.best_alphas()
        if lines:
            chart = charts.best_alphas(name(f"{panel.metric}-best-alpha-against-T"), panel, lines, panel.references())
            drawn.append(chart)
            figures.append(_figure(chart, f"<span class=note>by {escape(_of(panel, several))}</span>"))
    if not drawn:
        return "", []
    note = (
        "The α with the lowest distance at each T. The grid is discrete: the bar reaches to the neighbours of the best, "
        "between which the optimum lies. An open marker stands at an edge of its grid and is only a bound."
    )
    note += " The dashed line is α ∝ T through the reference of the configuration." * any(p.references() for p in found)
    return f"<section><h2>The best α against T</h2><p class=note>{note}</p>{''.join(figures)}</section>", drawn


def _foremost(done: Sequence[RunSummary]) -> list[RunSummary]:
    """Of each model and metric the lowest runs, some of them vanilla; in the order of `done`."""
    kept: set[Path] = set()
    for group in {(model(run), name, run.vanilla) for run in done for name in run.metrics}:
        ranked = sorted(
            (
                r
                for r in done
                if (model(r), r.vanilla) == (group[0], group[2]) and math.isfinite(r.metrics.get(group[1], math.nan))
            ),
            key=lambda r: r.metrics[group[1]],
        )
        kept |= {run.folder for run in ranked[: MANY // 3]}
    return [run for run in done if run.folder in kept]


def _column(done: Sequence[RunSummary], metric: str) -> dict[float, str]:
    """The text of every number that the page shows of one metric, rounded alike wherever it appears."""
    values = [value for value in (*(run.metrics.get(metric) for run in done), floors(done).get(metric)) if value is not None]
    return dict(zip(values, rounded(values), strict=True))


def _metric_note(name: str) -> str:
    if "inception" in name:
        return "Inception features; to be compared with published values of the same image count and reference only."
    return "not Inception features: not to be compared with any published FID."


def _cell(name: str, content: str, kind: str = "") -> str:
    number = "" if name in ("model", "sampler") else "number "
    return f'<td class="{number}{kind if content else "empty"}" data-name="{escape(name)}">{content}</td>'


def _bar(value: float, longest: float, floor: float | None) -> str:
    def percent(x: float) -> str:
        return f"{100 * x / longest if longest > 0 else 0:.1f}%"

    mark = f'<b style="left:{percent(floor)}"></b>' if floor is not None and 0 <= floor <= longest else ""
    return f'<span class="bar" aria-hidden="true"><i style="width:{percent(value)}"></i>{mark}</span>'


def _differences(runs: Sequence[RunSummary]) -> str:
    runs = [run for run in runs if run.config]
    rows = differing([{k: v for k, v in run.config.items() if k != "sweep"} for run in runs])
    if not rows:
        return ""
    return (
        "<section><h2>What differs between the runs</h2><p class=note>Every key of the resolved configurations that is "
        f"not the same in all runs; everything else is equal.</p>{_comparison(runs, rows)}</section>"
    )


def _provenance(done: Sequence[RunSummary]) -> str:
    if not done:
        return ""
    facts = [_facts(run) for run in done]
    rows = differing(facts)
    shared = {key: value for key, value in facts[0].items() if key not in rows}
    pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_text(value))}</dd>" for key, value in shared.items())
    own = {**rows, "run directory": [run.folder.name for run in done]}
    return f"<section><h2>Where the numbers come from</h2><dl>{pairs}</dl>{_methods(done)}{_comparison(done, own)}</section>"


def _methods(done: Sequence[RunSummary]) -> str:
    """The paper of each sampler, once."""
    sources = {str(run.result["sampler"]): str(run.result["source"]) for run in done if run.result.get("source")}
    pairs = "".join(f"<dt>{escape(sampler)}</dt><dd>{escape(source)}</dd>" for sampler, source in sources.items())
    return f"<h3>Methods</h3><dl>{pairs}</dl>" if pairs else ""


def _again(runs: Sequence[RunSummary], points: Sequence[Point]) -> str:
    swept_by = dict.fromkeys(point.command for point in points if point.command)
    own: dict[str, list[str]] = {}
    for run in runs:
        if run.result.get("command"):
            own.setdefault(str(run.result["command"]), []).append(run.label)
    if not swept_by and not own:
        return ""
    html = f"<p>The sweep has {len(points)} points.</p>" if points else ""
    html += "".join(f"<pre>{escape(command)}</pre>" for command in swept_by)
    listed = "".join(
        f"<div>{escape(labels[0]) if len(labels) == 1 else f'{len(labels)} runs'}<pre>{escape(command)}</pre></div>"
        for command, labels in own.items()
    )
    if listed:
        html += _folded(f"The commands of the {len(own)} runs, one by one", listed) if len(own) > MANY else listed
    return f"<section><h2>Run it again</h2>{html}</section>"


def _folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _facts(run: RunSummary) -> dict[str, Any]:
    result = run.result
    checkpoint = result.get("checkpoint") or {}
    facts = {
        "model": result.get("model"),
        "checkpoint": checkpoint.get("file"),
        "checkpoint SHA-256": checkpoint.get("sha256"),
        "seed": result.get("seed"),
        "commit": result.get("commit"),
        "device": result.get("device"),
        "images/s": result.get("images_per_second"),
        "finished": result.get("finished"),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _comparison(runs: Sequence[RunSummary], rows: dict[str, list[Any]]) -> str:
    """A table of values by key and run, the longer of the two downwards; folded where there are many runs."""
    states = ["" if run.state == "done" else f'<span class="tag">{escape(run.state)}</span>' for run in runs]
    labels = [escape(run.label) + state for run, state in zip(runs, states, strict=True)]
    keys = [f"<code>{escape(key)}</code>" for key in rows]
    cells = [[f"<td><code>{escape(_text(value))}</code></td>" for value in values] for values in rows.values()]
    if len(runs) > len(rows):
        heads, sides, cells = keys, labels, list(zip(*cells, strict=True))
    else:
        heads, sides = labels, keys
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(f'<tr><th scope="row">{s}</th>{"".join(row)}</tr>' for s, row in zip(sides, cells, strict=True))
    table = f"<table class=facts><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    html = f"<div class=scroll>{table}</div>"
    return _folded(f"{len(runs)} runs, {len(rows)} {'key' if len(rows) == 1 else 'keys'}", html) if len(runs) > MANY else html


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
