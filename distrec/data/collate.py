"""Arrow columns of a window -> arrays in batch form. No Python loop over rows.

A window is encoded before it is cut into batches, so that the cost of a Python call is spread over a window. Its columns
are encoded side by side, by as many threads as Arrow decodes with (`pyarrow.cpu_count()`), each into scratch memory.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.layout import Layout, Lookup
from distrec.config.schema import Data, Task
from distrec.data.arrange import cut
from distrec.data.crew import Crew
from distrec.data.encoded import Encoded, KeyedIds, Numbers
from distrec.data.ids import Ids, encode_ids
from distrec.data.items import ItemUse, encode_item, encode_items
from distrec.data.numbers import encode_dense, encode_groups, encode_label, encode_weight
from distrec.data.scratch import Scratch
from distrec.data.window import Column, Window

Result = TypeVar("Result")
Encode = Callable[[Column, Any], Result]
Use = tuple[str, Any]  # a column, and what it is used for
Job = Callable[[], None]

APART = 16  # float32 between two columns of numbers: a line of the cache
NONE = np.zeros(0, np.int64)


class Encoder:
    """Encodes windows for one config, one at a time. `close` ends its threads."""

    def __init__(self, data: Data, layout: Layout, tasks: Sequence[Task], batch_size: int, items: Sequence[ItemUse] = ()):
        self._data, self._layout, self._tasks, self._batch_size = data, layout, tasks, batch_size
        self._item = next((use for use in items if use.single), None)
        self._lists = [use for use in items if not use.single]
        self._crew = Crew(pa.cpu_count(), "distrec-encode")
        passing = threading.local()
        self._scratch: defaultdict[str, Scratch] = defaultdict(lambda: Scratch(passing))

    def close(self) -> None:
        """End the threads."""
        self._crew.close()

    def encode(self, window: Window) -> Encoded:
        """Encode every feature, label, weight and group of the window.

        Raises `UserError` for a value that its feature refuses, naming the feature, the file and the row.
        """
        layout, data = self._layout, self._data
        jobs: list[Job] = []
        encoded = Encoded(
            self._batch_size,
            len(window),
            dense=self._numbers("dense", encode_dense, [(f.column or f.name, f) for f in layout.dense], window, jobs),
            labels=self._numbers("label", encode_label, [(task.label, task) for task in self._tasks], window, jobs),
            weights=self._numbers("weight", encode_weight, [(data.weight, data.weight)], window, jobs) if data.weight else None,
            groups=self._single("group", encode_groups, data.group, data.group, window, jobs) if data.group else None,
            sparse=self._keyed("bag", encode_ids, layout.bags, window, jobs),
            sequence=self._keyed("sequence", encode_ids, layout.sequences, window, jobs),
            items=self._single("item", encode_item, self._item.column, self._item, window, jobs) if self._item else None,
            lists=self._keyed("list", encode_items, self._lists, window, jobs),
        )
        self._crew.do(jobs)
        return encoded

    def padding(self) -> Encoded:
        """A window without rows, for a rank that has none in a step that others have."""
        layout, none = self._layout, np.zeros(0, np.int64)
        return Encoded(
            self._batch_size,
            0,
            dense=_no_numbers(len(layout.dense)),
            labels=_no_numbers(len(self._tasks)),
            weights=None,
            groups=none if self._data.group else None,
            sparse=_no_ids(layout.bags),
            sequence=_no_ids(layout.sequences),
            items=none if self._item else None,
            lists=_no_ids(self._lists),
        )

    def _numbers(self, kind: str, encode: Encode[np.ndarray], uses: Sequence[Use], window: Window, jobs: list[Job]) -> Numbers:
        """Columns that `jobs`, which are added to, will fill."""
        # Were the columns a power of two apart, the values of a row would drive each other out of the cache.
        shape = len(uses), len(window) + APART
        columns = self._scratch[kind].lasting("columns", shape[0] * shape[1], np.float32).reshape(shape)

        def job(index: int, column: str, use: Any) -> None:
            columns[index, : len(window)] = encode(window.column(column, self._scratch[f"{kind} {index}"]), use)

        jobs += [partial(job, index, *use) for index, use in enumerate(uses)]
        return Numbers(columns, window.order, len(window))

    def _single(
        self, kind: str, encode: Encode[np.ndarray], column: str, use: Any, window: Window, jobs: list[Job]
    ) -> np.ndarray:
        """The same of `(n,) int64` in reading order."""
        values = self._scratch[kind].lasting("single", len(window), np.int64)

        def job() -> None:
            values[:] = encode(window.column(column, self._scratch[f"{kind} 0"]), use)

        jobs.append(job)
        return values

    def _keyed(
        self, kind: str, encode: Encode[Ids], uses: Sequence[Lookup] | Sequence[ItemUse], window: Window, jobs: list[Job]
    ) -> KeyedIds:
        """The same of ids."""
        values, batches = [NONE] * len(uses), -(-len(window) // self._batch_size)
        starts = np.empty((len(uses), batches + 1), np.int64)
        scalar = all(types.is_integer(window.table.schema.field(use.column).type) for use in uses)
        narrow = np.dtype(np.uint8 if scalar else np.int32)
        lengths = self._scratch[kind].lasting("lengths", len(uses) * len(window), narrow).reshape(len(uses), len(window))

        def job(index: int, use: Lookup | ItemUse) -> None:
            ids = encode(window.column(use.column, self._scratch[f"{kind} {index}"]), use)
            cut(ids.lengths, self._batch_size, starts[index])
            values[index], lengths[index] = ids.values, ids.lengths

        jobs += [partial(job, index, use) for index, use in enumerate(uses)]
        return KeyedIds([use.name for use in uses], values, lengths, starts)


def _no_numbers(columns: int) -> Numbers:
    return Numbers(np.zeros((columns, 0), np.float32), np.zeros(0, np.uint32), 0)


def _no_ids(uses: Sequence[Lookup] | Sequence[ItemUse]) -> KeyedIds:
    count = len(uses)
    return KeyedIds([u.name for u in uses], [NONE] * count, np.zeros((count, 0), np.int32), np.zeros((count, 2), np.int64))
