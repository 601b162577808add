"""DIN: what a user did before, weighed by how much it has to do with the item at hand."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from distrec.config.load import nearest
from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.errors import UserError
from distrec.models.fields import field_dims, field_vectors
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.jagged import repeat_rows, require_aligned, segment_softmax, segment_sum
from distrec.models.layers import MLP, Activation


class DIN(nn.Module):
    """A weighted sum over the history, with weights from the target, beside all other features in an MLP.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section 4.3, equations 1 and 2.

    `targets` and `histories` go in pairs and describe one history from several sides, such as item and category:
    `targets = ["movie_id", "genre"], histories = ["history_movie_id", "history_genre"]`, where `history_genre` holds
    the genre of each movie in `history_movie_id`, position by position. The pairs' vectors are put side by side into
    one query and one key. A pair should share a table, so that equal ids have equal vectors. Sequences that are not in
    `histories` enter the MLP as the mean of their vectors. Nothing is padded; an empty history gives a zero vector.
    """

    class Params(Section):
        """Widths are those of hidden layers; a linear layer to the score, or to the logits, follows the last."""

        targets: tuple[str, ...] = Field(description="pooled features")
        histories: tuple[str, ...] = Field(description="sequences of equal lengths, one for each target and of its dim")
        attention_mlp: tuple[PositiveInt, ...] = Field(default=(80, 40), description="widths of the attention's MLP")
        attention_activation: Activation = Field(default="dice", description="in the attention's MLP")
        softmax: bool = Field(
            default=False, description="normalize attention; the paper does not, to keep the intensity of an interest"
        )
        top_mlp: tuple[PositiveInt, ...] = Field(default=(200, 80), description="widths of the top MLP")
        top_activation: Activation = Field(default="dice", description="in the top MLP")
        dropout: Fraction = Field(default=0.0, description="in the top MLP")
        batch_norm: bool = Field(default=False, description="in the top MLP")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        _check_pairs(spec, params)
        self.targets, self.histories = params.targets, params.histories
        interest_width = sum(spec.sequences[name] for name in self.histories)
        others = field_dims(spec, without=self.histories)
        self.fields = tuple(others)
        self.attention = LocalActivationUnit(interest_width, params.attention_mlp, params.attention_activation, params.softmax)
        width = spec.num_dense + interest_width + sum(others.values())
        self.top = MLP(width, params.top_mlp, params.top_activation, params.dropout, params.batch_norm)
        self.head = nn.Linear(self.top.out_width, spec.num_tasks)

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks).

        Raises:
            UserError: two of the histories have different lengths in some row.
        """
        parts = [inputs.dense, self._interest(inputs), *field_vectors(inputs, self.fields)]
        return self.head(self.top(torch.cat(parts, dim=1)))

    def _interest(self, inputs: Embedded) -> Tensor:
        require_aligned({name: inputs.sequences[name] for name in self.histories})
        query = torch.cat([inputs.pooled[name] for name in self.targets], dim=1)
        keys = torch.cat([inputs.sequences[name].values for name in self.histories], dim=1)
        return self.attention(query, keys, inputs.sequences[self.histories[0]].offsets)


class LocalActivationUnit(nn.Module):
    """Score each position by an MLP on [q, k, q - k, q * k], then sum the keys by their scores."""

    def __init__(self, width: int, widths: tuple[int, ...], activation: Activation, softmax: bool) -> None:
        super().__init__()
        self.mlp = MLP(4 * width, widths, activation)
        self.score = nn.Linear(self.mlp.out_width, 1, bias=not softmax)  # softmax takes a shift out again
        self.softmax = softmax

    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """Query (B, K), keys (N, K), offsets (B + 1,) -> (B, K)."""
        q = repeat_rows(query, offsets, keys.shape[0])
        scores = self.score(self.mlp(torch.cat([q, keys, q - keys, q * keys], dim=1)))
        if self.softmax:
            scores = segment_softmax(scores, offsets)
        return segment_sum(scores * keys, offsets)


def _check_pairs(spec: InputSpec, params: DIN.Params) -> None:
    if not params.targets or len(params.targets) != len(params.histories):
        raise UserError(
            "model.params.targets and model.params.histories go in pairs, at least one: "
            f"there are {len(params.targets)} targets and {len(params.histories)} histories"
        )
    for target, history in zip(params.targets, params.histories, strict=True):
        _check_kind("targets", target, "sparse", spec.pooled, spec.sequences)
        _check_kind("histories", history, "sequence", spec.sequences, spec.pooled)
        if spec.pooled[target] != spec.sequences[history]:
            raise UserError(
                f"target {target!r} has embedding dim {spec.pooled[target]} and its history {history!r} has "
                f"{spec.sequences[history]}: name the same table in both features, or give their tables the same dim"
            )


def _check_kind(key: str, feature: str, section: str, right: Collection[str], wrong: Collection[str]) -> None:
    if feature in wrong:
        raise UserError(f"model.params.{key} names {feature!r}, which must be declared in features.{section} to be one of them")
    if feature not in right:
        raise UserError(
            f"model.params.{key} names {feature!r}, which is no feature in features.{section}{nearest(feature, list(right))}"
        )
