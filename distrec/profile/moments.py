"""The shape of a column of numbers, as it is and after each transform that a config can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Transform = Literal["none", "log1p", "signed_log1p"]
TRANSFORMS: dict[Transform, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "log1p": lambda x: np.log1p(np.maximum(x, 0)),
    "signed_log1p": lambda x: np.copysign(np.log1p(np.abs(x)), x),
}
SKEWED = 2.0  # skewness of the exponential distribution: what is beyond has a longer tail than that
LARGEST = 1e30  # float32 ends at 3e38; some room is left for dividing by the scale


@dataclass(frozen=True)
class Shape:
    """Mean, standard deviation and Fisher-Pearson skewness of finite values."""

    mean: float
    std: float
    skewness: float


@dataclass(frozen=True)
class Moments:
    """Of the sampled values."""

    missing: float  # share of rows that are null or NaN
    infinite: float  # share of rows
    median: float
    negative: float  # share of the finite values
    shape: Shape
    transform: Transform  # that makes the column least unlike a bell
    transformed: Shape


def moments(values: np.ndarray, bounds: tuple[float, float] | None = None) -> Moments:
    """Of `values (n,) float64`, NaN for null. `bounds` of all rows, where they are known, must stay finite too."""
    finite = values[np.isfinite(values)]
    transform = choose(finite, bounds)
    return Moments(
        missing=float(np.isnan(values).mean()) if len(values) else 0.0,
        infinite=float(np.isinf(values).mean()) if len(values) else 0.0,
        median=float(np.median(finite)) if len(finite) else 0.0,
        negative=float((finite < 0).mean()) if len(finite) else 0.0,
        shape=shape(finite),
        transform=transform,
        transformed=shape(TRANSFORMS[transform](finite)),
    )


def choose(finite: np.ndarray, bounds: tuple[float, float] | None = None) -> Transform:
    """`none` unless the values are skewed or too large for float32; then `log1p`, or `signed_log1p` if some are negative."""
    if not len(finite):
        return "none"
    low, high = bounds or (finite.min(), finite.max())
    low, high = min(low, finite.min()), max(high, finite.max())
    if abs(shape(finite).skewness) <= SKEWED and max(-low, high) <= LARGEST:
        return "none"
    return "signed_log1p" if low < 0 else "log1p"


def shape(finite: np.ndarray) -> Shape:
    """Zeros for no values; what overflows is computed on values scaled into [-1, 1]."""
    if not len(finite):
        return Shape(0.0, 0.0, 0.0)
    scale = float(np.abs(finite).max()) or 1.0
    unit = finite / scale
    mean, std = float(unit.mean()), float(unit.std())
    if std <= 1e-12:
        return Shape(mean * scale, 0.0, 0.0)
    return Shape(mean * scale, std * scale, float((((unit - mean) / std) ** 3).mean()))
