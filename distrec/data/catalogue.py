"""The items that there are: their ids, and their features in memory, so that any of them can join a batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa

from distrec.batch import Batch, KeyedJaggedTensor, Position
from distrec.config.layout import Layout
from distrec.config.retrieval import Retrieval
from distrec.config.schema import Data
from distrec.data.collate import Encoder
from distrec.data.columns import Use, is_key, is_number, is_text_key, uses
from distrec.data.complete import ItemRows, complete, no_rows
from distrec.data.ids import Ids, jagged_keys
from distrec.data.items import ItemIndex
from distrec.data.numbers import encode_weight
from distrec.data.parquet import Dataset, open_dataset
from distrec.data.window import Column, Window
from distrec.errors import UserError

ITEMS = "retrieval.items"  # the key of the catalogue's paths


@dataclass(frozen=True)
class JaggedRows:
    """The ids of one feature, by item."""

    values: np.ndarray  # (N,) int64
    starts: np.ndarray  # (M,) int64
    lengths: np.ndarray  # (M,) int32

    def take(self, rows: np.ndarray) -> Ids:
        """Of these items, `(n,) int64`, in this order; -1 is an item without ids."""
        lengths = np.where(rows >= 0, self.lengths[rows], 0).astype(np.int32)
        before = np.cumsum(lengths, dtype=np.int64) - lengths
        within = np.arange(lengths.sum()) - np.repeat(before, lengths)
        return Ids(self.values[np.repeat(self.starts[rows], lengths) + within], lengths)


class Catalogue:
    """Every item once. All ranks hold the same: a few numbers an item, no vectors."""

    def __init__(self, dataset: Dataset, retrieval: Retrieval, data: Data, layout: Layout):
        """See `open_catalogue`."""
        self._retrieval, self._data, self._layout = retrieval, data, layout
        self.numbering = dataset.numbering  # of its ids (`distrec.data.numbering`)
        own = layout.only(retrieval.item_features)
        table = pa.Table.from_batches(list(dataset.read(dataset.row_groups, data.verify_checksums)), dataset.schema)
        window = Window(table, None, partial(dataset.where_in, dataset.row_groups))
        self.index = _index(window, retrieval.item_id)  # for columns of ids that are read from files
        self.ids: pa.Array = table.column(retrieval.item_id).combine_chunks()  # (M,) the user's own, strings or integers
        self._ids, self._dense = _features(window, data, own)
        self.train_count = _counts(window, retrieval.train_count)  # (M,) float64; None where no column says

    @property
    def rows(self) -> int:
        """Items."""
        return len(self.index)

    def find(self, ids: Sequence[int] | Sequence[str] | pa.Array) -> np.ndarray:
        """The rows, `(N,) int64`, of the user's own ids; -1 for one that the catalogue lacks, or of another type."""
        given: pa.Array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if not is_key(given.type) or is_text_key(given.type) != self.index.text or given.null_count:
            return np.full(len(given), -1, np.int64)
        return self.index.rows(jagged_keys(Column(given, None, str)).values)

    def take(self, rows: np.ndarray) -> ItemRows:
        """These items, `(n,) int64`, with their features; -1 for none."""
        real = rows >= 0
        dense = {name: np.where(real, values[rows], np.float32(0)) for name, values in self._dense.items()}
        return ItemRows(rows, {name: ids.take(rows) for name, ids in self._ids.items()}, dense)

    def batch(self, rows: np.ndarray) -> Batch:
        """A batch of these items and no query; -1 makes a row of padding."""
        return complete(no_rows(self._layout), self._layout, self._layout, self.take(rows))

    @cached_property
    def titles(self) -> pa.Array | None:
        """What people know the items by, (M,) strings; None where `retrieval.title` names no column."""
        return self._words("title")

    @cached_property
    def categories(self) -> pa.Array | None:
        """The items' groups, (M,) strings; None where `retrieval.category` names no column."""
        return self._words("category")

    @property
    def own_column(self) -> str:
        """The column of `own_ids`."""
        return self._retrieval.own_id or self._retrieval.item_id

    @cached_property
    def own_ids(self) -> pa.Array:
        """The ids to answer with, (M,) strings or integers: those of `retrieval.own_id`, else `ids`.

        Raises:
            UserError: there is no such column, or an item has no id there, or that of another one.
        """
        column = self._retrieval.own_id
        if column is None:
            return self.ids
        own = self._read(Use(column, "retrieval.own_id", is_key, "an integer or string type"))
        distinct = len(own.unique())
        if own.null_count or distinct < len(own):
            found = f"is null for {own.null_count:,} of" if own.null_count else f"has {distinct:,} distinct values for"
            raise UserError(
                f"retrieval.own_id: column {column!r} {found} {len(own):,} items, and answers would not say which item is "
                "meant; name a column that tells all items apart, or leave own_id away"
            )
        return own

    def _words(self, key: str) -> pa.Array | None:
        column = getattr(self._retrieval, key)
        if column is None:
            return None
        anything = Use(column, f"retrieval.{key}", lambda kind: not pa.types.is_nested(kind), "one value an item")
        return self._read(anything).cast(pa.large_string())

    def _read(self, use: Use) -> pa.Array:
        """A column, when it is asked for: training needs none of them."""
        dataset = open_dataset(self._retrieval.items, [use], self._data.retries, ITEMS)
        parts = list(dataset.read(dataset.row_groups, self._data.verify_checksums))
        return pa.Table.from_batches(parts, dataset.schema).column(use.column).combine_chunks()


