"""Which lookup each feature takes: the one place that decides it, for the data path and the embeddings alike.

TorchRec has two collections and a table lives in exactly one of them. An `EmbeddingBagCollection` pools inside the
lookup with one pooling mode a table; an `EmbeddingCollection` returns one vector an id. So a table that a history
uses, or whose features pool differently, goes to the second, and its pooled features are pooled after the lookup.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from distrec.config.schema import DenseFeature, Features, SequenceFeature, SparseFeature, Table


@dataclass(frozen=True)
class Lookup:
    """An id feature, with the numbers of its table that reading and looking up need."""

    name: str
    column: str
    table: str
    rows: int
    dim: int
    ids: Literal["index", "hash"]
    out_of_range: Literal["error", "null", "hash"]
    max_length: int | None
    pooling: Literal["sum", "mean"] | None  # None: a sequence
    pooling_factor: float = 1.0  # mean number of ids a row, as far as the planner knows


@dataclass(frozen=True)
class Layout:
    """Features in the order in which they stand in a `Batch`."""

    dense: tuple[DenseFeature, ...]
    bags: tuple[Lookup, ...]  # the keys of Batch.sparse: pooled inside the lookup
    sequences: tuple[Lookup, ...]  # the keys of Batch.sequence: histories, and pooled features that share their tables

    @property
    def pooled_dims(self) -> dict[str, int]:
        """Embedding dimension of each pooled feature, in config order within each collection."""
        return {f.name: f.dim for f in (*self.bags, *self.sequences) if f.pooling}

    @property
    def sequence_dims(self) -> dict[str, int]:
        """Embedding dimension of each sequence feature."""
        return {f.name: f.dim for f in self.sequences if f.pooling is None}

    def only(self, names: Collection[str]) -> Layout:
        """The same without other features."""
        return Layout(
            tuple(f for f in self.dense if f.name in names),
            tuple(f for f in self.bags if f.name in names),
            tuple(f for f in self.sequences if f.name in names),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all features."""
        return tuple(f.name for f in (*self.dense, *self.bags, *self.sequences))


def layout(features: Features, tables: Mapping[str, Table]) -> Layout:
    """Lay the features out. Every feature's table must exist (`distrec.config.check` says so first)."""
    unpooled = _unpooled_tables(features)
    sparse = [_lookup(f, tables[f.table], f.pooling) for f in features.sparse]
    sequence = [_lookup(f, tables[f.table], None) for f in features.sequence]
    return Layout(
        dense=features.dense,
        bags=tuple(f for f in sparse if f.table not in unpooled),
        sequences=(*sequence, *(f for f in sparse if f.table in unpooled)),
    )


def _unpooled_tables(features: Features) -> set[str]:
    poolings: dict[str, set[str]] = {}
    for feature in features.sparse:
        poolings.setdefault(feature.table, set()).add(feature.pooling)
    mixed = {table for table, modes in poolings.items() if len(modes) > 1}
    return mixed | {feature.table for feature in features.sequence}


def _lookup(feature: SparseFeature | SequenceFeature, table: Table, pooling: Literal["sum", "mean"] | None) -> Lookup:
    return Lookup(
        name=feature.name,
        column=feature.column or feature.name,
        table=feature.table,
        rows=table.rows,
        dim=table.dim,
        ids=feature.ids,
        out_of_range=feature.out_of_range,
        max_length=feature.max_length,
        pooling=pooling,
        pooling_factor=feature.pooling_factor or feature.max_length or 1.0,
    )
