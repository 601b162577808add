"""Arrow columns of ids -> table rows, jagged: no id for a null, an empty list or a dropped id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.layout import Lookup
from distrec.data.columns import is_list, is_string
from distrec.data.hashing import fnv1a64, rows_of
from distrec.data.scratch import Scratch
from distrec.data.window import Column, valid_bits, without_mask
from distrec.errors import UserError


@dataclass(frozen=True)
class Ids:
    """The ids of each row in turn."""

    values: np.ndarray  # (N,) int64
    lengths: np.ndarray  # (rows,) int32, summing to N

    def keep(self, kept: np.ndarray) -> Ids:
        """Without the values where `kept (N,) bool` is false."""
        before = _bounds(kept)
        return Ids(self.values[kept], np.diff(before[_bounds(self.lengths)]).astype(np.int32))

    def newest(self, length: int | None) -> Ids:
        """Of each row, the last `length` values."""
        if length is None or self.lengths.max(initial=0) <= length:
            return self
        first = _bounds(self.lengths)[1:] - length
        return self.keep(np.arange(len(self.values)) >= np.repeat(first, self.lengths))


def encode_ids(column: Column, feature: Lookup) -> Ids:
    """The feature's table rows, oldest first; they may lie in the column's scratch.

    Nulls and, with `out_of_range = "null"`, ids outside `[0, rows)` are dropped first; then the newest `max_length` of
    what is left stay. Raises `UserError` for an id outside `[0, rows)` with `out_of_range = "error"`.
    """
    keys = jagged_keys(column)
    if feature.ids == "hash":
        keys = keys.newest(feature.max_length)
        own = keys.values if keys.values.flags.writeable else None  # not where it is Arrow's
        return Ids(rows_of(keys.values.view(np.uint64), feature.rows, own), keys.lengths)
    return _in_range(keys, column, feature).newest(feature.max_length)


def jagged_keys(column: Column) -> Ids:
    """A column's ids as 64-bit words, without nulls: integers as they are, strings as their FNV-1a 64."""
    if types.is_integer(column.type):
        return _integers(column)
    values, lengths = column.values, np.ones(len(column), np.int32)
    if is_list(values.type):
        values, lengths = _flatten(values)
    if types.is_dictionary(values.type) and (values.dictionary.null_count or not is_string(values.type.value_type)):
        values = values.dictionary_decode()
    if values.null_count:
        before = _bounds(valid_bits(values))
        values, lengths = values.drop_null(), np.diff(before[_bounds(lengths)]).astype(np.int32)
    keys = Ids(_words(values), lengths)
    return keys if column.order is None else _arranged(keys, column.order, column.scratch)


def _arranged(ids: Ids, order: np.ndarray, scratch: Scratch) -> Ids:
    """The rows in another order: row `i` of the result is row `order[i]`."""
    lengths, firsts = ids.lengths[order], _bounds(ids.lengths)[:-1][order]
    filled = np.flatnonzero(lengths)
    counts, firsts = lengths[filled], firsts[filled]
    chosen = scratch.passing("chosen", len(ids.values), np.int64)
    chosen.fill(1)  # from a value to the next one; but from a row's last value to the next row's first:
    if len(filled):
        chosen[0] = firsts[0]
        chosen[np.cumsum(counts[:-1])] = firsts[1:] - (firsts[:-1] + counts[:-1] - 1)
    np.cumsum(chosen, out=chosen)
    return Ids(np.take(ids.values, chosen, out=scratch.lasting("values", len(chosen), np.int64), mode="clip"), lengths)


def _integers(column: Column) -> Ids:
    """The common case, one integer or null a row."""
    count, scratch = len(column), column.scratch
    words = [_words(without_mask(chunk)) for chunk in column.chunks]
    if not column.values.null_count:
        return Ids(column.arrange(words, scratch.lasting("values", count, np.int64)), np.ones(count, np.int32))
    every, valid = column.arrange(words, scratch.passing("words", count, np.int64)), column.valid()
    kept = np.flatnonzero(valid)
    values = np.take(every, kept, out=scratch.lasting("values", len(kept), np.int64), mode="clip")
    lengths = scratch.lasting("lengths", count, np.int32)
    np.copyto(lengths, valid)
    return Ids(values, lengths)


def _flatten(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Elements of all rows, and how many each row has; a null row has none, whatever lies under it."""
    if types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    return lists.flatten(), lengths.astype(np.int32)


def _words(column: pa.Array) -> np.ndarray:
    """`(N,) int64` of a column without nulls."""
    if types.is_null(column.type):
        return np.empty(0, np.int64)
    if types.is_integer(column.type):
        values = column.to_numpy()
        return values.view(np.int64) if values.dtype.itemsize == 8 else values.astype(np.int64)
    if not types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return _hash_strings(column.dictionary)[column.indices.to_numpy()]


def _hash_strings(strings: pa.Array) -> np.ndarray:
    strings = strings.cast(pa.large_string())
    _, offsets, data = strings.buffers()
    bounds = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    return fnv1a64(np.frombuffer(data or b"", np.uint8), bounds).view(np.int64)


def _in_range(ids: Ids, column: Column, feature: Lookup) -> Ids:
    """Apply the feature's policy to ids outside `[0, rows)`."""
    words = ids.values.view(np.uint64)  # a negative id is a huge word: one comparison finds both ends
    outside = words >= np.uint64(feature.rows)
    if not outside.any():
        return ids
    if feature.out_of_range == "null":
        return ids.keep(~outside)
    if feature.out_of_range == "hash":
        return Ids(np.where(outside, rows_of(words, feature.rows), ids.values), ids.lengths)
    first = int(np.argmax(outside))
    value = words[first] if _unsigned(column.type) else ids.values[first]
    row = int(np.searchsorted(_bounds(ids.lengths), first, side="right")) - 1
    raise UserError(
        f"feature {feature.name!r}, {column.where(row)}: id {value} is outside [0, {feature.rows}), the rows of table "
        f'{feature.table!r}. Give the table more rows, or set out_of_range = "null" (no id) or "hash" (share a row)'
    )


def _unsigned(kind: pa.DataType) -> bool:
    kind = kind.value_type if is_list(kind) else kind
    return types.is_unsigned_integer(kind.value_type if types.is_dictionary(kind) else kind)


def _bounds(counts: np.ndarray) -> np.ndarray:
    """`(N + 1,) int64`: the sum of the first `i` counts."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds
