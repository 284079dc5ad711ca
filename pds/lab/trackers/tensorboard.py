"""TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pds.lab.tracking import Patience, TrackedRun, against, as_markdown, require_package
from pds.options import options


@options
class TensorBoardTracker:
    """TensorBoard's event files in the run folder: `tensorboard --logdir outputs/GROUP` shows the group.

    Attributes:
        patience: seconds to wait at the end until all is written.
    """

    patience: Patience = 60.0

    def __post_init__(self) -> None:
        require_package("tensorboard", "tensorboard")

    @contextlib.contextmanager
    def run(self, folder: Path, name: str, group: str, job_type: str, config: dict[str, Any]) -> Iterator[TrackedRun]:
        """See `Tracker.run`; all event files of a folder are one run to TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:
            writer.add_text("config", _code(yaml.safe_dump({"job_type": job_type, **config}, allow_unicode=True)))
            yield _Run(writer)


class _Run:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, metrics: dict[str, float], step_name: str | None = None) -> None:
        numbers, step = against(metrics, step_name)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._writer.add_text(name, as_markdown(columns, rows))

    def summary(self, values: dict[str, Any]) -> None:
        self._writer.add_text("summary", as_markdown(["", "value"], list(values.items())))


def _code(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
