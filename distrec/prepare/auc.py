"""The AUC that scores can expect when labels are drawn from known probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_auc(scores: NDArray[np.float64], probabilities: NDArray[np.float64]) -> float:
    r"""Expected concordance of pairs, sum p_i (1 - p_j) [s_i > s_j] / sum p_i (1 - p_j) over i != j.

    A pair counts when row i is positive and row j negative, which has probability p_i (1 - p_j) because labels are
    independent. Equal scores count half. With probabilities of 0 and 1 this is the ordinary AUC of drawn labels;
    with s = logit(p) it is the Bayes-optimal AUC, which no model exceeds except by luck.

    Args:
        scores: (N,), any monotone scale.
        probabilities: (N,), of a positive label, in [0, 1].

    Returns:
        The AUC, or NaN where all rows must have the same label. Takes O(N log N).
    """
    _, tie = np.unique(scores, return_inverse=True)
    positive = np.bincount(tie, probabilities)  # mass at each distinct score, ascending
    negative = np.bincount(tie, 1 - probabilities)
    below = np.cumsum(negative) - negative
    with_itself = np.sum(probabilities * (1 - probabilities))
    concordant = np.sum(positive * (below + negative / 2)) - with_itself / 2
    pairs = positive.sum() * negative.sum() - with_itself
    return float(concordant / pairs) if pairs > 0 else float("nan")
