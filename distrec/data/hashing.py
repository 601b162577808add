"""Stable hashes of raw ids into table rows.

The functions are a contract: a trained table means nothing under another hash, so they never change.

- An integer of any width is its 64-bit two's complement pattern.
- A string is FNV-1a 64 over its UTF-8 bytes.
- Both are mixed by SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014, figure 17: `mix64` with the constants
  of Stafford's variant 13), then reduced to `[0, rows)` by a multiplication in place of a division (Lemire, 2019):
  `((h >> 32) * rows) >> 32` up to 2^32 rows, and `(h * rows) >> 64` in 128 bits for more.
"""

from __future__ import annotations

import numpy as np

from distrec.data.compiled import compiled

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # multipliers of the variant
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)


def rows_of(keys: np.ndarray, rows: int, out: np.ndarray | None = None) -> np.ndarray:
    """Table row of each key: `keys (N,) uint64` -> `(N,) int64` in `[0, rows)`, with `rows <= 2**40`.

    `out (N,)` takes the result, as int64, or as int32 where `rows <= 2**31`; it may be the memory of `keys`.
    """
    found = np.empty(len(keys), np.int64) if out is None else out
    (_short if rows <= 1 << 32 else _long)(keys, np.uint64(rows), found)
    return found


def splitmix64(keys: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, a bijection of 64-bit words: `(N,) uint64` -> a new `(N,) uint64`."""
    mixed = np.empty_like(keys)
    _mixed(keys, mixed)
    return mixed


@compiled
def _mix(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> np.uint64(30))) * FIRST
    word = (word ^ (word >> np.uint64(27))) * SECOND
    return word ^ (word >> np.uint64(31))


@compiled
def _mixed(keys: np.ndarray, mixed: np.ndarray) -> None:
    for i in range(keys.size):
        mixed[i] = _mix(keys[i])


@compiled
def _short(keys: np.ndarray, rows: np.uint64, found: np.ndarray) -> None:
    for i in range(keys.size):
        found[i] = ((_mix(keys[i]) >> HALF) * rows) >> HALF


@compiled
def _long(keys: np.ndarray, rows: np.uint64, found: np.ndarray) -> None:
    """`(hash * rows) >> 64`, by halves, as there are no wider words."""
    rows_upper, rows_lower = rows >> HALF, rows & LOWER
    for i in range(keys.size):
        hashed = _mix(keys[i])
        upper, lower = hashed >> HALF, hashed & LOWER
        middle = upper * rows_lower + ((lower * rows_lower) >> HALF)
        carried = ((middle & LOWER) + lower * rows_upper) >> HALF
        found[i] = upper * rows_upper + (middle >> HALF) + carried


def fnv1a64(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """FNV-1a 64 of N strings: string `i` is `data[offsets[i]:offsets[i + 1]]`, `data` uint8 -> `(N,) uint64`.

    The loop runs over byte positions, longest strings first, so that those still alive are a prefix.
    """
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    starts, ascending = offsets[:-1][order], lengths[order][::-1]
    hashed = np.full(len(lengths), FNV_OFFSET)
    for position in range(int(lengths.max(initial=0))):
        alive = len(lengths) - int(np.searchsorted(ascending, position, side="right"))
        hashed[:alive] ^= data[starts[:alive] + position]
        hashed[:alive] *= FNV_PRIME
    unsorted = np.empty_like(hashed)
    unsorted[order] = hashed
    return unsorted
