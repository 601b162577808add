"""Arrow columns of numbers -> float32 arrays: dense features, labels and weights, and the int64 of groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.schema import DenseFeature, Task
from distrec.data.hashing import splitmix64
from distrec.data.ids import jagged_keys
from distrec.data.window import Column, without_mask
from distrec.errors import UserError


def encode_dense(column: Column, feature: DenseFeature) -> np.ndarray:
    """`(n,) float32`: null and NaN become `feature.null`, then transform, shift and scale, as the schema says.

    The result lies in the column's scratch. Raises `UserError` for a null or NaN where `null = "error"`, and for a value
    that is not finite in float32.
    """
    what, (values, missing) = f"feature {feature.name!r}", _floats(column)
    if missing is not None and feature.null == "error":
        _refuse(missing, what, "null or NaN; set null = 0.0 (or another value) on the feature", column)
    with np.errstate(all="ignore"):  # what overflows is an error that names it, not a warning of NumPy's
        if missing is not None:
            np.putmask(values, missing, feature.null)
        values = _transform(values, feature)
    return _finite(values, what, column, "clean the data, or mend the feature's null, shift and scale")


def encode_label(column: Column, task: Task) -> np.ndarray:
    """`(n,) float32`. Raises `UserError` for a null or a value that is not finite, and for one not 0 or 1 in a binary task."""
    what, (values, missing) = f"label {task.label!r} of task {task.name!r}", _floats(column)
    if missing is not None:
        _refuse(missing, what, "null or NaN; leave rows without a label out of the data", column)
    if task.kind == "binary":
        odd = (values != 0) & (values != 1)
        found = values[np.argmax(odd)]
        _refuse(odd, what, f'{found:g}, but a binary label is 0 or 1; use kind = "regression" for other values', column)
    return _finite(values, what, column)


def encode_weight(column: Column, name: str, key: str = "data.weight") -> np.ndarray:
    """`(n,) float32`. Raises `UserError`, which names the config's `key`, for a null, a negative or an infinite value."""
    what, (values, missing) = f"{key} column {name!r}", _floats(column)
    bad = values < 0 if missing is None else missing | (values < 0)
    _refuse(bad, what, f"{column.value(int(np.argmax(bad)))}, but a weight is a number of at least 0", column)
    return _finite(values, what, column)


def encode_groups(column: Column, name: str) -> np.ndarray:
    """`(n,) int64`: integers as they are, strings hashed to 64 bits. Raises `UserError` for a null."""
    groups = jagged_keys(column)
    _refuse(groups.lengths == 0, f"data.group column {name!r}", "null, but every row needs a group", column)
    if types.is_integer(column.type.value_type if types.is_dictionary(column.type) else column.type):
        return groups.values
    return splitmix64(groups.values.view(np.uint64)).view(np.int64)


def _floats(column: Column) -> tuple[np.ndarray, np.ndarray | None]:
    """The values, to be written over, with anything under nulls; and `(n,) bool` where there is null or NaN, None if nowhere.

    Wide types stay float64, so that a shift (of a time in seconds, say) loses nothing.
    """
    narrow = types.is_float32(column.type) or types.is_float16(column.type) or types.is_boolean(column.type)
    kind = pa.float32() if narrow else pa.float64()
    parts = [without_mask(chunk.cast(kind, safe=False)).to_numpy() for chunk in column.chunks]
    floats = column.arrange(parts, column.scratch.lasting("floats", len(column), parts[0].dtype))
    missing = ~column.valid() if column.values.null_count else None
    if np.isnan(floats.min()):  # as the minimum of anything with a NaN in it is
        missing = np.isnan(floats) if missing is None else missing | np.isnan(floats)
    return floats, missing


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
        bad = ~np.isfinite(narrow)
        _refuse(bad, what, f"{column.value(int(np.argmax(bad)))} is not a finite float32; {fix}", column)
    return narrow


def _refuse(bad: np.ndarray, what: str, why: str, column: Column) -> None:
    """Raise an error that names the first bad row, if there is one."""
    if bad.any():
        raise UserError(f"{what}, {column.where(int(np.argmax(bad)))}: {why}")
