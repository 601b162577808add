"""Ids of any kind -> ids that count from 0, in the order of the originals."""

from __future__ import annotations

import polars as pl

PENDING = 1 << 20  # values that wait before they are put together, at least


class Distinct:
    """The distinct values of a stream. Memory holds each of them at most a few times."""

    def __init__(self) -> None:
        self._parts: list[pl.Series] = []
        self._pending, self._kept = 0, 0

    def add(self, values: pl.Series) -> None:
        """Take some of the stream."""
        self._parts.append(values.unique())
        self._pending += len(self._parts[-1])
        if self._pending > max(PENDING, self._kept):
            self._parts = [pl.concat(self._parts).unique()]
            self._pending, self._kept = 0, len(self._parts[0])

    def sorted(self) -> pl.Series:
        """All of them, ascending."""
        return pl.concat(self._parts).unique().sort()


def numbered(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(place of each value in them, the distinct values, ascending)."""
    distinct = values.unique().sort()
    return values.replace_strict(distinct, range(len(distinct)), return_dtype=pl.Int64), distinct
