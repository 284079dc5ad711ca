"""What a comparison looked like: pictures, tables and one self-contained page, from the files that the runs left."""

from pds.reporting.page import write_report
from pds.reporting.pictures import filter_picture, image_grid, space_picture
from pds.reporting.runs import RunSummary, format_table, read_runs
from pds.reporting.tables import overview

__all__ = [
    "RunSummary",
    "filter_picture",
    "format_table",
    "image_grid",
    "overview",
    "read_runs",
    "space_picture",
    "write_report",
]
