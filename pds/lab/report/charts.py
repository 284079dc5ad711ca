"""Charts of a swept group of runs as SVG: for the page in the reader's own colours, for a paper black on white."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pds.evaluation.excess_noise import NoiseTrack
from pds.lab.report.pictures import colours
from pds.lab.report.runs import significant, timing
from pds.lab.report.swept import Best, Curves, HeatMap, Line, Panel, Setting, T, shown, symbol
from pds.lab.report.tables import Grid, Measured

_INK, _SOFT, _GRID, _BAD = "#010203", "#010204", "#010205", "#010206"
"""Stand for colours that the page chooses by light and dark mode."""
_ON_PAGE = {_INK: "currentColor", _SOFT: "var(--soft)", _GRID: "var(--line)", _BAD: "var(--bad)"}
_ON_PAPER = {_INK: "#000000", _SOFT: "#555555", _GRID: "#dddddd", _BAD: "#a3260f"}
_RAMP = ("#2f7fd1", "#4b74dc", "#7266dc", "#9458cf", "#b04cb8", "#c2458f", "#cb4868", "#cd5340", "#c4651c", "#a87a00")
"""From blue to ochre at one lightness that reads on white and on near-black."""
_QUIET = ("#7d8794", "#6f8f96", "#8b83a0", "#a08383", "#94895f")
"""Greys with a hint of colour, of the same lightness."""
_MARKERS = "osD^vPXph*"
_DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2), (8, 3))
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pds",
    "font.family": ["DejaVu Sans"],  # whose widths lay out the figure; the SVG asks for the reader's own
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
}
_WIDE = 880
_LOG_RANGE = 10


@dataclass(frozen=True)
class Chart:
    """A drawn figure.

    Attributes:
        name: its file's, without extension.
        title: what it shows, for those who do not see it.
        svg: as drawn, its colours still to be chosen.
    """

    name: str
    title: str
    svg: str

    def on_page(self) -> str:
        """An <svg> element that takes the page's colours and font, its identifiers its own among those of other charts."""
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', self.svg)[1])
        body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", self.svg)
        # On a narrow screen it is scrolled sideways before its text becomes too small.
        size = f'style="width:{1.25 * width:.0f}px;min-width:{max(0.9 * width, min(1.25 * width, 420)):.0f}px"'
        return _coloured(body, _ON_PAGE).replace("<svg ", f'<svg role="img" aria-label="{escape(self.title)}" {size} ', 1)

    def on_paper(self) -> str:
        """An SVG file."""
        svg = _coloured(self.svg, _ON_PAPER)
        return svg.replace(">", f'><title>{escape(self.title)}</title><rect width="100%" height="100%" fill="#fff"/>', 1)


