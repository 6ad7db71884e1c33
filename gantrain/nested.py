"""Nested mappings and lists as flat, dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, key: str = "", *, into_lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping (nor list, unless `into_lists` is off), under its dotted key."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif into_lists and isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, item in items:
        yield from leaves(item, f"{key}.{name}" if key else str(name), into_lists=into_lists)
