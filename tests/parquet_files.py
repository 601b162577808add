"""Small Parquet files, and readers over them, for the tests of the data path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distrec.batch import Batch
from distrec.config.layout import Layout, layout
from distrec.config.schema import Data, DenseFeature, Features, SequenceFeature, SparseFeature, Table, Task
from distrec.data import Reader, open_dataset, uses


def write(path: Path, columns: dict, **options) -> str:
    """Write `columns` (name -> list or Arrow array) to `path` and return it as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def numbered(folder: Path, row_groups: Sequence[Sequence[int]]) -> str:
    """A file for each entry of `row_groups` and a row group for each number in it; column `row` numbers all rows.

    `label` is 0 throughout, `weight` is 1, and `ids` is the row number, as often as its last digit says.
    """
    schema = pa.schema({"row": pa.int64(), "label": pa.int8(), "ids": pa.list_(pa.int64())})
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for index, groups in enumerate(row_groups):
        with pq.ParquetWriter(folder / f"part-{index:03d}.parquet", schema) as writer:
            for size in groups:
                rows = list(range(first, first + size))
                columns = {"row": rows, "label": [0] * size, "ids": [[r] * (r % 10) for r in rows]}
                writer.write_table(pa.table(columns, schema), row_group_size=max(size, 1))
                first += size
    return str(folder)


NUMBERED_LAYOUT = layout(
    Features(dense=(DenseFeature(name="row"),), sparse=(SparseFeature(name="ids", table="t"),)),
    {"t": Table(rows=1 << 20, dim=4)},
)


def numbered_reader(folder: str, rank: int = 0, world: int = 1, batch_size: int = 4, window: int = 8, **options) -> Reader:
    """A reader over what `numbered` wrote."""
    data = Data(train=folder, batch_size=batch_size, shuffle_window=window)
    tasks = (Task(),)
    dataset = open_dataset(data.train, uses(data, NUMBERED_LAYOUT, tasks))
    return Reader(dataset, data, NUMBERED_LAYOUT, tasks, rank=rank, world=world, **options)


def real_rows(batches: Iterable[Batch]) -> list[int]:
    """The row numbers of every row that is not padding."""
    return [int(row) for batch in batches for row, weight in zip(batch.dense[:, 0], batch.weights, strict=True) if weight]


def read_columns(
    path: str,
    *,
    data: dict | None = None,
    tables: dict[str, Table] | None = None,
    dense: Sequence[DenseFeature] = (),
    sparse: Sequence[SparseFeature] = (),
    sequence: Sequence[SequenceFeature] = (),
    tasks: Sequence[Task] = (),
) -> Batch:
    """All rows at `path`, in file order, as one batch."""
    section = Data(train=path, batch_size=1 << 16, shuffle=False, **(data or {}))
    order: Layout = layout(Features(dense=tuple(dense), sparse=tuple(sparse), sequence=tuple(sequence)), tables or {})
    dataset = open_dataset(section.train, uses(section, order, tasks))
    (batch,) = Reader(dataset, section, order, tasks, rank=0, world=1).batches(epochs=1)
    return batch


def lists(jagged, feature: str) -> list[list[int]]:
    """A feature's ids, row by row."""
    part = jagged[feature]
    return [ids.tolist() for ids in part.values().split(part.lengths().tolist())]
