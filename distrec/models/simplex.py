"""SimpleX: a user is partly a vector of their own, partly what they have gone for."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distrec.config.words import Count, Field, Fraction, Section
from distrec.errors import UserError
from distrec.models.inputs import Embedded, InputSpec, Jagged, RetrieverSpec
from distrec.models.jagged import repeat_rows, segment_softmax, segment_sum
from distrec.models.tower import NORMALIZE, Normalize, only_vector, pool, unit


class SimpleX(nn.Module):
    """Query: g e_u + (1 - g) V p, with p the pooled history; item: its row of the table; score: their cosine,
    unless `normalize` says otherwise.

    Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM 2021, section 4.1, equations 2
    to 6. Its loss is `ccl`, and works with many negatives a row (`retrieval.negatives.sampled`).
    """

    class Params(Section):
        """What the paper tunes, and which feature is what."""

        user: str | None = Field(
            default=None,
            description="the user's feature, where the history is a sparse one too: a mean is faster in the lookup",
        )
        gate: Fraction = Field(default=0.5, description="g: share of the user's own vector")
        history: Literal["mean", "attention", "user_attention"] = Field(
            default="mean", description="pooling of the history; attention: by its own vectors, or by the user's"
        )
        padded_to: Count = Field(
            default=0,
            description="user_attention: reckon a shorter history as if filled up to so many places with zeros of score 0, as "
            "code that pads does: the less there is of a history, the less it weighs; 0: all weights add up to 1",
        )
        dropout: Fraction = Field(default=0.0, description="of the query's vector, once it is normalized: noise in every score")
        normalize: Normalize = Field(default=True, description=NORMALIZE)

    def __init__(self, spec: RetrieverSpec, params: Params) -> None:
        super().__init__()
        self.item_field, dim = only_vector(spec.item, "simplex")
        self.user_field, self.history_field = _two_features(spec.query, params.user, dim)
        self.pool = _pool(params, dim, self.history_field, spec.query)
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.map.weight)  # at first, a user is near what they went for
        self.dropout = nn.Dropout(params.dropout)
        self.gate = params.gate
        self.normalize = params.normalize

    def query(self, inputs: Embedded) -> Tensor:
        """(B, D)."""
        user = inputs.pooled[self.user_field]
        if self.pool is None:
            pooled = inputs.pooled[self.history_field]
        else:
            pooled = self.pool(inputs.sequences[self.history_field], user)
        query = self.gate * user + (1 - self.gate) * self.map(pooled)
        return self.dropout(unit(query) if self.normalize else query)

    def item(self, inputs: Embedded) -> Tensor:
        """(M, D)."""
        item = inputs.pooled[self.item_field]
        return unit(item) if self.normalize is True else item


class UserAttention(nn.Module):
    """A weighted mean of a history: a = softmax(e_u^T tanh(W e_k + b)), equation 4."""

    def __init__(self, dim: int, padded_to: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.padded_to = padded_to

    def forward(self, history: Jagged, user: Tensor) -> Tensor:
        """(B, D); zeros for an empty history."""
        users = repeat_rows(user, history.offsets, history.values.shape[0])
        scores = (self.inner(history.values).tanh() * users).sum(dim=1, keepdim=True)
        weights = segment_softmax(scores, history.offsets, self.padded_to)
        return segment_sum(weights * history.values, history.offsets)


class _WithoutUser(nn.Module):
    """A pooling that has no use for the user."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, history: Jagged, user: Tensor) -> Tensor:
        return self.pooling(history)


def _pool(params: SimpleX.Params, dim: int, history: str, query: InputSpec) -> nn.Module | None:
    """None for a history that the lookup pools."""
    if params.padded_to and params.history != "user_attention":
        raise UserError(
            f'model.params.padded_to is for history = "user_attention", and it is "{params.history}"; remove padded_to'
        )
    if history not in query.sequences and params.history != "mean":
        raise UserError(
            f'model.params.history = "{params.history}" weighs ids one by one, and the lookup pools {history!r}; '
            "declare it in features.sequence"
        )
    if history not in query.sequences:
        return None
    return (
        UserAttention(dim, params.padded_to) if params.history == "user_attention" else _WithoutUser(pool(params.history, dim))
    )


def _two_features(query: InputSpec, user: str | None, dim: int) -> tuple[str, str]:
    """The names of the user's feature and of the history."""
    dims = query.pooled | query.sequences
    if user is None and len(query.pooled) == 1:
        user = next(iter(query.pooled))
    if query.num_dense or len(dims) != 2 or user not in query.pooled:
        found = ", ".join(dims) + (f" and {query.num_dense} numbers" if query.num_dense else "")
        raise UserError(
            "model simplex describes the query by a sparse feature, the user, and a history; where that is sparse too, "
            f"model.params.user says which is which. There are: {found}"
        )
    (history,) = dims.keys() - {user}
    if set(dims.values()) != {dim}:
        raise UserError(
            f"model simplex adds up vectors of one dim: {user!r} has {dims[user]}, {history!r} {dims[history]} and the item "
            f"{dim}; give their tables the same dim"
        )
    return user, history
