"""Write the comparison of a group of runs again: python experiments/report.py outputs/quickstart"""

from __future__ import annotations

from pathlib import Path

from pds.errors import PDSError
from pds.lab.cli import Failed, documented, sentence, start, tell
from pds.lab.report import overview, write_report
from pds.lab.terminal import show


def report(arguments: list[str]) -> None:
    """Show the table of each folder given and write its report.html."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        raise PDSError("name the folders of groups: python experiments/report.py outputs/quickstart")
    wrong = False
    for folder in map(Path, arguments):
        try:
            show(overview(folder))
            show(f"report  {write_report(folder)}")
        except (PDSError, OSError) as error:  # the other folders are shown
            tell(error, sentence(error))
            wrong = True
    if wrong:
        raise Failed


if __name__ == "__main__":
    start(documented(report, __doc__))
