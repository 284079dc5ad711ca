"""The cost of PDS, and the speed of sampling. It times one iteration with and without PDS, the operator alone, the same
operator in full complex FFTs, and the network. It compares the network with the machine's limits.

python experiments/tools/benchmark.py model=ncsnpp dataset=cifar10
python experiments/tools/benchmark.py model=ncsnpp dataset=ffhq filter.pixels=released repeats=3
python experiments/tools/benchmark.py -m batch_size=1,8,64 bf16=false,true compile=false,true
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.files import read_json, reading, user_path, write_json
from pds.lab.config import build, build_model, resolved
from pds.lab.devices import choose_device, choose_precision, require_compiler
from pds.lab.runs import provenance, run_name
from pds.lab.settings import Benchmark, settings
from pds.lab.terminal import show
from pds.lab.text import markdown_table
from pds.models.scores import Model, for_sampling
from pds.noise import ImageNoise
from pds.preconditioning.filters import Filter
from pds.preconditioning.preconditioner import Identity, Preconditioner, Spectrum, build_preconditioner
from pds.preconditioning.solenoids import Solenoid
from pds.samplers.sampler import Sampler
from pds.score import Score

log = logging.getLogger(__name__)

BLOCK = 0.05  # shortest duration of a timing in seconds, reached by repetition
TOLERANCE = 1e-5  # difference of operator and baseline, in units of the largest value
MIB = 1 << 20


class ComplexPreconditioner:
    """The baseline: the same P written as full complex FFTs, an axis at a time, with the real part taken at the end.

    The released code has this form. It also goes to pixels and back without a space filter; this detour is left out here.

    Args: R, A: filters as in `FourierPreconditioner`; None is 1.
        h, omega: solenoid, likewise.
        device: where to keep the filters.
    """

    def __init__(self, R: Tensor | None, A: Tensor | None, h: Tensor | None, omega: float, device: torch.device) -> None:
        self.inverse_R = 1.0 if R is None else (1 / R).to(device)
        self.inverse_A = None if A is None else (1 / A).to(device)
        self.solenoid = None if h is None else (1j * omega * h).to(device, torch.complex64)

    @staticmethod
    def _dft(x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-2), dim=-1)

    @staticmethod
    def _inverse_dft(spectrum: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.ifft(spectrum, dim=-2), dim=-1)

    def noise(self, z: Tensor) -> Tensor:
        """P z."""
        return self._inverse_dft(self.inverse_R * self._dft(z if self.inverse_A is None else z * self.inverse_A)).real

    def drift(self, f: Tensor, score_part: Tensor | None = None) -> Tensor:
        """P P^T f + omega S f_s."""
        spectrum = self.inverse_R * self._dft(f)
        if self.inverse_A is not None:
            spectrum = self._dft(self.inverse_A**2 * self._inverse_dft(spectrum))
        spectrum = self.inverse_R * spectrum
        if self.solenoid is not None:
            spectrum = spectrum + self.solenoid * self._dft(f if score_part is None else score_part)
        return self._inverse_dft(spectrum).real

    def step(self, x: Tensor, f: Tensor, g: float, z: Tensor, score_part: Tensor | None = None) -> Tensor:
        """x + P P^T f + omega S f_s + g P z."""
        return x + self.drift(f, score_part) + g * self.noise(z)


class RecordedPreconditioner:
    """A preconditioner that records the calls of a sampler, so that another one can be called in the same way."""

    def __init__(self, preconditioner: Preconditioner) -> None:
        self.preconditioner = preconditioner
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def at(self, iteration: int) -> RecordedPreconditioner:
        return self

    @property
    def spectrum(self) -> Spectrum | None:
        return self.preconditioner.spectrum

    def stiffness(self) -> tuple[float, float]:
        return self.preconditioner.stiffness()

    def noise(self, *arguments: Any) -> Tensor:
        return self._ask("noise", arguments)

    def drift(self, *arguments: Any) -> Tensor:
        return self._ask("drift", arguments)

    def step(self, *arguments: Any) -> Tensor:
        return self._ask("step", arguments)

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> Tensor:
        self.calls.append((name, arguments))
        return getattr(self.preconditioner, name)(*arguments)

    def replay(self, preconditioner: Preconditioner | ComplexPreconditioner) -> list[Tensor]:
        """The output of another preconditioner."""
        return [getattr(preconditioner, name)(*arguments) for name, arguments in self.calls]


def stand_in_statistics(shape: tuple[int, int, int]) -> DatasetStatistics:
    """Made-up statistics like those of photographs: the cost of a filter does not depend on its values."""
    h, w = (torch.fft.fftfreq(n, 1 / n) for n in shape[1:])
    power = (0.25 * (shape[1] * shape[2]) ** 2 / (1 + h[:, None] ** 2 + w[None, :] ** 2)).expand(shape).clone()
    mean = torch.linspace(0.3, 0.7, power.numel()).reshape(shape)
    return DatasetStatistics("stand-in", power, mean, mean**2)


@dataclass(frozen=True)
class Iteration:
    """One iteration of a sampler on a model, at its first noise level.

    Attributes:
        model: the model.
        score: its score on the device, in the chosen precision.
        sampler: the sampler, without the final denoising.
        filter, solenoid: makers of the preconditioner.
        preconditioner: P and S.
        levels: levels of this iteration alone.
        noise: source of its draws.
        x: (batch, C, H, W) state before it.
    """

    model: Model
    score: Score
    sampler: Sampler[Any]
    filter: Filter
    solenoid: Solenoid
    preconditioner: Preconditioner
    levels: Any
    noise: ImageNoise
    x: Tensor

    @classmethod
    def build(cls, cfg: DictConfig, device: torch.device) -> Iteration:
        settings(Benchmark, cfg)
        model = build_model(cfg.model)
        filter, solenoid, sampler = build(cfg.filter), build(cfg.solenoid), build(cfg.sampler)
        P = build_preconditioner(filter, solenoid, model.shape, lambda: stand_in_statistics(model.shape), device)
        if isinstance(P, Identity):
            raise PDSError("filter=none and solenoid=none leave no operator to time: choose filter=statistics or parametric")
        sampler.check(sampler.levels(model.process), P)
        sampler = sampler.without_denoising()
        noise = ImageNoise(0, torch.arange(cfg.batch_size, device=device), model.shape)
        levels, x = sampler.levels(model.process)[:1], sampler.prior(noise, model.process, P)
        score = for_sampling(model.score, device, cfg.bf16, cfg.compile)
        return cls(model, score, sampler, filter, solenoid, P, levels, noise, x)

    def __call__(self, preconditioner: Preconditioner) -> Tensor:
        """The state after it."""
        return self.sampler(self.score, self.x, self.levels, preconditioner, self.noise)

    def baseline(self) -> ComplexPreconditioner:
        """P and S in full complex FFTs."""
        shape, device = self.model.shape, self.x.device
        R, A = (make(shape, lambda: stand_in_statistics(shape)) for make in (self.filter.frequency, self.filter.space))
        return ComplexPreconditioner(R, A, self.solenoid.spectrum(shape[1:]), self.solenoid.omega, device)


def largest_difference(record: RecordedPreconditioner, baseline: ComplexPreconditioner) -> float:
    """The largest difference of operator and baseline on the same calls, in units of the baseline's largest value.

    Raises:
        RuntimeError: the difference is above 1e-5, so the timings would be of two different operators.
    """
    # Compare the added terms alone: the state would hide their difference.
    calls = [(name, (torch.zeros_like(a[0]), *a[1:]) if name == "step" else a) for name, a in record.calls]
    pairs = [[getattr(P, name)(*a) for P in (record.preconditioner, baseline)] for name, a in calls]
    worst = max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the operator differs from the full complex FFTs by {worst:.3g} of the largest value")
    return worst


def synchronise(device: torch.device) -> None:
    """Wait for the queued work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device, number: int = 1) -> float:
    """Wall-clock of one of `number` runs."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(number):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / number


def time_in_turns(parts: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each part, `repeats` times in turn, so that a machine that slows down slows all parts."""
    numbers = dict.fromkeys(parts, 1)
    for name, run in parts.items():
        while numbers[name] * seconds(run, device, numbers[name]) < BLOCK:
            numbers[name] *= 4
    rounds = [{name: 1e3 * seconds(run, device, numbers[name]) for name, run in parts.items()} for _ in range(repeats)]
    return {name: [times[name] for times in rounds] for name in parts}


