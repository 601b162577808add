"""A small log of users and items with a planted taste, its catalogue, and a config on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, GENRES = 60, 40, 4


def write_retrieval(folder: Path, rows: int = 2000, seed: int = 0, text: bool = False, **replaced: Any) -> Path:
    """`train`, `valid` and `items` under `folder`: a user likes the items of genre `user % 4`; ids may be text."""
    draw = np.random.default_rng(seed)
    user = draw.integers(0, USERS, rows)
    liked = draw.random(rows) < 0.9
    item = np.where(liked, draw.integers(0, ITEMS // GENRES, rows) * GENRES + user % GENRES, draw.integers(0, ITEMS, rows))
    history = [draw.choice(item[user == u], min(3, int((user == u).sum())), replace=False).tolist() for u in range(USERS)]
    seen = [np.unique(item[user == u]).tolist() for u in range(USERS)]
    ids = [f"item-{i}" for i in range(ITEMS)] if text else list(range(ITEMS))
    genre = np.arange(ITEMS) % GENRES

    def named(rows: Any) -> list:
        return [[ids[i] for i in row] for row in rows]

    train = {
        "user_id": user,
        "x": draw.normal(size=rows),
        "history": pa.array([history[u] for u in user], pa.list_(pa.int64())),
        "item_id": [ids[i] for i in item],
        "item_index": item,
        "genre": genre[item],
        "price": (item / ITEMS).astype(np.float32),
        "negatives": named(draw.integers(0, ITEMS, (rows, 3))),
        "others": named([history[u] for u in user]),
    } | replaced
    valid = {
        "user_id": np.arange(USERS),
        "x": draw.normal(size=USERS),
        "history": pa.array(history, pa.list_(pa.int64())),
        "targets": named([[int(draw.integers(0, ITEMS // GENRES) * GENRES + u % GENRES)] for u in range(USERS)]),
        "seen": named([s[:2] for s in seen]),
    }
    items = {
        "item_id": ids,
        "item_index": np.arange(ITEMS),
        "genre": genre,
        "price": (np.arange(ITEMS) / ITEMS).astype(np.float32),
        "title": [f"Item {i}" for i in range(ITEMS)],
        "train_count": np.bincount(item, minlength=ITEMS),
    }
    for name, columns in {"train": train, "valid": valid, "items": items}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        half = -(-table.num_rows // 2)
        for part in range(2):
            pq.write_table(table.slice(part * half, half), folder / name / f"part-{part}.parquet", row_group_size=300)
    return folder


def retrieval_values(data: Path, folder: Path, /, **sections: Any) -> dict[str, Any]:
    """A config as TOML would give it; `sections` replace or extend its top level."""
    return {
        "name": "small",
        "folder": str(folder),
        "data": {"train": str(data / "train"), "batch_size": 64, "shuffle_window": 256},
        "tables": {
            "user": {"rows": USERS, "dim": 8, "init_scale": 0.1},
            "item": {"rows": ITEMS, "dim": 8, "init_scale": 0.1},
            "genre": {"rows": GENRES, "dim": 8},
        },
        "features": {
            "dense": ["x", "price"],
            "sparse": [
                {"name": "user_id", "table": "user"},
                {"name": "item_index", "table": "item"},
                {"name": "genre", "table": "genre"},
            ],
            "sequence": [{"name": "history", "table": "item", "max_length": 3}],
        },
        "retrieval": {
            "items": str(data / "items"),
            "item_features": ["item_index", "genre", "price"],
            "mask": "seen",
            "title": "title",
            "train_count": "train_count",
            "ks": [5, 10],
        },
        "model": {"name": "two_tower", "params": {"query_mlp": [16], "item_mlp": [16], "dim": 8}},
        "optimizer": {"dense": {"name": "adam", "lr": 0.01}, "sparse": {"lr": 0.1}},
        "train": {"device": "cpu", "log_every": 5},
    } | sections
