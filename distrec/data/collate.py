"""Arrow columns of a window -> arrays in batch form; a batch is then a slice of each. No Python loop over rows.

A window is encoded before it is cut into batches, so that the cost of a Python call is spread over a window; and its
columns are encoded side by side, by as many threads as Arrow decodes with (`pyarrow.cpu_count()`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from distrec.batch import Batch, KeyedJaggedTensor, Position
from distrec.config.layout import Layout, Lookup
from distrec.config.schema import Data, Task
from distrec.data.ids import Ids, encode_ids
from distrec.data.numbers import encode_dense, encode_groups, encode_label, encode_weight
from distrec.data.window import Window


@dataclass(frozen=True)
class KeyedIds:
    """The ids of several features over the same rows, cut into batches."""

    ids: dict[str, Ids]
    cuts: np.ndarray  # (features, batches + 1) int64: where each batch begins among a feature's values

    def batch(self, index: int, rows: slice, size: int) -> KeyedJaggedTensor | None:
        """Batch `index`, whose rows are `rows`, padded to `size`: int64 values, int32 lengths; None without features."""
        if not self.ids:
            return None
        bounds = zip(self.ids.values(), self.cuts[:, index], self.cuts[:, index + 1], strict=True)
        lengths = np.concatenate([_padded(i.lengths[rows], size) for i in self.ids.values()])
        return KeyedJaggedTensor(
            keys=list(self.ids),
            values=torch.from_numpy(np.concatenate([i.values[low:high] for i, low, high in bounds])),
            lengths=torch.from_numpy(lengths),
            stride=len(lengths) // len(self.ids),
        )


@dataclass(frozen=True)
class Encoded:
    """A window in the form of batches. Its length is their number."""

    batch_size: int
    dense: list[np.ndarray]  # of each feature: (n,) float32
    labels: list[np.ndarray]  # of each task: (n,) float32
    weights: np.ndarray  # (n,) float32
    groups: np.ndarray | None  # (n,) int64
    sparse: KeyedIds
    sequence: KeyedIds

    def __len__(self) -> int:
        return -(-len(self.weights) // self.batch_size)

    def batch(self, index: int, size: int, normalizer: float, position: Position) -> Batch:
        """Batch `index`, copied out of the window; a short one is filled up to `size` with rows of weight 0.

        Row-wise lookups end in a reduce-scatter, which needs as many rows of every rank.
        """
        rows = slice(index * self.batch_size, min((index + 1) * self.batch_size, len(self.weights)))
        return Batch(
            dense=_stack(self.dense, rows, size),
            sparse=self.sparse.batch(index, rows, size),
            sequence=self.sequence.batch(index, rows, size),
            labels=_stack(self.labels, rows, size),
            weights=torch.from_numpy(_padded(self.weights[rows], size)),
            normalizer=torch.tensor(normalizer, dtype=torch.float32),
            groups=None if self.groups is None else torch.from_numpy(_padded(self.groups[rows], size)),
            position=position,
        )


class Encoder:
    """Encodes windows for one config. `close` ends its threads."""

    def __init__(self, data: Data, layout: Layout, tasks: Sequence[Task], batch_size: int):
        self._data, self._layout, self._tasks, self._batch_size = data, layout, tasks, batch_size
        self._pool = ThreadPoolExecutor(pa.cpu_count(), "distrec-encode")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def encode(self, window: Window) -> Encoded:
        """Encode every feature, label, weight and group of the window.

        Raises `UserError` for a value that its feature refuses, naming the feature, the file and the row.
        """
        weight, group, each, column = self._data.weight, self._data.group, self._pool.map, window.column
        dense = each(lambda f: encode_dense(column(f.column or f.name), f), self._layout.dense)
        labels = each(lambda t: encode_label(column(t.label), t), self._tasks)
        bags = each(lambda f: encode_ids(column(f.column), f), self._layout.bags)
        sequences = each(lambda f: encode_ids(column(f.column), f), self._layout.sequences)
        return Encoded(
            self._batch_size,
            list(dense),
            list(labels),
            weights=np.ones(len(window), np.float32) if weight is None else encode_weight(column(weight), weight),
            groups=None if group is None else encode_groups(column(group), group),
            sparse=self._keyed(self._layout.bags, bags, len(window)),
            sequence=self._keyed(self._layout.sequences, sequences, len(window)),
        )

    def padding(self) -> Encoded:
        """One batch of one row of weight 0 without ids, for a rank that has no row in a step that others have."""
        zero = np.zeros(1, np.float32)
        none = Ids(np.empty(0, np.int64), np.zeros(1, np.int32))
        return Encoded(
            self._batch_size,
            dense=[zero] * len(self._layout.dense),
            labels=[zero] * len(self._tasks),
            weights=zero,
            groups=None if self._data.group is None else np.zeros(1, np.int64),
            sparse=self._keyed(self._layout.bags, [none] * len(self._layout.bags), 1),
            sequence=self._keyed(self._layout.sequences, [none] * len(self._layout.sequences), 1),
        )

    def _keyed(self, features: Sequence[Lookup], ids: Iterable[Ids], rows: int) -> KeyedIds:
        named = {feature.name: i for feature, i in zip(features, ids, strict=True)}
        starts = np.arange(0, rows, self._batch_size)
        cuts = np.zeros((len(named), len(starts) + 1), np.int64)
        for row, i in zip(cuts, named.values(), strict=True):
            np.cumsum(np.add.reduceat(i.lengths, starts), out=row[1:])
        return KeyedIds(named, cuts)


def _stack(columns: Sequence[np.ndarray], rows: slice, size: int) -> torch.Tensor:
    """`(size, columns) float32`; zeros after the rows."""
    stacked = np.empty((size, len(columns)), np.float32)
    for index, column in enumerate(columns):
        stacked[: rows.stop - rows.start, index] = column[rows]
    stacked[rows.stop - rows.start :] = 0
    return torch.from_numpy(stacked)


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """A copy with zeros after the values."""
    return np.concatenate([values, np.zeros(size - len(values), values.dtype)])