@torch.no_grad()
def operations(score: Score, x: Tensor) -> int:
    """Floating-point operations of one evaluation of one image in convolutions, matrix products and attention.

    A multiplication with its addition is two.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        score(x, x.new_ones(len(x)))
    return counter.get_total_flops() // len(x)


def attainable(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of five: the practical peak of the machine."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    # Convolutions use TensorFloat-32 by default; products of matrices use it only on request.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        milliseconds = min(time_in_turns({"product": lambda: a @ a}, 5, device)["product"])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * n**3 / (1e-3 * milliseconds)


@dataclass
class Peak:
    """Memory of a block in bytes, known at its end: the peak in total, and the peak above the level before it."""

    total: int | None = None
    added: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Memory while the block runs: of torch's tensors on a GPU, of the whole process on a CPU under Linux, else None."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.total = torch.cuda.max_memory_allocated(device)
    else:
        try:
            # The C library would reuse memory that it kept after a free, and the peak would not show it.
            ctypes.CDLL(None).malloc_trim(0)
            # Linux: this resets the high-water mark of the resident set.
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            yield peak
            return
        before = _resident("VmRSS")
        yield peak
        peak.total = _resident("VmHWM")
    peak.added = peak.total - before


def _resident(field: str) -> int:
    (kilobytes,) = re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


@torch.no_grad()
def benchmark(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Measure one network, write benchmark.json and print the table of all of them; returns the file.

    Args:
        cfg: conf/benchmark.yaml, composed.
        overrides: overrides of the command line; they name the folder.
    """
    config, load = resolved(cfg), os.getloadavg()[0]
    device = choose_device(cfg.device, cfg.threads)
    choose_precision(cfg.tf32)
    if cfg.compile:
        require_compiler()
    torch.manual_seed(0)
    iteration = Iteration.build(cfg, device)
    P, baseline, record = iteration.preconditioner, iteration.baseline(), RecordedPreconditioner(iteration.preconditioner)
    drawn = iteration.noise.draws
    iteration(record)
    draws = iteration.noise.draws - drawn
    if not record.calls:
        raise PDSError("sampler.precondition=published leaves this sampler without a filter, and no operator to time")
    difference = largest_difference(record, baseline)
    sigma = iteration.x.new_full((cfg.batch_size,), 1.0)
    parts: dict[str, Callable[[], Any]] = {
        "network": lambda: iteration.score(iteration.x, sigma),
        "vanilla": lambda: iteration(Identity()),
        "pds": lambda: iteration(P),
        "operator": lambda: record.replay(P),
        "baseline": lambda: record.replay(baseline),
        "noise": lambda: [iteration.noise.normal() for _ in range(draws)],
    }
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
