"""From file order to reading order: compiled loops over the rows of a window.

Of a column of ids, a table row is -1 where there is no id.
"""

from __future__ import annotations

import numpy as np

from distrec.data.compiled import compiled

# Unsigned, for an index that may be negative is looked at twice.
ONE, TWO, THREE, FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
BLOCK = np.uint64(1024)  # rows; what is made of them stays in a core's nearest cache
WIDE = np.uint64(8)  # words that are copied at once: most lists are no longer, and a processor cannot foresee how long they are


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
    filled, low, size = np.uint64(0), np.uint64(0), np.uint64(lengths.size)
    some = np.empty(BLOCK, found.dtype)
    while low < size:
        # In one loop, to look up the next row would wait until it is known where this one goes.
        count = min(BLOCK, size - low)
        for i in range(count):
            some[i] = found[low + i] if order is None else found[order[low + i]]
        for i in range(count):
            lengths[low + i] = some[i] >= 0
        for i in range(count):
            values[filled] = some[i]
            filled += np.uint64(some[i] >= 0)
        low += BLOCK
    return int(filled)


@compiled
def arrange_lists(
    words: np.ndarray, bounds: np.ndarray, order: np.ndarray | None, longest: int, values: np.ndarray, lengths: np.ndarray
) -> int:
    """Of each row, the last `longest` words; returns how many there are.

    Row `i` in file order is `words[bounds[i]:bounds[i + 1]]`; in reading order they go to `values`, of which the first are
    filled, and their numbers to `lengths (n,)`.
    """
    filled, most, end, room = np.uint64(0), np.uint64(longest), np.uint64(words.size), np.uint64(values.size)
    for i in range(lengths.size):
        row = np.uint64(i if order is None else order[i])
        start, stop = np.uint64(bounds[row]), np.uint64(bounds[row + ONE])
        if stop - start > most:
            start = stop - most
        count, copied = stop - start, np.uint64(0)
        if start + WIDE <= end and filled + WIDE <= room:  # what is too much, the next row writes over
            _copy_four(words, start, values, filled)
            _copy_four(words, start + FOUR, values, filled + FOUR)
            copied = WIDE
        for at in range(copied, count):
            values[filled + at] = words[start + at]
        lengths[i] = count
        filled += count
    return int(filled)


@compiled
def _copy_four(words: np.ndarray, start: np.uint64, values: np.ndarray, filled: np.uint64) -> None:
    first, second = words[start], words[start + ONE]
    third, fourth = words[start + TWO], words[start + THREE]
    values[filled], values[filled + ONE] = first, second
    values[filled + TWO], values[filled + THREE] = third, fourth


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
