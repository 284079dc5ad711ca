"""Trackio."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pds.lab.tracking import Patience, TrackedRun, against, as_markdown, entry, require_package
from pds.options import options


@options
class TrackioTracker:
    """Trackio, on this machine unless its own environment names a space or a server. It needs a Pillow below 13.

    Attributes:
        project: Trackio project.
        patience: seconds to wait at the end until all is written.
    """

    project: str = "pds"
    patience: Patience = 60.0

    def __post_init__(self) -> None:
        require_package("trackio", "trackio")

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import trackio

        # Trackio knows a run by its name, and keeps those of all folders in one place.
        own = entry(folder, "trackio", lambda _: True, lambda: f"{group}/{name}-{secrets.token_hex(3)}")
        run: Any = trackio.init(
            project=self.project,
            name=own,
            group=group,
            config={"job_type": job_type, **config},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        try:
            yield _Run(run)
        finally:
            run.finish()


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        numbers, step = against(metrics, step_name)
        self._run.log(numbers, step=step)

    def image(self, name: str, path: Path) -> None:
        import trackio

        self._run.log({name: trackio.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import trackio

        self._run.log({name: trackio.Markdown(as_markdown(columns, rows))})

    def summary(self, values: dict[str, Any]) -> None:
        self._run.log({f"summary/{name}": value for name, value in values.items()})