def open_catalogue(retrieval: Retrieval, data: Data, layout: Layout) -> Catalogue:
    """Read the catalogue's ids, and the item features among those of `layout`.

    Raises:
        UserError: a path, a file or a column is not as the config says, there is no item, or an id is null or there twice.
    """
    own = layout.only(retrieval.item_features)
    wanted = [Use(retrieval.item_id, "retrieval.item_id", is_key, "an integer or string type"), *uses(_plain(data), own, ())]
    if retrieval.train_count is not None:
        wanted.append(Use(retrieval.train_count, "retrieval.train_count", is_number, "a numeric type"))
    return Catalogue(open_dataset(retrieval.items, wanted, data.retries, ITEMS), retrieval, data, layout)


def _plain(data: Data) -> Data:
    """For rows that have features and nothing else."""
    return data.model_copy(update={"weight": None, "group": None})


def _index(window: Window, name: str) -> ItemIndex:
    column = window.column(name)
    keys = jagged_keys(column)
    if (keys.lengths != 1).any():
        where = column.where(int(np.argmin(keys.lengths)))
        raise UserError(f"retrieval.items, column {name!r}, {where}: null, but every item needs an id")
    index = ItemIndex(keys.values, column.type)
    if (row := index.first_twice()) is not None:
        raise UserError(
            f"retrieval.items, {column.where(row)}: item {column.value(row)!r} of column {name!r} is there twice; "
            "a catalogue has one row an item"
        )
    return index


def _features(window: Window, data: Data, own: Layout) -> tuple[dict[str, JaggedRows], dict[str, np.ndarray]]:
    """Id features and numbers of all items, by feature."""
    with closing(Encoder(_plain(data), own, (), len(window))) as encoder:
        batch = encoder.encode(window).batch(0, len(window), 1.0, Position())
    ids = _by_feature(batch.sparse) | _by_feature(batch.sequence)
    return ids, {feature.name: batch.dense[:, i].clone().numpy() for i, feature in enumerate(own.dense)}


def _by_feature(ids: KeyedJaggedTensor | None) -> dict[str, JaggedRows]:
    found = {} if ids is None else ids.to_dict()
    return {
        name: JaggedRows(*(part.numpy() for part in (f.values(), f.offsets()[:-1], f.lengths()))) for name, f in found.items()
    }


def _counts(window: Window, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    column = window.column(name)
    counts = encode_weight(column, name, "retrieval.train_count").astype(np.float64)
    if not counts.sum():
        raise UserError(f"retrieval.train_count: column {name!r} is 0 for every item; count the items of data.train")
    return counts


class CatalogueReader:
    """A rank's share of the catalogue as batches, once; the share of rank r is rows `[r M // W, (r + 1) M // W)`.

    Every rank has as many batches of as many rows: short shares end in padding, whose `Batch.items` is -1.
    """

    def __init__(self, catalogue: Catalogue, rank: int, world: int, batch_size: int):
        self._catalogue, self._batch_size = catalogue, batch_size
        self._first, self._stop = (r * catalogue.rows // world for r in (rank, rank + 1))
        self._longest = -(-catalogue.rows // world)

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank."""
        return -(-self._longest // self._batch_size)

    def batches(self, epochs: int | None = 1) -> Generator[Batch, None, None]:
        """All batches, once."""
        for low in range(0, self._longest, self._batch_size):
            rows = np.arange(low, min(low + self._batch_size, self._longest)) + self._first
            yield self._catalogue.batch(np.where(rows < self._stop, rows, -1))
