"""What tells a numbering of ids from another one."""

from __future__ import annotations

import hashlib
from typing import Self

import polars as pl

AT_ONCE = 2**18  # ids: a vocabulary may have hundreds of millions, and as text they are several times as large


class IdOrder:
    """A hash of ids in the order of their numbers."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, ids: pl.Series) -> Self:
        """The next ones, (N,) integers or text."""
        for part in ids.to_frame().iter_slices(AT_ONCE):
            self._hash.update((part.to_series().cast(pl.String) + "\0").str.join().item().encode())
        return self

    def hash(self) -> str:
        """Of all so far, short; runs keep it to know what they were trained on (`distrec.data.numbering`)."""
        return self._hash.hexdigest()[:16]
