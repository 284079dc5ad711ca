"""Weights & Biases."""

from __future__ import annotations

import contextlib
import functools
import logging
import netrc
import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np

from pds.files import open_regular, user_path
from pds.lab.trackers import wandb_service
from pds.lab.tracking import NoTracker, TrackedRun, entry, require_package, warning
from pds.options import Range, options

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds beyond W&B's own timeout, whose message says more


@options
class WandbTracker:
    """Weights & Biases, which is imported only when a run is opened.

    Attributes:
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        mode: "online", "offline", "disabled" or "auto". offline writes below the run directory, for an upload later, and
            contacts nobody. auto follows W&B's own environment or settings if these say offline or disabled. Else it is online
            with an API key, and offline without one. An online run that cannot be opened becomes an offline one.
        timeout: longest time in seconds to open a run, to upload its rest at the end, and for each call between. After it W&B
            is given up.
    """

    project: str = "pds"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    timeout: Annotated[float, Range(1, 86_400)] = 60.0

    def __post_init__(self) -> None:
        require_package("wandb", "wandb")

    @property
    def patience(self) -> float:
        """Two ways to open a run and one to close it, each with its own deadline."""
        return 3 * (self.timeout + GRACE)

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
            wandb_service.end()  # which takes a run that it could not open for one in use
        with opened:
            if run is None:
                with NoTracker().run(folder, name, group, job_type, config) as nothing:
                    yield nothing
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
            id=entry(folder, "wandb", lambda _: True, lambda: secrets.token_hex(8)),
            resume="allow",
            dir=folder,
            name=name,
            group=group,
            job_type=job_type,
            config=config,
            # Other settings return the process's first run, with its first config, to every later job of a sweep.
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
            # By default W&B stages tables for a later upload in the user's home, apart from their run.
            with wandb_service.environment(WANDB_DATA_DIR=str(self._folder)):
                self._run.log({name: table})

        self._ask("logging a table", call)

    def summary(self, values: dict[str, Any]) -> None:
        self._ask("logging the summary", lambda: self._run.summary.update(values))

    def finish(self, exit_code: int) -> None:
        """Close the run, and give the command to upload the rest."""
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
    """The value of a table's cell for W&B."""
    import wandb

    return wandb.Image(value.transpose(1, 2, 0)) if isinstance(value, np.ndarray) else value


_warn = functools.partial(warning, "Weights & Biases")


def has_api_key() -> bool:
    """Whether W&B can log in without asking: the environment or a netrc file has a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        path = user_path(os.environ.get("NETRC", "~/.netrc"))
        open_regular(path, wandb_service.MOST).close()
        hosts = {urlsplit(wandb_service.settings().base_url).netloc, "api.wandb.ai"}
        return any(netrc.netrc(path).authenticators(host) for host in hosts)
    except Exception:  # no W&B, no home, no netrc file, or an unreadable one: no key in any case
        return False
