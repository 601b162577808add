"""Losses of retrievers: one number a row, from the score of its own item and the scores of other items.

All take `positive (B,)`, `negative (B, K)` and `excluded (B, K) bool`, which says what of `negative` is no negative of the
row. A row without any has the loss of its positive alone.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

FAR = -1e30  # in place of a score that does not count: its exponential is 0, and unlike infinity it makes no NaN


def softmax_loss(positive: Tensor, negative: Tensor, excluded: Tensor) -> Tensor:
    """List-wise, (B,): -log(e^s+ / (e^s+ + sum_k e^s_k)).

    With scores from which the log of how often an item is expected among the candidates has been taken, it is the
    sampled softmax with logQ correction: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", RecSys 2019, equation 4; Bengio and Senecal, 2008.
    """
    return F.softplus(negative.masked_fill(excluded, FAR).logsumexp(dim=1) - positive)


def bpr_loss(positive: Tensor, negative: Tensor, excluded: Tensor) -> Tensor:
    """Pair-wise, (B,): the mean over negatives of -log sigmoid(s+ - s_k).

    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, section 4.1.
    """
    return _mean(F.softplus(negative - positive.unsqueeze(1)), excluded)


def bce_loss(positive: Tensor, negative: Tensor, excluded: Tensor, negative_weight: float = 1.0) -> Tensor:
    """Point-wise, (B,): -log sigmoid(s+) - w mean_k log(1 - sigmoid(s_k))."""
    return F.softplus(-positive) + negative_weight * _mean(F.softplus(negative), excluded)


def ccl_loss(positive: Tensor, negative: Tensor, excluded: Tensor, margin: float, negative_weight: float = 1.0) -> Tensor:
    """Cosine contrastive, (B,): max(0, 1 - s+) + w mean_k max(0, s_k - m).

    Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM 2021, equation 1. A cosine exceeds 1
    by the noise of dropout alone, and there the authors' code has no gradient either.
    """
    return F.relu(1 - positive) + negative_weight * _mean(F.relu(negative - margin), excluded)


def _mean(values: Tensor, excluded: Tensor) -> Tensor:
    """Over what counts in each row; 0 where nothing does."""
    counts = excluded.shape[1] - excluded.sum(dim=1)
    return values.masked_fill(excluded, 0.0).sum(dim=1) / counts.clamp(min=1)
