"""Arrow columns of a window -> arrays in batch form. No Python loop over rows.

A window is encoded before it is cut into batches, so that the cost of a Python call is spread over a window. Its columns
are encoded side by side, by as many threads as Arrow decodes with (`pyarrow.cpu_count()`), each into scratch memory;
then as many threads put them together.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from distrec.config.layout import Layout, Lookup
from distrec.config.schema import Data, Task
from distrec.data.encoded import Encoded, KeyedIds
from distrec.data.ids import Ids, encode_ids
from distrec.data.items import ItemUse, encode_items
from distrec.data.numbers import encode_dense, encode_groups, encode_label, encode_weight
from distrec.data.scratch import Scratch
from distrec.data.window import Column, Window

Array = TypeVar("Array", np.ndarray, Ids)
BLOCK = 1 << 14  # rows that are stacked at once, in a core's cache


class Encoder:
    """Encodes windows for one config, one at a time. `close` ends its threads."""

    def __init__(self, data: Data, layout: Layout, tasks: Sequence[Task], batch_size: int, items: Sequence[ItemUse] = ()):
        self._data, self._layout, self._tasks, self._batch_size = data, layout, tasks, batch_size
        self._items, self._lists = [use for use in items if use.single], [use for use in items if not use.single]
        self._pool = ThreadPoolExecutor(pa.cpu_count(), "distrec-encode")
        passing = threading.local()
        self._scratch: defaultdict[str, Scratch] = defaultdict(lambda: Scratch(passing))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def encode(self, window: Window) -> Encoded:
        """Encode every feature, label, weight and group of the window.

        Raises `UserError` for a value that its feature refuses, naming the feature, the file and the row.
        """
        layout, data = self._layout, self._data
        bags = self._each("bag", encode_ids, [(f.column, f) for f in layout.bags], window)
        sequences = self._each("sequence", encode_ids, [(f.column, f) for f in layout.sequences], window)
        dense = self._each("dense", encode_dense, [(f.column or f.name, f) for f in layout.dense], window)
        labels = self._each("label", encode_label, [(task.label, task) for task in self._tasks], window)
        weights = self._each("weight", encode_weight, [(data.weight, data.weight)] if data.weight else [], window)
        groups = self._each("group", encode_groups, [(data.group, data.group)] if data.group else [], window)
        items = self._each("item", encode_items, [(use.column, use) for use in self._items], window)
        lists = self._each("list", encode_items, [(use.column, use) for use in self._lists], window)
        rows = len(window)
        return Encoded(
            self._batch_size,
            dense=self._stack(list(dense), rows),
            labels=self._stack(list(labels), rows),
            weights=self._stack(list(weights) or [np.ones(rows, np.float32)], rows)[:, 0],
            groups=self._stack(list(groups), rows, np.int64)[:, 0] if data.group else None,
            sparse=self._join(layout.bags, list(bags), rows),
            sequence=self._join(layout.sequences, list(sequences), rows),
            items=self._stack([ids.values for ids in items], rows, np.int64)[:, 0] if self._items else None,
            lists=self._join(self._lists, list(lists), rows),
        )

    def padding(self) -> Encoded:
        """One batch without rows, for a rank that has none in a step that others have."""
        size, none = self._batch_size, Ids(np.zeros(0, np.int64), np.zeros(0, np.int32))
        return Encoded(
            size,
            dense=np.zeros((size, len(self._layout.dense)), np.float32),
            labels=np.zeros((size, len(self._tasks)), np.float32),
            weights=np.zeros(size, np.float32),
            groups=None if self._data.group is None else np.zeros(size, np.int64),
            sparse=self._join(self._layout.bags, [none] * len(self._layout.bags), size),
            sequence=self._join(self._layout.sequences, [none] * len(self._layout.sequences), size),
            items=np.zeros(size, np.int64) if self._items else None,
            lists=self._join(self._lists, [none] * len(self._lists), size),
        )

    def _each(
        self, kind: str, encode: Callable[[Column, Any], Array], uses: Sequence[tuple[str, Any]], window: Window
    ) -> Iterable[Array]:
        """Start to encode each (column, what it is used for); the results come in that order."""

        def one(use: tuple[str, Any], scratch: Scratch) -> Array:
            return encode(window.column(use[0], scratch), use[1])

        return self._pool.map(one, uses, [self._scratch[f"{kind} {index}"] for index in range(len(uses))])

    def _stack(self, columns: Sequence[np.ndarray], rows: int, dtype: type = np.float32) -> np.ndarray:
        """`(whole batches, columns)`; zeros after the rows."""
        stacked = np.empty((-(-rows // self._batch_size) * self._batch_size, len(columns)), dtype)
        stacked[rows:] = 0

        def copy(low: int) -> None:
            for index, column in enumerate(columns):
                stacked[low : min(low + BLOCK, rows), index] = column[low : low + BLOCK]

        _finish(self._pool.map(copy, range(0, rows, BLOCK)))
        return stacked

    def _join(self, features: Sequence[Lookup] | Sequence[ItemUse], ids: Sequence[Ids], rows: int) -> KeyedIds:
        size, starts = self._batch_size, np.arange(0, rows, self._batch_size)
        counts = np.zeros((len(starts), len(ids)), np.int64)  # values of each batch and feature
        for index, part in enumerate(ids):
            counts[:, index] = np.add.reduceat(part.lengths, starts) if len(part.lengths) else 0
        bounds = np.zeros(counts.size + 1, np.int64)
        np.cumsum(counts.ravel(), out=bounds[1:])
        values, lengths = np.empty(bounds[-1], np.int64), np.empty((len(starts), len(ids), size), np.int32)

        def copy(index: int) -> None:
            _copy_lengths(ids[index].lengths, lengths[:, index])
            _copy_values(ids[index].values, counts[:, index].tolist(), bounds[index :: len(ids)].tolist(), values)

        _finish(self._pool.map(copy, range(len(ids))))
        return KeyedIds([f.name for f in features], values, bounds[:: max(len(ids), 1)], lengths)


def _finish(tasks: Iterable[None]) -> None:
    """Wait, and raise what a task raised."""
    for _ in tasks:
        pass


def _copy_lengths(lengths: np.ndarray, batches: np.ndarray) -> None:
    """`(rows,)` into `(batches, batch size)`; zeros after the rows."""
    whole, rest = divmod(len(lengths), batches.shape[1])
    batches[:whole] = lengths[: len(lengths) - rest].reshape(whole, batches.shape[1])
    if whole < len(batches):
        batches[whole, :rest] = lengths[len(lengths) - rest :]
        batches[whole, rest:] = 0


def _copy_values(source: np.ndarray, counts: Sequence[int], starts: Sequence[int], values: np.ndarray) -> None:
    """The next `counts[b]` of `source` to `starts[b]` of `values`, for each batch b."""
    low = 0
    for count, start in zip(counts, starts, strict=False):
        values[start : start + count] = source[low : low + count]
        low += count
