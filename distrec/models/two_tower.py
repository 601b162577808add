"""Two towers: a vector of the query's features, a vector of the item's, and their inner product."""

from __future__ import annotations

from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.models.inputs import Embedded, RetrieverSpec
from distrec.models.layers import Activation
from distrec.models.tower import NORMALIZE, HistoryPooling, Normalize, require_equal_widths, tower, unit


class TwoTower(nn.Module):
    """Each side: its fields side by side, an MLP, a linear layer to `dim`.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019, section 3.

    Without widths and dim a tower is what its fields are. With one field a side, the user's id and the item's, that is
    matrix factorization (Koren et al., "Matrix Factorization Techniques for Recommender Systems", 2009, equation 1).
    """

    class Params(Section):
        """Widths are those of hidden layers."""

        query_mlp: tuple[PositiveInt, ...] = Field(default=(), description="hidden widths of the query's tower")
        item_mlp: tuple[PositiveInt, ...] = Field(default=(), description="hidden widths of the item's tower")
        dim: PositiveInt | None = Field(
            default=None, description="of both vectors, by a linear layer; default: no such layer, as in matrix factorization"
        )
        normalize: Normalize = Field(default=True, description=NORMALIZE)
        history: HistoryPooling = Field(default="mean", description="how a history's vectors become one")
        activation: Activation = Field(default="relu", description="in the MLPs")
        dropout: Fraction = Field(default=0.0, description="in the MLPs")
        batch_norm: bool = Field(default=False, description="in the MLPs")

    def __init__(self, spec: RetrieverSpec, params: Params) -> None:
        super().__init__()
        shared = (params.dim, params.history, params.activation, params.dropout, params.batch_norm)
        self.query_tower = tower(spec.query, params.query_mlp, *shared)
        self.item_tower = tower(spec.item, params.item_mlp, *shared)
        require_equal_widths(
            self.query_tower.out_width, self.item_tower.out_width, "set model.params.dim, or give their tables the same dim"
        )
        self.normalize = params.normalize

    def query(self, inputs: Embedded) -> Tensor:
        """(B, dim)."""
        vectors = self.query_tower(inputs)
        return unit(vectors) if self.normalize else vectors

    def item(self, inputs: Embedded) -> Tensor:
        """(M, dim)."""
        vectors = self.item_tower(inputs)
        return unit(vectors) if self.normalize is True else vectors
