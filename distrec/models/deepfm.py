"""DeepFM: a factorization machine and an MLP on the same embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.models.fields import field_dims, field_vectors, shared_dim
from distrec.models.inputs import Embedded, InputSpec
from distrec.models.layers import MLP, FactorizationMachine


class DeepFM(nn.Module):
    """logits = first order + pairwise FM term + MLP, with shared embeddings.

    Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, equations 1 to 4.

    - Every feature is a field of D numbers: a pooled embedding, the mean of a sequence's embeddings, or, for a dense
      feature of value x, x times a learned vector.
    - First order: the paper keeps a scalar weight an id. Here it is a learned linear projection, one a field, of the id's
      embedding, so that one lookup serves all three terms; for a dense feature it is a scalar weight, as in the paper.
    - Pairwise term: summed over D as in the paper with one task. With several, each task weighs the D dimensions by
      learned factors that start at 1, since one unweighted sum cannot suit a click and a watch time at once.
    """

    class Params(Section):
        """Widths are those of hidden layers, with ReLU; a linear layer to the logits follows the last."""

        mlp: tuple[PositiveInt, ...] = Field(default=(256, 128), description="widths of the deep part")
        dropout: Fraction = Field(default=0.0, description="in the deep part")
        batch_norm: bool = Field(default=False, description="in the deep part")

    def __init__(self, spec: InputSpec, params: Params) -> None:
        super().__init__()
        dims = field_dims(spec)
        dim = shared_dim(dims, "model deepfm needs id features of one embedding dim")
        width = (len(dims) + spec.num_dense) * dim
        self.fields = tuple(dims)
        self.dense_vectors = nn.Parameter(torch.randn(spec.num_dense, dim) * (0.1 * dim**-0.5)) if spec.num_dense else None
        self.first_order = nn.Linear(len(dims) * dim + spec.num_dense, spec.num_tasks)
        self.fm = FactorizationMachine()
        self.fm_head = _task_factors(dim, spec.num_tasks) if spec.num_tasks > 1 else None
        self.mlp = MLP(width, params.mlp, dropout=params.dropout, batch_norm=params.batch_norm)
        self.mlp_head = nn.Linear(self.mlp.out_width, spec.num_tasks, bias=False)  # the first order has the bias

    def forward(self, inputs: Embedded) -> Tensor:
        """Logits (B, num_tasks)."""
        ids = torch.cat(field_vectors(inputs, self.fields), dim=1)
        first_order = self.first_order(torch.cat([ids, inputs.dense], dim=1))
        fields = self._fields(ids, inputs.dense)
        return first_order + self._pairwise(fields) + self.mlp_head(self.mlp(fields.flatten(1)))

    def _fields(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Every field as a vector (B, F, D): ids first, then dense features."""
        vectors = ids.unflatten(1, (len(self.fields), -1))
        if self.dense_vectors is None:
            return vectors
        return torch.cat([vectors, dense.unsqueeze(2) * self.dense_vectors], dim=1)

    def _pairwise(self, fields: Tensor) -> Tensor:
        by_dim = self.fm(fields)
        return self.fm_head(by_dim) if self.fm_head is not None else by_dim.sum(1, keepdim=True)


def _task_factors(dim: int, num_tasks: int) -> nn.Linear:
    head = nn.Linear(dim, num_tasks, bias=False)
    nn.init.ones_(head.weight)
    return head
