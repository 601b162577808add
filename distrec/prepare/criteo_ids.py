"""What becomes of Criteo's ids: kept as they are, taken modulo a hash size, or numbered by a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distrec.prepare.criteo_rows import IDS
from distrec.prepare.id_order import IdOrder

Ids = NDArray[np.int64]
# Hash sizes of DLRM-DCNv2 in MLPerf Training: `--num_embeddings_per_feature` in the README of recommendation_v2/torchrec_dlrm,
# github.com/mlcommons/training. Distinct ids of Criteo's terabyte of clicks, at most 40 million.
MLPERF = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
MERGE_AT = 200_000  # ids counted apart before they join the rest


class IdMap(Protocol):
    """From Criteo's ids to those that are written."""

    @property
    def cardinalities(self) -> Sequence[int | None]:
        """Rows that each column's table needs; None: as many as a config gives it."""
        ...

    def values(self, column: int, ids: Ids) -> Ids:
        """(N,) ids of a column, counted from 0 -> (N,) what is written."""
        ...


class AsTheyAre:
    """64-bit ids, to be hashed when they are read (`ids = "hash"`)."""

    cardinalities: Sequence[int | None] = (None,) * len(IDS)

    def values(self, column: int, ids: Ids) -> Ids:
        """The ids."""
        return ids


class Modulo:
    """Ids modulo each table's rows: Criteo's ids are hashes, so that they spread evenly."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.cardinalities = tuple(rows)

    def values(self, column: int, ids: Ids) -> Ids:
        """(N,) in [0, rows)."""
        return ids % self.cardinalities[column]


class Vocabulary:
    """The ids of training rows by falling frequency, from 1 on; 0 for all others."""

    def __init__(self, ids: Sequence[Ids]) -> None:
        """`ids` of each column in the order of their numbers."""
        self.cardinalities = tuple(len(known) + 1 for known in ids)
        self.numbering = {name: IdOrder().add(pl.Series(known)).hash() for name, known in zip(IDS, ids, strict=True)}
        self._order = [np.argsort(known) for known in ids]
        self._sorted = [known[order] for known, order in zip(ids, self._order, strict=True)]

    def values(self, column: int, ids: Ids) -> Ids:
        """(N,) in [0, cardinality)."""
        known = self._sorted[column]
        if not len(known):
            return np.zeros_like(ids)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, self._order[column][at] + 1, 0)


def replace_ids(table: pa.Table, by: IdMap) -> pa.Table:
    """The table with its ids mapped; null stays null."""
    for column, name in enumerate(IDS):
        ids = table[name].combine_chunks()
        mapped = by.values(column, pc.fill_null(ids, 0).to_numpy(zero_copy_only=False))
        missing = ids.is_null().to_numpy(zero_copy_only=False) if ids.null_count else None
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(mapped, pa.int64(), mask=missing))
    return table


class Counts:
    """How often each id of a column was seen; 16 bytes a distinct id."""

    def __init__(self) -> None:
        self._ids, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._new: list[tuple[Ids, Ids]] = []
        self._pending = 0

    def add(self, ids: Ids) -> None:
        """Count (N,) ids."""
        self._new.append(np.unique(ids, return_counts=True))
        self._pending += len(self._new[-1][0])
        if self._pending > max(MERGE_AT, len(self._ids)):
            self._merge()

    def frequent(self, least: int, most: int | None) -> Ids:
        """The ids seen at least `least` times, at most `most` of them, by falling count and then rising id."""
        self._merge()
        kept = self._counts >= least
        ids, counts = self._ids[kept], self._counts[kept]
        return ids[np.argsort(-counts, kind="stable")][:most]

    def _merge(self) -> None:
        ids = np.concatenate([self._ids, *(ids for ids, _ in self._new)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._new)])
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], counts[order]
        first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
        self._ids, self._counts = ids[first], np.add.reduceat(counts, first) if len(first) else counts
        self._new, self._pending = [], 0
