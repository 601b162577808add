"""The single joint: batch -> lookups -> model -> loss. What `DistributedModelParallel` wraps and TorchRec's pipeline runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from distrec.batch import Batch
from distrec.config.layout import Layout
from distrec.config.schema import Task
from distrec.losses import ranking_loss
from distrec.models.inputs import Embedded, Jagged
from distrec.models.jagged import segment_mean, segment_sum

Outputs = dict[str, Tensor]
POOL: dict[str, Callable[[Jagged], Tensor]] = {"sum": lambda rows: segment_sum(rows.values, rows.offsets), "mean": segment_mean}


class RankingTask(nn.Module):
    """A ranker with its tables. `forward` is what TorchRec traces, so it holds lookups and nothing else."""

    def __init__(self, embeddings: nn.Module, head: RankingHead):
        super().__init__()
        self.embeddings: Any = embeddings  # distrec.embeddings.tables.Embeddings, of this floor
        self.head = head

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss of the batch (), and what metrics need: `logits` (B, T), `labels` (B, T), `weights` (B,), `groups` (B,)."""
        pooled = self.embeddings.bags(batch.sparse) if self.embeddings.bags is not None else None
        sequences = self.embeddings.sequences(batch.sequence) if self.embeddings.sequences is not None else None
        given = batch.dense, batch.sparse, pooled, sequences
        return self.head(*given, batch.labels, batch.weights, batch.normalizer, batch.groups)


class RankingHead(nn.Module):
    """From looked-up rows to the loss: the model's inputs by name, the model, the objective."""

    def __init__(self, model: nn.Module, layout: Layout, tasks: Sequence[Task], autocast: torch.dtype | None = None):
        super().__init__()
        self.model = model
        self._inputs = Inputs(layout)
        self._kinds = [task.kind for task in tasks]
        self._task_weights = [task.weight for task in tasks]
        self._autocast = autocast

    def forward(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor | None,
        pooled: KeyedTensor | None,
        sequences: Mapping[str, JaggedTensor] | None,
        labels: Tensor,
        weights: Tensor,
        normalizer: Tensor,
        groups: Tensor | None,
    ) -> tuple[Tensor, Outputs]:
        """See `RankingTask.forward`."""
        inputs = self._inputs(dense, sparse, pooled, sequences)
        with torch.autocast(dense.device.type, self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            result = self.model(inputs)
        logits, auxiliary = result if isinstance(result, tuple) else (result, {})
        loss, losses = ranking_loss(logits, labels, weights, normalizer, self._kinds, self._task_weights, auxiliary)
        outputs = {
            "logits": logits.detach().float(),
            "labels": labels,
            "weights": weights,
            "loss": loss.detach(),
            "losses": losses.detach(),
        }
        return loss, outputs if groups is None else outputs | {"groups": groups}


class Inputs:
    """Gives looked-up rows the names by which models know them, and makes means of sums."""

    def __init__(self, layout: Layout):
        self._bags = [f.name for f in layout.bags]
        self._means = [i for i, f in enumerate(layout.bags) if f.pooling == "mean"]
        self._histories = [f.name for f in layout.sequences if f.pooling is None]
        self._pooled_late = {f.name: f.pooling for f in layout.sequences if f.pooling is not None}

    def __call__(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor | None,
        pooled: KeyedTensor | None,
        sequences: Mapping[str, JaggedTensor] | None,
    ) -> Embedded:
        """A batch of a model; `pooled` holds the sums of the rows that `sparse` looked up."""
        by_name: dict[str, Tensor] = {}
        if sparse is not None and pooled is not None:
            found = pooled.to_dict()
            by_name |= {name: found[name] for name in self._bags}  # by key: the order of a sharded result follows the plan
            lengths = sparse.lengths().view(len(self._bags), -1, 1).clamp(min=1)
            by_name |= {self._bags[i]: by_name[self._bags[i]] / lengths[i] for i in self._means}
        if sequences is not None:
            by_name |= {name: POOL[mode](jagged(sequences[name])) for name, mode in self._pooled_late.items()}
        histories = {name: jagged(sequences[name]) for name in self._histories} if sequences is not None else {}
        return Embedded(dense, by_name, histories)


def jagged(values: JaggedTensor) -> Jagged:
    """TorchRec's jagged tensor as a model sees it."""
    return Jagged(values.values(), values.offsets().long())
