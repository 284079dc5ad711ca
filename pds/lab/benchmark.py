"""The cost of PDS and the speed of sampling: a measurement of one network, and the table of all that were measured."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pds.errors import PDSError
from pds.files import read_json, reading, user_path, write_json
from pds.lab.config import build, build_model, resolved
from pds.lab.devices import choose_precision, prepare_device, require_compiler
from pds.lab.runs import provenance, run_name
from pds.lab.settings import Benchmark, settings
from pds.lab.terminal import show
from pds.lab.text import markdown_table
from pds.models.scores import for_sampling
from pds.speed.measuring import Peak, attainable, operations, peak_memory, time_in_turns
from pds.speed.operator import Iteration

log = logging.getLogger(__name__)

MIB = 1 << 20


def first_iteration(cfg: DictConfig, device: torch.device) -> Iteration:
    """The iteration that a configuration describes, its score moved to the device."""
    settings(Benchmark, cfg)
    model = build_model(cfg.model)
    score = for_sampling(model.score, device, cfg.bf16, cfg.compile)
    return Iteration.of(model, score, build(cfg.sampler), build(cfg.filter), build(cfg.solenoid), cfg.batch_size, device)


@torch.no_grad()
def benchmark(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Measure one network, write benchmark.json and print the table of all of them; returns the file.

    Args:
        cfg: conf/benchmark.yaml, composed.
        overrides: overrides of the command line; they name the folder.
    """
    config, load = resolved(cfg), os.getloadavg()[0]
    device = prepare_device(cfg.device, cfg.threads)
    choose_precision(cfg.tf32)
    if cfg.compile:
        require_compiler()
    torch.manual_seed(0)
    iteration = first_iteration(cfg, device)
    parts, difference = iteration.parts()
    times = time_in_turns(parts, cfg.repeats, device)
    peaks: dict[str, Peak] = {}
    for name in ("network", "operator", "baseline", "pds"):
        with peak_memory(device) as peaks[name]:
            parts[name]()
    median = {name: statistics.median(values) for name, values in times.items()}
    flop = operations(iteration.score, iteration.x)
    dtype = torch.bfloat16 if cfg.bf16 else iteration.x.dtype
    T = len(iteration.sampler.levels(iteration.model.process))
    measured = provenance(device)
    result: dict[str, Any] = {
        "network": iteration.model.title,
        "shape": iteration.model.shape,
        "sampler": f"{iteration.sampler.title}, NFE {iteration.sampler.nfe_per_iteration}",
        "filter": " + ".join(filter(None, (iteration.filter.title, iteration.solenoid.title))),
        "statistics": "stand-in",
        "batch_size": cfg.batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": cfg.compile,
        "threads": torch.get_num_threads(),
        "load_average_before": load,
        "milliseconds": times,
        "operator_share": median["operator"] / median["pds"],
        "speed_up": median["baseline"] / median["operator"],
        "iterations": T,
        "images_per_second": cfg.batch_size / (1e-3 * median["pds"] * T),
        "operations": flop,
        "operations_per_second": cfg.batch_size * flop / (1e-3 * median["network"]),
        "attainable_operations_per_second": attainable(device, dtype),
        "largest_difference": difference,
        "peak_bytes": {name: asdict(peak) for name, peak in peaks.items()},
        **measured,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config,
    }
    # A benchmark is about place and speed, so these options name the folder as well.
    place = {"measured_on": [measured["device"], cfg.batch_size, torch.get_num_threads(), cfg.compile, cfg.tf32]}
    path = user_path(cfg.outputs) / "benchmark" / run_name(overrides, config | place) / "benchmark.json"
    write_json(path, result)
    show(f"\n{summary(list(_benchmarks(path.parent.parent)))}\n\nnumbers  {path}")
    return path


def _benchmarks(folder: Path) -> Iterator[dict[str, Any]]:
    """The benchmarks in a folder that can be summarised; a log line reports the others."""
    for file in sorted(folder.glob("*/benchmark.json")):
        what, fix = "a benchmark of this version", "delete it"
        try:
            with reading(file, what, fix):
                summary([result := read_json(file, {}, what, fix)])
        except PDSError as error:
            log.warning("%s", error)
        else:
            yield result


def summary(results: list[dict[str, Any]]) -> str:
    """Benchmarks side by side, as a Markdown table: medians, and half the range of the repeats after ±."""

    def milliseconds(name: str) -> list[str]:
        return [spread(result["milliseconds"][name]) for result in results]

    def mebibytes(name: str, which: str) -> list[str]:
        peaks = [result["peak_bytes"][name][which] for result in results]
        return ["–" if peak is None else f"{peak / MIB:.{0 if peak > 10 * MIB else 1}f}" for peak in peaks]

    results = sorted(results, key=lambda result: (result["device"], result["shape"][1:], result["network"]))
    rows = {
        "network": [result["network"] for result in results],
        "sampler, one iteration": [result["sampler"] for result in results],
        "filter": [result["filter"] for result in results],
        "batch, dtype": [
            f"{r['batch_size']}, {r['dtype']}{', compiled' if r['compiled'] else ''}{_rounding(r)}" for r in results
        ],
        "device": [result["device"] for result in results],
        "threads, load before": [f"{result['threads']}, {result['load_average_before']:.1f}" for result in results],
        "network evaluation, ms": milliseconds("network"),
        "iteration, vanilla, ms": milliseconds("vanilla"),
        "iteration, PDS, ms": milliseconds("pds"),
        "its operator, ms": milliseconds("operator"),
        "its noise draws, ms": milliseconds("noise"),
        "full complex FFTs, ms": milliseconds("baseline"),
        "images/s with PDS": [f"{result['images_per_second']:.3g} at T = {result['iterations']}" for result in results],
        "operations, GFLOP": [f"{1e-9 * result['operations']:.3g} an image" for result in results],
        "network, GFLOP/s": [
            f"{1e-9 * rate:.3g}, {rate / result['attainable_operations_per_second']:.0%} of a matrix product"
            for result in results
            for rate in [result["operations_per_second"]]
        ],
        "operator / iteration": [f"{100 * result['operator_share']:.2g}%" for result in results],
        "speed-up over complex": [f"{result['speed_up']:.1f}×" for result in results],
        "peak memory, iteration, MiB": mebibytes("pds", "total"),
        "of it network evaluation": mebibytes("network", "added"),
        "of it operator": mebibytes("operator", "added"),
        "full complex FFTs instead": mebibytes("baseline", "added"),
    }
    header = ["", *("×".join(map(str, result["shape"])) for result in results)]
    return markdown_table([header, *([name, *cells] for name, cells in rows.items())], [False] * len(header))


def _rounding(result: dict[str, Any]) -> str:
    """Return the operations that round to TensorFloat-32 on a GPU."""
    rounds = [what for what, allowed in result.get("tf32", {}).items() if allowed]
    return f", {' and '.join(rounds)} in TF32" if rounds and result["dtype"] == "float32" else ""


def spread(values: list[float]) -> str:
    """The median to three digits, and half the range to as many decimals."""
    median = statistics.median(values)
    decimals = max(0, 2 - math.floor(math.log10(median)))
    return f"{median:.{decimals}f} ± {(max(values) - min(values)) / 2:.{decimals}f}"
