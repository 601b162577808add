"""YoutubeDNN: a network for the user alone; an item is its row of a table."""

from __future__ import annotations

from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.models.fields import field_dims
from distrec.models.inputs import Embedded, RetrieverSpec
from distrec.models.layers import Activation
from distrec.models.tower import NORMALIZE, HistoryPooling, Normalize, only_vector, tower, unit


class YoutubeDNN(nn.Module):
    """Profile and pooled history through an MLP to a user vector; the item vector is looked up, without a network.

    Covington et al., "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 3: recommendation as
    classification over all items, by sampled softmax. The paper's user vector is its last ReLU layer; here a linear layer
    follows, so that coordinates may be negative, as an item's are.
    """

    class Params(Section):
        """Widths are those of hidden layers; a linear layer to the item's dim follows, unless it is all there would be."""

        mlp: tuple[PositiveInt, ...] = Field(
            default=(128,), description="hidden widths; none: a history alone, of the item's dim, is the query as it is"
        )
        normalize: Normalize = Field(default=True, description=NORMALIZE)
        history: HistoryPooling = Field(default="mean", description="how a history's vectors become one")
        activation: Activation = Field(default="relu", description="in the MLP")
        dropout: Fraction = Field(default=0.0, description="in the MLP")
        batch_norm: bool = Field(default=False, description="in the MLP")

    def __init__(self, spec: RetrieverSpec, params: Params) -> None:
        super().__init__()
        self.item_field, dim = only_vector(spec.item, "youtube_dnn")
        out = None if not params.mlp and [*field_dims(spec.query).values()] == [dim] and not spec.query.num_dense else dim
        self.user = tower(spec.query, params.mlp, out, params.history, params.activation, params.dropout, params.batch_norm)
        self.normalize = params.normalize

    def query(self, inputs: Embedded) -> Tensor:
        """(B, D)."""
        vectors = self.user(inputs)
        return unit(vectors) if self.normalize else vectors

    def item(self, inputs: Embedded) -> Tensor:
        """(M, D)."""
        vectors = inputs.pooled[self.item_field]
        return unit(vectors) if self.normalize is True else vectors
