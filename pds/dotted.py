"""Nested tables by dotted key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def dotted(table: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The values of nested tables by dotted key, except those `without`, which may be keys of whole tables."""
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in without:
                continue
            if isinstance(value, Mapping):
                walk(value, f"{name}.")
            else:
                flat[name] = value

    walk(table, "")
    return flat
