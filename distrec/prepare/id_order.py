"""What tells a numbering of ids from another one."""

from __future__ import annotations

import hashlib
from typing import Self

import polars as pl


class IdOrder:
    """A hash of ids in the order of their numbers."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, ids: pl.Series) -> Self:
        """The next ones, (N,) integers or text."""
        self._hash.update("".join(f"{value}\0" for value in ids.cast(pl.String)).encode())
        return self

    def hash(self) -> str:
        """Of all so far, short; runs keep it to know what they were trained on (`distrec.data.numbering`)."""
        return self._hash.hexdigest()[:16]
