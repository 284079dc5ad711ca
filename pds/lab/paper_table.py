"""The file table.json beside a group's runs: the cells of a table of a paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from pds.errors import PDSError
from pds.files import parse_json, read_bytes, reading, write_json
from pds.lab.text import sentence
from pds.options import fitted, shown

FILE = "table.json"


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    row: str
    column: str
    printed: float | None = None  # the paper's number
    points: tuple[str, ...] = ()  # digests of the points that measure it, one a seed (`pds.lab.points`)
    missing: str = ""  # the absent thing that it needs


@dataclass(frozen=True)
class Table:
    """The cells of a table and their origin; `table.json` in the folder of its runs."""

    title: str
    source: str  # the paper that prints it
    quantity: str  # "distance" or "seconds"
    metric: str  # features and reference of the printed distance, as in a metric's name without the image count
    images: int  # of a printed cell
    note: str  # other reasons why printed and measured differ
    another_model: bool  # whether the measured model is not the printed one
    command: str  # makes the table again
    cells: tuple[Cell, ...]
    missing: list[str] = field(default_factory=list)  # where the missing files are published and belong

    def __post_init__(self) -> None:
        if not self.cells:
            raise PDSError(f"the table {shown(self.title)} has no cell: list cells, or the columns of its rows, in conf/table")

    def write(self, folder: Path) -> None:
        """Write it into the folder of its runs."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Table | None:
        """Read the table of a folder; None without one.

        Raises:
            PDSError: its file is damaged.
        """
        if not (folder / FILE).exists():
            return None
        with reading(folder / FILE, "a table", "run the command that made it again"):
            values = parse_json(read_bytes(folder / FILE), {"cells": list})
            cells = tuple(_made(Cell, {**cell, "points": tuple(cell["points"])}) for cell in values["cells"])
            return _made(cls, {**values, "cells": cells})

    def about(self) -> list[str]:
        """Return the sentences that a reader needs beside the numbers."""
        note = [sentence(self.note)] if self.note and not self.another_model else []
        origin = "Printed" if any(cell.printed is not None for cell in self.cells) else "Source"
        return [f"{origin}: {self.source}.", *note, *(f"Missing: {line}." for line in self.missing)]


def _made(kind: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: fitted(name, value, hints[name]) for name, value in values.items()})
