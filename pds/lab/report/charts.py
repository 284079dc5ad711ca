"""Charts as SVG, black on white for a paper; the page's style sheet gives them the reader's own colours and font."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pds.lab.report.runs import FLOOR
from pds.lab.report.settings import Curves, HeatMap, Line, Panel, Setting, T, symbol
from pds.lab.report.table import Grid, timing
from pds.lab.text import shown, significant

_SOFT, _GRID, _BAD, _ON_SHADE = "#555555", "#dddddd", "#a3260f", "#010101"
"""The page's style sheet replaces the first three and black. The last is the ink on a pale cell and stays."""
_RAMP = ("#2f7fd1", "#4b74dc", "#7266dc", "#9458cf", "#b04cb8", "#c2458f", "#cb4868", "#cd5340", "#c4651c", "#a87a00")
"""From blue to ochre at one lightness that reads on white and on near-black."""
_QUIET = ("#7d8794", "#6f8f96", "#8b83a0", "#a08383", "#94895f")
"""Greys with a hint of colour, of the same lightness."""
_SHADES = LinearSegmentedColormap.from_list(
    "shades", ["#160b39", "#420a68", "#781c6d", "#b0315b", "#de563c", "#f78a18", "#fac63a", "#fcffa4"]
)
"""Dark violet to pale yellow; lightness only rises, so that the order of values survives in grey."""
_MARKERS = "osD^vPXph*"
_DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2), (8, 3))
_STYLE = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pds", "font.sans-serif": ["DejaVu Sans"], "font.size": 10},
    **{"axes.edgecolor": _SOFT, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": _GRID, "grid.linewidth": 0.7, "hatch.linewidth": 0.6},
    **{"xtick.color": _SOFT, "ytick.color": _SOFT, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 5},
}
_LOG_RANGE = 10


class Chart(NamedTuple):
    """A drawn figure."""

    name: str  # of its file, without extension
    svg: str  # the file
    width: float  # on a page, in pixels


class Column(NamedTuple):
    """An axis to the right."""

    head: str
    ticks: Sequence[float] = ()  # where they may stand; empty: anywhere
    log_range: float = _LOG_RANGE  # of values, beyond which it is logarithmic


class Series(NamedTuple):
    """One line of a chart."""

    label: str  # in the legend; empty where it has none
    xs: Sequence[Sequence[float]]  # a sequence a column of the chart
    ys: Sequence[float]
    style: dict[str, Any]  # as of `Axes.plot`
    reach: tuple[Sequence[float], Sequence[float]] | None = None  # of bars below and above each y
    bars: dict[str, Any] | None = None  # as of `Axes.errorbar`


def lines(
    name: str,
    title: str,
    head: str,
    columns: Sequence[Column],
    series: Sequence[Series],
    floor: float | None = None,
    **layout: Any,
) -> Chart:
    """Draw curves in columns that share the vertical axis.

    Args:
        name: of the chart's file.
        title: what it shows, for those who do not see it; the names of the lines follow.
        head: name of the axis upwards.
        columns: the axes to the right.
        series: the lines, in the order of the legend.
        floor: distance of real data to real data, where known.
        layout: `size` in points; `below`, for a legend there and not beside; `descending`, for x that falls to the right.
    """
    width, height = layout.get("size", (704, 320))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for i, (axes, column) in enumerate(zip(all_axes, columns, strict=True)):
            for one in series:
                axes.plot(one.xs[i], one.ys, label=one.label or "_", **one.style)
                if one.reach and any(map(any, one.reach)):
                    bars = {"elinewidth": 1, "capsize": 2.5, "ecolor": one.style["color"], "zorder": 2, **(one.bars or {})}
                    axes.errorbar(one.xs[i], one.ys, one.reach, fmt="none", **bars)
            _finish_x(axes, [x for one in series for x in one.xs[i]], column)
            if layout.get("descending"):
                axes.invert_xaxis()
        _finish_y(all_axes, head, [y for one in series for y in one.ys], floor)
        handles, labels = all_axes[0].get_legend_handles_labels()
        below = {"loc": "outside lower center", "ncols": min(4, len(labels))}
        figure.legend(handles, labels, **(below if layout.get("below") else {"loc": "outside right upper"}))
        return _chart(name, f"{title}: {', '.join(labels)}", figure)


