"""A sweep: its plan on disk, its points, and an end that tells of every point."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from pds.errors import MissingError, PDSError, first_line
from pds.generation import Processes
from pds.lab import grammar
from pds.lab.cli import Failed, given_overrides, leads, sentence
from pds.lab.experiment import run, show_report
from pds.lab.logs import show_lines, spared
from pds.lab.points import Point, Points, sweep_name
from pds.lab.report import overview, read_runs, write_report
from pds.lab.runs import group_folder, says_where
from pds.lab.terminal import command_line, show

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as _Sweeper
else:
    _Sweeper = object  # Hydra runs the module of its own class again when it looks for plug-ins

REPORT_EVERY = 60
"""Seconds between two reports while a sweep goes on."""


class PlannedSweep(_Sweeper):
    """Our part of a Hydra sweeper; experiments/hydra_plugins joins it with Hydra's own.

    It runs every combination of the given values, or of them with each of the listed points, by any of Hydra's launchers.

    A point that fails does not stop the others. At the end the table, the report and every failure are shown. The exit status
    is 1 if a point failed or none was done.

    Attributes:
        points: overrides of each point; null is one point without more overrides.
        command: the command of the sweep; null is this process's own.
    """

    def __init__(self, points: Sequence[Sequence[str]] | None = None, command: str | None = None) -> None:
        super().__init__(max_batch_size=None)
        self.points = [list(point) for point in points] if points is not None else [[]]
        self.command = command or command_line(sys.argv)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up this sweeper and the launcher; a launcher that is not installed ends the program in one sentence."""
        try:
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        except RuntimeError as error:
            if "Unknown plugin class" not in str(error):
                raise
            name = config.hydra.runtime.choices["hydra/launcher"]
            extra = "slurm" if name.startswith("submitit") else name
            raise PDSError(
                f"hydra/launcher={name} is not installed: pip install -c .ci/constraints.txt -e '.[{extra}]'"
            ) from None

    def sweep(self, arguments: list[str]) -> Any:
        """Run them all."""
        since = time.time()
        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        given = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        for override in given:
            _require_values(override)
        (combinations,) = self.split_arguments(given, None)
        swept = [override.get_key_element() for override in given if override.is_sweep_override()]
        fixed = [override.input_line or "" for override in given if not override.is_sweep_override()]
        listed = [[*combination, *point] for point in self.points for combination in combinations]
        name = sweep_name(swept, fixed)
        where = [key.lstrip("+~") for key in swept if says_where(key)]
        common = [f"sweep.name={name}", f"sweep.where=[{','.join(where)}]"]
        common += [f"sweep.points={len(listed)}", f"sweep.since={since}"]
        jobs = [[*job, f"sweep.number={number}", *common] for number, job in enumerate(listed, 1)]
        # Overrides that cannot be composed are refused here, before the first image.
        plan: dict[Path, list[Point]] = {}
        for number, job in enumerate(jobs, 1):
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, job)
            grammar.require_known(cfg)
            point = Point.of(job, where, number=number, sweep=name, command=self.command, work=_work(cfg))
            plan.setdefault(group_folder(cfg.outputs, cfg.group), []).append(point)
        if leads():
            for folder, points in plan.items():
                Points(folder).plan(points)
        # Workers that a launcher starts import what this process imported.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [*map(os.path.abspath, sys.path), os.environ.get("PYTHONPATH")])
        )
        if logs := OmegaConf.select(self.config, "hydra.launcher.submitit_folder"):
            show(f"logs     {logs.replace('%j', '*')}/*_log.err")
        results: Any = []
        error: PDSError | None = None
        try:
            results = self.launcher.launch(jobs, initial_job_idx=0)
        except (Exception, KeyboardInterrupt) as raised:  # launchers may raise anything
            error = PDSError(f"the sweep was stopped: {first_line(raised)}; the same command goes on from here")
        if leads():
            try:
                succeeded = [_succeeded(folder, points) for folder, points in plan.items()]
            finally:
                if error is not None:
                    raise error
            if not all(succeeded):
                raise Failed
        return results


def _require_values(override: Override) -> None:
    """Refuse a sweep over no value: it would do nothing silently."""
    if not override.is_sweep_override():
        return
    if not override.is_discrete_sweep():
        raise PDSError(grammar.without_values(override.input_line or ""))
    if next(override.sweep_string_iterator(), None) is None:
        raise PDSError(f"{override.input_line} names no value: a sweep needs at least one")


def _succeeded(folder: Path, planned: Sequence[Point]) -> bool:
    """Show the outcome of the points of one folder."""
    show(f"\n{overview(folder)}")
    show_report(folder)
    digests = {point.digest for point in planned}
    points = [point for point in Points(folder).read() if point.digest in digests]
    # Another process that shares the sweep may have made points wait again: a finished run tells that its point is done.
    finished = {run.folder.name for run in read_runs(folder).done}
    states = {"done" if point.state in ("waiting", "running") and point.run in finished else point.state for point in points}
    return "done" in states and states <= {"done", "skipped"}


def _work(cfg: DictConfig) -> float:
    """Images times iterations. A point's time is proportional to it for one network and one image size."""
    return float(cfg.images) * (OmegaConf.select(cfg, "sampler.iterations") or 1)


def run_or_point(cfg: DictConfig) -> None:
    """One run, or one point of a sweep, on a composed configuration of conf/run.yaml."""
    if cfg.sweep.number is None:
        run(cfg, given_overrides())
    else:
        run_point(cfg, given_overrides())


def run_point(cfg: DictConfig, overrides: list[str]) -> None:
    """A run that writes its outcome into its point of the sweep; an error ends this point, not the sweep."""
    if not HydraConfig.get().launcher._target_.endswith(".BasicLauncher"):
        # Points run side by side: each line names its point, and bars would overwrite one another.
        show_lines(f"{cfg.sweep.number}: ")
        os.environ["TQDM_DISABLE"] = "1"
        # A worker of a cluster starts in another folder, and paths may be relative.
        os.chdir(HydraConfig.get().runtime.cwd)
    title = f"point {cfg.sweep.number} of {cfg.sweep.points}"
    if not leads():
        with going_on(title):
            Processes.join().barrier()
            run(cfg, overrides)
        return
    folder = group_folder(cfg.outputs, cfg.group)
    points = Points(folder)
    point = points.planned(overrides, cfg.sweep.where, number=cfg.sweep.number, sweep=cfg.sweep.name, work=_work(cfg))
    log.info("%s: %s", title, point.title)
    with going_on(title), contextlib.ExitStack() as opened:
        with Processes.join().together():
            started = opened.enter_context(points.running(point))
        run(cfg, overrides, started)
    report = folder / "report.html"
    if not report.exists() or time.time() - report.stat().st_mtime > REPORT_EVERY:
        with spared("the report"):
            write_report(folder)
    if left := points.time_left(cfg.sweep.name, cfg.sweep.since):
        log.info("about %s left for the sweep", timedelta(seconds=round(left)))


@contextlib.contextmanager
def going_on(title: str) -> Iterator[None]:
    """Report the error of a point; the sweep goes on."""
    try:
        yield
    except MissingError as error:
        log.warning("%s is skipped: %s", title, error)
    except Exception as error:
        if (said := sentence(error)) is None:
            log.exception("%s failed", title)
        else:
            log.error("error: %s", said)
