"""What each column is for, and why: every decision carries the reason that a config shows as a comment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from distrec.config.load import nearest
from distrec.errors import UserError
from distrec.profile import words
from distrec.profile.clocks import is_clock
from distrec.profile.columns import Column
from distrec.profile.footers import Facts
from distrec.profile.kinds import NUMBERS

Purpose = Literal["label", "dense", "id", "ids", "history", "time", "weight", "left out"]
FEATURES: tuple[Purpose, ...] = ("dense", "id", "ids", "history")
FEW_CODES = 16  # a quantity with no more values than this is a code
EVERY_ROW = 0.999  # of the values are different: a key of rows
ENOUGH = 1000  # values before that is believed
PROSE = 100  # characters: longer text is no id


@dataclass(frozen=True)
class Role:
    """One column's purpose."""

    column: str
    purpose: Purpose
    reason: str


@dataclass(frozen=True)
class Roles:
    """Every column's purpose, in the files' order."""

    by_column: Mapping[str, Role]
    label: str
    kind: Literal["binary", "regression"]
    time: str | None
    weight: str | None
    group: str | None
    other_labels: tuple[str, ...] = ()  # of 0 and 1, left out as features: a second task could predict them

    def features(self, *purposes: Purpose) -> list[Role]:
        """The columns of these purposes; default: of all that a model may see."""
        return [role for role in self.by_column.values() if role.purpose in (purposes or FEATURES)]

    def without(self, reasons: Mapping[str, str]) -> Roles:
        """The same with some columns left out, each for a reason."""
        changed = {name: replace(self.by_column[name], purpose="left out", reason=why) for name, why in reasons.items()}
        return replace(self, by_column={**self.by_column, **changed})


def assign(columns: Mapping[str, Column], facts: Mapping[str, Facts], time: str | None, named: str | None = None) -> Roles:
    """Decide. `named` is the label that the user names; `time` is the column that says when.

    Raises `UserError` when there is no label, or one that no run could train on: text, or with nulls.
    """
    label = find_label(columns, named)
    weight = next((c.name for c in columns.values() if c.name != label and _is_weight(c)), None)
    given = {
        label: Role(label, "label", ""),
        **({weight: Role(weight, "weight", "weighs the rows")} if weight else {}),
        **({time: Role(time, "time", "says when; a moment that has passed does not come again")} if time else {}),
    }
    decided = {name: given.get(name) or Role(name, *_decide(column, facts[name])) for name, column in columns.items()}
    kind = "binary" if set(_values(columns[label])) <= {0, 1} else "regression"
    return Roles(decided, label, kind, time, weight, _group(columns, decided), _other_labels(columns, decided))


def find_label(columns: Mapping[str, Column], named: str | None = None) -> str:
    """The column to predict: the one named, else the best by name, else the only one that holds just 0 and 1."""
    if named is not None and named not in columns:
        raise UserError(f"no column {named!r} to be the label{nearest(named, list(columns))}")
    found = named or _by_name(columns) or _only_binary(columns)
    if found is None:
        listed = ", ".join(list(columns)[:20])
        raise UserError(
            f"no column looks like a label; name it with --label COLUMN; there is: {listed} "
            "(a retriever's data has none: name the folder, with its dataset.json, that `distrec prepare` wrote)"
        )
    _require_label(columns[found])
    return found


def is_binary(column: Column) -> bool:
    """Whether the column holds 0 and 1 and nothing else, as far as is known."""
    return column.kind in NUMBERS and not column.constant and set(_values(column)) <= {0, 1}


def _values(column: Column) -> list[float]:
    """0 and 1 if the column holds nothing else; all bounds lie there and there are no values between."""
    if column.bounds is None or column.distinct.seen > 2:
        return [float("nan")]
    return list(column.bounds)


def _by_name(columns: Mapping[str, Column]) -> str | None:
    fits = [c for c in columns.values() if words.outcome(c.name) is not None and c.kind in (*NUMBERS, "text")]
    ranked = sorted(fits, key=lambda c: (c.kind == "text", words.outcome(c.name) or 0))
    return ranked[0].name if ranked else None


def _only_binary(columns: Mapping[str, Column]) -> str | None:
    found = [name for name, column in columns.items() if is_binary(column)]
    return found[0] if len(found) == 1 else None


def _require_label(column: Column) -> None:
    if column.fault or column.kind not in NUMBERS or not column.name:
        what = column.fault or f"it is {column.type}" + (": write it as 0 and 1" if column.kind == "text" else "")
        raise UserError(f"label {column.name!r} cannot be predicted: {what}; name another with --label COLUMN")
    if missing := _missing(column):
        raise UserError(f"label {column.name!r} is null or NaN in {missing:.2%} of the rows; leave these rows out of the data")
    if column.moments and column.moments.infinite:
        raise UserError(
            f"label {column.name!r} is infinite in {column.moments.infinite:.2%} of the sampled rows; clean the data"
        )


