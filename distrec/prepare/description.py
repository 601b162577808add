"""`dataset.json`: what the Parquet files beside it hold, for people and for the writer of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from distrec.json_out import to_json

FILE = "dataset.json"
RAW_USER = "raw_user_id"  # in queries, the user's own id beside the number that it is given
ID_LIST = pa.list_(pa.field("element", pa.int64()))  # the name that Parquet gives to elements
Role = Literal["label", "dense", "sparse", "sequence", "group", "time", "target", "mask", "text", "count"]


@dataclass(frozen=True)
class Column:
    """A Parquet column and what it is for."""

    name: str
    type: pa.DataType
    role: Role
    cardinality: int | None = None  # ids: rows that an embedding table needs; strings: distinct values
    shares: str | None = None  # the column whose id space, and so whose table, this one shares


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The schema of the files, in the order of `columns`."""
    return pa.schema([pa.field(c.name, c.type, nullable=c.role != "label") for c in columns])


def write_description(
    folder: Path, name: str, task: str, columns: Sequence[Column], rows: Mapping[str, int], **facts: Any
) -> Path:
    """Write `folder/dataset.json`.

    Args:
        folder: where the splits lie.
        name: of the dataset.
        task: what `label` means.
        columns: of every split.
        rows: of each split.
        facts: further entries that JSON can hold, such as the source's checksum.
    """
    entries = [entry(column) for column in columns]
    content = {"dataset": name, "task": task, "rows": dict(rows), **facts, "columns": entries}
    path = folder / FILE
    path.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
    return path


def entry(column: Column) -> dict[str, Any]:
    """What `dataset.json` says of a column."""
    said = {"name": column.name, "type": str(column.type), "role": column.role}
    optional = {"cardinality": column.cardinality, "shares": column.shares}
    return said | {key: value for key, value in optional.items() if value is not None}
