"""From file order to reading order: compiled loops over the rows of a window.

Of a column of ids, a table row is -1 where there is no id.
"""

from __future__ import annotations

import numpy as np

from distrec.data.compiled import compiled

WIDE = 8  # words that are copied at once: most lists are no longer, and how long cannot be foreseen by a processor


@compiled
def within(words: np.ndarray, rows: np.uint64, found: np.ndarray) -> bool:
    """Ids `words (N,) uint64` to `found (N,)`, and -1 for those outside `[0, rows)`; returns whether any is."""
    outside = False
    for i in range(words.size):
        inside = words[i] < rows
        found[i] = np.int64(words[i]) if inside else np.int64(-1)
        outside |= not inside
    return outside


@compiled
def hide(valid: np.ndarray, found: np.ndarray) -> None:
    """-1 to `found (N,)` where `valid (N,) bool` is false."""
    for i in range(valid.size):
        found[i] = found[i] if valid[i] else -1


@compiled
def arrange_scalars(found: np.ndarray, order: np.ndarray | None, values: np.ndarray, lengths: np.ndarray) -> int:
    """The table rows of rows of one id or none; returns how many there are.

    `found (n,)` in file order to `values (n,)`, of which the first are filled, and to `lengths (n,)`, 0 or 1 each.
    """
    filled = np.uint64(0)
    for i in range(lengths.size):
        row = found[i] if order is None else found[order[i]]
        values[filled] = row
        lengths[i] = row >= 0
        filled += np.uint64(row >= 0)
    return filled


@compiled
def arrange_lists(
    words: np.ndarray, bounds: np.ndarray, order: np.ndarray | None, longest: int, values: np.ndarray, lengths: np.ndarray
) -> int:
    """Of each row, the last `longest` words; returns how many there are.

    Row `i` in file order is `words[bounds[i]:bounds[i + 1]]`; in reading order they go to `values`, of which the first are
    filled, and their numbers to `lengths (n,)`.
    """
    filled = 0
    for i in range(lengths.size):
        row = i if order is None else order[i]
        start, stop = max(bounds[row], bounds[row + 1] - longest), bounds[row + 1]
        copied = 0
        if start + WIDE <= words.size and filled + WIDE <= values.size:  # what is too much, the next row writes over
            copied = WIDE
            for at in range(WIDE):
                values[filled + at] = words[start + at]
        for at in range(copied, stop - start):
            values[filled + at] = words[start + at]
        lengths[i] = stop - start
        filled += stop - start
    return filled


@compiled
def cut(lengths: np.ndarray, size: int, starts: np.ndarray) -> None:
    """Where each batch of `size` rows begins among the values of rows of `lengths (n,)`: `starts (batches + 1,)`."""
    starts[0] = 0
    for batch in range(len(starts) - 1):
        total = 0
        for length in lengths[batch * size : (batch + 1) * size]:
            total += length
        starts[batch + 1] = starts[batch] + total


@compiled
def stack(columns: np.ndarray, order: np.ndarray | None, low: int, stacked: np.ndarray) -> None:
    """Rows `low` and on, in reading order, of `columns (columns, n)` in file order, to `stacked (rows, columns)`."""
    for i in range(len(stacked)):
        row = low + i if order is None else order[low + i]
        for column in range(len(columns)):
            stacked[i, column] = columns[column, row]


@compiled
def fill(values: np.ndarray, valid: np.ndarray | None, null: float) -> bool:
    """`null` over what is not valid or NaN among `values (n,)`; whether there was any."""
    found = False
    for i in range(values.size):
        missing = np.isnan(values[i]) if valid is None else np.isnan(values[i]) or not valid[i]
        values[i] = null if missing else values[i]
        found |= missing
    return found
