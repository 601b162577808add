"""How a dense feature is brought near zero: transform, shift, scale, and what stands for a null."""

from __future__ import annotations

from dataclasses import dataclass

from distrec.profile.columns import Column
from distrec.profile.moments import SKEWED, Moments, Transform

NEAR = 1.0  # a mean nearer to 0 than this, and a standard deviation between the next two, stay as they are
NARROW, WIDE = 0.2, 2.0
DIGITS = 3


@dataclass(frozen=True)
class DenseDraft:
    """A dense feature's keys, those that keep their default left at it."""

    column: str
    null: float | None
    transform: Transform
    shift: float
    scale: float
    reason: str


def draft_dense(column: Column, reason: str = "", may_lack: bool = False) -> DenseDraft:
    """From a column of numbers.

    Args:
        column: what a sample says of it.
        reason: why it is a number.
        may_lack: what is asked may have no such number, though no row lacks it.
    """
    found = column.moments
    assert found is not None, column.name
    shape = found.transformed
    near = abs(shape.mean) <= NEAR and NARROW <= shape.std <= WIDE
    flag = column.kind == "boolean" or shape.std <= 1e-6
    shift, scale = (0.0, 1.0) if near or flag else (_rounded(shape.mean), _rounded(shape.std))
    null = _rounded(found.median) if may_lack or column.nulls or found.missing else None
    return DenseDraft(column.name, null, found.transform, shift, scale, _reason(column, found, reason))


def _rounded(value: float) -> float:
    """To so few digits that a person can read it; 0.0 for what float32 cannot tell from 0."""
    return float(f"{value:.{DIGITS}g}") if abs(value) > 1e-30 else 0.0


def _reason(column: Column, found: Moments, reason: str) -> str:
    parts = [reason] if reason else []
    if found.transform != "none":
        skewness = found.shape.skewness
        parts.append(f"skewness {skewness:.1f}" if abs(skewness) > SKEWED else "too large for float32")
    missing = max(column.nulls, found.missing)
    if missing:
        parts.append(f"{missing:.1%} missing")
    return ", ".join(parts)
