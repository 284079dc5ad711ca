"""What every script does around its work: show log lines, tell a failure in one sentence, leave with the right status."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from pds.errors import PDSError
from pds.lab.logs import to_terminal

log = logging.getLogger(__name__)


def show_lines(prefix: str = "") -> None:
    """Show the lines of the library and of the scripts on standard error; `prefix` as of `to_terminal`."""
    to_terminal(prefix, (__name__, "__main__"))


@contextlib.contextmanager
def one_sentence(failures: list[str]) -> Iterator[None]:
    """Tell a failure that the user can act on in one sentence, and remember it; a sweep goes on with its next point."""
    show_lines()
    try:
        yield
    except (PDSError, OSError) as error:
        log.error("error: %s", error)
        failures.append(str(error))


def entry_point(main: Callable[[], None], failures: list[str]) -> None:
    """Run a Hydra main and leave with status 1 if any of its jobs failed."""
    main()
    sys.exit(1 if failures else 0)
