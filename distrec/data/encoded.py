"""A window in the form of batches: a batch is a view of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distrec.batch import Batch, KeyedJaggedTensor, Position


@dataclass(frozen=True)
class KeyedIds:
    """The ids of several features over the same rows: batch after batch, and in each batch feature after feature."""

    features: list[str]
    values: np.ndarray  # (N,) int64
    ends: np.ndarray  # (batches + 1,) int64: where each batch begins among the values
    lengths: np.ndarray  # (batches, features, batch size) int32; 0 after the rows

    def batch(self, index: int, size: int) -> KeyedJaggedTensor | None:
        """Batch `index`, of `size` rows, padding included: int64 values, int32 lengths; None without features."""
        if not self.features:
            return None
        lengths = np.ascontiguousarray(self.lengths[index, :, :size])  # FBGEMM reads past the strides of a shorter batch
        return KeyedJaggedTensor(
            keys=self.features,
            values=torch.from_numpy(self.values[self.ends[index] : self.ends[index + 1]]),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=size,
        )


@dataclass(frozen=True)
class Encoded:
    """A window of batches; its length is their number. `n` is that times the batch size, and after the rows all is 0."""

    batch_size: int
    dense: np.ndarray  # (n, features) float32
    labels: np.ndarray  # (n, tasks) float32
    weights: np.ndarray  # (n,) float32
    groups: np.ndarray | None  # (n,) int64
    sparse: KeyedIds
    sequence: KeyedIds
    items: np.ndarray | None  # (n,) int64
    lists: KeyedIds

    def __len__(self) -> int:
        return len(self.weights) // self.batch_size

    def batch(self, index: int, size: int, normalizer: float, position: Position) -> Batch:
        """Batch `index` of `size` rows; rows that the window does not have are rows of weight 0.

        Row-wise lookups end in a reduce-scatter, which needs as many rows of every rank.
        """
        rows = slice(index * self.batch_size, index * self.batch_size + size)
        return Batch(
            dense=torch.from_numpy(self.dense[rows]),
            sparse=self.sparse.batch(index, size),
            sequence=self.sequence.batch(index, size),
            labels=torch.from_numpy(self.labels[rows]),
            weights=torch.from_numpy(self.weights[rows]),
            normalizer=torch.tensor(normalizer, dtype=torch.float32),
            groups=None if self.groups is None else torch.from_numpy(self.groups[rows]),
            position=position,
            items=None if self.items is None else torch.from_numpy(self.items[rows]),
            lists=self.lists.batch(index, size),
        )
