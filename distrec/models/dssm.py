"""DSSM: the two-tower before it had the name, with tanh layers and a cosine."""

from __future__ import annotations

from distrec.config.words import Field, PositiveInt
from distrec.models.layers import Activation
from distrec.models.two_tower import TwoTower


class DSSM(TwoTower):
    """Towers of tanh layers, the last of which is the vector; the score is their cosine.

    Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data", CIKM 2013, equations
    3 and 4. The paper's smoothing factor is 1 / `retrieval.temperature`; its loss is `softmax` over sampled negatives
    (equation 5). Recommenders train it point-wise (`bce`) and pair-wise (`bpr`) too.
    """

    class Params(TwoTower.Params):
        """The paper's widths are the defaults."""

        query_mlp: tuple[PositiveInt, ...] = Field(default=(300, 300, 128), description="widths of the query's tower")
        item_mlp: tuple[PositiveInt, ...] = Field(default=(300, 300, 128), description="widths of the item's tower")
        activation: Activation = Field(default="tanh", description="in both towers")
