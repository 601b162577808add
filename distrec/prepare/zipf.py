"""Ids with a Zipf distribution, as logs of clicks have them: few ids take most rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Zipf:
    """P(rank k) proportional to (k + 1) ** -exponent for k in [0, cardinality)."""

    def __init__(self, cardinality: int, exponent: float) -> None:
        weights = np.arange(1, cardinality + 1, dtype=np.float64) ** -exponent
        self.probabilities: Floats = weights / weights.sum()
        self._upper = np.cumsum(self.probabilities)
        self._upper[-1] = 1.0  # rounding must not leave a gap below 1

    def rank(self, uniform: Floats) -> Ints:
        """Ranks at the quantiles `uniform`, each in [0, 1): the inverse of the distribution function."""
        return np.searchsorted(self._upper, uniform, side="right").astype(np.int64)


def standardised(values: Floats, probabilities: Floats) -> Floats:
    """`values` (cardinality,) or (cardinality, k) with mean 0 and variance 1 a column under `probabilities`."""
    weights = probabilities if values.ndim == 1 else probabilities[:, None]
    centred = values - (weights * values).sum(axis=0)
    return centred / np.sqrt((weights * centred**2).sum(axis=0))
