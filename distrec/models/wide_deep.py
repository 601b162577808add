"""Wide & Deep: a linear model that memorizes and an MLP that generalizes, trained as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distrec.config.load import nearest
from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.errors import UserError
from distrec.models.fields import field_dims, field_vectors
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.layers import MLP


class WideDeep(nn.Module):
    """logits = wide^T x_wide + deep^T MLP(x_deep) + bias.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, section 3 and equation 3.

    - Wide: the paper keeps a scalar weight an id. Here it is a learned linear projection, one a field, of the id's
      embedding. A feature with a table of its own can thus give each of its ids any weight, as in the paper; features
      that share a table share what it holds. The weights are trained by the tables' optimizer, not by FTRL with L1.
    - Crosses of ids (the paper's equation 1) are columns of the data, such as country and category in one text, hashed
      into a table by `ids = "hash"`: a model receives vectors and cannot make them. Name them in `wide_only`, for the
      paper's deep part does not get them; a small dim is enough.
    - Deep: embeddings and numbers side by side through an MLP. A sequence is the mean of its vectors, in either part.
    """

    class Params(Section):
        """Features that neither list names, and all dense ones, enter both parts."""

        mlp: tuple[PositiveInt, ...] = Field(default=(256, 128), description="widths of the deep part, with ReLU")
        wide_only: tuple[str, ...] = Field(
            default=(), description="features that the deep part does not get, above all crosses of ids, made as columns"
        )
        deep_only: tuple[str, ...] = Field(default=(), description="features that the wide part does not get")
        dropout: Fraction = Field(default=0.0, description="in the deep part")
        batch_norm: bool = Field(default=False, description="in the deep part")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        _check_parts(list(field_dims(spec)), params)
        wide, deep = field_dims(spec, without=params.deep_only), field_dims(spec, without=params.wide_only)
        self.fields, self.wide_fields, self.deep_fields = tuple(field_dims(spec)), tuple(wide), tuple(deep)
        wide_width, deep_width = _width("wide", wide, spec), _width("deep", deep, spec)
        self.wide = nn.Linear(wide_width, spec.num_tasks)
        self.mlp = MLP(deep_width, params.mlp, dropout=params.dropout, batch_norm=params.batch_norm)
        self.mlp_head = nn.Linear(self.mlp.out_width, spec.num_tasks, bias=False)  # the wide part has the bias

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks)."""
        vectors = dict(zip(self.fields, field_vectors(inputs, self.fields), strict=True))
        wide = torch.cat([inputs.dense, *(vectors[name] for name in self.wide_fields)], dim=1)
        deep = torch.cat([inputs.dense, *(vectors[name] for name in self.deep_fields)], dim=1)
        return self.wide(wide) + self.mlp_head(self.mlp(deep))


def _width(part: str, dims: dict[str, int], spec: InputSpec) -> int:
    width = spec.num_dense + sum(dims.values())
    if not width:
        raise UserError(f"the {part} part of model wide_deep has no features: name fewer in wide_only or deep_only, or add one")
    return width


def _check_parts(fields: Sequence[str], params: WideDeep.Params) -> None:
    for key, names in (("wide_only", params.wide_only), ("deep_only", params.deep_only)):
        if unknown := [name for name in names if name not in fields]:
            raise UserError(
                f"model.params.{key} names {unknown[0]!r}, which is no feature in features.sparse or features.sequence"
                f"{nearest(unknown[0], fields)}"
            )
    if both := [name for name in params.wide_only if name in params.deep_only]:
        raise UserError(f"model.params.wide_only and deep_only both name {both[0]!r}: name it in one of them, or in neither")
