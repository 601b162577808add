"""Rows of a log of interactions, a user, the item and what the user had before; and a two-tower config for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HISTORY = 20  # items at most
ROW_GROUP = 65_536
EXPONENT = 1.2  # of the items' Zipf distribution
WIDTH = 128  # of either tower's hidden layer


def write_log(folder: Path, rows: int, ids: int, files: int = 2, seed: int = 0) -> Path:
    """Write `rows` rows of as many users as items, `ids`, to `train`, and the catalogue to `items`; returns `folder`."""
    draw = np.random.default_rng(seed)
    names = draw.permutation(ids)  # so that the ids of popular items are no neighbours
    for part in range(files):
        _write(folder / f"train/part-{part}.parquet", _columns(draw, names, rows // files))
    _write(folder / "items/items.parquet", {"item_id": np.arange(ids)})
    return folder


def config_values(log: Path, folder: Path, *, rows: int, dim: int, batch_size: int) -> dict[str, Any]:
    """In-batch softmax with logQ over cosines, two towers of one hidden layer; tables of `rows` x `dim` for users and items."""
    history = {"name": "history_item_id", "table": "item", "pooling": "mean", "max_length": HISTORY}
    return {
        "name": "bench",
        "folder": str(folder),
        "data": {"train": str(log / "train"), "batch_size": batch_size},
        "tables": {name: {"rows": rows, "dim": dim} for name in ("user", "item")},
        "features": {
            "sparse": [{"name": "user_id", "table": "user"}, {"name": "item_id", "table": "item", "pooling": "mean"}, history]
        },
        "retrieval": {"items": str(log / "items"), "item_features": ["item_id"]},
        "model": {"name": "two_tower", "params": {"query_mlp": [WIDTH], "item_mlp": [WIDTH], "dim": dim}},
        "train": {"epochs": 1},
    }


def _columns(draw: np.random.Generator, names: np.ndarray, rows: int) -> dict[str, Any]:
    def items(count: int) -> np.ndarray:
        return names[np.minimum(draw.zipf(EXPONENT, count), len(names)) - 1]

    offsets = np.concatenate([[0], np.cumsum(draw.integers(0, HISTORY + 1, rows))]).astype(np.int32)
    history = pa.ListArray.from_arrays(pa.array(offsets), pa.array(items(offsets[-1])))
    return {"user_id": draw.integers(0, len(names), rows), "item_id": items(rows), "history_item_id": history}


def _write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)
