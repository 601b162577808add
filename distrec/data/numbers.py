"""Arrow columns of numbers -> float32 arrays: dense features, labels and weights, and the int64 of groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.schema import DenseFeature, Task
from distrec.data.arrange import fill
from distrec.data.hashing import splitmix64
from distrec.data.ids import jagged_keys
from distrec.data.window import Column, memory
from distrec.errors import UserError


def encode_dense(column: Column, feature: DenseFeature) -> np.ndarray:
    """`(n,) float32`, in file order: null and NaN become `feature.null`, then transform, shift and scale, as the schema says.

    The result lies in the column's scratch. Raises `UserError` for a null or NaN where `null = "error"`, and for a value
    that is not finite in float32.
    """
    what, values, valid = f"feature {feature.name!r}", _floats(column), column.valid()
    with np.errstate(all="ignore"):  # what overflows is an error that names it, not a warning of NumPy's
        if feature.null == "error":
            fix = "null or NaN; set null = 0.0 (or another value) on the feature"
            _refuse(_missing(values, valid), what, lambda _: fix, column)
        else:
            fill(values, valid, values.dtype.type(feature.null))
        values = _transform(values, feature)
    return _finite(values, what, column, "clean the data, or mend the feature's null, shift and scale")


def encode_label(column: Column, task: Task) -> np.ndarray:
    """`(n,) float32`, in file order.

    Raises `UserError` for a null or a value that is not finite, and for one not 0 or 1 in a binary task.
    """
    what, values = f"label {task.label!r} of task {task.name!r}", _floats(column)
    missing = "null or NaN; leave rows without a label out of the data"
    _refuse(_missing(values, column.valid()), what, lambda _: missing, column)
    if task.kind == "binary":
        fix = 'but a binary label is 0 or 1; use kind = "regression" for other values'
        odd = (values != 0) & (values != 1)
        _refuse(odd, what, lambda row: f"{values[column.in_file_order(row)]:g}, {fix}", column)
    return _finite(values, what, column)


def encode_weight(column: Column, name: str, key: str = "data.weight") -> np.ndarray:
    """`(n,) float32`, in file order.

    Raises `UserError`, which names the config's `key`, for a null, a negative or an infinite value.
    """
    what, values = f"{key} column {name!r}", _floats(column)
    bad = _missing(values, column.valid()) | (values < 0)
    _refuse(bad, what, lambda row: f"{column.value(row)}, but a weight is a number of at least 0", column)
    return _finite(values, what, column)


def encode_groups(column: Column, name: str) -> np.ndarray:
    """`(n,) int64`, in reading order: integers as they are, strings hashed to 64 bits. Raises `UserError` for a null."""
    groups = jagged_keys(column)
    if not groups.lengths.all():
        where = column.where(int(np.argmin(groups.lengths)))
        raise UserError(f"data.group column {name!r}, {where}: null, but every row needs a group")
    if types.is_integer(column.type.value_type if types.is_dictionary(column.type) else column.type):
        return groups.values
    return splitmix64(groups.values.view(np.uint64)).view(np.int64)


def _floats(column: Column) -> np.ndarray:
    """The values in file order, to be written over, with anything under nulls.

    Wide types stay float64, so that a shift (of a time in seconds, say) loses nothing.
    """
    narrow = types.is_float32(column.type) or types.is_float16(column.type) or types.is_boolean(column.type)
    kind = pa.float32() if narrow else pa.float64()
    parts = [memory(chunk if chunk.type == kind else chunk.cast(kind, safe=False)) for chunk in column.chunks]
    return np.concatenate(parts, out=column.scratch.lasting("floats", len(column), parts[0].dtype))


def _missing(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """`(n,) bool`: where there is null or NaN."""
    return np.isnan(values) if valid is None else np.isnan(values) | ~valid


def _transform(values: np.ndarray, feature: DenseFeature) -> np.ndarray:
    """In place."""
    if feature.transform == "log1p":
        np.log1p(np.maximum(values, 0, out=values), out=values)
    elif feature.transform == "signed_log1p":
        np.copysign(np.log1p(np.abs(values)), values, out=values)
    if feature.shift:
        values -= feature.shift
    if feature.scale != 1:
        values /= feature.scale
    return values


def _finite(values: np.ndarray, what: str, column: Column, fix: str = "clean the data") -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if not np.isfinite((narrow.min(), narrow.max())).all():  # two quick passes; a NaN anywhere comes out of both
        _refuse(~np.isfinite(narrow), what, lambda row: f"{column.value(row)} is not a finite float32; {fix}", column)
    return narrow


def _refuse(bad: np.ndarray, what: str, why: Callable[[int], str], column: Column) -> None:
    """Raise an error that names the first bad row in reading order, if there is one; `bad (n,) bool` is in file order."""
    row = column.first(bad)
    if row is not None:
        raise UserError(f"{what}, {column.where(row)}: {why(row)}")
