"""The destinations of log lines: the terminal, and the log file of the run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from pds.errors import PDSError, escaped
from pds.files import appending

log = logging.getLogger(__name__)

_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

LONGEST = 2000  # characters of a line; names and values come from files, and may be as long as these
FORMAT = "%(asctime)s %(levelname)s %(message)s"


class Lines(logging.Formatter):
    """One line a record, for any message; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message, LONGEST)
        return super().formatMessage(record)

    def formatException(self, ei: _Raised) -> str:
        return escaped(super().formatException(ei), keep="\n")


class Terminal(logging.Handler):
    """Standard error, as it is when a line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with tqdm.external_write_mode(sys.stderr):  # bars move out of the way
                sys.stderr.write(f"{self.format(record)}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


def show_lines(prefix: str = "") -> None:
    """Show this library's log lines, and warnings of others, on standard error; once a process.

    Args:
        prefix: begins each line, to tell the lines of processes apart.
    """
    logger = logging.getLogger()
    handler = next((handler for handler in logger.handlers if isinstance(handler, Terminal)), None)
    if handler is None:
        handler = Terminal()
        logger.addHandler(handler)
    handler.setFormatter(Lines(f"{prefix}%(message)s"))
    # A log file on a full disk must not hide the sentence about the full disk.
    logging.raiseExceptions = False
    logger.setLevel(logging.WARNING)
    logging.getLogger("pds").setLevel(logging.INFO)


@contextlib.contextmanager
def quieter(*names: str) -> Iterator[None]:
    """Keep the information of some loggers from the terminal, not from log files, while the block runs."""

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or record.name not in names

    terminals = [handler for handler in logging.getLogger().handlers if isinstance(handler, Terminal)]
    for terminal in terminals:
        terminal.addFilter(matters)
    try:
        yield
    finally:
        for terminal in terminals:
            terminal.removeFilter(matters)


@contextlib.contextmanager
def spared(what: str) -> Iterator[None]:
    """Warn of the error of a block that only shows something, such as a report: the work that it shows is done."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be written: %s", what, error, exc_info=not isinstance(error, PDSError))


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy log lines into a file while the block runs."""
    with appending(path):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(Lines(FORMAT))
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        # A full disk that refused these lines refuses them again.
        with contextlib.suppress(OSError):
            handler.close()


@contextlib.contextmanager
def traced(path: Path) -> Iterator[None]:
    """Append to a log file what Python, torch or a user's own code raised, where the block makes a sentence of it."""
    try:
        yield
    except PDSError as error:
        if error.__cause__ is not None:
            # Where nothing can be written, the sentence alone is told.
            with contextlib.suppress(OSError, PDSError), log_file(path):
                with quieter(__name__):
                    log.info("%s", error, exc_info=error)
                log.info("the traceback is in %s", path)
        raise
