"""Recommendations from an index: what a query has seen is left out, and k items are left where there are so many."""

from __future__ import annotations

import numpy as np

from distrec.recall.index import VectorIndex

AT_ONCE = 256  # queries: one that hides much makes the search deeper for those beside it alone


def recommend(
    index: VectorIndex, queries: np.ndarray, k: int, hidden: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best k items of each query, without those that are hidden from it.

    The index is asked for as many more as any of `AT_ONCE` queries has hidden.

    Args:
        index: of the model's items.
        queries: (B, dim) float32.
        k: how many.
        hidden: rows of the catalogue (N,) and offsets (B + 1,).

    Returns:
        Scores (B, k), best first, and rows of the catalogue (B, k); -1 where nothing more was found.

    Raises:
        UserError: see `VectorIndex.search`.
    """
    index.require(queries, k)
    if hidden is None or not len(hidden[0]):
        return index.search(queries, k)
    parts = [_without(index, queries[low : low + AT_ONCE], k, *_some(hidden, low)) for low in range(0, len(queries), AT_ONCE)]
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _some(lists: tuple[np.ndarray, np.ndarray], low: int) -> tuple[np.ndarray, np.ndarray]:
    """The lists of `AT_ONCE` queries from `low` on."""
    offsets = lists[1][low : low + AT_ONCE + 1]
    return lists[0][offsets[0] : offsets[-1]], offsets - offsets[0]


def _without(
    index: VectorIndex, queries: np.ndarray, k: int, items: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    more = int(np.diff(offsets).max())
    scores, found = index.search(queries, min(k + more, len(index.ids)))
    left_out = (found < 0) | _among(found, items, offsets, len(index.ids))
    order = np.argsort(left_out, axis=1, kind="stable")[:, :k]
    gone = np.take_along_axis(left_out, order, 1)
    best, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    return np.where(gone, -np.inf, best), np.where(gone, -1, rows)


def _among(found: np.ndarray, items: np.ndarray, offsets: np.ndarray, catalogue: int) -> np.ndarray:
    """Which of the items (B, K) are in their query's list; (B, K) bool."""
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.isin(np.arange(len(found))[:, None] * catalogue + found, owners * catalogue + items)
