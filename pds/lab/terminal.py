"""The terminal: streams whose loss is no error, and text without control characters."""

from __future__ import annotations

import io
import os
import select
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from pds.errors import escaped

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
"""The scripts; hydra_plugins is beside them."""
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


class _Shown(io.FileIO):
    """Bytes for the terminal. Nobody may be watching, and the disk of a redirection may be full."""

    def write(self, data: object) -> int:
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type]
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def steady(stream: TextIO | None, mode: str = "w") -> TextIO:
    """A stream that takes any text in any locale, and writes what it can.

    A letter outside of its encoding is written as its escape.

    Args:
        stream: one of Python's own; None for one that was closed before the program began.
        mode: "r" or "w".
    """
    if stream is None:
        # The lowest free number is that of the closed stream. No other file may get it: C libraries write to it.
        return cast(TextIO, open(os.devnull, mode, encoding="utf-8"))
    if mode == "r":
        return stream
    try:
        raw = _Shown(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # a stream of a notebook or a test
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    buffered = isinstance(stream, io.TextIOWrapper) and not stream.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(getattr(stream, "line_buffering", True)),
        write_through=not buffered,
    )


def steady_streams() -> None:
    """Make the three streams of this process steady."""
    for name, mode in STREAMS.items():
        setattr(sys, name, steady(getattr(sys, name), mode))


def show(text: str) -> None:
    """Print a result, which may have several lines."""
    print(escaped(text, keep="\n"), flush=True)


def command_line(words: Sequence[str]) -> str:
    """A script and its arguments as a command for a shell in this folder, by the interpreter that runs now."""
    named = not sys.executable or shutil.which("python") == sys.executable
    return shlex.join(["python" if named else _from_here(Path(sys.executable)), *words])


def script(name: str) -> str:
    """The path of a script of experiments/, for a command in this folder."""
    return _from_here(EXPERIMENTS / name)


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
