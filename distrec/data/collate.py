"""Arrow columns of a window -> arrays in batch form. No Python loop over rows.

A window is encoded before it is cut into batches, so that the cost of a Python call is spread over a window. Its columns
are encoded side by side, by as many threads as Arrow decodes with (`pyarrow.cpu_count()`), each into scratch memory;
then as many threads put them together.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from distrec.config.layout import Layout, Lookup
from distrec.config.schema import Data, Task
from distrec.data.crew import Crew
from distrec.data.encoded import Encoded, KeyedIds
from distrec.data.ids import encode_ids
from distrec.data.items import ItemUse, encode_items
from distrec.data.numbers import encode_dense, encode_groups, encode_label, encode_weight
from distrec.data.placing import Join, Single, Stack
from distrec.data.scratch import Scratch, fresh
from distrec.data.window import Column, Window

Result = TypeVar("Result")
Uses = Sequence[tuple[str, Any]]  # a column, and what it is used for


class Encoder:
    """Encodes windows for one config, one at a time. `close` ends its threads."""

    def __init__(self, data: Data, layout: Layout, tasks: Sequence[Task], batch_size: int, items: Sequence[ItemUse] = ()):
        self._data, self._layout, self._tasks, self._batch_size = data, layout, tasks, batch_size
        self._items, self._lists = [use for use in items if use.single], [use for use in items if not use.single]
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
        stacks, singles, joins = self._stacks(window), self._singles(window), self._joins(window)
        self._crew.do([job for part in (*joins, *singles, *stacks) for job in part.encoding()])
        self._crew.do([job for part in (*stacks, *joins) for job in part.placing()])  # what is still in the cache first
        dense, labels, weights = (stack.stacked for stack in stacks)
        groups, items = (single.values for single in singles)
        sparse, sequence, lists = (join.joined() for join in joins)
        weights = weights[:, 0] if self._data.weight else self._ones(len(window))
        return Encoded(self._batch_size, dense, labels, weights, groups, sparse, sequence, items, lists)

    def padding(self) -> Encoded:
        """One batch without rows, for a rank that has none in a step that others have."""
        size = self._batch_size
        return Encoded(
            size,
            dense=np.zeros((size, len(self._layout.dense)), np.float32),
            labels=np.zeros((size, len(self._tasks)), np.float32),
            weights=np.zeros(size, np.float32),
            groups=np.zeros(size, np.int64) if self._data.group else None,
            sparse=_nothing(self._layout.bags, size),
            sequence=_nothing(self._layout.sequences, size),
            items=np.zeros(size, np.int64) if self._items else None,
            lists=_nothing(self._lists, size),
        )

    def _stacks(self, window: Window) -> list[Stack]:
        """Dense features, labels, weights."""
        weight = self._data.weight
        return [
            self._stack("dense", encode_dense, [(f.column or f.name, f) for f in self._layout.dense], window),
            self._stack("label", encode_label, [(task.label, task) for task in self._tasks], window),
            self._stack("weight", encode_weight, [(weight, weight)] if weight else [], window),
        ]

    def _singles(self, window: Window) -> list[Single]:
        """Groups, items."""
        group, rows = self._data.group, len(window)
        groups = self._calls("group", encode_groups, [(group, group)] if group else [], window)
        items = self._calls("item", _encode_item, [(use.column, use) for use in self._items], window)
        return [Single(encode, rows, self._whole(rows)) for encode in (groups, items)]

    def _joins(self, window: Window) -> list[Join]:
        """Features that are pooled, sequences, lists of items."""
        kinds = [
            ("bag", encode_ids, self._layout.bags),
            ("sequence", encode_ids, self._layout.sequences),
            ("list", encode_items, self._lists),
        ]
        return [
            Join(
                [f.name for f in uses],
                self._calls(kind, encode, [(f.column, f) for f in uses], window),
                len(window),
                self._batch_size,
            )
            for kind, encode, uses in kinds
        ]

    def _stack(self, kind: str, encode: Callable[[Column, Any], np.ndarray], uses: Uses, window: Window) -> Stack:
        return Stack(self._calls(kind, encode, uses, window), window, self._whole(len(window)), self._scratch[kind])

    def _calls(
        self, kind: str, encode: Callable[[Column, Any], Result], uses: Uses, window: Window
    ) -> list[Callable[[], Result]]:
        """What encodes each (column, what it is used for)."""

        def call(use: tuple[str, Any], scratch: Scratch) -> Result:
            return encode(window.column(use[0], scratch), use[1])

        return [partial(call, use, self._scratch[f"{kind} {index}"]) for index, use in enumerate(uses)]

    def _whole(self, rows: int) -> int:
        """Rows of the batches that so many rows are cut into, padding included."""
        return -(-rows // self._batch_size) * self._batch_size

    def _ones(self, rows: int) -> np.ndarray:
        """Weights where no column has them."""
        weights = fresh(self._whole(rows), np.float32)
        weights[:rows], weights[rows:] = 1, 0
        return weights


def _encode_item(column: Column, use: ItemUse) -> np.ndarray:
    return encode_items(column, use).values


def _nothing(features: Sequence[Lookup] | Sequence[ItemUse], size: int) -> KeyedIds:
    """A batch of so many rows without an id."""
    lengths = np.zeros((1, len(features), size), np.int32)
    return KeyedIds([f.name for f in features], np.zeros(0, np.int64), np.zeros(2, np.int64), lengths)
