"""Values -> TOML text: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """One `key = value` line a top-level key, nested tables inline; what is None is left out."""
    return "".join(f"{key(name)} = {value(inner)}\n" for name, inner in values.items() if inner is not None)


def value(found: Any) -> str:
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, Mapping):
        pairs = (f"{key(name)} = {value(inner)}" for name, inner in found.items() if inner is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(found, list | tuple):
        return "[" + ", ".join(map(value, found)) + "]"
    return json.dumps(found) if isinstance(found, str) else repr(found)


def key(name: str) -> str:
    return json.dumps(name)
