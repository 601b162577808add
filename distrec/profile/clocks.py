"""Which column says when a row happened, from names, types and footers alone."""

from __future__ import annotations

from collections.abc import Iterable

from distrec.prepare.epochs import unit_of
from distrec.profile.footers import Facts
from distrec.profile.words import is_time

FIRST_DATE, LAST_DATE = 19_900_101, 21_001_231  # as numbers: year, month, day


def time_column(columns: Iterable[Facts], named: str | None = None) -> str | None:
    """The column named, else the likeliest: a time by type and name, an integer by name and range, a time by type alone.

    A named column is taken as it is, if it is an integer or a time.
    """
    ranked = sorted((rank, i, f.name) for i, f in enumerate(columns) if (rank := _rank(f, named)) is not None)
    return ranked[0][2] if ranked else None


def is_clock(facts: Facts) -> bool:
    """Whether the column holds moments: by its type, or as a number of seconds (or parts of one) or of a date."""
    return facts.kind == "time" or (facts.kind == "integer" and is_time(facts.name) and _plausible(facts))


def _rank(facts: Facts, named: str | None) -> int | None:
    if named is not None:
        return 0 if facts.name == named and facts.kind in ("time", "integer") else None
    if not is_clock(facts):
        return None
    return 1 if facts.kind == "time" and not is_time(facts.name) else 0


def _plausible(facts: Facts) -> bool:
    if facts.bounds is None:
        return facts.name.lower() in ("timestamp", "time", "ts", "event_time")
    low, high = facts.bounds
    if FIRST_DATE <= low <= high <= LAST_DATE:
        return True
    return unit_of(low) is not None and unit_of(low) == unit_of(high)
