"""Charts as SVG, black on white for a paper. The style sheet of the page gives them the reader's colours and font."""

from __future__ import annotations

import io
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
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pds.lab.text import FLOOR

SOFT, GRID, BAD, ON_SHADE = "#555555", "#dddddd", "#a3260f", "#010101"
"""The page's style sheet replaces the first three and black. The last is the ink on a pale cell and stays."""
RAMP = ("#2f7fd1", "#4b74dc", "#7266dc", "#9458cf", "#b04cb8", "#c2458f", "#cb4868", "#cd5340", "#c4651c", "#a87a00")
"""From blue to ochre at one lightness that reads on white and on near-black."""
QUIET = ("#7d8794", "#6f8f96", "#8b83a0", "#a08383", "#94895f")
"""Greys with a hint of colour, of the same lightness."""
SHADES = LinearSegmentedColormap.from_list(
    "shades", ["#160b39", "#420a68", "#781c6d", "#b0315b", "#de563c", "#f78a18", "#fac63a", "#fcffa4"]
)
"""Dark violet to pale yellow; lightness only rises, so that the order of values survives in grey."""
MARKERS = "osD^vPXph*"
DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2), (8, 3))
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pds", "font.sans-serif": ["DejaVu Sans"], "font.size": 10},
    **{"axes.edgecolor": SOFT, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7, "hatch.linewidth": 0.6},
    **{"xtick.color": SOFT, "ytick.color": SOFT, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 5},
}
LOG_RANGE = 10


class Chart(NamedTuple):
    """A drawn figure."""

    name: str  # of its file, without extension
    svg: str  # the file
    width: float  # on a page, in pixels


class Column(NamedTuple):
    """An axis to the right."""

    head: str
    ticks: Sequence[float] = ()  # their possible places; empty: anywhere
    log_range: float = LOG_RANGE  # ratio of values beyond which the axis is logarithmic


class Series(NamedTuple):
    """One line of a chart."""

    label: str  # in the legend; empty for a line without an entry
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
        name: name of the chart's file.
        title: description for readers who do not see the chart; the names of the lines follow.
        head: name of the axis upwards.
        columns: the axes to the right.
        series: the lines, in the order of the legend.
        floor: distance of real data to real data, if it is known.
        layout: `size` in points; `below`, for a legend below instead of beside; `descending`, for x that falls to the right.
    """
    width, height = layout.get("size", (704, 320))
    with matplotlib.rc_context(STYLE):
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
        return chart_of(name, f"{title}: {', '.join(labels)}", figure)


def ramp(count: int) -> list[str]:
    """Return `count` colours, spread over the ramp."""
    return [RAMP[round(i * (len(RAMP) - 1) / max(1, count - 1)) if count > 1 else 5] for i in range(count)]


def _finish_x(axes: Axes, values: Sequence[float], column: Column) -> None:
    """Set a log scale if the values span much, and the column's ticks if they have room."""
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
    all_axes[0].set_ylabel(head, **upright(head))
    values = [*values, *([] if floor is None else [floor])]
    if min(values) > 0 and max(values) > LOG_RANGE * min(values):
        all_axes[0].set_yscale("log")
        _plain_log(all_axes[0].yaxis)
    if floor is not None:
        for axes in all_axes:
            axes.axhline(floor, color=SOFT, linewidth=0.8, zorder=1)
        where: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "right",
            "va": "bottom",
        }
        all_axes[-1].annotate(FLOOR, (1, floor), (0, 3), color=SOFT, fontsize=8.5, **where)


def _plain_log(axis: Axis) -> None:
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def upright(head: str) -> dict[str, Any]:
    """Place the name of a vertical axis; a short symbol stays upright."""
    return {"rotation": 0, "va": "center", "labelpad": 8} if len(head) < 3 else {}


def chart_of(name: str, title: str, figure: Figure) -> Chart:
    """The chart of a drawn figure: SVG that a page can embed."""
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
