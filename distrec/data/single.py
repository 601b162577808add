"""One row as a batch: a query that is asked by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
from pyarrow import compute

from distrec.batch import Batch, Position
from distrec.config.layout import Layout
from distrec.config.schema import Data
from distrec.data.collate import Encoder
from distrec.data.columns import is_text_key
from distrec.data.items import ItemUse
from distrec.data.parquet import Dataset
from distrec.data.window import Window

Row = tuple[pa.Table, Callable[[int], str]]  # of length 1; where it is, for messages


def find_row(dataset: Dataset, column: str, value: str) -> Row | None:
    """The last row whose id in `column` is `value`, integer or string as the column is; None where there is none."""
    text = is_text_key(dataset.schema.field(column).type)
    if not text and not value.lstrip("-").isdigit():
        return None
    found = None
    for piece in dataset.row_groups:
        first = 0
        for part in dataset.read([piece], verify_checksums=False):
            hits = np.flatnonzero(_equal(part.column(column), value if text else int(value)))
            if len(hits):
                at = int(hits[-1])
                where = dataset.where(piece, first + at)
                found = pa.Table.from_batches([part.slice(at, 1)]), lambda _, where=where: where
            first += part.num_rows
    return found


def no_row(layout: Layout, said: str) -> Row:
    """A row of which nothing is known; `said` stands for where it is."""
    columns = {f.column or f.name: pa.nulls(1, pa.float64()) for f in layout.dense}
    columns |= {f.column: pa.nulls(1, pa.int64()) for f in (*layout.bags, *layout.sequences)}
    return pa.table(columns) if columns else pa.table({"": pa.nulls(1)}), lambda _: said


def encode_row(row: Row, data: Data, layout: Layout, items: Sequence[ItemUse] = ()) -> Batch:
    """A batch of this row; `items` are the columns that hold items.

    Raises:
        UserError: a value that its feature refuses.
    """
    plain = data.model_copy(update={"weight": None, "group": None})
    with closing(Encoder(plain, layout, (), 1, items)) as encoder:
        return encoder.encode(Window(row[0], None, row[1])).batch(0, 1, 1.0, Position())


def _equal(column: pa.Array, value: str | int) -> np.ndarray:
    """(n,) bool; a null is equal to nothing."""
    same = compute.call_function("equal", [column, pa.scalar(value, column.type)])
    return same.fill_null(False).to_numpy(zero_copy_only=False)
