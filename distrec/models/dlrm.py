"""DLRM: an MLP on dense features, explicit interactions with the embeddings, an MLP on top."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.errors import UserError
from distrec.models.fields import field_dims, field_vectors, shared_dim
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.layers import MLP, CrossNet, DotInteraction


class DLRM(nn.Module):
    """Dense features go through the bottom MLP and become one more vector beside the embeddings.

    `interaction = "dot"`: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
    Systems", 2019, section 2: the dense vector beside all pairwise dot products feeds the top MLP.
    `interaction = "dcn"`: DLRM-DCNv2 of MLPerf Training: all vectors side by side go through the cross network of
    Wang et al., WWW 2021, and then the top MLP; MLPerf sets 3 layers of rank 512.

    A sequence is one more field: the mean of its vectors. Without dense features there is no bottom MLP.
    """

    class Params(Section):
        """Widths are those of hidden layers, all with ReLU; a linear layer to the logits follows the last of `top_mlp`."""

        bottom_mlp: tuple[PositiveInt, ...] = Field(
            default=(), description="widths below the interaction; with dot the last one is the embedding dim"
        )
        top_mlp: tuple[PositiveInt, ...] = Field(default=(256, 128), description="widths above the interaction")
        interaction: Literal["dot", "dcn"] = Field(default="dot", description="dot: DLRM, 2019; dcn: MLPerf's DLRM-DCNv2")
        cross_layers: PositiveInt = Field(default=3, description="dcn")
        cross_rank: PositiveInt | None = Field(default=None, description="dcn: rank of its matrices; default: full")
        dropout: Fraction = Field(default=0.0, description="in the top MLP")
        batch_norm: bool = Field(default=False, description="in the top MLP")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        dims = field_dims(spec)
        self.fields = tuple(dims)
        self.bottom = MLP(spec.num_dense, params.bottom_mlp) if spec.num_dense else None
        self.interaction = _Dot(dims, self.bottom) if params.interaction == "dot" else _Cross(dims, self.bottom, params)
        self.top = MLP(self.interaction.out_width, params.top_mlp, dropout=params.dropout, batch_norm=params.batch_norm)
        self.head = nn.Linear(self.top.out_width, spec.num_tasks)

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks)."""
        vectors = field_vectors(inputs, self.fields)
        if self.bottom is not None:
            vectors = [self.bottom(inputs.dense), *vectors]
        return self.head(self.top(self.interaction(vectors)))


class _Dot(nn.Module):
    """The dense vector, where there is one, beside the dot products of all pairs."""

    def __init__(self, dims: dict[str, int], bottom: MLP | None) -> None:
        super().__init__()
        dim = shared_dim(dims, 'model dlrm with interaction = "dot" needs id features of one embedding dim')
        _check_bottom(bottom, dim)
        self.dense = 0 if bottom is None else 1
        if self.dense + len(dims) < 2:
            raise UserError(f"model dlrm has nothing to interact with feature {next(iter(dims))!r}: add a feature")
        self.pairs = DotInteraction(self.dense + len(dims))
        self.out_width = self.dense * dim + self.pairs.out_width

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """F vectors (B, D), the dense one first -> (B, out_width)."""
        return torch.cat([*vectors[: self.dense], self.pairs(torch.stack(vectors, dim=1))], dim=1)


class _Cross(nn.Module):
    """The cross network on all vectors side by side."""

    def __init__(self, dims: dict[str, int], bottom: MLP | None, params: DLRM.Params) -> None:
        super().__init__()
        width = sum(dims.values()) + (bottom.out_width if bottom is not None else 0)
        if not width:
            raise UserError("model dlrm has no features: name at least one in features")
        self.cross = CrossNet(width, params.cross_layers, params.cross_rank)
        self.out_width = width

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """F vectors (B, D_f), the dense one first -> (B, sum of D_f)."""
        return self.cross(torch.cat(vectors, dim=1))


def _check_bottom(bottom: MLP | None, dim: int) -> None:
    if bottom is None or (len(bottom) and bottom.out_width == dim):
        return
    found = f"it ends in {bottom.out_width}" if len(bottom) else "it is empty"
    raise UserError(
        f"model.params.bottom_mlp must end in {dim}, the embedding dim of the id features, because dlrm takes dot products "
        f'of its output with them; {found}: set its last width to {dim}, or interaction to "dcn"'
    )
