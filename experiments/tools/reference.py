"""Write docs/reference.md from the signatures and docstrings of everything that can be chosen.

python experiments/tools/reference.py
"""

from __future__ import annotations

from pds.errors import PDSError
from pds.lab.cli import documented, prepare, start
from pds.lab.config import CONF
from pds.lab.reference import page


def write(arguments: list[str]) -> None:
    """Write the page."""
    if arguments:
        raise PDSError(f"reference.py takes no arguments, got {arguments[0]}")
    prepare()
    (CONF.parent / "docs" / "reference.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    start(documented(write, __doc__))
