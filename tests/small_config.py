"""The smallest config with every kind of feature."""

from __future__ import annotations

import copy
from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"train": "rows"},
    "tables": {"user": {"rows": 50, "dim": 8}, "item": {"rows": 40, "dim": 8}},
    "features": {
        "dense": ["x"],
        "sparse": [{"name": "user", "table": "user"}],
        "sequence": [{"name": "history", "table": "item", "max_length": 4}],
    },
    "model": {"name": "dlrm"},
}


def small(**sections: Any) -> dict[str, Any]:
    return copy.deepcopy(SMALL) | sections