def against_iterations(name: str, panel: Panel, curves: Curves) -> Chart:
    """Distance against T, NFE and seconds, three panels that share the distance."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE / 72, (300 + 17 * math.ceil(len(curves.lines) / 4)) / 72), layout="constrained")
        all_axes = figure.subplots(1, 3, sharey=True)
        heads = {"iterations": "T (iterations)", "nfe": "NFE (score evaluations)", "seconds": _seconds(panel)}
        for axes, (key, head) in zip(all_axes, heads.items(), strict=True):
            _draw_lines(axes, curves.lines, lambda setting, key=key: setting.mean(key))
            _finish_x(axes, [s.mean(key) for line in curves.lines for s in line.settings], head, marked=key != "seconds")
        _finish_y(all_axes[0], panel.metric, _distances(panel, curves.lines))
        _draw_floor(all_axes, panel.floor)
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)))
        title = f"{panel.metric} against T, NFE and seconds: {', '.join(line.label for line in curves.lines)}"
        return Chart(name, title, _svg(figure))


def against_nfe(name: str, grid: Grid) -> Chart:
    """Distance of every row of a grid against NFE and against seconds, the rows named between the two.

    Preconditioned rows are strong and coloured, the others thin and quiet; the names stand in the order of the last distances.
    """
    curves = grid.curves()
    distances = [line.measured for lines in curves.values() for line in lines]
    distances += [grid.floor] * (grid.floor is not None)
    top, right, bottom, left = 16, 12, 46, 62
    middle = 80 + 5.4 * max(map(len, curves))
    total = (1.07 * _WIDE, max(300, 15 * len(curves)) + top + bottom)
    side, height = (total[0] - left - middle - right) / 2, total[1] - top - bottom
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(total[0] / 72, total[1] / 72))
        places = [(x / total[0], bottom / total[1], side / total[0], height / total[1]) for x in (left, left + side + middle)]
        first = figure.add_axes(places[0])
        second = figure.add_axes(places[1], sharey=first)
        styles = _row_styles(curves)
        for axes, key in ((first, "nfe"), (second, "seconds")):
            for row, lines in curves.items():
                _draw_row(axes, [(getattr(line, key), line.measured, line.deviation or 0.0) for line in lines], styles[row])
        nfe = [value for value in grid.usual("nfe") if value is not None]
        _finish_x(first, nfe, "NFE (score evaluations)", marked=True, log_range=1)
        seconds = [line.seconds for lines in curves.values() for line in lines]
        _finish_x(second, seconds, grid.timing, marked=False, log_range=1)
        second.tick_params(labelleft=False)
        _finish_y(first, grid.metric, distances)
        _draw_floor([first, second], grid.floor)
        _name_rows(first, {row: (lines[-1].nfe, lines[-1].measured) for row, lines in curves.items()}, styles)
        return Chart(name, f"{grid.metric} against NFE and seconds: {', '.join(curves)}", _svg(figure))


def against(name: str, panel: Panel, curves: Curves) -> Chart:
    """Distance against one swept number, vanilla without it as level lines."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.8 * _WIDE / 72, 320 / 72), layout="constrained")
        axes = figure.subplots()
        _draw_lines(axes, curves.lines, lambda setting: setting.values[curves.x])
        _finish_x(axes, [s.values[curves.x] for line in curves.lines for s in line.settings], _head(curves.x), marked=True)
        for line, dashes in zip(curves.levels, _DASHES * len(curves.levels), strict=False):
            (setting,) = line.settings
            axes.axhline(setting.distance, color=_SOFT, linewidth=1.2, dashes=dashes, label=line.label)
        _finish_y(axes, panel.metric, _distances(panel, [*curves.lines, *curves.levels]))
        _draw_floor([axes], panel.floor)
        figure.legend(loc="outside right upper")
        labels = ", ".join(line.label for line in [*curves.lines, *curves.levels])
        return Chart(name, f"{panel.metric} against {symbol(curves.x)}: {labels}", _svg(figure))


def noise_along(name: str, tracks: Sequence[NoiseTrack]) -> Chart:
    """Predicted (lines) and sampled (marks) noise against the noise level; a colour for each T, dashes for a filter."""
    lengths = sorted({track.iterations for track in tracks})
    tones = dict(zip(lengths, _ramp(len(lengths)), strict=True))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.75 * _WIDE / 72, 300 / 72), layout="constrained")
        axes = figure.subplots()
        for track in tracks:
            style = {"color": tones[track.iterations], "linestyle": "-" if track.what == "vanilla" else "--"}
            axes.plot(track.sigmas, track.predicted, label=f"T = {track.iterations}, {track.what}", **style)
            axes.plot(track.sigmas, track.sampled, ".", color=style["color"], markersize=4)
        _finish_x(
            axes, [sigma for track in tracks for sigma in track.sigmas], "σ (noise level; sampling goes to the right)", False, 1
        )
        axes.invert_xaxis()
        _finish_y(axes, "noise / σ", [k for track in tracks for k in (*track.predicted, *track.sampled)])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        title = f"Noise in units of its level: {', '.join(f'T = {track.iterations}, {track.what}' for track in tracks)}"
        return Chart(name, title, _svg(figure))


