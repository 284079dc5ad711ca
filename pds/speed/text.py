"""The report as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from pds.markdown import markdown_table
from pds.speed.options import OPTIONS
from pds.speed.parts import PARTS

GB, TERA = 1e9, 1e12
Row = Mapping[str, Any]


def written(report: Mapping[str, Any]) -> str:
    """gpu.md: the machine, then each begun part with its failures."""
    facts = [[name, str(value)] for name, value in report["machine"].items()]
    lines = ["# Speed on one machine", "", markdown_table([["", ""], *facts], [False, False])]
    measured_peaks = report["parts"].get("peaks", {}).get("rows", {})
    for name, part in report["parts"].items():
        rows: dict[str, Row] = {key: row for key, row in part["rows"].items() if "failed" not in row}
        lines += ["", f"## {PARTS[name].title}", "", f"{part['state']}, {part['seconds']:.0f} s, {len(rows)} rows"]
        if rows:
            lines += ["", _TEXTS.get(name, speeds)(rows, measured_peaks)]
        lines += [f"- failed: {key}: {row['failed']}" for key, row in part["rows"].items() if "failed" in row]
    return "\n".join(lines) + "\n"


def peaks(rows: Mapping[str, Row], _: Mapping[str, Row]) -> str:
    """Rates."""
    cells = [
        [key, f"{row['bytes_per_second'] / GB:.4g} GB/s" if key == "copy" else _rate(row["operations_per_second"])]
        for key, row in rows.items()
    ]
    return markdown_table([["", "measured"], *cells], [False, True])


def speeds(rows: Mapping[str, Row], measured_peaks: Mapping[str, Row]) -> str:
    """Ways to evaluate by batch size, beside the plain network and the card's peaks; then the profiles."""
    counted = rows.get("operations and bytes of an image")
    head = ["option", "batch", "PDS step, ms", "vanilla, ms", "evaluation, ms", "evaluations/s", "× plain", "× float32"]
    head += ["of the product's peak", "operator", "noise", "peak GB"]
    table = [head]
    lines = []
    fastest: dict[int, tuple[float, str]] = {}
    for key, row in rows.items():
        if "milliseconds" not in row:
            continue
        option, batch, times = key.partition(", batch ")[0], row["batch"], row["milliseconds"]
        gains = [_gain(rows, other, row) for other in ("plain", "float32")]
        if gains[0] is not None:
            fastest[batch] = max(fastest.get(batch, (0.0, "")), (gains[0], option))
        way = OPTIONS[option]
        peak = measured_peaks.get("bf16" if way.bf16 else "float32" if way.tf32 == "none" else "tf32", {})
        share = None
        if counted and peak:
            share = batch * counted["operations"] / (1e-3 * times["network"]) / peak["operations_per_second"]
        table.append(
            [
                *[option, str(batch)],
                *[f"{times[name]:.3g} ± {row['spread'][name]:.1g}" for name in ("pds", "vanilla", "network")],
                f"{row['evaluations_per_second']['pds']:.4g}",
                *["–" if gain is None else f"{gain:.2f}" for gain in gains],
                "–" if share is None else f"{share:.0%}",
                *[f"{times[name] / times['pds']:.1%}" for name in ("operator", "noise")],
                "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GB:.2f}",
            ]
        )
    if len(table) > 1:
        lines += [markdown_table(table, [False, *[True] * (len(head) - 1)]), ""]
    lines += [f"- batch {batch}: {gain:.2f} × plain with {option}" for batch, (gain, option) in sorted(fastest.items())]
    if counted:
        lines += [f"- counted: {counted['operations'] / 1e9:.4g} GFLOP, {counted['bytes'] / GB:.3g} GB eagerly, an evaluation"]
    for key, row in rows.items():
        if "table" in row:
            warned = f", {row['warned']:.3g} by torch's own warnings" if "warned" in row else ""
            lines += [f"- {key}: {row['waits']:.3g} host waits a step{warned}, {row['launches']:.4g} launches"]
            lines += ["", "```", row["table"].rstrip(), "```", ""]
    return "\n".join(lines).rstrip()


def _gain(rows: Mapping[str, Row], other: str, row: Row) -> float | None:
    """How many times faster a PDS step is than another option's at the same batch size."""
    baseline = rows.get(f"{other}, batch {row['batch']}")
    return None if baseline is None else baseline["milliseconds"]["pds"] / row["milliseconds"]["pds"]


def precision(rows: Mapping[str, Row], _: Mapping[str, Row]) -> str:
    """Distances over seeds, and their change by each option at equal noise."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows.values():
        found.setdefault((row["network"], row["option"]), {})[row["seed"]] = row["distance"]
    table = [["network", "option", "distance", "moved from float32", "within the spread"]]
    for (network, option), values in sorted(found.items(), key=lambda item: item[0][0]):
        exact = found.get((network, "float32"), {})
        spread = statistics.stdev(exact.values()) if len(exact) > 1 else None
        moved = [value - exact[seed] for seed, value in values.items() if seed in exact]
        table.append(
            [
                *[network, option, _mean(list(values.values()))],
                f"{statistics.fmean(moved):+.2g}" if moved else "–",
                "–" if spread is None or not moved else "yes" if abs(statistics.fmean(moved)) < spread else "no",
            ]
        )
    return markdown_table(table, [False, False, True, True, False])


def facts(rows: Mapping[str, Row], _: Mapping[str, Row]) -> str:
    """Rows as they are."""
    cells = [
        [key, ", ".join(f"{name.replace('_', ' ')} {_shown(name, value)}" for name, value in row.items() if name != "took")]
        for key, row in rows.items()
    ]
    return markdown_table([["", "measured"], *cells], [False, False])


_TEXTS: dict[str, Callable[[Mapping[str, Row], Mapping[str, Row]], str]] = {
    "peaks": peaks,
    "precision": precision,
    "runner": facts,
    "training": facts,
}


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _rate(value: float) -> str:
    return f"{value / TERA:.4g} TFLOP/s"


def _shown(name: str, value: Any) -> str:
    if name.startswith("share"):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value / GB:.3g} GB" if "bytes" in name else str(value)
