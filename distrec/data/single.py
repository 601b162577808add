"""One row as a batch: a query that is asked by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
from pyarrow import compute

from distrec.batch import Batch, Position
from distrec.config.layout import Layout
from distrec.config.schema import Data
from distrec.data.collate import Encoder
from distrec.data.deal import Piece
from distrec.data.items import ItemUse
from distrec.data.parquet import Dataset
from distrec.data.window import Window

Row = tuple[pa.Table, Callable[[int], str]]  # of length 1; where it is, for messages


def find_rows(dataset: Dataset, column: str, values: Iterable[str]) -> dict[str, Row]:
    """The last row of each of `values` whose id in `column`, integer or string, is written like that; those that there are.

    Ids alone are read, from the end of the data, until all are found; then the row groups that hold them.
    """
    ids = replace(dataset, schema=pa.schema([dataset.schema.field(column)]))
    missing, found = set(values), {}
    for piece in reversed(dataset.row_groups):
        if not missing:
            break
        texts = [part.column(0).cast(pa.large_string()) for part in ids.read([piece], verify_checksums=False)]
        places = places_of(pa.chunked_array(texts), missing)
        missing -= places.keys()
        found |= _rows(dataset, piece, places) if places else {}
    return found


def places_of(texts: pa.Array | pa.ChunkedArray, wanted: Iterable[str]) -> dict[str, int]:
    """The last place of each of `wanted` in a column of large_string; those that it has. Memory is for the wanted ones."""
    given = compute.SetLookupOptions(pa.array(wanted, pa.large_string()))
    hits = np.flatnonzero(compute.call_function("is_in", [texts], given).to_numpy(zero_copy_only=False))
    return dict(zip(texts.take(pa.array(hits)).to_pylist(), hits.tolist(), strict=True))


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


def _rows(dataset: Dataset, piece: Piece, places: Mapping[str, int]) -> dict[str, Row]:
    chosen = replace(piece, rows=np.unique(list(places.values())))
    table = pa.Table.from_batches(list(dataset.read([chosen], verify_checksums=False)), dataset.schema)
    found = {}
    for value, place in places.items():
        at = int(np.searchsorted(chosen.rows, place))
        found[value] = table.slice(at, 1), lambda _, at=at: dataset.where(chosen, at)
    return found
