"""Every ranker and retriever that distrec ships, with a log small enough to train each on it within a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM, USERS, ITEMS, GENRES, WORDS, COLOURS = 8, 17, 13, 5, 7, 6
ROWS, BATCH, EPOCHS = 75, 13, 2  # rows of a rank's batch; two ranks have 37 and 38 rows, and so unequal last batches
SHARES = [(rank * ROWS // 2, (rank + 1) * ROWS // 2) for rank in range(2)]  # the rows of each of two ranks
LR, TASK_WEIGHTS = 0.2, (1.0, 0.5)
# Of one collection tables lie in every way, and lists are pooled by their sum here, by their mean there.
ROWS_OF = {"user": USERS, "item": ITEMS, "genre": GENRES, "word": WORDS, "colour": COLOURS}
OPTIMIZERS = {"user": "sgd", "item": "adagrad", "genre": "sgd", "word": "sgd", "colour": "adagrad"}
SHARDING = {"user": "data_parallel", "item": "row_wise", "genre": "row_wise", "word": "table_wise", "colour": "column_wise"}
TABLE_OF = {"user": "user", "genres": "genre", "words": "word", "colours": "colour", "item": "item", "history": "item"}
POOLING = {"user": "mean", "genres": "mean", "words": "sum", "colours": "mean", "item": "mean"}
SIDES = {"x": "query", "price": "item"}  # of numbers; ids go by `Case.item_features`


@dataclass(frozen=True)
class Case:
    """A model and the features that it gets."""

    model: str
    params: dict[str, Any] = field(default_factory=dict)
    retrieval: dict[str, Any] | None = None  # of a retriever: its loss
    dense: tuple[str, ...] = ("x", "price")
    sparse: tuple[str, ...] = ("user", "genres", "words", "colours", "item")
    item_features: tuple[str, ...] = ("item", "genres", "colours", "price")


WHOLE: dict[str, Any] = {"dense": (), "sparse": ("user", "item"), "item_features": ("item",)}
CASES = {
    "dlrm": Case("dlrm", {"bottom_mlp": [6, DIM], "top_mlp": [7]}),
    "dlrm-dcn": Case("dlrm", {"interaction": "dcn", "bottom_mlp": [6], "top_mlp": [7], "cross_layers": 2}),
    "deepfm": Case("deepfm", {"mlp": [7]}),
    "din": Case(
        "din",
        {"targets": ["item"], "histories": ["history"], "attention_mlp": [6], "top_mlp": [7]}
        | {"attention_activation": "prelu", "top_activation": "prelu"},
    ),
    "wide_deep": Case("wide_deep", {"mlp": [7], "wide_only": ["genres"], "deep_only": ["history"]}),
    "dcn": Case("dcn", {"mlp": [7], "structure": "parallel", "cross_layers": 2, "cross_rank": 3, "experts": 2}),
    "mmoe": Case("mmoe", {"experts": 2, "task_experts": 1, "expert_mlp": [6], "tower_mlp": [5]}),
    "two_tower": Case("two_tower", {"query_mlp": [7], "item_mlp": [6], "dim": 5}, {"loss": "softmax", "temperature": 0.3}),
    "youtube_dnn": Case("youtube_dnn", {"mlp": [7]}, {"loss": "softmax", "temperature": 0.3}, **WHOLE | {"dense": ("x",)}),
    "dssm": Case("dssm", {"query_mlp": [7, 6], "item_mlp": [7, 6]}, {"loss": "bce", "temperature": 0.3}),
    "simplex": Case("simplex", {"history": "user_attention"}, {"loss": "ccl", "margin": 0.1, "negative_weight": 3.0}, **WHOLE),
    "mf": Case("two_tower", {}, {"loss": "bpr", "temperature": 0.3}, **WHOLE),
}
WITHOUT_HISTORY = ("mf",)


def write_log(folder: Path) -> dict[str, Any]:
    """`train` and `items` under `folder`; returns train's columns, lists as Python has them.

    Lists may be empty, and in one step all histories of the first rank are: its attention has nothing to go by.
    """
    draw = np.random.default_rng(0)
    genres = [draw.choice(GENRES, n, replace=False).tolist() for n in draw.integers(0, 4, ITEMS)]
    colours = [draw.choice(COLOURS, n, replace=False).tolist() for n in draw.integers(0, 4, ITEMS)]
    price = draw.normal(size=ITEMS)
    item = draw.integers(0, ITEMS, ROWS)
    histories = [draw.integers(0, ITEMS, n).tolist() for n in draw.integers(0, 5, ROWS)]
    columns = {
        "user": draw.integers(0, USERS, ROWS),
        "item": item,
        "genres": [genres[i] for i in item],
        "colours": [colours[i] for i in item],
        "words": [draw.integers(0, WORDS, n).tolist() for n in draw.integers(0, 4, ROWS)],
        "history": [[] if BATCH <= row < 2 * BATCH else history for row, history in enumerate(histories)],
        "x": draw.normal(size=ROWS),
        "price": price[item],
        "click": draw.integers(0, 2, ROWS),
        "stars": draw.normal(size=ROWS),
        "weight": draw.uniform(0.5, 2.0, ROWS),
    }
    _write(folder / "train", columns)
    _write(folder / "items", {"item": np.arange(ITEMS), "genres": genres, "colours": colours, "price": price})
    return columns


def _write(folder: Path, columns: dict[str, Any]) -> None:
    lists = pa.list_(pa.int64())
    folder.mkdir(parents=True)
    arrays = {name: pa.array(values, lists if isinstance(values, list) else None) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), folder / "part-0.parquet", row_group_size=20)


def histories_of(name: str) -> tuple[str, ...]:
    """The sequence features of a case."""
    return () if name in WITHOUT_HISTORY else ("history",)


def case_values(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """The config of a case, as TOML would give it."""
    case = CASES[name]
    sequences = histories_of(name)
    tables = {TABLE_OF[feature] for feature in (*case.sparse, *sequences)}
    values: dict[str, Any] = {
        "name": name,
        "folder": str(folder),
        "data": {"train": str(data / "train"), "batch_size": BATCH, "shuffle": False, "weight": "weight"},
        "tables": {table: _table(table) for table in sorted(tables)},
        "features": {
            "dense": list(case.dense),
            "sparse": [{"name": f, "table": TABLE_OF[f], "pooling": POOLING[f]} for f in case.sparse],
            "sequence": [{"name": f, "table": TABLE_OF[f], "max_length": 4} for f in sequences],
        },
        "model": {"name": case.model, "params": case.params},
        "optimizer": {"dense": {"name": "sgd", "lr": LR}},
        "train": {"device": "cpu", "epochs": EPOCHS, "log_every": 1},
    }
    if case.retrieval is not None:
        items = {"items": str(data / "items"), "item_id": "item", "item_features": list(case.item_features)}
        return values | {"retrieval": items | {"log_q": False, "ks": [5]} | case.retrieval}
    tasks = [{"name": "click", "label": "click"}, {"name": "stars", "label": "stars", "kind": "regression"}]
    return values | {"tasks": [task | {"weight": weight} for task, weight in zip(tasks, TASK_WEIGHTS, strict=True)]}


def _table(name: str) -> dict[str, Any]:
    optimizer = {"name": OPTIMIZERS[name], "lr": LR}
    return {"rows": ROWS_OF[name], "dim": DIM, "init_scale": 0.5, "sharding": SHARDING[name], "optimizer": optimizer}
