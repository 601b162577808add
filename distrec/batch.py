"""The batch that travels from the reader to the model, and the position that rides on it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass(frozen=True)
class Deal:
    """Some steps that were read with one number of ranks and one batch size."""

    world: int
    batch_size: int  # rows a rank and step
    steps: int


@dataclass(frozen=True)
class Position:
    """Where a reader stands: the epoch, and how its rows have been dealt so far.

    The deals replay which rows are gone without a look at the data: each is a split of what the deals before it
    left over. A run that never changes its ranks or batch size has one deal an epoch.
    """

    epoch: int = 0
    deals: tuple[Deal, ...] = ()

    def to_json(self) -> dict:
        """Plain values for a manifest."""
        return {"epoch": self.epoch, "deals": [[d.world, d.batch_size, d.steps] for d in self.deals]}

    @classmethod
    def from_json(cls, value: dict) -> Position:
        """The inverse of `to_json`."""
        return cls(value["epoch"], tuple(Deal(*deal) for deal in value["deals"]))


@dataclass
class Batch(Pipelineable):
    """Rows of one rank for one step; `B` counts padding rows too."""

    dense: Tensor  # (B, num_dense) float32
    sparse: KeyedJaggedTensor | None  # keys: Layout.bags; None when there are none
    sequence: KeyedJaggedTensor | None  # keys: Layout.sequences; None when there are none
    labels: Tensor  # (B, num_tasks) float32
    weights: Tensor  # (B,) float32; 0 marks a padding row
    normalizer: Tensor  # () float32: real rows of this step, averaged over ranks; the loss is a weighted sum over it
    groups: Tensor | None  # (B,) int64, for metrics by group
    position: Position  # after this batch
    # Of a retriever: the first `queries` rows are queries, each with its item; any that follow are items alone.
    queries: int | None = None
    items: Tensor | None = None  # (B,) int64: each row's row of the catalogue, -1 for none; None: no row has an item
    lists: KeyedJaggedTensor | None = None  # rows of the catalogue by use (distrec.data.items), of each query

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """A copy on `device`."""
        return self._each(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies while the host goes on.

        The ids of each key are counted first: TorchRec needs the counts on the host, and would wait for the GPU to give them.
        """
        return self._each(lambda part: (part.sync() if isinstance(part, KeyedJaggedTensor) else part).pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has used it."""
        self._each(lambda part: part.record_stream(stream))

    def _each(self, do) -> Batch:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        done = {k: do(v) for k, v in parts.items() if isinstance(v, Tensor | KeyedJaggedTensor)}
        return replace(self, **{k: v for k, v in done.items() if v is not None})
