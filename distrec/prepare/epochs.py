"""Integers as moments: seconds since 1970, or thousandths, millionths and billionths of them, told by their size."""

from __future__ import annotations

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # to the second, under NumPy's names
FIRST, LAST = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds since 1970


def bounds_of(unit: str) -> tuple[int, int]:
    """The smallest and the largest number that is a moment between 1990 and 2100 in a unit; no two units share one."""
    return FIRST * UNITS[unit], LAST * UNITS[unit]


def unit_of(moment: float) -> str | None:
    """The unit in which a number is a moment between 1990 and 2100."""
    return next((unit for unit in UNITS if bounds_of(unit)[0] <= moment <= bounds_of(unit)[1]), None)
