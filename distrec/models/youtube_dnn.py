"""YoutubeDNN: a network for the user alone; an item is its row of a table."""

from __future__ import annotations

from torch import Tensor, nn

from distrec.config.words import Field, Fraction, PositiveInt, Section
from distrec.models.inputs import Embedded, RetrieverSpec
from distrec.models.layers import Activation
from distrec.models.tower import HistoryPooling, only_vector, tower, unit


class YoutubeDNN(nn.Module):
    """Profile and pooled history through an MLP to a user vector; the item vector is looked up, without a network.

    Covington et al., "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 3: recommendation as
    classification over all items, by sampled softmax. The paper's user vector is its last ReLU layer; here a linear layer
    follows, so that coordinates may be negative, as an item's are.
    """

    class Params(Section):
        """Widths are those of hidden layers; a linear layer to the item's dim follows the last."""

        mlp: tuple[PositiveInt, ...] = Field(default=(128,), description="hidden widths")
        normalize: bool = Field(default=True, description="vectors of length 1, so that scores are cosines")
        history: HistoryPooling = Field(default="mean", description="how a history's vectors become one")
        activation: Activation = Field(default="relu", description="in the MLP")
        dropout: Fraction = Field(default=0.0, description="in the MLP")
        batch_norm: bool = Field(default=False, description="in the MLP")

    def __init__(self, spec: RetrieverSpec, params: Params) -> None:
        super().__init__()
        self.item_field, dim = only_vector(spec.item, "youtube_dnn")
        self.user = tower(spec.query, params.mlp, dim, params.history, params.activation, params.dropout, params.batch_norm)
        self.normalize = params.normalize

    def query(self, inputs: Embedded) -> Tensor:
        """(B, D)."""
        vectors = self.user(inputs)
        return unit(vectors) if self.normalize else vectors

    def item(self, inputs: Embedded) -> Tensor:
        """(M, D)."""
        vectors = inputs.pooled[self.item_field]
        return unit(vectors) if self.normalize else vectors
