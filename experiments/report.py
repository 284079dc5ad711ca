"""Write the comparison of a group of runs again: python experiments/report.py outputs/quickstart"""

from __future__ import annotations

import sys
from pathlib import Path

from pds.errors import PDSError
from pds.lab.report import overview, write_report


def main(arguments: list[str]) -> None:
    """Print the table of each folder given and write its report.html."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        sys.exit(f"usage: {__doc__.split(': ')[1]}")
    for folder in map(Path, arguments):
        try:
            print(f"{overview(folder)}\nreport  {write_report(folder)}")
        except PDSError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
