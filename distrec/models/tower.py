"""One side of a retriever: features in, one vector out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distrec.errors import UserError
from distrec.models.fields import field_dims
from distrec.models.inputs import Embedded, InputSpec, Jagged
from distrec.models.jagged import segment_mean, segment_softmax, segment_sum
from distrec.models.layers import MLP

HistoryPooling = Literal["mean", "sum", "attention"]
Normalize = bool | Literal["query"]
NORMALIZE = (
    "vectors of length 1, so that scores are cosines; query: only the query's, and an item's length says how often it is wanted"
)
SHORTEST = 1e-6  # a vector that is shorter, such as that of a row without any id, is not stretched to length 1


class Tower(nn.Module):
    """Fields and numbers side by side, an MLP, a linear layer to the vector; without widths and dim, what comes in goes out."""

    def __init__(self, spec: InputSpec, mlp: MLP | None, width: int, dim: int | None, histories: dict[str, nn.Module]) -> None:
        """See `tower`."""
        super().__init__()
        self.fields = tuple(field_dims(spec))
        self.num_dense = spec.num_dense
        self.histories = nn.ModuleDict(histories)
        self.mlp = mlp or nn.Identity()
        self.out = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.out_width = dim or width

    def forward(self, inputs: Embedded) -> Tensor:
        """(B, out_width)."""
        vectors = [inputs.pooled[n] if n in inputs.pooled else self.histories[n](inputs.sequences[n]) for n in self.fields]
        parts = [inputs.dense, *vectors] if self.num_dense else vectors
        return self.out(self.mlp(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)))


class Mean(nn.Module):
    """Of a history's vectors."""

    def forward(self, history: Jagged) -> Tensor:
        """(B, D); zeros for an empty history."""
        return segment_mean(history)


class Sum(nn.Module):
    """Of a history's vectors."""

    def forward(self, history: Jagged) -> Tensor:
        """(B, D); zeros for an empty history."""
        return segment_sum(history.values, history.offsets)


class AttentionPool(nn.Module):
    """A weighted mean of a history, whose weights come from its own vectors: the query knows no item to attend by.

    a = softmax(w^T tanh(W e_i)) over the row's positions: Lin et al., "A Structured Self-attentive Sentence Embedding",
    ICLR 2017, equation 5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim, bias=False)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, history: Jagged) -> Tensor:
        """(B, D); zeros for an empty history."""
        weights = segment_softmax(self.score(self.inner(history.values).tanh()), history.offsets)
        return segment_sum(weights * history.values, history.offsets)


def pool(kind: HistoryPooling, dim: int) -> nn.Module:
    """How a history (positions of width `dim`) becomes one vector."""
    return {"mean": Mean, "sum": Sum}[kind]() if kind != "attention" else AttentionPool(dim)


def tower(
    spec: InputSpec,
    widths: tuple[int, ...],
    dim: int | None,
    history: HistoryPooling = "mean",
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> Tower:
    """Build a tower: hidden `widths`, then a linear layer to `dim`; None: none, and the last width is that of the vector."""
    width = spec.num_dense + sum(field_dims(spec).values())
    mlp = MLP(width, widths, activation, dropout, batch_norm) if widths else None  # type: ignore[arg-type]
    pools = {name: pool(history, size) for name, size in spec.sequences.items()}
    return Tower(spec, mlp, widths[-1] if widths else width, dim, pools)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (B, D) of length 1, for cosines; zero vectors stay zero, and their gradient is finite."""
    return F.normalize(vectors, dim=1, eps=SHORTEST)


def only_vector(item: InputSpec, model: str) -> tuple[str, int]:
    """The item's one feature and its dim, for a model whose item side is a table.

    Raises:
        UserError: the item has others, or none.
    """
    if item.num_dense or item.sequences or len(item.pooled) != 1:
        numbers = f"{item.num_dense} number{'s' * (item.num_dense != 1)}" if item.num_dense else ""
        found = " and ".join(filter(None, [", ".join([*item.pooled, *item.sequences]), numbers])) or "none"
        raise UserError(
            f"model {model} has no network for items: retrieval.item_features is one sparse feature, and here it is {found}; "
            "two_tower takes more"
        )
    return next(iter(item.pooled.items()))


def require_equal_widths(query: int, item: int, fix: str) -> None:
    """Raise `UserError`, which ends with `fix`, when the two sides' vectors cannot be compared."""
    if query != item:
        raise UserError(f"the query's vector has {query} dims and the item's {item}: {fix}")
