"""Turn numbers and tables into text: Markdown that also reads well in a terminal, and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pds.files import atomic_path
from pds.markdown import markdown_table as markdown_table

MISSING = "–"
FLOOR = "real data (floor)"


def rounded(values: Iterable[float | None], errors: Iterable[float | None] = ()) -> list[str]:
    """Return the numbers of one column with equally many decimals; the smallest has three significant digits.

    A number with a standard error has no digit below the first of its error.
    """
    values = list(values)
    finite = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    decimals = min(6, max(1, 2 - math.floor(math.log10(min(finite))))) if finite else 1
    pairs = itertools.zip_longest(values, errors)
    return [MISSING if v is None else f"{v:.{min(decimals, _known(error))}f}" for v, error in pairs]


def _known(error: float | None) -> int:
    """Decimals down to the first digit of a standard error."""
    return max(0, -math.floor(math.log10(error))) if error and math.isfinite(error) else 6


def significant(value: float, error: float | None = None) -> str:
    """Return three significant digits, or all digits before the point, never with an exponent and none below an error."""
    size = abs(float(f"{value:.3g}"))
    decimals = 2 - math.floor(math.log10(size)) if size and math.isfinite(size) else 0
    return f"{value:.{min(max(0, decimals), _known(error))}f}"


def with_error(text: str, error: float | None) -> str:
    """Return the number in `text` with its standard error, if there is one."""
    return text if error is None else f"{text} ± {with_decimals_of(text, error)}"


def with_decimals_of(text: str, value: float) -> str:
    """Return `value` with as many decimals as the number in `text`."""
    return f"{value:.{len(text.partition('.')[2])}f}"


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a finite number; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def as_text(value: Any) -> str:
    """Return a value of a configuration, short."""
    if is_number(value):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV of `rows`, the head first. None is an empty cell; lists and mappings are JSON."""

    cells = ([v if v is None or isinstance(v, (int, float, str)) else json.dumps(v) for v in row] for row in rows)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write `path` atomically in UTF-8; half a surrogate pair is written as its escape."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
