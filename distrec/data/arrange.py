"""From file order to reading order: compiled loops over the rows of a window.

Of a column of ids, a table row is -1 where there is no id.
"""

from __future__ import annotations

import numpy as np

from distrec.data.compiled import compiled


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

    `found (n,)` in file order to `values (n,)`, of which the first are filled, and `lengths (n,) int32`.
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
    found: np.ndarray, bounds: np.ndarray, order: np.ndarray | None, longest: int, values: np.ndarray, lengths: np.ndarray
) -> int:
    """The same where row `i`, in file order, has `found[bounds[i]:bounds[i + 1]]`: the last `longest` that are ids."""
    filled = 0
    for i in range(lengths.size):
        row = i if order is None else order[i]
        start, first = bounds[row], filled
        for at in range(start, bounds[row + 1]):
            values[filled] = found[at]
            filled += found[at] >= 0
        dropped = filled - first - longest
        if dropped > 0:
            for at in range(first, first + longest):
                values[at] = values[at + dropped]
            filled -= dropped
        lengths[i] = filled - first
    return filled


@compiled
def arrange_words(
    words: np.ndarray, bounds: np.ndarray, order: np.ndarray | None, values: np.ndarray, lengths: np.ndarray
) -> None:
    """The same of ids that are any words, of which none is left out: `words[bounds[i]:bounds[i + 1]]` of row `i`."""
    filled = 0
    for i in range(lengths.size):
        row = i if order is None else order[i]
        for at in range(bounds[row], bounds[row + 1]):
            values[filled] = words[at]
            filled += 1
        lengths[i] = bounds[row + 1] - bounds[row]


@compiled
def stack(columns: np.ndarray, order: np.ndarray | None, low: int, stacked: np.ndarray) -> None:
    """Rows `low` and on, in reading order, of `columns (columns, n)` in file order, to `stacked (rows, columns)`."""
    for i in range(len(stacked)):
        row = low + i if order is None else order[low + i]
        for column in range(len(columns)):
            stacked[i, column] = columns[column, row]


@compiled
def lay(lengths: np.ndarray, feature: int, batches: np.ndarray, counts: np.ndarray) -> None:
    """`lengths (n,) int32` of one feature to `batches (batches, features, batch size)`, zeros after the rows.

    Their sums, batch by batch, go to `counts (batches, features)`.
    """
    size = batches.shape[2]
    for batch in range(len(batches)):
        part, laid = lengths[batch * size : (batch + 1) * size], batches[batch, feature]
        total = 0
        for i in range(part.size):
            laid[i] = part[i]
            total += part[i]
        laid[part.size :] = 0
        counts[batch, feature] = total


@compiled
def fill(values: np.ndarray, valid: np.ndarray | None, null: float) -> bool:
    """`null` over what is not valid or NaN among `values (n,)`; whether there was any."""
    found = False
    for i in range(values.size):
        missing = np.isnan(values[i]) if valid is None else np.isnan(values[i]) or not valid[i]
        values[i] = null if missing else values[i]
        found |= missing
    return found
