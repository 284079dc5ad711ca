"""Progress bars on a terminal; in a file or a pipe, a line now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines in a file."""
_UP = "\x1b[A"  # tqdm's way back from a bar below


class _Lines:
    """Standard error for a bar that no terminal shows: each state of the bar is a line."""

    encoding = "ascii"  # bars of #
    said = ""

    def write(self, text: str) -> None:
        line = text.replace(_UP, "").strip()
        if line not in ("", self.said):
            self.said = line
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(*args: Any, **options: Any) -> tqdm[Any]:
    """A bar of tqdm, with its arguments."""
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    # Short work is silent. tqdm's own monitor would draw a bar again after `maxinterval`.
    lines = {"file": _Lines(), "delay": EVERY, "mininterval": EVERY, "maxinterval": 2 * EVERY, "ncols": 100}
    return tqdm(*args, **(options | lines))