def _missing(column: Column) -> float:
    """Share of rows without a number."""
    return max(column.nulls, column.moments.missing if column.moments else 0.0)


def _other_labels(columns: Mapping[str, Column], roles: Mapping[str, Role]) -> tuple[str, ...]:
    named = [c for c in columns.values() if words.outcome(c.name) is not None and roles[c.name].purpose == "left out"]
    return tuple(c.name for c in named if is_binary(c) and not _missing(c))


def _is_weight(column: Column) -> bool:
    if not words.is_weight(column.name) or column.kind not in ("integer", "real") or column.moments is None:
        return False
    known = column.bounds is not None and column.bounds[0] >= 0 and column.bounds[1] > 0
    return known and column.nulls_exact and not (column.nulls or column.moments.missing or column.moments.infinite)


def _group(columns: Mapping[str, Column], roles: Mapping[str, Role]) -> str | None:
    """An id of persons, who have several rows each and are never null."""
    for name, role in roles.items():
        c = columns[name]
        several = c.distinct.seen * 2 <= c.distinct.sampled
        if role.purpose == "id" and words.is_person(name) and c.nulls_exact and not c.nulls and several:
            return name
    return None


def _decide(column: Column, facts: Facts) -> tuple[Purpose, str]:
    return _no_feature(column, facts) or (_number if column.kind in ("real", "boolean") else _key)(column)


def _no_feature(column: Column, facts: Facts) -> tuple[Purpose, str] | None:
    why = _why_unreadable(column) or _why_useless(column) or _why_unsafe(column, facts)
    return ("left out", why) if why else None


def _why_unreadable(column: Column) -> str:
    if not column.name:
        return "it has no name"
    if column.fault:
        return column.fault
    if column.kind == "unreadable":
        return (
            "there is no value" if column.type == "null" else f"a model takes numbers, ids and lists of ids, not {column.type}"
        )
    return ""


def _why_useless(column: Column) -> str:
    if not column.distinct.seen:
        return "there is no value" if column.distinct.exact else "there is no value in the sample"
    if column.constant and not (column.nulls and column.kind in ("integer", "text")):
        return f"always {column.top[0][0] if column.top else 'the same moment'}" + (
            "" if column.distinct.exact else " in the sample"
        )
    if column.name.startswith("__"):
        return "an index that pandas wrote"
    if column.kind == "text" and column.characters > PROSE:
        return f"text of {column.characters:.0f} characters on average, no id"
    return ""


def _why_unsafe(column: Column, facts: Facts) -> str:
    if words.outcome(column.name) is not None and column.kind in NUMBERS:
        return "named like something that is known only afterwards; if it is not, make it a feature; to predict it, a task"
    if is_clock(facts):
        return "another time"
    if column.kind == "real" and words.is_id(column.name):
        return "ids written as fractional numbers lose digits; write them as integers or text"
    return _why_infinite(column)


def why_unlearnable(column: Column) -> str:
    """Why nothing can be learned of a column that was named as a feature; empty where that is not so."""
    return _why_useless(column) or _why_infinite(column)


def _why_infinite(column: Column) -> str:
    if column.moments and column.moments.infinite and column.kind == "real":
        return f"infinite in {column.moments.infinite:.2%} of the sampled rows; clean the data"
    return ""


def _number(column: Column) -> tuple[Purpose, str]:
    return "dense", "a flag" if column.kind == "boolean" else ""


def _key(column: Column) -> tuple[Purpose, str]:
    if column.kind in ("integers", "texts"):
        return ("history", "by its name") if words.is_past(column.name) else ("ids", "")
    if column.kind == "text":
        return _row_key(column) or ("id", "")
    if reason := quantity(column):
        return "dense", reason
    return _row_key(column) or ("id", "")


def quantity(column: Column) -> str:
    """Why a column of integers is a quantity and no id; empty where nothing says so."""
    if words.is_quantity(column.name) and column.distinct.seen > FEW_CODES:
        return "by its name a quantity"
    small = column.bounds is not None and -(2**31) < column.bounds[0] < 0 and column.bounds[1] < 2**31
    return "some are negative" if small and not words.is_id(column.name) else ""


def _row_key(column: Column) -> tuple[Purpose, str] | None:
    values = column.distinct
    if values.sampled < ENOUGH or values.seen < EVERY_ROW * values.sampled:
        return None
    return "left out", "nearly every row has a value of its own: nothing that is learned of one helps with another"
