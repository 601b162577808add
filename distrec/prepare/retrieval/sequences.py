"""Users' interactions in sequence, and which part of it each row shows. No loop over rows or users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distrec.prepare.histories import Ints, first_of_run, slices
from distrec.prepare.parquet_out import id_lists

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


class Sequences:
    """The interactions of some users: by user, within a user by split, within a split oldest first.

    A row of training data is named by the place of its interaction, a query by the place of its first target.
    """

    def __init__(self, user: Ints, item: Ints, split: NDArray[np.int8], longest: int, ordered: bool) -> None:
        """Take the interactions.

        Args:
            user: (N,) ids, equal ones together.
            item: (N,) ids.
            split: (N,) `TRAIN`, `VALID` or `TEST`, ascending within a user.
            longest: items kept in a history.
            ordered: whether a user's training items stand as they happened. Otherwise their order must be random, for a
                row's history is then a sample of the others.
        """
        self._item, self._split, self._ordered = item, split, ordered
        self._first = first_of_run(user)
        self.longest = min(longest, int((_stop_of_run(self._first) - self._first).max(initial=0)))  # as histories are
        self._split_first = first_of_run(user, split)
        self._split_stop = _stop_of_run(self._split_first)

    def train(self, min_history: int) -> Ints:
        """Training interactions with at least `min_history` items to look back on."""
        rows = np.flatnonzero(self._split == TRAIN)
        known = rows - self._first[rows] if self._ordered else self._split_stop[rows] - self._first[rows] - 1
        return rows[known >= min_history]

    def queries(self, split: int) -> Ints:
        """The queries of a split: one a user that has targets there."""
        return np.flatnonzero((self._split == split) & (self._split_first == np.arange(len(self._split))))

    def latest(self) -> Ints:
        """The last interaction of each user."""
        return np.flatnonzero(_stop_of_run(self._first) == np.arange(len(self._first)) + 1)

    def train_histories(self, rows: Ints) -> pa.ListArray:
        """(n,) the newest items before each training row, oldest first; without an order, a sample of the user's others."""
        return self._before(rows) if self._ordered else self._others(rows)

    def query_histories(self, queries: Ints) -> pa.ListArray:
        """(n,) the newest items of earlier splits."""
        return self._before(queries)

    def targets(self, queries: Ints) -> pa.ListArray:
        """(n,) each query's items in its split."""
        return self._lists(queries, self._split_stop[queries])

    def seen(self, queries: Ints) -> pa.ListArray:
        """(n,) each query's items in earlier splits."""
        return self._lists(self._first[queries], queries)

    def histories_with(self, rows: Ints) -> pa.ListArray:
        """(n,) the newest items up to each row, its own the last."""
        return self._newest(rows, rows + 1)

    def seen_with(self, rows: Ints) -> pa.ListArray:
        """(n,) all items up to each row."""
        return self._lists(self._first[rows], rows + 1)

    def _before(self, rows: Ints) -> pa.ListArray:
        return self._newest(rows, rows)

    def _newest(self, rows: Ints, stop: Ints) -> pa.ListArray:
        """The newest items of the rows' users that stand before `stop`."""
        return self._lists(np.maximum(self._first[rows], stop - self.longest), stop)

    def _others(self, rows: Ints) -> pa.ListArray:
        """The items that follow each row's own, the user's training items standing in a circle."""
        first, size = self._first[rows], self._split_stop[rows] - self._first[rows]
        start = rows - first + 1
        steps, offsets = slices(start, start + np.minimum(size - 1, self.longest))
        lengths = np.diff(offsets)
        return id_lists(self._item[np.repeat(first, lengths) + steps % np.repeat(size, lengths)], offsets)

    def _lists(self, start: Ints, stop: Ints) -> pa.ListArray:
        places, offsets = slices(start, stop)
        return id_lists(self._item[places], offsets)


def _stop_of_run(first: Ints) -> Ints:
    """For each place, where its run ends, from where it begins."""
    starts = np.flatnonzero(first == np.arange(len(first)))
    lengths = np.diff(np.append(starts, len(first)))
    return np.repeat(starts + lengths, lengths)
