"""What the times of a log say, gathered as they go by: from when to when, in which unit, and what in them cannot be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from distrec.prepare.epochs import LAST, UNITS, bounds_of

WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
LONGEST_SPAN = 50  # years: few logs go on for so long
EPOCH = datetime(1970, 1, 1)
YEAR = 365.25 * 86400  # seconds


class Clock:
    """Times as `values.times` gives them: integers as they were, or microseconds since 1970."""

    def __init__(self, column: str) -> None:
        """Take the name of the column, for messages."""
        self._column, self._integers = column, False
        self._rows, self._of_unit = 0, Counter[str]()
        self._low, self._high = 2**63, -(2**63)

    def add(self, times: pl.Series, integers: bool) -> None:
        """Take some rows; `integers` says which of the two they are."""
        if not len(times):
            return
        low, high = times.to_numpy().min(), times.to_numpy().max()
        self._low, self._high, self._rows = min(self._low, int(low)), max(self._high, int(high)), self._rows + len(times)
        self._integers = integers
        if integers:
            self._of_unit.update({unit: int(times.is_between(*bounds_of(unit)).sum()) for unit in UNITS})

    @property
    def unit(self) -> str | None:
        """A key of `UNITS`; None for integers that are no moments, or are of several units."""
        if not self._integers:
            return "us"
        [(unit, rows)] = self._of_unit.most_common(1)
        return unit if 2 * rows > self._rows and not self._mixed else None

    def facts(self, **moments: int) -> dict[str, Any]:
        """For `dataset.json`: the unit and the span, and other moments of the log, each also as ISO 8601 where it is a date."""
        span = {"time_column": self._column, "time_unit": self.unit, "time_from": self._low, "time_to": self._high}
        dates = {name: self._date(value) for name, value in ({"time_from": self._low, "time_to": self._high} | moments).items()}
        return span | moments | {f"{name}_utc": date.isoformat() + "Z" for name, date in dates.items() if date}

    def note(self, **moments: int) -> str:
        """From when to when, and as what the numbers were read; then other moments of the log, by name."""
        read = ""
        if self._integers:
            read = f" (integers, read as {WORDS[self.unit]} since 1970)" if self.unit else " (integers, read as no dates)"
        others = [f"{name.replace('_', ' ')} {self.said(value)}" for name, value in moments.items()]
        return ", ".join([f"times: {self.said(self._low)} to {self.said(self._high)}{read}", *others])

    def warnings(self) -> Iterator[str]:
        """What cannot be meant: several units, or a span that no log has."""
        mend = "Histories and splits go by them"
        if self._mixed:
            units = " and ".join(f"{rows:,} in {WORDS[unit]}" for unit, rows in self._of_unit.most_common() if rows)
            span = f"from {self._low} to {self._high}"
            yield f"column {self._column!r} mixes units: {units}, by their size, {span}. {mend}: write them all in one unit"
        elif self.unit and (self._years > LONGEST_SPAN or self._high > LAST * UNITS[self.unit]):
            length = f", {self._years:,.0f} years" if self._years > LONGEST_SPAN else ""
            yield (
                f"column {self._column!r}: times go from {self._at(self._low)} to {self._at(self._high)}{length}; some may be "
                f"placeholders or in another unit. {mend}: mend those rows, or leave them out"
            )

    def said(self, value: int) -> str:
        """A time as people read it, where it is a date; else the number."""
        date = self._date(value)
        return f"{date.isoformat(sep=' ', timespec='seconds')} UTC" if date else self._number(value)

    @property
    def _mixed(self) -> bool:
        return sum(rows > 0 for rows in self._of_unit.values()) > 1

    @property
    def _years(self) -> float:
        return (self._high - self._low) / UNITS[self.unit or "s"] / YEAR

    def _at(self, value: int) -> str:
        """The number as it stands in the log, and its date."""
        return f"{value} ({self.said(value)})" if self._integers and self._date(value) else self.said(value)

    def _number(self, value: int) -> str:
        return str(value) if self._integers else f"{value / UNITS['us']:.16g} seconds since 1970"

    def _date(self, value: int) -> datetime | None:
        """In UTC, without saying so; None where it is none between the years 1 and 9999."""
        if self.unit is None:
            return None
        try:
            return EPOCH + timedelta(microseconds=value * UNITS["us"] // UNITS[self.unit])
        except OverflowError:
            return None