def heat_map(name: str, panel: Panel, found: HeatMap, shades: tuple[float, float]) -> Chart:
    """Distance in the cells of a grid, dark where it is low.

    Args:
        name: of the file.
        panel: whose distances they are.
        found: the cells.
        shades: lowest and highest distance of the colours, of all maps that are shown together.
    """
    width, height = 62, 34
    spread = panel.seeds[1] > 1
    height += 8 * spread
    columns, rows = found.columns, found.rows
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        heading = found.held or " "
        inner = max(len(columns) * width, 170)
        figure = Figure(figsize=((inner + 86) / 72, (len(rows) * height + 72) / 72))
        left, bottom, total = 70, 46, (inner + 86, len(rows) * height + 72)
        box = (left / total[0], bottom / total[1], len(columns) * width / total[0], len(rows) * height / total[1])
        axes = figure.add_axes(box)
        for i, column in enumerate(columns):
            for j, row in enumerate(rows):
                setting = found.cells.get((column, row))
                if setting is not None and math.isfinite(setting.distance):
                    lowest = setting.distance == found.lowest
                    _draw_cell(axes, i, j, setting, _shade(setting.distance, *shades), lowest)
                else:
                    state = "not finite" if setting is not None else found.lost.get((column, row), "")
                    axes.add_patch(Rectangle((i, j), 1, 1, facecolor="none", edgecolor=_GRID, hatch="////", linewidth=0))
                    axes.text(i + 0.5, j + 0.5, state, ha="center", va="center", color=_BAD if state == "failed" else _SOFT)
        axes.set(xlim=(0, len(columns)), ylim=(0, len(rows)), xlabel=_head(found.x))
        axes.set_ylabel(_head(found.y), **_upright(_head(found.y)))
        axes.set_xticks(np.arange(len(columns)) + 0.5, map(shown, columns))
        axes.set_yticks(np.arange(len(rows)) + 0.5, map(shown, rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(heading, fontsize=10, loc="left")
        title = f"{panel.metric} over {symbol(found.x)} and {symbol(found.y)}, {found.held}: lowest {significant(found.lowest)}"
        return Chart(name, title, _svg(figure))


def best_alphas(
    name: str, panel: Panel, lines: Sequence[tuple[str, list[Best]]], pairs: Sequence[tuple[float, float]]
) -> Chart:
    """The best α of each T with its neighbours in the grid, and the lines α = α_ref T / T_ref of `pairs`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.72 * _WIDE / 72, 310 / 72), layout="constrained")
        axes = figure.subplots()
        xs = [best.iterations for _, bests in lines for best in bests]
        ys = [y for _, bests in lines for best in bests for y in (best.alpha, best.below, best.above) if y is not None]
        for (label, bests), colour, marker in zip(lines, _ramp(len(lines)), _MARKERS * len(lines), strict=False):
            for best in bests:
                ends = [best.alpha if best.below is None else best.below, best.alpha if best.above is None else best.above]
                axes.plot([best.iterations] * 2, ends, color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt", zorder=2)
            for inside, note in ((True, ""), (False, " (edge of its grid: a bound)")):
                placed = [b for b in bests if (b.below is not None and b.above is not None) is inside]
                if placed:
                    places = [b.iterations for b in placed], [b.alpha for b in placed]
                    fill = colour if inside else "none"
                    text = f"{label or 'PDS'}, best α{note}"
                    axes.plot(
                        *places, linestyle="none", marker=marker, markersize=7, mfc=fill, mec=colour, label=text, zorder=3
                    )
        for (alpha, t), dashes in zip(pairs, _DASHES * len(pairs), strict=False):
            ends = np.geomspace(min(xs), max(xs), 50)
            label = f"α = {shown(alpha)}·T/{shown(t)}"
            axes.plot(ends, alpha * ends / t, color=_SOFT, linewidth=1.2, dashes=dashes, label=label)
            ys += [alpha * min(xs) / t, alpha * max(xs) / t]
        _finish_x(axes, xs, "T (iterations)", marked=True)
        if max(ys) > _LOG_RANGE * min(ys):
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
        axes.set_ylabel("α", **_upright("α"))
        figure.legend(loc="outside right upper")
        return Chart(name, f"Best α against T, by {panel.metric}", _svg(figure))


def shades(maps: Sequence[HeatMap]) -> tuple[float, float]:
    """Lowest and highest distance of some maps."""
    values = [s.distance for found in maps for s in found.cells.values() if math.isfinite(s.distance)]
    return min(values, default=0.0), max(values, default=0.0)


def _shade(value: float, low: float, high: float) -> np.ndarray:
    if low > 0 and high > _LOG_RANGE * low:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return colours(np.array(0.18 + 0.8 * ((value - low) / (high - low) if high > low else 0.0))) / 255


def _draw_cell(axes: Axes, i: int, j: int, setting: Setting, shade: np.ndarray, lowest: bool) -> None:
    axes.add_patch(Rectangle((i + 0.015, j + 0.03), 0.97, 0.94, facecolor=shade, edgecolor="none"))
    ink = "#ffffff" if shade @ (0.299, 0.587, 0.114) < 0.55 else "#000000"
    text = significant(setting.distance) + (f"\n± {significant(setting.spread)}" if len(setting.runs) > 1 else "")
    weight = "bold" if lowest else "normal"
    axes.text(i + 0.5, j + 0.5, text, ha="center", va="center", color=ink, fontweight=weight, linespacing=1.1)
    if lowest:
        axes.add_patch(Rectangle((i + 0.05, j + 0.09), 0.9, 0.82, facecolor="none", edgecolor=ink, linewidth=1.6))


def _draw_lines(axes: Axes, lines: Sequence[Line], x: Callable[[Setting], float]) -> None:
    coloured = iter(_ramp(sum(not line.vanilla for line in lines)))
    dashed = iter(_DASHES * len(lines))
    for line, marker in zip(lines, _MARKERS * len(lines), strict=False):
        settings = [s for s in line.settings if math.isfinite(s.distance) and math.isfinite(x(s))]
        style = {"color": _SOFT, "dashes": next(dashed)} if line.vanilla else {"color": next(coloured)}
        places = sorted((x(s), s.distance, s.spread) for s in settings)
        xs, ys, spreads = zip(*places, strict=True) if places else ((), (), ())
        axes.plot(xs, ys, marker=marker, label=line.label, **style)
        if any(spreads):
            axes.errorbar(xs, ys, spreads, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2.5)


def _row_styles(curves: dict[str, list[Measured]]) -> dict[str, dict[str, Any]]:
    """Colours for the preconditioned rows; of the others each has its own pair of tone and dashes, up to 25."""
    vanilla = {row: all(line.vanilla for line in lines) for row, lines in curves.items()}
    strong = iter(_ramp(len(curves) - sum(vanilla.values())))
    styles: dict[str, dict[str, Any]] = {}
    for i, (row, quiet) in enumerate(vanilla.items()):
        style: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)]}
        if quiet:
            number = sum(vanilla[other] for other in styles)
            dashes = (None, *_DASHES)[number // len(_QUIET) % (1 + len(_DASHES))]
            style |= {"color": _QUIET[number % len(_QUIET)], "linewidth": 1, "markersize": 3.5, "zorder": 2}
            style |= {"dashes": dashes} if dashes else {}
        else:
            style |= {"color": next(strong), "linewidth": 2.2, "markersize": 6, "zorder": 3}
        styles[row] = style
    return styles


def _draw_row(axes: Axes, points: Sequence[tuple[float, float, float]], style: dict[str, Any]) -> None:
    xs, ys, spreads = zip(*points, strict=True)
    axes.plot(xs, ys, **style)
    if any(spreads):
        axes.errorbar(xs, ys, spreads, fmt="none", ecolor=style["color"], elinewidth=0.8, capsize=2, zorder=style["zorder"])


def _name_rows(axes: Axes, ends: dict[str, tuple[float, float]], styles: dict[str, dict[str, Any]]) -> None:
    """The names of lines right of `axes`, as far apart as they need, each led to from the end of its line."""
    axes.autoscale_view()
    inside = axes.transData + axes.transAxes.inverted()
    width, height = (side * 72 / axes.figure.dpi for side in axes.bbox.size)
    order = sorted(ends, key=lambda row: ends[row][1])
    starts = [inside.transform(ends[row]) for row in order]
    across = {"transform": axes.transAxes, "clip_on": False}
    for row, (x, y), place in zip(order, starts, _apart([y for _, y in starts], 14 / height), strict=True):
        style, strong = styles[row], styles[row]["linewidth"] > 1
        lead, turn, left, middle, right, text = (1 + points / width for points in (4, 30, 32, 46, 60, 65))
        axes.plot([x, lead, turn], [y, y, place], color=style["color"], linewidth=0.6, alpha=0.7, zorder=1, **across)
        axes.plot([left, middle, right], [place] * 3, markevery=[1], **style, **across)
        ink, weight = (_INK, "bold") if strong else (_SOFT, "normal")
        axes.text(text, place, row, color=ink, fontweight=weight, fontsize=8.5, va="center", transform=axes.transAxes)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Rising places between 0 and 1, moved as little as keeps them `gap` apart (least squares, by pooling violators)."""
    pools: list[tuple[float, int]] = []  # mean of places less the gaps below them, and how many they are
    for i, value in enumerate(values):
        pools.append((value - i * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    highest = 1 - gap * (len(values) - 1)
    bases = [min(max(mean, 0.0), highest) for mean, count in pools for _ in range(count)]
    return [base + i * gap for i, base in enumerate(bases)]


def _ramp(count: int) -> list[str]:
    return [_RAMP[round(i * (len(_RAMP) - 1) / max(1, count - 1)) if count > 1 else 5] for i in range(count)]


def _draw_floor(all_axes: Sequence[Axes], floor: float | None) -> None:
    if floor is not None:
        for axes in all_axes:
            axes.axhline(floor, color=_SOFT, linewidth=0.8, zorder=1)
        all_axes[-1].annotate(
            "real data (floor)", (1, floor), (0, 3), ("axes fraction", "data"), "offset points",
            ha="right", va="bottom", color=_SOFT, fontsize=8.5,
        )  # fmt: skip


def _finish_x(axes: Axes, values: Sequence[float], head: str, marked: bool, log_range: float = _LOG_RANGE) -> None:
    """A log scale where the values span more than `log_range`, and with `marked` ticks at them, where they have room."""
    values = sorted({v for v in values if math.isfinite(v)})
    axes.set_xlabel(head)
    logarithmic = bool(values) and min(values) > 0 and max(values) > log_range * min(values)
    if logarithmic:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    if marked and 1 < len(values) <= 9:
        places = np.log(values) if logarithmic else np.array(values)
        room = 0.09 * (places[-1] - places[0])
        kept = [values[0]]
        for value, place in zip(values[1:], places[1:], strict=True):
            if place - (math.log(kept[-1]) if logarithmic else kept[-1]) >= room:
                kept.append(value)
        axes.xaxis.set_major_locator(FixedLocator(kept))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def _distances(panel: Panel, lines: Sequence[Line]) -> list[float]:
    values = [s.distance for line in lines for s in line.settings if math.isfinite(s.distance)]
    return values + [panel.floor] * (panel.floor is not None)


def _finish_y(axes: Axes, head: str, values: Sequence[float]) -> None:
    axes.set_ylabel(head)
    if values and min(values) > 0 and max(values) > _LOG_RANGE * min(values):
        axes.set_yscale("log")
        _plain_log(axes.yaxis)


def _plain_log(axis: Axis) -> None:
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _head(key: str) -> str:
    return "T (iterations)" if key == T else symbol(key)


def _upright(head: str) -> dict[str, Any]:
    """How to place the name of a vertical axis: a symbol is not turned on its side."""
    return {"rotation": 0, "va": "center", "labelpad": 8} if len(head) < 3 else {}


def _seconds(panel: Panel) -> str:
    return timing(*({run.result.get(key) for run in panel.runs} for key in ("images", "device")))


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    # The style sheet would reach everything on the page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", text)


def _coloured(svg: str, colours: dict[str, str]) -> str:
    return re.sub("|".join(colours), lambda match: colours[match[0]], svg)
