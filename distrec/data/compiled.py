"""Loops over the values of a column, compiled to machine code: what NumPy needs a pass through memory for each step of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call, and keep the code for the next process; it runs without Python's global lock.

    The code is kept beside the source or in the user's cache folder, whichever can be written to (`NUMBA_CACHE_DIR` names
    another place). Where there is none, each process compiles for itself.
    """
    try:
        code: Any = njit(function, nogil=True, cache=True)
    except RuntimeError:  # "no locator available"
        code = njit(function, nogil=True)
    return code
