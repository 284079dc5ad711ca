"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], number: Sequence[bool]) -> str:
    """Return a Markdown table of `rows`, the head first; `number` says which columns stand to the right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, number, strict=True)])
    padded = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, number, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
