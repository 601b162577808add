"""What a model receives: tensors, named by feature. No jagged collections, no ranks, no config."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Rows of varying length: row `i` owns `values[offsets[i]:offsets[i + 1]]`, oldest first."""

    values: Tensor  # (N, D)
    offsets: Tensor  # (B + 1,) int64


@dataclass(frozen=True)
class Embedded:
    """A batch after its lookups."""

    dense: Tensor  # (B, num_dense) float32
    pooled: dict[str, Tensor] = field(default_factory=dict)  # feature -> (B, D)
    sequences: dict[str, Jagged] = field(default_factory=dict)  # feature -> one vector an id


@dataclass(frozen=True)
class InputSpec:
    """The shapes a model is built for."""

    num_dense: int
    pooled: dict[str, int]  # feature -> embedding dim
    sequences: dict[str, int]  # feature -> embedding dim
    num_tasks: int = 1


@dataclass(frozen=True)
class RetrieverSpec:
    """The shapes a retriever is built for: features of the query, features of the item."""

    query: InputSpec
    item: InputSpec
