"""Columns of a log that hold items: ids -> rows of the catalogue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from distrec.data.columns import Use, is_integer_key, is_key, is_key_or_list, is_list, is_text_key
from distrec.data.ids import Ids, jagged_keys
from distrec.data.window import Column
from distrec.errors import UserError


class ItemIndex:
    """Finds ids among the catalogue's, which are distinct."""

    def __init__(self, words: np.ndarray, kind: pa.DataType):
        """`words (M,) int64` are the ids as `jagged_keys` gives them, of a column of type `kind`."""
        self.text = is_text_key(kind)
        self._order = np.argsort(words, kind="stable")
        self._sorted = words[self._order]

    def __len__(self) -> int:
        return len(self._order)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the ids in their order."""
        return hashlib.sha256(self._order.tobytes() + self._sorted.tobytes()).hexdigest()[:16]

    def first_twice(self) -> int | None:
        """A row whose id an earlier row has; None where there is none."""
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        return int(self._order[twice + 1].min()) if len(twice) else None

    def rows(self, words: np.ndarray) -> np.ndarray:
        """`(N,) int64` ids -> `(N,) int64` rows of the catalogue; -1 for an id that it lacks."""
        places = np.minimum(np.searchsorted(self._sorted, words), len(self) - 1)
        return np.where(self._sorted[places] == words, self._order[places], -1)


@dataclass(frozen=True)
class ItemUse:
    """A column of ids, one or a list a row, and what its items are for."""

    name: str  # key of Batch.lists
    column: str
    index: ItemIndex
    single: bool = False  # exactly one a row: Batch.items
    drop_unknown: bool = False  # what the catalogue lacks is left out; otherwise refused
    length: int | None = None  # the first so many of a list

    def use(self) -> Use:
        """What the column must be like."""
        fits = is_key if self.single else is_key_or_list
        kind = "strings" if self.index.text else "integers"
        needs = f"{kind}, as the catalogue has" + ("" if self.single else ", or lists of them")
        what = "retrieval.item_id" if self.single else f"items, for {self.name}"
        other = is_integer_key if self.index.text else is_text_key
        return Use(self.column, what, lambda held: fits(held) and not other(held), needs)


def encode_items(column: Column, use: ItemUse) -> Ids:
    """The rows of the catalogue that a column's ids stand for.

    Raises `UserError` for an item that the catalogue lacks, unless they are dropped, and for a null where a row needs one.
    """
    keys = jagged_keys(column)
    if use.single and (keys.lengths != 1).any():
        where = column.where(int(np.argmax(keys.lengths != 1)))
        raise UserError(f"column {use.column!r}, {where}: no item; a retriever learns from rows with one: leave the row out")
    if use.length is not None:
        keys = _first(keys, use.length)
    rows = use.index.rows(keys.values)
    unknown = rows < 0
    if unknown.any():
        if not use.drop_unknown:
            _refuse(column, use, keys, int(np.argmax(unknown)))
        return Ids(rows, keys.lengths).keep(~unknown)
    return Ids(rows, keys.lengths)


def encode_item(column: Column, use: ItemUse) -> np.ndarray:
    """`(n,) int64`: the same where each row has one item."""
    return encode_items(column, use).values


def _first(keys: Ids, length: int) -> Ids:
    """Of each row, the first `length` values."""
    before = np.cumsum(keys.lengths) - keys.lengths
    return keys.keep(np.arange(len(keys.values)) - np.repeat(before, keys.lengths) < length)


def _refuse(column: Column, use: ItemUse, keys: Ids, first: int) -> None:
    ends = np.cumsum(keys.lengths)
    row = int(np.searchsorted(ends, first, side="right"))
    value = column.value(row)
    if is_list(column.type):
        assert isinstance(value, list)
        value = [v for v in value if v is not None][first - int(ends[row] - keys.lengths[row])]
    raise UserError(f"column {use.column!r}, {column.where(row)}: {not_in_catalogue(value)}")


def not_in_catalogue(item: object) -> str:
    """What is said of an item that the catalogue lacks."""
    return f"item {item!r} is not in the catalogue (retrieval.items); add it there, or leave out what refers to it"
