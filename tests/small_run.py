"""A small dataset and a config on it, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 2000


def write_rows(folder: Path, rows: int = ROWS, seed: int = 0, files: int = 2, **replaced: Any) -> Path:
    """Rows with a number of their own in `x`, ids, a history and a label that depends on both; `replaced` columns on top."""
    draw = np.random.default_rng(seed)
    item = draw.integers(0, 40, rows)
    histories = [draw.integers(0, 40, n).tolist() for n in draw.integers(0, 6, rows)]
    liked = np.array([i in h or i % 3 == 0 for i, h in zip(item, histories, strict=True)])
    columns = {
        "x": np.arange(rows, dtype=np.float64),
        "user": draw.integers(0, 50, rows),
        "item": item,
        "history": pa.array(histories, pa.list_(pa.int64())),
        "label": (liked ^ (draw.random(rows) < 0.1)).astype(np.int8),
    } | replaced
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    for part, start in enumerate(range(0, rows, -(-rows // files))):
        pq.write_table(table.slice(start, -(-rows // files)), folder / f"part-{part}.parquet", row_group_size=300)
    return folder


def values(rows: Path, folder: Path, **sections: Any) -> dict[str, Any]:
    """A config as TOML would give it; `sections` replace or extend its top level."""
    return {
        "name": "small",
        "folder": str(folder),
        "data": {"train": str(rows), "batch_size": 64, "shuffle_window": 256},
        "tables": {"user": {"rows": 50, "dim": 8}, "item": {"rows": 40, "dim": 8}},
        "features": {
            "dense": [{"name": "x", "scale": ROWS}],
            "sparse": [{"name": "user", "table": "user"}, {"name": "item", "table": "item"}],
            "sequence": [{"name": "history", "table": "item", "max_length": 4}],
        },
        "model": {"name": "dlrm", "params": {"bottom_mlp": [8], "top_mlp": [16], "dropout": 0.1}},
        "optimizer": {"dense": {"name": "adam", "lr": 0.01}, "sparse": {"lr": 0.1}},
        "train": {"device": "cpu", "log_every": 5},
    } | sections
