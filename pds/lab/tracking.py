"""Numbers of a run: our own append-only file, which is the truth, and Weights & Biases, which mirrors it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import netrc
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np

from pds.files import appending, parse_json, read_bytes, reading
from pds.lab import wandb_service
from pds.options import Range, options

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds beyond W&B's own timeout, which says more


class MetricsFile:
    """Append-only JSON lines, on disk when `append` returns.

    A line counts once its newline is written, so a kill or a full disk costs at most the record being written: a half
    line is ignored by `read_metrics` and cut off by the next `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Append one record of numbers and strings; NumPy and 0-d torch scalars become floats."""
        line = json.dumps(record, default=float) + "\n"
        with appending(self.path), open(self.path, "ab+") as file:
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
    *lines, _half = read_bytes(path).split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        with reading(path, "a file of metrics", f"remove its line {number}"):
            records.append(parse_json(line, {}))
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
        mode: "online", "offline" (written below the run directory, uploaded later; nobody is contacted), "disabled", or
            "auto": offline or disabled where W&B's own environment or settings say so, else online when an API key is
            configured and offline otherwise. An online run that cannot be opened becomes an offline one.
        timeout: seconds that opening a run, uploading its rest at the end, and each call between them, may take; a W&B that
            takes longer is given up.
    """

    project: str = "pds"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    timeout: Annotated[float, Range(1, 86_400)] = 60.0

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`; a block that raises is a failed run in W&B too."""
        run, opened = None, contextlib.ExitStack()
        for mode in self._modes():
            with _warn(f"opening the run {mode}"):
                if mode == "offline":
                    opened.enter_context(wandb_service.offline())
                wandb_service.forget_ended()
                make = functools.partial(self._open, mode, folder, name, group, job_type, config)
                run = wandb_service.within(self.timeout + GRACE, make)
                wandb_service.end_at_exit()
                break
        with opened:
            if run is None:
                yield _NoRun()
                return
            handle = _WandbRun(run, folder / "wandb", self.timeout + GRACE)
            exit_code = 1
            try:
                yield handle
                exit_code = 0
            finally:
                handle.finish(exit_code)

    def _modes(self) -> list[str]:
        """The modes to try, in order."""
        mode = self.mode
        if mode == "disabled":
            return []
        found = None
        with _warn("reading its settings"):
            found = wandb_service.settings().mode
        if found is None:
            return []
        if mode == "auto":
            mode = "disabled" if found == "disabled" else "offline" if found in ("offline", "dryrun") else "online"
            mode = mode if mode != "online" or has_api_key() else "offline"
        return {"disabled": [], "offline": ["offline"]}.get(mode, ["online", "offline"])

    def _open(self, mode: Any, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Any:
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
    def __init__(self, run: Any, folder: Path, seconds: float) -> None:
        self._run = run
        self._folder = folder
        self._seconds = seconds
        self._warned: set[str] = set()
        self._lost = False
        self._axes: set[tuple[str, str]] = set()

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        def call() -> None:
            for name in metrics:
                if step_name and name != step_name and (name, step_name) not in self._axes:
                    self._run.define_metric(name, step_metric=step_name)
                    self._axes.add((name, step_name))
            self._run.log(dict(metrics))

        self._ask("logging metrics", call)

    def image(self, name: str, path: Path) -> None:
        def call() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path))})

        self._ask("logging an image", call)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def call() -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(map(_cell, row)) for row in rows])
            # W&B would stage tables for a later upload in the user's home, apart from the run that needs them.
            with wandb_service.environment(WANDB_DATA_DIR=str(self._folder)):
                self._run.log({name: table})

        self._ask("logging a table", call)

    def summary(self, values: dict[str, Any]) -> None:
        self._ask("logging the summary", lambda: self._run.summary.update(values))

    def finish(self, exit_code: int) -> None:
        """Close the run, and say how to upload what is not uploaded."""
        uploaded = False
        with _warn("finishing the run"):
            if not self._lost:
                self._within(lambda: self._run.finish(exit_code=exit_code))
                uploaded = not self._run.offline
        if not uploaded:
            with _warn("naming the run's folder"):
                command = shlex.join(["wandb", "sync", os.path.abspath(self._run.sync_dir)])
                log.info("the Weights & Biases run is kept on this machine; to upload it: %s", command)

    def _ask(self, action: str, call: Callable[[], object]) -> None:
        """One call, unless W&B is given up."""
        if not self._lost:
            with _warn(action, self._warned):
                self._within(call)

    def _within(self, call: Callable[[], object]) -> None:
        try:
            wandb_service.within(self._seconds, call)
        except TimeoutError:
            self._lost = True
            raise


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
            why = " ".join(str(error).split())
            log.warning("Weights & Biases failed at %s, the run goes on: %s: %s", action, type(error).__name__, why)
        if warned is not None:
            warned.add(action)


def has_api_key() -> bool:
    """Whether W&B can log in without asking: the environment or a netrc file has a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        hosts = {urlsplit(wandb_service.settings().base_url).netloc, "api.wandb.ai"}
        return any(netrc.netrc(path).authenticators(host) for host in hosts)
    except Exception:  # no W&B, no home, no netrc file, or an unreadable one: no key in any case
        return False
