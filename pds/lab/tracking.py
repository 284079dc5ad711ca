"""Numbers of a run: our own append-only file, which is the truth, and Weights & Biases, which mirrors it."""

from __future__ import annotations

import contextlib
import json
import logging
import netrc
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np

from pds.errors import PDSError
from pds.options import Range, options

log = logging.getLogger(__name__)


class MetricsFile:
    """Append-only JSON lines, on disk when `append` returns.

    A line counts once its newline is written, so a kill or a full disk costs at most the record being written: a half
    line is ignored by `read_metrics` and cut off by the next `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: dict[str, Any]) -> None:
        """Append one record of numbers and strings; NumPy and 0-d torch scalars become floats."""
        line = json.dumps(record, default=float) + "\n"
        with open(self.path, "ab+") as file:
            _cut_half_line(file)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_half_line(file: BinaryIO) -> None:
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `MetricsFile`, without a half-written last line; none if the file does not exist.

    Raises:
        PDSError: a line in the middle is damaged, which no kill explains.
    """
    if not path.exists():
        return []
    *lines, _half = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise PDSError(f"line {number} of {path} is damaged: remove that line ({error})") from None
    return records


class TrackedRun(Protocol):
    """One open run of a tracker. No method raises: losing the mirror never stops a run."""

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        """Numbers of one moment; `step_name` is the key in `metrics` that the others are drawn against."""

    def image(self, name: str, path: Path) -> None:
        """A picture file."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; every row has one value a column: a number, a text, None, or an image as (C, H, W) uint8 array."""

    def summary(self, values: dict[str, Any]) -> None:
        """Final values of the run."""


class Tracker(Protocol):
    """Where runs are mirrored to."""

    def run(
        self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]
    ) -> AbstractContextManager[TrackedRun]:
        """Open a run for the length of a `with` block.

        Args:
            folder: run directory; whatever the tracker writes lies in it.
            name: of the run, within its group.
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

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`."""
        yield _NoRun()


@options
class WandbTracker:
    """Weights & Biases, which is imported only when a run is opened.

    Attributes:
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        mode: "online", "offline" (written below the run directory, uploaded later), "disabled", or "auto": what the
            environment variable WANDB_MODE says, else online when an API key is configured and offline otherwise.
            An online run that cannot be opened becomes an offline one.
        timeout: seconds that opening a run online, and uploading its rest at the end, may each take.
    """

    project: str = "pds"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    timeout: Annotated[float, Range(1, 86_400)] = 60.0

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`; a block that raises is a failed run in W&B too."""
        run = None
        for mode in self._modes():
            with _warn(f"opening the run {mode}"):
                run = self._open(mode, folder, name, group, job_type, config)
                break
        if run is None:
            yield _NoRun()
            return
        handle = _WandbRun(run, folder / "wandb")
        exit_code = 1
        try:
            yield handle
            exit_code = 0
        finally:
            handle.finish(exit_code)

    def _modes(self) -> list[str]:
        """The modes to try, in order."""
        mode = self.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", mode)
        if mode == "disabled":
            return []
        if mode == "offline" or (mode == "auto" and not has_api_key()):
            return ["offline"]
        return ["online", "offline"]

    def _open(self, mode: str, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Any:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=self.timeout,
            login_timeout=self.timeout,
            finish_timeout=self.timeout,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=folder,
            name=name,
            group=group,
            job_type=job_type,
            config=config,
            # Anything else returns the process's first run, with its first config, to every later job of a sweep.
            reinit="create_new",
            settings=settings,
        )


class _WandbRun:
    def __init__(self, run: Any, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._warned: set[str] = set()
        self._axes: set[tuple[str, str]] = set()

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        with _warn("logging metrics", self._warned):
            for name in metrics:
                if step_name and name != step_name and (name, step_name) not in self._axes:
                    self._run.define_metric(name, step_metric=step_name)
                    self._axes.add((name, step_name))
            self._run.log(dict(metrics))

    def image(self, name: str, path: Path) -> None:
        with _warn("logging an image", self._warned):
            import wandb

            self._run.log({name: wandb.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        with _warn("logging a table", self._warned):
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(map(_cell, row)) for row in rows])
            # W&B would stage tables for a later upload in the user's home, apart from the run that needs them.
            with _environment("WANDB_DATA_DIR", str(self._folder)):
                self._run.log({name: table})

    def summary(self, values: dict[str, Any]) -> None:
        with _warn("logging the summary", self._warned):
            self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        """Close the run, and say how to upload what is not uploaded."""
        uploaded = False
        with _warn("finishing the run"):
            self._run.finish(exit_code=exit_code)
            uploaded = not self._run.offline
        if not uploaded:
            with _warn("naming the run's folder"):
                command = shlex.join(["wandb", "sync", os.path.abspath(self._run.sync_dir)])
                log.info("the Weights & Biases run is kept on this machine; to upload it: %s", command)


def _cell(value: Any) -> Any:
    """What W&B takes for the value of a table's cell."""
    import wandb

    return wandb.Image(value.transpose(1, 2, 0)) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _warn(action: str, warned: set[str] | None = None) -> Iterator[None]:
    """Turns any failure into a warning, once for each action in `warned`."""
    try:
        yield
    except Exception as error:
        if warned is None or action not in warned:
            log.warning("Weights & Biases failed at %s, the run goes on: %s: %s", action, type(error).__name__, error)
        if warned is not None:
            warned.add(action)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def has_api_key() -> bool:
    """Whether W&B can log in without asking: the environment or a netrc file has a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        import wandb

        hosts = {urlsplit(wandb.Settings().base_url).netloc, "api.wandb.ai"}
        return any(netrc.netrc(path).authenticators(host) for host in hosts)
    except Exception:  # no W&B, no netrc file, or an unreadable one: no key in any case
        return False
