"""summary.csv: one row a run, for other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pds.files import atomic_path
from pds.lab.report.runs import RunSummary, metric_names
from pds.lab.report.swept import known_values, swept_keys


def write_summary(path: Path, runs: Sequence[RunSummary]) -> None:
    """All of `runs` in their order: what they are, every metric by its full name, every swept key; atomically."""
    metrics, keys = metric_names(runs), swept_keys(runs)
    of_result = {
        "model": "model",
        "sampler": "sampler",
        "T": "iterations",
        "NFE": "nfe",
        "images": "images",
        "seconds": "seconds",
    }
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "state", "seed", *of_result, *metrics, *keys, "message"])
        for run in runs:
            values = known_values(run)
            row = [run.folder.name if run.folder.exists() else "", run.label, run.state]
            row += [run.result.get("seed", run.config.get("seed", ""))]
            row += [run.result.get(key, "") for key in of_result.values()]
            row += [run.metrics.get(name, "") for name in metrics]
            writer.writerow([*row, *(_cell(values.get(key, "")) for key in keys), run.message])


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value, default=str)
