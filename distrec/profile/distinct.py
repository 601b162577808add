"""How many different values a column holds, and how far two columns hold the same ones, from samples of bounded size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distrec.data.hashing import splitmix64

SKETCH = 1024  # hashes kept a column


@dataclass(frozen=True)
class Distinct:
    """Different values of a column."""

    estimate: int  # over all rows
    exact: bool  # nothing was left out of the sample
    sampled: int  # values looked at, nulls not among them
    seen: int  # different ones among them
    sketch: np.ndarray  # (at most SKETCH,) uint64, ascending: the smallest hashes of the different values


def distinct(keys: np.ndarray, total: int, whole: bool) -> Distinct:
    """From `keys (n,) int64`, a sample of `total` values.

    The estimate is GEE of Charikar, Chaudhuri, Motwani and Narasayya (PODS 2000): values seen once count sqrt(total / n)
    times, all others once. No estimator from a sample of n has a better guaranteed ratio error than its sqrt(total / n).
    """
    unique, counts = np.unique(keys, return_counts=True)
    once = int((counts == 1).sum())
    scale = 1.0 if whole or not len(keys) else math.sqrt(max(total / len(keys), 1.0))
    estimate = min(max(total, len(unique)), round(len(unique) + (scale - 1) * once))
    return Distinct(estimate, whole, len(keys), len(unique), np.sort(splitmix64(unique.view(np.uint64)))[:SKETCH])


def contained(part: Distinct, whole: Distinct) -> float:
    """Which share of the different values of `part` are in `whole` too.

    Bottom-k sketches (Cohen and Kaplan, 2007): under the smaller of the two largest kept hashes, both hold every value.
    """
    limit = min(_limit(part), _limit(whole))
    mine = part.sketch[part.sketch <= limit]
    return float(np.isin(mine, whole.sketch).mean()) if len(mine) else 0.0


def _limit(values: Distinct) -> np.uint64:
    """A sketch that is not full holds everything."""
    return values.sketch[-1] if len(values.sketch) == SKETCH else np.uint64(2**64 - 1)
