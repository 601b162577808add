"""Which features share an embedding table, how many rows it has, and whether ids are indices or hashed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from distrec.profile.columns import Column
from distrec.profile.distinct import contained
from distrec.profile.roles import Roles
from distrec.profile.words import subject

SPARE = 4  # an index may address up to so many rows an id that there is
ALWAYS_DENSE = 1000  # rows that are not worth a hash
FEWEST_ROWS, MOST_ROWS = 1024, 1 << 24  # of a hashed table
OVERLAP = 0.25  # of the different ids of one column that the other has, too, for one table
NARROWEST, WIDEST = 8, 64  # dim


@dataclass(frozen=True)
class TableDraft:
    """An embedding table and the columns that look ids up in it."""

    name: str
    columns: tuple[str, ...]
    ids: Literal["index", "hash"]
    rows: int
    reason: str


def draft_tables(roles: Roles, columns: Mapping[str, Column]) -> list[TableDraft]:
    """A table for each id column; lists share the table of a column of their name that holds the same ids."""
    owners: dict[str, list[str]] = {}
    ids = [role.column for role in roles.features("id", "ids", "history")]
    likeliest = ("id", "ids", "history")  # to own a table that others share
    for name in sorted(ids, key=lambda n: likeliest.index(roles.by_column[n].purpose)):
        owner = next((o for o in owners if columns[name].lengths and _same_ids(columns[name], columns[o])), name)
        owners.setdefault(owner, []).append(name)
    names = unique_names(owners, reserved=dir(nn.ModuleDict()))
    return [_draft(names[owner], [columns[name] for name in owners[owner]]) for owner in sorted(owners, key=ids.index)]


def unique_names(columns: Iterable[str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """A name for each column that a config, and a torch module that it becomes part of, can bear."""
    taken, names = set(reserved), {}
    for column in columns:
        name = plain = re.sub(r"[^A-Za-z0-9_-]+", "_", column).lstrip("-") or "column"
        suffix = 2
        while name in taken:
            name = f"{plain}_{suffix}"
            suffix += 1
        names[column] = name
        taken.add(name)
    return names


def hashed_rows(count: int) -> int:
    """Rows of a table for so many ids that are hashed: two an id or more, a power of two."""
    return min(max(1 << max(2 * count - 1, 1).bit_length(), FEWEST_ROWS), MOST_ROWS)


def dim_for(tables: Sequence[TableDraft]) -> int:
    """The fourth root of the largest table's rows, up to the next multiple of 8, from 8 to 64."""
    largest = max((table.rows for table in tables), default=1)
    return min(max(8 * -(-round(largest**0.25) // 8), NARROWEST), WIDEST)


def _same_ids(column: Column, owner: Column) -> bool:
    texts = ("text", "texts")
    if (column.kind in texts) != (owner.kind in texts) or not set(subject(column.name)) & set(subject(owner.name)):
        return False
    if not _alike(subject(column.name), subject(owner.name)):
        return False
    # Either way round: a sample meets far fewer ids one a row than in long lists.
    ways = contained(column.distinct, owner.distinct), contained(owner.distinct, column.distinct)
    return max(ways) >= OVERLAP


def _alike(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    return left[-len(right) :] == right or right[-len(left) :] == left


def _draft(name: str, columns: Sequence[Column]) -> TableDraft:
    names = tuple(column.name for column in columns)
    count = max(column.distinct.estimate for column in columns)
    about = "" if all(column.distinct.exact for column in columns) else "about "
    shared = f", shared by {len(names)} columns" if len(names) > 1 else ""
    high = _largest(columns)
    if high is not None and high < max(ALWAYS_DENSE, SPARE * count):
        return TableDraft(name, names, "index", high + 1, f"{about}{count:,} ids up to {high:,}{shared}")
    return TableDraft(name, names, "hash", hashed_rows(count), f"{about}{count:,} {_why_hashed(columns)}{shared}")


def _largest(columns: Sequence[Column]) -> int | None:
    """The largest id of all rows, if all ids are integers from 0 on and that is certain."""
    low, high = 0, 0
    for column in columns:
        if column.kind not in ("integer", "integers") or column.bounds is None or not column.bounds_exact:
            return None
        low, high = min(low, int(column.bounds[0])), max(high, int(column.bounds[1]))
    return high if low >= 0 else None


def _why_hashed(columns: Sequence[Column]) -> str:
    if any(column.kind in ("text", "texts") for column in columns):
        return "texts"
    if not all(column.bounds_exact for column in columns):
        return "ids without known bounds"
    return "ids, sparse"