def against(name: str, panel: Panel, curves: Curves) -> Chart:
    """Draw distance against one swept number, with vanilla as level lines; T is joined by NFE and seconds, side by side."""
    settings = [s for line in curves.lines for s in line.settings]
    if curves.x == T:
        heads = {"iterations": "T (iterations)", "nfe": "NFE (score evaluations)"}
        columns = [Column(head, [s.mean(key) for s in settings]) for key, head in heads.items()]
        columns.append(Column(timing(panel.runs)))
        layout = {"size": (880, 300 + 17 * math.ceil(len(curves.lines) / 4)), "below": True}
    else:
        columns, layout = [Column(symbol(curves.x), [s.values[curves.x] for s in settings])], {}
    quiet, strong = iter(_DASHES * len(curves.lines)), iter(ramp(sum(not line.vanilla for line in curves.lines)))
    series = []
    for line, marker in zip(curves.lines, _MARKERS * len(curves.lines), strict=False):
        style = {"color": _SOFT, "dashes": next(quiet)} if line.vanilla else {"color": next(strong)}
        xs = [[s.mean(key) for s in line.settings] for key in ("iterations", "nfe", "seconds")]
        xs = xs if curves.x == T else [[s.values[curves.x] for s in line.settings]]
        series.append(_series(line, xs, {"marker": marker, **style}))
    ends = [min(s.values[curves.x] for s in settings), max(s.values[curves.x] for s in settings)]
    for level, dashes in zip(curves.levels, _DASHES * len(curves.levels), strict=False):
        style = {"color": _SOFT, "linewidth": 1.2, "dashes": dashes}
        series.append(Series(level.label, [ends] * len(columns), [level.settings[0].number] * 2, style))
    what = "T, NFE and seconds" if curves.x == T else symbol(curves.x)
    return lines(name, f"{panel.metric} against {what}", panel.metric, columns, series, panel.floor, **layout)


def rows(name: str, grid: Grid) -> Chart:
    """Draw the distance of every row of a grid against NFE and seconds; the legend follows the order of the last distances.

    Preconditioned rows are strong and coloured; each other row has its own pair of quiet tone and dashes, up to 25.
    """
    curves = sorted(grid.curves(), key=lambda line: -line.settings[-1].number)
    strong = iter(ramp(sum(not line.vanilla for line in curves)))
    quiet = iter([(tone, dashes) for dashes in (None, *_DASHES) for tone in _QUIET] * len(curves))
    series = []
    for line, marker in zip(curves, _MARKERS * len(curves), strict=False):
        if line.vanilla:
            tone, dashes = next(quiet)
            style = {"color": tone, "linewidth": 1, "markersize": 3.5, **({"dashes": dashes} if dashes else {})}
        else:
            style = {"color": next(strong), "linewidth": 2.2, "markersize": 6, "zorder": 3}
        xs = [[s.mean(key) for s in line.settings] for key in ("nfe", "seconds")]
        series.append(_series(line, xs, {"marker": marker, **style}))
    ticks = [nfe for nfe in grid.usual("nfe") if nfe is not None]
    columns = [Column("NFE (score evaluations)", ticks, 1), Column(timing(grid.runs), log_range=1)]
    size = (942, max(360, 15 * len(curves) + 62))
    return lines(name, f"{grid.quantity} against NFE and seconds", grid.quantity, columns, series, grid.floor, size=size)


def best_alphas(name: str, panel: Panel) -> Chart:
    """Draw the best α of each T with its neighbours in the grid, and the lines α = α_ref T / T_ref of the configurations."""
    found, pairs, series = panel.best_alphas(), panel.references(), []
    for (label, bests), tone, marker in zip(found, ramp(len(found)), _MARKERS * len(found), strict=False):
        for inside, note in ((True, ""), (False, " (edge of its grid: a bound)")):
            placed = [best for best in bests if (None not in (best.below, best.above)) is inside]
            xs, ys = [best.iterations for best in placed], [best.alpha for best in placed]
            reach = [b.alpha - (b.below or b.alpha) for b in placed], [(b.above or b.alpha) - b.alpha for b in placed]
            style = {"color": tone, "marker": marker, "linestyle": "none", "markersize": 7, "mfc": tone if inside else "none"}
            bars = {"elinewidth": 5, "capsize": 0, "alpha": 0.35}
            series += [Series(f"{label or 'PDS'}, best α{note}", [xs], ys, style, reach, bars)] if placed else []
    ts = [best.iterations for _, bests in found for best in bests]
    for (alpha, t), dashes in zip(pairs, _DASHES * len(pairs), strict=False):
        ends = np.geomspace(min(ts), max(ts), 50)
        style = {"color": _SOFT, "linewidth": 1.2, "dashes": dashes}
        series.append(Series(f"α = {shown(alpha)}·T/{shown(t)}", [ends], alpha * ends / t, style))
    return lines(name, f"Best α against T, by {panel.metric}", "α", [Column("T (iterations)", ts)], series, size=(634, 310))


