"""An encoded window, from which batches are put together one by one.

A batch gets memory of its own: it is small enough to be written, and read by what comes next, in a core's cache, and to keep
it keeps no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distrec.batch import Batch, KeyedJaggedTensor, Position
from distrec.data.arrange import stack
from distrec.data.scratch import fresh


@dataclass(frozen=True)
class Numbers:
    """Columns of numbers of a window."""

    columns: np.ndarray  # (columns, n or more) float32, in file order
    order: np.ndarray | None  # (n,) reading order as rows of the columns; None: as they stand
    rows: int  # n

    def batch(self, low: int, size: int) -> torch.Tensor:
        """`(size, columns) float32`: rows `low` and on in reading order, and zeros after the last."""
        rows = min(size, self.rows - low)
        stacked = fresh((size, len(self.columns)), np.float32)
        stack(self.columns, self.order, low, stacked[:rows])
        stacked[rows:] = 0
        return torch.from_numpy(stacked)


@dataclass(frozen=True)
class KeyedIds:
    """The ids of several features over the same rows."""

    features: Sequence[str]
    values: Sequence[np.ndarray]  # of each feature, (N,) integers in reading order
    lengths: np.ndarray  # (features, n) integers
    starts: np.ndarray  # (features, batches + 1) int64: where each batch begins among the feature's values

    def batch(self, index: int, low: int, size: int) -> KeyedJaggedTensor | None:
        """Batch `index`: `size` rows from `low` on, padding included; int64 values, int32 lengths; None without features."""
        if not self.features:
            return None
        firsts, stops = self.starts[:, index].tolist(), self.starts[:, index + 1].tolist()
        values, lengths = fresh(sum(stops) - sum(firsts), np.int64), fresh((len(self.values), size), np.int32)
        at = 0
        for source, first, stop in zip(self.values, firsts, stops, strict=True):
            values[at : at + stop - first] = source[first:stop]
            at += stop - first
        _pad(self.lengths[:, low : low + size].T, lengths.T)
        return KeyedJaggedTensor(
            list(self.features), torch.from_numpy(values), lengths=torch.from_numpy(lengths.reshape(-1)), stride=size
        )


@dataclass(frozen=True)
class Encoded:
    """A window of rows in reading order; it holds until the next one is encoded."""

    batch_size: int
    rows: int
    dense: Numbers
    labels: Numbers
    weights: Numbers | None  # one column; None: 1 for every row
    groups: np.ndarray | None  # (n,) int64
    sparse: KeyedIds
    sequence: KeyedIds
    items: np.ndarray | None  # (n,) int64
    lists: KeyedIds

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def batch(self, index: int, size: int, normalizer: float, position: Position) -> Batch:
        """Batch `index` of `size` rows; rows that the window does not have are rows of weight 0.

        Row-wise lookups end in a reduce-scatter, which needs as many rows of every rank.
        """
        low = index * self.batch_size
        return Batch(
            dense=self.dense.batch(low, size),
            sparse=self.sparse.batch(index, low, size),
            sequence=self.sequence.batch(index, low, size),
            labels=self.labels.batch(low, size),
            weights=_ones(min(self.rows - low, size), size) if self.weights is None else self.weights.batch(low, size)[:, 0],
            normalizer=torch.tensor(normalizer, dtype=torch.float32),
            groups=_single(self.groups, low, size),
            position=position,
            items=_single(self.items, low, size),
            lists=self.lists.batch(index, low, size),
        )


def _ones(rows: int, size: int) -> torch.Tensor:
    weights = np.zeros(size, np.float32)
    weights[:rows] = 1
    return torch.from_numpy(weights)


def _single(values: np.ndarray | None, low: int, size: int) -> torch.Tensor | None:
    if values is None:
        return None
    batch = np.empty(size, np.int64)
    _pad(values[low : low + size], batch)
    return torch.from_numpy(batch)


def _pad(values: np.ndarray, out: np.ndarray) -> None:
    """`values` to `out`, and zeros after them."""
    out[: len(values)] = values
    out[len(values) :] = 0
