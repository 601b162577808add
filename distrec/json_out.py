"""JSON that every parser reads: for the files of a run, and for what the verbs print."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def to_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON text, with null for numbers that are NaN or infinite; the other arguments are `json.dumps`' own.

    JSON has no word for such numbers. Python writes `NaN` nevertheless, at which other parsers refuse the whole file.
    """
    return json.dumps(finite(value), indent=indent, default=default, allow_nan=False)


def finite(value: Any) -> Any:
    """Plain values as they come back from `to_json`'s text, but for keys."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
