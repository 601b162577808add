"""Arrow columns of ids -> table rows, jagged: no id for a null, an empty list or a dropped id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.layout import Lookup
from distrec.data.arrange import arrange_lists, arrange_scalars, hide, within
from distrec.data.columns import is_list, is_string
from distrec.data.hashing import fnv1a64, rows_of
from distrec.data.window import Column, memory, valid_bits
from distrec.errors import UserError


@dataclass(frozen=True)
class Ids:
    """The ids of each row in turn."""

    values: np.ndarray  # (N,) integers
    lengths: np.ndarray  # (rows,) integers, summing to N

    def keep(self, kept: np.ndarray) -> Ids:
        """Without the values where `kept (N,) bool` is false."""
        before = _bounds(kept)
        return Ids(self.values[kept], np.diff(before[_bounds(self.lengths)]).astype(np.int32))


def encode_ids(column: Column, feature: Lookup) -> Ids:
    """The feature's table rows, oldest first, int32 where that is wide enough; they lie in the column's scratch.

    Nulls and, with `out_of_range = "null"`, ids outside `[0, rows)` are dropped first; then the newest `max_length` of
    what is left stay. Raises `UserError` for an id outside `[0, rows)` with `out_of_range = "error"`.
    """
    scratch, scalar = column.scratch, types.is_integer(column.type)
    parts, counts = (column.chunks, None) if scalar else _elements(column)
    size = sum(map(len, parts))
    found = scratch.passing("found", size, np.int32 if feature.rows <= 1 << 31 else np.int64)
    low = 0
    for part in parts:
        _look_up(part, column, feature, found[low : low + len(part)])
        low += len(part)
    values = scratch.lasting("values", size, found.dtype)
    if counts is None:
        lengths = scratch.passing("lengths", len(column), np.uint8)
        return Ids(values[: arrange_scalars(found, column.order, values, lengths)], lengths)
    ids = Ids(found, counts)
    ids = ids.keep(found >= 0) if feature.out_of_range == "null" else ids
    lengths = scratch.passing("lengths", len(column), np.int32)
    longest = feature.max_length or size
    filled = arrange_lists(ids.values, _bounds(ids.lengths), column.order, longest, values, lengths)
    return Ids(values[:filled], lengths)


def _look_up(part: pa.Array, column: Column, feature: Lookup, found: np.ndarray) -> None:
    """Table rows of the ids of `part`, in file order, to `found`; -1 for none."""
    words = _words(part).view(np.uint64)
    if feature.ids == "hash":
        rows_of(words, feature.rows, found)
    elif within(words, np.uint64(feature.rows), found) and feature.out_of_range != "null":
        outside = found < 0
        if feature.out_of_range == "error":
            _refuse_outside(column, feature)
        found[outside] = rows_of(words[outside], feature.rows)
    if part.null_count:
        hide(valid_bits(part), found)


def jagged_keys(column: Column) -> Ids:
    """A column's ids as 64-bit words, without nulls: integers as they are, strings as their FNV-1a 64."""
    if types.is_integer(column.type):
        return _integers(column)
    (values,), lengths = _elements(column)
    words = _words(values).view(np.int64)
    arranged = Ids(np.empty_like(words), np.empty_like(lengths))
    arrange_lists(words, _bounds(lengths), column.order, len(words), arranged.values, arranged.lengths)
    return arranged


def _elements(column: Column) -> tuple[list[pa.Array], np.ndarray]:
    """The ids of all rows in file order, without nulls, in one array; and how many each row has."""
    values, lengths = column.values, np.ones(len(column), np.int32)
    if is_list(values.type):
        values, lengths = _flatten(values)
    if types.is_dictionary(values.type) and (values.dictionary.null_count or not is_string(values.type.value_type)):
        values = values.dictionary_decode()
    if values.null_count:
        before = _bounds(valid_bits(values))
        values, lengths = values.drop_null(), np.diff(before[_bounds(lengths)]).astype(np.int32)
    return [values], lengths


def _integers(column: Column) -> Ids:
    """The common case, one integer or null a row."""
    every = column.arrange([_words(chunk).view(np.int64) for chunk in column.chunks])
    valid = column.valid()
    if valid is None:
        return Ids(every, np.ones(len(column), np.int32))
    valid = column.arrange([valid])
    return Ids(every[valid], valid.astype(np.int32))


def _flatten(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Elements of all rows, and how many each row has; a null row has none, whatever lies under it."""
    if types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    return lists.flatten(), lengths.astype(np.int32)


def _words(values: pa.Array) -> np.ndarray:
    """`(N,)` 64-bit words, with anything under nulls; only integers may have some."""
    if types.is_null(values.type):
        return np.empty(0, np.int64)
    if types.is_integer(values.type):
        words = memory(values)
        return words if words.dtype.itemsize == 8 else words.astype(np.int64)
    if not types.is_dictionary(values.type):
        values = values.dictionary_encode()
    return _hash_strings(values.dictionary)[memory(values.indices)]


def _hash_strings(strings: pa.Array) -> np.ndarray:
    strings = strings.cast(pa.large_string())
    _, offsets, data = strings.buffers()
    bounds = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    return fnv1a64(np.frombuffer(data or b"", np.uint8), bounds).view(np.int64)


def _refuse_outside(column: Column, feature: Lookup) -> None:
    """Raise an error that names the first id outside the table. There may be none: what lies under nulls can be anything."""
    ids = jagged_keys(column)
    words = ids.values.view(np.uint64)  # a negative id is a huge word: one comparison finds both ends
    outside = words >= np.uint64(feature.rows)
    if not outside.any():
        return
    first = int(np.argmax(outside))
    value = words[first] if _unsigned(column.type) else ids.values[first]
    row = int(np.searchsorted(_bounds(ids.lengths), first, side="right")) - 1
    raise UserError(outside_table(feature, column.where(row), int(value)))


def outside_table(feature: Lookup, where: str, value: int) -> str:
    """What is said of an id that the feature's table has no row for."""
    return (
        f"feature {feature.name!r}, {where}: id {value} is outside [0, {feature.rows}), the rows of table {feature.table!r}. "
        'Give the table more rows, or set out_of_range = "null" (no id) or "hash" (share a row)'
    )


def _unsigned(kind: pa.DataType) -> bool:
    kind = kind.value_type if is_list(kind) else kind
    return types.is_unsigned_integer(kind.value_type if types.is_dictionary(kind) else kind)


def _bounds(counts: np.ndarray) -> np.ndarray:
    """`(N + 1,) int64`: the sum of the first `i` counts."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds
