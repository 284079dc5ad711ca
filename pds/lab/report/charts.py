"""The charts of a report: curves over swept keys, rows of a table, heat maps, the best α, filters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pds.lab import charts as house
from pds.lab.charts import DASHES, SOFT, Chart, Column, Series, lines
from pds.lab.report.settings import Comparable, Curves, HeatMap, Line, T, repeated, symbol
from pds.lab.report.table import Grid, SideBySide, timing
from pds.lab.text import as_text, significant

NFE = "NFE (score evaluations)"
Style = dict[str, Any]
LEVEL: Style = {"color": SOFT, "linewidth": 1.2}
POINTS: Style = {"linestyle": "none", "markersize": 7}


def against(name: str, comparable: Comparable, x: str, curves: Curves) -> Chart:
    """Draw distance against one swept number, with vanilla as level lines; T is joined by NFE and seconds, side by side."""
    settings, layout, heads = [s for line in curves.lines for s in line.settings], {}, {x: symbol(x)}
    if x == T:
        heads = {"iterations": "T (iterations)", "nfe": NFE, "seconds": timing(comparable.runs)}
        layout = {"size": (880, 300 + 17 * math.ceil(len(curves.lines) / 4)), "below": True}
    columns = [Column(head, [s.at(key) for s in settings if key != "seconds"]) for key, head in heads.items()]
    series = _series(curves.lines, heads, {}, [{"color": SOFT, "dashes": dashes} for dashes in DASHES])
    ends = [pick(s.at(x) for s in settings) for pick in (min, max)]
    for level, dashes in zip(curves.levels, cycle(DASHES), strict=False):
        ys = [level.settings[0].number] * 2
        series.append(Series(level.label, [ends] * len(columns), ys, LEVEL | {"dashes": dashes}))
    title, floor = f"{comparable.quantity} against {', '.join(heads.values())}", comparable.runs.floors.get(comparable.quantity)
    return lines(name, title, comparable.quantity, columns, series, floor, **layout)


def rows(name: str, grid: Grid) -> Chart:
    """Draw the distance of every row of a grid against NFE and seconds; the legend follows the order of the last distances.

    Preconditioned rows are strong and coloured; each other row has its own pair of quiet tone and dashes, up to 25.
    """
    curves = sorted(grid.curves(), key=lambda line: -line.settings[-1].number)
    tones = [{"color": tone, "dashes": dashes} for dashes in ((None, None), *DASHES) for tone in house.QUIET]
    quiet = [{"linewidth": 1, "markersize": 3.5, **tone} for tone in tones]
    series = _series(curves, ("nfe", "seconds"), {"linewidth": 2.2, "markersize": 6, "zorder": 3}, quiet)
    columns = [Column(NFE, [nfe for nfe in grid.usual("nfe") if nfe is not None], 1), Column(timing(grid.runs), log_range=1)]
    size, floor = (942, max(360, 15 * len(curves) + 62)), grid.runs.floors.get(grid.quantity)
    return lines(name, f"{grid.quantity} against NFE and seconds", grid.quantity, columns, series, floor, size=size)


def _series(drawn: Sequence[Line], keys: Iterable[str], strong: Style, quiet: Iterable[Style]) -> list[Series]:
    """Return lines over `keys`: the preconditioned in the colours of the ramp and `strong`, each other in a `quiet` style."""
    series, tones, quiet = [], iter(house.ramp(sum(not line.vanilla for line in drawn))), cycle(quiet)
    for line, marker in zip(drawn, cycle(house.MARKERS), strict=False):
        style = {"marker": marker, **(next(quiet) if line.vanilla else {"color": next(tones), **strong})}
        spreads, xs = [s.spread or 0.0 for s in line.settings], [[s.at(key) for s in line.settings] for key in keys]
        series.append(Series(line.label, xs, [s.number for s in line.settings], style, (spreads, spreads)))
    return series


def best_alphas(name: str, comparable: Comparable) -> Chart:
    """Draw the best α of each T with its neighbours in the grid, and the lines α = α_ref T / T_ref of the configurations."""
    found, series = comparable.best_alphas(), []
    for (label, bests), tone, marker in zip(found, house.ramp(len(found)), cycle(house.MARKERS), strict=False):
        for inside, note in ((True, ""), (False, " (edge of its grid: a bound)")):
            placed = [best for best in bests if best.inside is inside]
            reach = [best.alpha - best.below for best in placed], [best.above - best.alpha for best in placed]
            style, bars = {"color": tone, "marker": marker, "mfc": tone if inside else "none"}, {"elinewidth": 5, "capsize": 0}
            xs, ys = [best.iterations for best in placed], [best.alpha for best in placed]
            one = Series(f"{label or 'PDS'}, best α{note}", [xs], ys, POINTS | style, reach, bars | {"alpha": 0.35})
            series += [one] if placed else []
    ts = [best.iterations for _, bests in found for best in bests]
    for (alpha, t), dashes in zip(comparable.references(), cycle(DASHES), strict=False):
        ends, style = np.geomspace(min(ts), max(ts), 50).tolist(), LEVEL | {"dashes": dashes}
        series.append(Series(f"α = {as_text(alpha)}·T/{as_text(t)}", [ends], [alpha * end / t for end in ends], style))
    return lines(
        name, f"Best α against T, by {comparable.quantity}", "α", [Column("T (iterations)", ts)], series, size=(634, 310)
    )


def precision_recall(name: str, table: SideBySide) -> Chart:
    """Draw each setting at its recall and precision; the reach of a bar is a standard error."""
    series, tones = [], house.ramp(len(table.rows))
    for (label, row), tone, marker in zip(table.rows.items(), tones, cycle(house.MARKERS), strict=False):
        x, y = row["recall"], row["precision"]
        reach = [y.error or 0.0], [y.error or 0.0]
        series.append(Series(label, [[x.number]], [y.number], POINTS | {"color": tone, "marker": marker}, reach))
    columns = [Column("recall (diversity)", log_range=math.inf)]
    return lines(name, "Precision against recall", "precision (fidelity)", columns, series, size=(634, 310))


def heat_map(name: str, comparable: Comparable, keys: tuple[str, str], found: HeatMap, alike: Sequence[HeatMap]) -> Chart:
    """Draw distance in the cells of a grid over two keys, dark where it is low; the maps `alike` share the colours."""
    columns, rows = (sorted({place[axis] for place in (*found.cells, *found.lost)}) for axis in (0, 1))
    x, y = map(symbol, keys)
    width, height = len(columns) * 62, len(rows) * (42 if repeated(comparable.settings) else 34)
    total, numbers = (max(width, 170) + 86, height + 72), [s.number for one in alike for s in one.cells.values()]
    low, high = min(numbers), max(numbers)
    norm = (LogNorm if low > 0 and high > house.LOG_RANGE * low else Normalize)(low, high)
    with matplotlib.rc_context({**house.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(total[0] / 72, total[1] / 72))
        axes = figure.add_axes((70 / total[0], 46 / total[1], width / total[0], height / total[1]))
        for (i, column), (j, row) in product(enumerate(columns), enumerate(rows)):
            setting, about = found.cells.get((column, row)), Style(ha="center", va="center")
            if setting is None:
                state = found.lost.get((column, row), "")
                axes.add_patch(Rectangle((i, j), 1, 1, facecolor="none", edgecolor=house.GRID, hatch="////", linewidth=0))
                axes.text(i + 0.5, j + 0.5, state, color=SOFT if state == "skipped" else house.BAD, **about)
                continue
            shade = np.array(house.SHADES(0.18 + 0.8 * norm(setting.number))[:3])
            axes.add_patch(Rectangle((i + 0.015, j + 0.03), 0.97, 0.94, facecolor=shade, edgecolor="none"))
            about |= {"color": "#ffffff" if shade @ (0.299, 0.587, 0.114) < 0.55 else house.ON_SHADE, "linespacing": 1.1}
            if setting.number == found.lowest:
                frame = {"facecolor": "none", "edgecolor": about["color"], "linewidth": 1.6}
                axes.add_patch(Rectangle((i + 0.05, j + 0.09), 0.9, 0.82, **frame))
                about["fontweight"] = "bold"
            axes.text(i + 0.5, j + 0.5, "\n± ".join(filter(None, setting.shown[:2])), **about)
        axes.set(xlim=(0, len(columns)), ylim=(0, len(rows)), xlabel="T (iterations)" if keys[0] == T else x)
        axes.set_ylabel(y, **house.upright(y))
        axes.set_xticks(np.arange(len(columns)) + 0.5, map(as_text, columns))
        axes.set_yticks(np.arange(len(rows)) + 0.5, map(as_text, rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(found.held or " ", fontsize=10, loc="left")
        title = f"{comparable.quantity} over {x} and {y}, {found.held}: lowest {significant(found.lowest)}"
        return house.chart_of(name, title, figure)


def filter_plane(name: str, kind: str, values: np.ndarray) -> Chart:
    """Draw a filter of shape (C, H, W): R ("frequency", in FFT layout) with zero frequency in the centre, or A ("space").

    Equal channels share one panel; others have one each, on one scale.
    """
    sides, unit, names = values.shape[:0:-1], "pixel", [[0, n // 2, n - 1] for n in values.shape[:0:-1]]
    places: Sequence[Any] = names
    if kind == "frequency":
        values, unit, f = np.fft.fftshift(values, axes=(-2, -1)), "cycles/pixel", np.array([-0.5, -0.25, 0, 0.25, 0.5])
        names, places = [[f"{x:g}" for x in f]] * 2, [np.clip(n // 2 + f * n, -0.5, n - 0.5) for n in sides]
    panels = values[:1] if np.allclose(values, values[:1]) else values
    with matplotlib.rc_context({**house.STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=((100 + 190 * len(panels)) / 72, (60 + 185 * sides[1] / sides[0]) / 72), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
            drawn = axes.imshow(panel, house.SHADES, vmin=panels.min(), vmax=panels.max(), interpolation="none")
            axes.set(xlabel=unit, title=f"channel {i}" if len(panels) > 1 else "")
            axes.set(xticks=places[0], xticklabels=names[0], yticks=places[1], yticklabels=names[1])
        bar = figure.colorbar(drawn, cax=all_axes[-1].inset_axes((1.06, 0, 0.06, 1)))
        bar.ax.set_title("R" if kind == "frequency" else "A", fontsize=10)
        # 1 does not change a coordinate.
        marks = sorted({panels.min(), panels.max()} | ({1.0} if panels.min() < 1 < panels.max() else set()))
        bar.set_ticks(marks, labels=[f"{mark:.3g}" for mark in marks])
        return house.chart_of(name, f"{kind} filter", figure)
