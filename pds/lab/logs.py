"""Where log lines go: the terminal, and the run's own log file."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def to_terminal(prefix: str = "", callers: Sequence[str] = ()) -> None:
    """Show this library's log lines, and warnings of others, on standard error; once a process.

    Args:
        prefix: begins each line, to tell the lines of processes apart.
        callers: names of more loggers whose lines are shown.
    """
    logger = logging.getLogger()
    handler = next((handler for handler in logger.handlers if getattr(handler, "pds_terminal", False)), None)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.pds_terminal = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    # A log file on a full disk must not bury the sentence that says so.
    logging.raiseExceptions = False
    logger.setLevel(logging.WARNING)
    for name in ("pds", *callers):
        logging.getLogger(name).setLevel(logging.INFO)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy log lines into a file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
