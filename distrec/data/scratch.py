"""Memory that one window after another is worked out in."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike


class Scratch:
    """Named arrays whose memory is used again: fresh memory costs a page fault every 4 KiB, as much as several passes over it.

    One thread at a time uses a scratch.
    """

    def __init__(self, passing: threading.local | None = None):
        """Scratches that are given the same `passing` share, within a thread, what does not last."""
        self._lasting: dict[str, np.ndarray] = {}
        self._passing = passing or threading.local()

    def lasting(self, name: str, size: int, dtype: DTypeLike) -> np.ndarray:
        """`(size,) dtype`, with anything in it; holds until the name is asked for again."""
        return _view(self._lasting, name, size, dtype)

    def passing(self, name: str, size: int, dtype: DTypeLike) -> np.ndarray:
        """The same, but holds only until this thread turns to another column; so it is likely still in the core's cache."""
        return _view(self._passing.__dict__, name, size, dtype)


def _view(held: dict[str, np.ndarray], name: str, size: int, dtype: DTypeLike) -> np.ndarray:
    needed = size * np.dtype(dtype).itemsize
    memory = held.get(name)
    if memory is None or memory.nbytes < needed:
        memory = held[name] = fresh(needed, np.uint8)
    return memory[:needed].view(dtype)


def fresh(shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array with anything in it, for what is given away. Arrow's pool keeps memory that is freed, where `numpy.empty` gives
    large arrays back to the kernel: then every page of the next one is a fault.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, buffer=pa.allocate_buffer(max(size, 1)))
