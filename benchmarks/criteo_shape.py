"""Rows in the shape of Criteo's, 13 numbers and 26 raw ids with nulls, with lists of ids besides; and configs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DENSE, SPARSE = 13, 26
NULL_SHARE = 0.1
DISTINCT = 200_000  # raw ids a column
ROW_GROUP = 65_536
EXPONENT = 1.2  # of the ids' Zipf distribution


def write_rows(folder: Path, rows: int, lists: int = 0, files: int = 2, seed: int = 0) -> Path:
    """Write `rows` rows: `label`, `i1…` float32, `c1…` int64 of any sign, `h1…` lists of 0 to 8 ids; returns `folder`."""
    draw = np.random.default_rng(seed)
    raw = draw.integers(-(2**63), 2**63 - 1, (SPARSE, DISTINCT))
    folder.mkdir(parents=True)
    for part in range(files):
        pq.write_table(
            pa.table(_columns(draw, raw, rows // files, lists)), folder / f"part-{part}.parquet", row_group_size=ROW_GROUP
        )
    return folder


def config_values(
    train: Path, folder: Path, *, lists: int, rows: int, dim: int, batch_size: int, **sections: Any
) -> dict[str, Any]:
    """A DLRM config on such rows, with a table of `rows` x `dim` a feature."""
    ids = [*(f"c{i}" for i in range(1, SPARSE + 1)), *(f"h{i}" for i in range(1, lists + 1))]
    dense = [{"name": f"i{i}", "null": 0.0, "transform": "log1p"} for i in range(1, DENSE + 1)]
    return {
        "name": "bench",
        "folder": str(folder),
        "data": {"train": str(train), "batch_size": batch_size},
        "tables": {name: {"rows": rows, "dim": dim} for name in ids},
        "features": {"dense": dense, "sparse": [{"name": name, "table": name, "ids": "hash"} for name in ids]},
        "model": {"name": "dlrm", "params": {"bottom_mlp": [256, dim], "top_mlp": [256, 128]}},
        "train": {"epochs": 1},
    } | sections


def _columns(draw: np.random.Generator, raw: np.ndarray, rows: int, lists: int) -> dict[str, Any]:
    columns: dict[str, Any] = {"label": (draw.random(rows) < 0.2).astype(np.int8)}
    for i in range(DENSE):
        columns[f"i{i + 1}"] = pa.array(draw.lognormal(size=rows).astype(np.float32), mask=draw.random(rows) < NULL_SHARE)
    for i in range(SPARSE):
        ranks = np.minimum(draw.zipf(EXPONENT, rows), DISTINCT) - 1
        columns[f"c{i + 1}"] = pa.array(raw[i, ranks], mask=draw.random(rows) < NULL_SHARE)
    return columns | {f"h{i + 1}": _lists(draw, rows) for i in range(lists)}


def _lists(draw: np.random.Generator, rows: int) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(draw.integers(0, 9, rows))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(draw.integers(0, 2**40, offsets[-1])))
