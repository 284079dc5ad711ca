"""What a comparison looked like: pictures, tables and one self-contained page, from the files that the runs left."""

from pds.lab.report.page import write_report
from pds.lab.report.pictures import filter_picture, space_picture
from pds.lab.report.runs import RunSummary, format_table, read_runs
from pds.lab.report.tables import overview

__all__ = [
    "RunSummary",
    "filter_picture",
    "format_table",
    "overview",
    "read_runs",
    "space_picture",
    "write_report",
]
