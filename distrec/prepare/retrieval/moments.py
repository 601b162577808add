"""The n-th smallest of more numbers than memory holds, by counting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16


def nth_smallest(numbers: Callable[[], Iterable[NDArray[np.int64]]], n: int) -> int:
    """The number that has `n` others before it when all are sorted.

    Args:
        numbers: called for each pass over them; at most four passes for 64-bit numbers, and one for their range.
        n: from 0 to their count, exclusive.
    """
    low, high = _range(numbers())
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = sum(_count(part, low, high, width) for part in numbers())
        before = np.concatenate([[0], np.cumsum(counts)])
        place = int(np.searchsorted(before, n, side="right")) - 1
        n -= int(before[place])
        low, high = low + place * width, min(high, low + (place + 1) * width - 1)
    return low


def _range(parts: Iterable[NDArray[np.int64]]) -> tuple[int, int]:
    ranges = [(int(part.min()), int(part.max())) for part in parts if len(part)]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _count(part: NDArray[np.int64], low: int, high: int, width: int) -> NDArray[np.int64]:
    """(BINS,) numbers from `low` to `high` in each bin."""
    inside = part[(part >= low) & (part <= high)]
    above = inside.view(np.uint64) - np.uint64(low % 2**64)  # modulo 2^64, for a difference may exceed int64
    return np.bincount((above // np.uint64(width)).astype(np.int64), minlength=BINS)