def heat_map(name: str, panel: Panel, found: HeatMap, low: float, high: float) -> Chart:
    """Draw distance in the cells of a grid, dark where it is low; the colours reach from `low` to `high`."""
    columns, rows = (sorted({place[axis] for place in (*found.cells, *found.lost)}) for axis in (0, 1))
    width, height = 62, 42 if panel.several_seeds else 34
    inner = (max(len(columns) * width, 170), len(rows) * height)
    total = (inner[0] + 86, inner[1] + 72)
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(total[0] / 72, total[1] / 72))
        axes = figure.add_axes((70 / total[0], 46 / total[1], len(columns) * width / total[0], inner[1] / total[1]))
        for i, column in enumerate(columns):
            for j, row in enumerate(rows):
                setting = found.cells.get((column, row))
                if setting is not None:
                    _draw_cell(axes, i, j, setting, _shade(setting.number, low, high), setting.number == found.lowest)
                else:
                    state = found.lost.get((column, row), "")
                    axes.add_patch(Rectangle((i, j), 1, 1, facecolor="none", edgecolor=_GRID, hatch="////", linewidth=0))
                    axes.text(i + 0.5, j + 0.5, state, ha="center", va="center", color=_SOFT if state == "skipped" else _BAD)
        axes.set(xlim=(0, len(columns)), ylim=(0, len(rows)), xlabel="T (iterations)" if found.x == T else symbol(found.x))
        axes.set_ylabel(symbol(found.y), **_upright(symbol(found.y)))
        axes.set_xticks(np.arange(len(columns)) + 0.5, map(shown, columns))
        axes.set_yticks(np.arange(len(rows)) + 0.5, map(shown, rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(found.held or " ", fontsize=10, loc="left")
        over = f"{panel.metric} over {symbol(found.x)} and {symbol(found.y)}"
        return _chart(name, f"{over}, {found.held}: lowest {significant(found.lowest)}", figure)


def filter_plane(name: str, kind: str, values: np.ndarray) -> Chart:
    """Draw a filter: R ("frequency") with zero frequency in the centre, or A ("space").

    Args:
        name: of the chart.
        kind: "frequency" or "space".
        values: (C, H, W), a frequency filter in FFT layout. Equal channels share one panel, others have one each on one scale.
    """
    sides, unit, names = values.shape[:0:-1], "pixel", [[0, n // 2, n - 1] for n in values.shape[:0:-1]]
    places = names
    if kind == "frequency":
        values, unit, f = np.fft.fftshift(values, axes=(-2, -1)), "cycles/pixel", np.array([-0.5, -0.25, 0, 0.25, 0.5])
        names, places = [[f"{x:g}" for x in f]] * 2, [np.clip(n // 2 + f * n, -0.5, n - 0.5) for n in sides]
    panels = values[:1] if np.allclose(values, values[:1]) else values
    with matplotlib.rc_context({**_STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=((100 + 190 * len(panels)) / 72, (60 + 185 * sides[1] / sides[0]) / 72), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
            drawn = axes.imshow(panel, _SHADES, vmin=panels.min(), vmax=panels.max(), interpolation="none")
            axes.set_xticks(places[0], names[0])
            axes.set_yticks(places[1], names[1])
            axes.set(xlabel=unit, title=f"channel {i}" if len(panels) > 1 else "")
        bar = figure.colorbar(drawn, cax=all_axes[-1].inset_axes((1.06, 0, 0.06, 1)))
        bar.ax.set_title("R" if kind == "frequency" else "A", fontsize=10)
        # 1 leaves a coordinate as it is.
        marks = sorted({panels.min(), panels.max()} | ({1.0} if panels.min() < 1 < panels.max() else set()))
        bar.set_ticks(marks, labels=[f"{mark:.3g}" for mark in marks])
        return _chart(name, f"{kind} filter", figure)


def _shade(value: float, low: float, high: float) -> np.ndarray:
    if low > 0 and high > _LOG_RANGE * low:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return np.array(_SHADES(0.18 + 0.8 * ((value - low) / (high - low) if high > low else 0.0))[:3])


def _draw_cell(axes: Axes, i: int, j: int, setting: Setting, shade: np.ndarray, lowest: bool) -> None:
    axes.add_patch(Rectangle((i + 0.015, j + 0.03), 0.97, 0.94, facecolor=shade, edgecolor="none"))
    ink = "#ffffff" if shade @ (0.299, 0.587, 0.114) < 0.55 else _ON_SHADE
    text = significant(setting.number) + ("" if setting.spread is None else f"\n± {significant(setting.spread)}")
    weight = "bold" if lowest else "normal"
    axes.text(i + 0.5, j + 0.5, text, ha="center", va="center", color=ink, fontweight=weight, linespacing=1.1)
    if lowest:
        axes.add_patch(Rectangle((i + 0.05, j + 0.09), 0.9, 0.82, facecolor="none", edgecolor=ink, linewidth=1.6))


def _series(line: Line, xs: Sequence[Sequence[float]], style: dict[str, Any]) -> Series:
    spreads = [setting.spread or 0.0 for setting in line.settings]
    return Series(line.label, xs, [setting.number for setting in line.settings], style, (spreads, spreads))


def ramp(count: int) -> list[str]:
    """Return `count` colours, spread over the ramp."""
    return [_RAMP[round(i * (len(_RAMP) - 1) / max(1, count - 1)) if count > 1 else 5] for i in range(count)]


def _finish_x(axes: Axes, values: Sequence[float], column: Column) -> None:
    """Set a log scale where the values span much, and the column's ticks where they have room."""
    axes.set_xlabel(column.head)
    logarithmic = min(values) > 0 and max(values) > column.log_range * min(values)
    ticks = sorted(set(column.ticks))
    if logarithmic:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    if 1 < len(ticks) <= 9:
        places = dict(zip(ticks, np.log(ticks) if logarithmic else ticks, strict=True))
        room, kept = 0.09 * (places[ticks[-1]] - places[ticks[0]]), [ticks[0]]
        for tick in ticks[1:]:
            kept += [tick] if places[tick] - places[kept[-1]] >= room else []
        axes.xaxis.set_major_locator(FixedLocator(kept))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def _finish_y(all_axes: Sequence[Axes], head: str, values: Sequence[float], floor: float | None) -> None:
    all_axes[0].set_ylabel(head, **_upright(head))
    values = [*values, *([] if floor is None else [floor])]
    if min(values) > 0 and max(values) > _LOG_RANGE * min(values):
        all_axes[0].set_yscale("log")
        _plain_log(all_axes[0].yaxis)
    if floor is not None:
        for axes in all_axes:
            axes.axhline(floor, color=_SOFT, linewidth=0.8, zorder=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        all_axes[-1].annotate(FLOOR, (1, floor), (0, 3), color=_SOFT, fontsize=8.5, **where)


def _plain_log(axis: Axis) -> None:
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _upright(head: str) -> dict[str, Any]:
    """Place the name of a vertical axis; a short symbol stays upright."""
    return {"rotation": 0, "va": "center", "labelpad": 8} if len(head) < 3 else {}


def _chart(name: str, title: str, figure: Figure) -> Chart:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    with matplotlib.rc_context({"svg.hashsalt": name}):  # so that charts of one page share no identifier
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    for prefix, uri in (("", "http://www.w3.org/2000/svg"), ("xlink", "http://www.w3.org/1999/xlink")):
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(buffer.getvalue())
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        group.attrib.pop("id", None)  # nothing refers to it
    root.attrib |= {"role": "img", "aria-label": title, "style": "background: #fff"}
    return Chart(name, ElementTree.tostring(root, encoding="unicode"), 1.25 * 72 * figure.get_figwidth())
