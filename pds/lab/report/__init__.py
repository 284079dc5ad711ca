"""Compare runs by their files: tables, charts and one self-contained page."""

from pds.lab.report.page import write_report
from pds.lab.report.runs import Run, Runs, read_runs
from pds.lab.report.table import format_table, overview

__all__ = ["Run", "Runs", "format_table", "overview", "read_runs", "write_report"]
