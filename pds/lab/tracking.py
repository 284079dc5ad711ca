"""Numbers of a run: our append-only file, which is the truth, and the trackers that mirror it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np

from pds.errors import MissingError, PDSError
from pds.files import appending, read_json, write_json
from pds.lab.text import MISSING, markdown_table
from pds.options import Range

log = logging.getLogger(__name__)

Patience = Annotated[float, Range(1, 86_400)]
"""Seconds that a run waits for its tracker at the end."""


class MetricsFile:
    """Append-only JSON lines, on disk when `append` returns.

    A line counts once its newline is written, so a kill or a full disk costs at most the record being written. The next
    `append` cuts a half line off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Append one record of numbers and strings; NumPy and 0-d torch scalars become floats."""
        line = json.dumps(record, default=float) + "\n"
        with appending(self.path), open(self.path, "ab+") as file:
            cut_half_line(file)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def cut_half_line(file: BinaryIO) -> None:
    """Cut off the half line of a killed process at the end of a file of lines."""
    file.seek(0)
    content_end = end = file.seek(0, os.SEEK_END)
    while content_end > 0:
        start = max(0, content_end - 4096)
        file.seek(start)
        newline = file.read(content_end - start).rfind(b"\n")
        content_end = start + newline + 1
        if newline >= 0:
            break
    if content_end < end:
        file.truncate(content_end)


class TrackedRun(Protocol):
    """One open run of a tracker. An exception of a method costs a warning."""

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        """Numbers of one moment; `step_name` is the key in `metrics` that the others are drawn against."""

    def image(self, name: str, path: Path) -> None:
        """A picture file."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; every row has one value a column: a number, a text, None, or an image as (C, H, W) uint8 array."""

    def summary(self, values: dict[str, Any]) -> None:
        """Final values of the run: numbers, and texts such as the address of the report."""


class Tracker(Protocol):
    """A destination that runs are mirrored to."""

    @property
    def patience(self) -> float:
        """Seconds that a run waits at its end for the tracker to take all calls."""

    def run(
        self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]
    ) -> AbstractContextManager[TrackedRun]:
        """Open a run for the length of a `with` block. A run that was opened for this folder before goes on.

        Args:
            folder: run directory; the tracker writes into it, or beside the groups.
            name: name of the run, within its group.
            group: the comparison that the run belongs to.
            job_type: "vanilla" or "pds".
            config: resolved plain Python values (not a DictConfig).
        """


class _NoRun:
    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def summary(self, values: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class NoTracker:
    """Mirrors nothing."""

    patience = 1.0

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`."""
        yield _NoRun()


@dataclass(frozen=True)
class Several:
    """Several trackers at once, as in tracker=[tensorboard,mlflow].

    Attributes:
        wandb, wandb_offline, tensorboard, mlflow, trackio: the chosen trackers.
    """

    wandb: Tracker | None = None
    wandb_offline: Tracker | None = None
    tensorboard: Tracker | None = None
    mlflow: Tracker | None = None
    trackio: Tracker | None = None

    @property
    def patience(self) -> float:
        """The sum of their patience: they are closed one after the other."""
        return 1 + sum(one.patience for one in self._chosen)

    @property
    def _chosen(self) -> list[Tracker]:
        return [one for one in vars(self).values() if one is not None]

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`; none of them waits for another."""
        with contextlib.ExitStack() as opened:
            runs = [opened.enter_context(aside(one, folder, name, group, job_type, config)) for one in self._chosen]
            yield _Relay(lambda action, call: [run.tell(action, call) for run in runs])


class _Relay:
    """Passes every call on, with a description of it."""

    def __init__(self, tell: Callable[[str, Callable[[TrackedRun], None]], object]) -> None:
        self.tell = tell

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        self.tell("logging metrics", lambda run: run.log(metrics, step_name))

    def image(self, name: str, path: Path) -> None:
        self.tell("logging an image", lambda run: run.image(name, path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tell("logging a table", lambda run: run.table(name, columns, rows))

    def summary(self, values: dict[str, Any]) -> None:
        self.tell("logging the summary", lambda run: run.summary(values))


@contextlib.contextmanager
def aside(tracker: Tracker, *of_run: Any) -> Iterator[_Relay]:
    """A tracker's run in a separate thread, which takes the calls one after the other.

    So a tracker neither slows nor fails the run. Its exceptions cost a warning. A tracker that hangs is given up after its
    patience, at the end of the run. `of_run` are the arguments of `Tracker.run`.
    """
    title = type(tracker).__name__.removesuffix("Tracker")
    told: queue.SimpleQueue[tuple[str, Callable[[TrackedRun], None]] | None] = queue.SimpleQueue()
    failed: list[BaseException] = []

    def serve() -> None:
        warned: set[str] = set()
        try:
            with tracker.run(*of_run) as run:
                while (item := told.get()) is not None:
                    action, call = item
                    with warning(title, action, warned):
                        call(run)
                if failed:
                    raise failed[0]
        except BaseException as error:
            if error not in failed:
                with warning(title, "opening or closing the run"):
                    raise error if isinstance(error, Exception) else RuntimeError(repr(error)) from error

    thread = threading.Thread(target=serve, name=f"pds-{title}", daemon=True)
    thread.start()
    try:
        yield _Relay(lambda action, call: told.put((action, call)))
    except BaseException as error:
        failed.append(error)
        raise
    finally:
        told.put(None)
        thread.join(tracker.patience)
        if thread.is_alive():
            log.warning(
                "%s took nothing more for %g s and is given up; the files of the run are whole", title, tracker.patience
            )


@contextlib.contextmanager
def warning(title: str, action: str, warned: set[str] | None = None) -> Iterator[None]:
    """Turns any failure into a warning, once for each action in `warned`."""
    try:
        yield
    except Exception as error:
        if warned is None or action not in warned:
            why = " ".join(str(error).split())
            log.warning("%s failed at %s, the run goes on: %s: %s", title, action, type(error).__name__, why)
        if warned is not None:
            warned.add(action)


def entry(folder: Path, tracker: str, usable: Callable[[str], bool], make: Callable[[], str]) -> str:
    """A tracker's name of the run of a folder, kept in the folder, so that a resumed run also goes on in the tracker.

    Args:
        folder: the run folder.
        tracker: the tracker.
        usable: whether the tracker still has the run of a name.
        make: returns a new name.
    """
    file = folder / f"{tracker}.json"
    if file.exists():
        with contextlib.suppress(PDSError):  # a damaged file costs a second entry, no more
            known: str = read_json(file, {"run": str}, "a tracker's name of a run", "delete it")["run"]
            if usable(known):
                return known
    new = make()
    write_json(file, {"run": new})
    return new


def require_package(package: str, tracker: str) -> None:
    """Raise `MissingError` unless a package is installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingError(
            f"tracker={tracker} needs the package {package}: pip install 'pds-lab[{tracker}]', or choose another"
        )


def against(metrics: dict[str, float], step_name: str | None) -> tuple[dict[str, float], int]:
    """The numbers to draw, and the whole number for the horizontal axis."""
    step = int(metrics[step_name]) if step_name else 0
    return {name: float(value) for name, value in metrics.items() if name != step_name}, step


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown, without its images."""
    shown = [i for i in range(len(columns)) if not any(isinstance(row[i], np.ndarray) for row in rows)]
    texts = [[MISSING if row[i] is None else str(row[i]) for i in shown] for row in rows]
    return markdown_table([[columns[i] for i in shown], *texts], [False] * len(shown))
