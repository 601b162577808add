"""DCN-v2: a cross network, beneath an MLP or beside it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.errors import UserError
from distrec.models.fields import field_dims, whole_row, whole_width
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.layers import MLP, CrossNet


class DCN(nn.Module):
    """Explicit crosses of bounded degree by a cross network, implicit ones by an MLP.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", WWW
    2021, section 3. x_0 is the numbers and all embeddings side by side; a sequence is the mean of its vectors, and the
    embeddings' dims may differ.

    - Cross layers with full matrices (equation 1), with matrices of a rank (equation 2), or with several pairs of matrices
      of that rank, each an expert, and a gate (equations 3 and 4).
    - `structure = "stacked"`: the MLP reads what the cross network returns. `"parallel"`: both read x_0, and the logits
      read both outputs. The paper finds either the better one, depending on the data.

    `dlrm` with `interaction = "dcn"` differs: there the numbers first go through an MLP of their own, as MLPerf has it.
    """

    class Params(Section):
        """Widths are those of hidden layers, with ReLU; a linear layer to the logits follows the last."""

        mlp: tuple[PositiveInt, ...] = Field(default=(256, 128), description="widths of the deep part")
        structure: Literal["stacked", "parallel"] = Field(
            default="stacked", description="the MLP above the cross network, or beside it"
        )
        cross_layers: PositiveInt = Field(default=3, description="degree of the crosses, less 1")
        cross_rank: PositiveInt | None = Field(default=None, description="rank of the matrices; default: full")
        experts: PositiveInt = Field(
            default=1, description="pairs of matrices of cross_rank in each cross layer, mixed by a gate"
        )
        dropout: Fraction = Field(default=0.0, description="in the deep part")
        batch_norm: bool = Field(default=False, description="in the deep part")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        self.fields, width = tuple(field_dims(spec)), whole_width(spec, "dcn")
        if params.experts > 1 and params.cross_rank is None:
            raise UserError(f"model.params.experts = {params.experts} of dcn are of low rank: set model.params.cross_rank, too")
        self.cross = CrossNet(width, params.cross_layers, params.cross_rank, params.experts)
        self.mlp = MLP(width, params.mlp, dropout=params.dropout, batch_norm=params.batch_norm)
        self.parallel = params.structure == "parallel"
        self.head = nn.Linear(self.mlp.out_width + width * self.parallel, spec.num_tasks)

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks)."""
        x0 = whole_row(inputs, self.fields)
        crossed = self.cross(x0)
        if self.parallel:
            return self.head(torch.cat([crossed, self.mlp(x0)], dim=1))
        return self.head(self.mlp(crossed))
