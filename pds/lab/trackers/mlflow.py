"""MLflow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pds.dotted import dotted
from pds.lab.tracking import Patience, TrackedRun, against, as_markdown, entry, require_package
from pds.options import options


@options
class MLflowTracker:
    """MLflow: a group is an experiment.

    Attributes:
        uri: address of the store or server; null is $MLFLOW_TRACKING_URI, else the file mlflow.db beside the groups: `mlflow ui
            --backend-store-uri sqlite:///outputs/mlflow.db`.
        patience: seconds to wait at the end until all is written. The first run in a new mlflow.db needs ten.
    """

    uri: str | None = None
    patience: Patience = 60.0

    def __post_init__(self) -> None:
        require_package("mlflow", "mlflow")

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`; a block that raises is a failed run in MLflow too."""
        # By default MLflow reports its use to its makers, and tries an absent server for minutes.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.tracking import MlflowClient

        outputs = folder.absolute().parents[len(Path(group).parts)]
        own = self.uri is None and not os.environ.get("MLFLOW_TRACKING_URI")
        client = MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}" if own else self.uri)
        run = entry(folder, "mlflow", lambda run: _open(client, run), lambda: self._new(client, outputs, own, name, group))
        for key, value in dotted({"job_type": job_type, **config}).items():
            with contextlib.suppress(
                _refused()
            ):  # a resumed run may compute on another device, and MLflow cannot change a value
                client.log_param(run, key, value)
        status = "FAILED"
        try:
            yield _Run(client, run)
            status = "FINISHED"
        finally:
            client.set_terminated(run, status)

    def _new(self, client: Any, outputs: Path, own: bool, name: str, group: str) -> str:
        experiment = client.get_experiment_by_name(group)
        place = (outputs / "mlflow").as_uri() if own else None
        number = experiment.experiment_id if experiment else client.create_experiment(group, artifact_location=place)
        run: str = client.create_run(number, run_name=name).info.run_id
        return run


def _refused() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _open(client: Any, run: str) -> bool:
    """Open a run again; False if the store has no such run."""
    try:
        client.update_run(run, "RUNNING")
    except _refused():
        return False
    return True


class _Run:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        numbers, step = against(metrics, step_name)
        for name, value in numbers.items():
            self._client.log_metric(self._run, name, value, step=step)

    def image(self, name: str, path: Path) -> None:
        self._client.log_artifact(self._run, str(path), name)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._client.log_text(self._run, as_markdown(columns, rows), f"{name}.md")

    def summary(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, str):
                self._client.set_tag(self._run, name, value)
            else:
                self._client.log_metric(self._run, name, float(value))
