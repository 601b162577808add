"""Encoded columns -> arrays in batch form. What is done to one column, or one block of rows, is a job for a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from distrec.data.arrange import lay, stack
from distrec.data.encoded import KeyedIds
from distrec.data.ids import Ids
from distrec.data.scratch import Scratch, fresh
from distrec.data.window import Window

Job = Callable[[], None]
BLOCK = 1 << 14  # rows that are stacked by one job
APART = 16  # float32 between two columns: a line of the cache


class Stack:
    """Columns of numbers that come to lie side by side: `stacked (whole batches, columns) float32`, zeros after the rows."""

    def __init__(self, encode: Sequence[Callable[[], np.ndarray]], window: Window, whole: int, scratch: Scratch):
        """`encode` gives each column, `(rows,) float32` in file order. `whole`: rows of whole batches."""
        count, rows = len(encode), len(window)
        self.stacked = fresh((whole, count), np.float32)
        self.stacked[rows:] = 0
        self._encode, self._window = encode, window
        # Were the columns a power of two apart, their values of a row would drive each other out of the cache.
        self._columns = scratch.lasting("columns", count * (rows + APART), np.float32).reshape(count, rows + APART)

    def encoding(self) -> list[Job]:
        """The first jobs."""
        return [partial(self._one, index) for index in range(len(self._encode))]

    def placing(self) -> list[Job]:
        """The jobs after those."""
        return [partial(self._block, low) for low in range(0, len(self._window), BLOCK)] if self._encode else []

    def _one(self, index: int) -> None:
        self._columns[index, : len(self._window)] = self._encode[index]()

    def _block(self, low: int) -> None:
        stack(self._columns, self._window.order, low, self.stacked[low : min(low + BLOCK, len(self._window))])


class Single:
    """A column of integers: `values (whole batches,) int64`, zeros after the rows; None without one."""

    def __init__(self, encode: Sequence[Callable[[], np.ndarray]], rows: int, whole: int):
        """`encode`, of length 0 or 1, gives the column in reading order. `whole`: rows of whole batches."""
        self.values = np.zeros(whole, np.int64) if encode else None
        self._encode, self._rows = encode, rows

    def encoding(self) -> list[Job]:
        """The only jobs."""
        return [self._one for _ in self._encode]

    def _one(self) -> None:
        assert self.values is not None
        self.values[: self._rows] = self._encode[0]()


class Join:
    """Ids of several features that come to lie batch after batch, and in each batch feature after feature."""

    def __init__(self, features: Sequence[str], encode: Sequence[Callable[[], Ids]], rows: int, batch_size: int):
        """`encode` gives the ids of each feature, in reading order."""
        batches = -(-rows // batch_size)
        self._features, self._encode = list(features), encode
        self._lengths = fresh((batches, len(encode), batch_size), np.int32)
        self._counts = np.zeros((batches, len(encode)), np.int64)  # values of each batch and feature
        self._parts: list[np.ndarray] = [np.zeros(0, np.int64)] * len(encode)
        self._bounds, self._values = np.zeros(1, np.int64), np.zeros(0, np.int64)

    def encoding(self) -> list[Job]:
        """The first jobs."""
        return [partial(self._one, index) for index in range(len(self._encode))]

    def placing(self) -> list[Job]:
        """The jobs after those."""
        self._bounds = np.concatenate(([0], np.cumsum(self._counts)))
        self._values = fresh(self._bounds[-1], np.int64)
        return [partial(self._copy, index) for index in range(len(self._encode))]

    def joined(self) -> KeyedIds:
        """What came of them."""
        return KeyedIds(self._features, self._values, self._bounds[:: max(len(self._encode), 1)], self._lengths)

    def _one(self, index: int) -> None:
        ids = self._encode[index]()
        lay(ids.lengths, index, self._lengths, self._counts)
        self._parts[index] = ids.values

    def _copy(self, index: int) -> None:
        """Each batch's values of a feature to where they belong."""
        low, source = 0, self._parts[index]
        starts = self._bounds[index :: len(self._encode)].tolist()
        for count, start in zip(self._counts[:, index].tolist(), starts, strict=False):
            self._values[start : start + count] = source[low : low + count]
            low += count
