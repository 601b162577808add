"""The joint of a retriever: batch -> lookups -> two vectors -> loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from distrec.batch import Batch
from distrec.config.layout import Layout
from distrec.config.retrieval import Retrieval
from distrec.models.inputs import Embedded, InputSpec, Jagged, RetrieverSpec
from distrec.retrieval import losses
from distrec.retrieval.blockwise import blockwise_sum
from distrec.retrieval.candidates import Candidates, Pool
from distrec.task import Inputs, Outputs

BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}  # of scores at once: on CPU they stay in a core's cache
PROBED = 64  # rows whose accuracy is looked at


class RetrievalTask(nn.Module):
    """A retriever with its tables. `forward` is what TorchRec traces, so it holds lookups and nothing else."""

    def __init__(self, embeddings: nn.Module, head: RetrievalHead):
        super().__init__()
        self.embeddings: Any = embeddings  # distrec.embeddings.tables.Embeddings, of this floor
        self.head = head

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """In training, the loss of the batch (), and `loss`, `weights` (B,) of its queries, `accuracy`.

        Accuracy is the share of queries whose own item has the highest score of all candidates, of the first `PROBED`.
        In evaluation 0, and what the batch's rows have: `query` (B, D), `item` (N, D), `items` (N,), `weights` (N,); and of
        each list its values and its offsets: `targets` (T,), `targets_offsets` (B + 1,), `mask` likewise.
        """
        pooled = self.embeddings.bags(batch.sparse) if self.embeddings.bags is not None else None
        sequences = self.embeddings.sequences(batch.sequence) if self.embeddings.sequences is not None else None
        return self.head(batch, pooled, sequences)


class RetrievalHead(nn.Module):
    """From looked-up rows to vectors; in training, from vectors to the loss over all candidates."""

    def __init__(
        self, model: Towers, layout: Layout, retrieval: Retrieval, candidates: Candidates, autocast: torch.dtype | None
    ):
        super().__init__()
        self.model = model
        self.candidates = candidates
        self._inputs = Inputs(layout)
        self._loss = _loss(retrieval)
        self._autocast = autocast

    def forward(
        self, batch: Batch, pooled: KeyedTensor | None, sequences: Mapping[str, JaggedTensor] | None
    ) -> tuple[Tensor, Outputs]:
        """See `RetrievalTask.forward`."""
        query, item = self._vectors(batch, self._inputs(batch.dense, batch.sparse, pooled, sequences))
        if not self.training:
            found = {"query": query, "item": item, "items": batch.items, "weights": batch.weights}
            outputs = {name: value for name, value in found.items() if value is not None}
            return batch.dense.new_zeros(()), outputs | lists_of(batch)
        assert query is not None, "a batch to train on has queries"
        assert item is not None, "a batch to train on has items"
        weights = batch.weights[: len(query)]
        pool = self.candidates(batch, query, item)
        weighed = pool.filled_up(weights)

        def term(here: slice, parts: Sequence[Tensor], shared: Tensor) -> Tensor:
            return (weighed[here].flatten() * self._loss(*pool.scores(here, parts, shared))).sum()

        block = max(1, BLOCK_BYTES[query.device.type] // (4 * max(1, pool.width)))
        loss = blockwise_sum(term, pool.parts, pool.shared, block) / batch.normalizer
        return loss, {"loss": loss.detach(), "weights": weights, "accuracy": _accuracy(pool, weighed)}

    def _vectors(self, batch: Batch, inputs: Embedded) -> tuple[Tensor | None, Tensor | None]:
        with torch.autocast(batch.dense.device.type, self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            query = self.model.query(inputs, batch.queries) if batch.queries else None
            item = self.model.item(inputs) if batch.items is not None else None
        return None if query is None else query.float(), None if item is None else item.float()


class Towers(nn.Module):
    """A model, and which features go to which side of it."""

    def __init__(self, model: nn.Module, layout: Layout, item_features: Sequence[str]):
        super().__init__()
        self.model: Any = model
        self._sides = query_names(layout, item_features), tuple(item_features)
        for side, names in enumerate(self._sides):
            columns = [i for i, feature in enumerate(layout.dense) if feature.name in names]
            self.register_buffer(f"dense{side}", torch.tensor(columns, dtype=torch.int64), persistent=False)

    def query(self, inputs: Embedded, rows: int) -> Tensor:
        """Vectors (rows, D) of the first rows, the only ones with query features."""
        return self.model.query(self._side(0, inputs, rows))

    def item(self, inputs: Embedded) -> Tensor:
        """Vectors (N, D) of all rows."""
        return self.model.item(self._side(1, inputs, len(inputs.dense)))

    def forward(self, inputs: Embedded) -> Tensor:
        """Inner products (N,) of the two vectors of each row, all of which have all features."""
        return (self.query(inputs, len(inputs.dense)) * self.item(inputs)).sum(dim=1)

    def _side(self, side: int, inputs: Embedded, rows: int) -> Embedded:
        names = self._sides[side]
        return Embedded(
            inputs.dense[:rows].index_select(1, self.get_buffer(f"dense{side}")),
            {name: vectors[:rows] for name, vectors in inputs.pooled.items() if name in names},
            {name: Jagged(h.values, h.offsets[: rows + 1]) for name, h in inputs.sequences.items() if name in names},
        )


def lists_of(batch: Batch) -> Outputs:
    """The lists of items that a batch's queries bring, as values and offsets."""
    if batch.lists is None:
        return {}
    parts = batch.lists.to_dict().items()
    return {name: p.values() for name, p in parts} | {f"{name}_offsets": p.offsets().long() for name, p in parts}


@torch.no_grad()
def _accuracy(pool: Pool, weighed: Tensor) -> Tensor:
    """Of some rows, with weights (G, S): a look at all of them costs as much as the loss."""
    here = slice(0, -(-PROBED // pool.query.shape[1]))
    positive, negative, excluded = pool.scores(here, [part[here] for part in pool.parts], pool.shared)
    real = weighed[here].flatten() > 0
    won = positive > negative.masked_fill(excluded, -torch.inf).amax(dim=1)
    return (won & real).sum() / real.sum().clamp(min=1)


def query_names(layout: Layout, item_features: Sequence[str]) -> tuple[str, ...]:
    """The features that do not describe the item."""
    return tuple(name for name in layout.names if name not in item_features)


def retriever_spec(layout: Layout, item_features: Sequence[str]) -> RetrieverSpec:
    """The shapes of the two sides."""
    sides = [layout.only(names) for names in (query_names(layout, item_features), item_features)]
    return RetrieverSpec(*(InputSpec(len(side.dense), side.pooled_dims, side.sequence_dims, 0) for side in sides))


def _loss(retrieval: Retrieval) -> Any:
    weight = retrieval.negative_weight
    return {
        "softmax": losses.softmax_loss,
        "bpr": losses.bpr_loss,
        "bce": partial(losses.bce_loss, negative_weight=weight),
        "ccl": partial(losses.ccl_loss, margin=retrieval.margin, negative_weight=weight),
    }[retrieval.loss]
