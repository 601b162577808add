"""Arrow columns of numbers -> float32 arrays: dense features, labels and weights, and the int64 of groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyarrow import types

from distrec.config.schema import DenseFeature, Task
from distrec.data.hashing import splitmix64
from distrec.data.ids import jagged_keys
from distrec.data.window import Column
from distrec.errors import UserError


def encode_dense(column: Column, feature: DenseFeature) -> np.ndarray:
    """`(n,) float32`: null and NaN become `feature.null`, then transform, shift and scale, as the schema says.

    Raises `UserError` for a null or NaN where `null = "error"`, and for a value that is not finite in float32.
    """
    what, raw = f"feature {feature.name!r}", _floats(column)
    missing = np.isnan(raw)
    if not missing.any():
        return _finite(_transform(raw, feature), raw, what, column)
    if feature.null == "error":
        _refuse(missing, what, "null or NaN; set null = 0.0 (or another value) on the feature", column)
    filled = np.where(missing, raw.dtype.type(feature.null), raw)
    return _finite(_transform(filled, feature), filled, what, column)


def encode_label(column: Column, task: Task) -> np.ndarray:
    """`(n,) float32`. Raises `UserError` for a null or a value that is not finite, and for one not 0 or 1 in a binary task."""
    what, values = f"label {task.label!r} of task {task.name!r}", _floats(column)
    _refuse(np.isnan(values), what, "null or NaN; leave rows without a label out of the data", column)
    if task.kind == "binary":
        odd = (values != 0) & (values != 1)
        found = values[np.argmax(odd)]
        _refuse(odd, what, f'{found:g}, but a binary label is 0 or 1; use kind = "regression" for other values', column)
    return _finite(values, values, what, column)


def encode_weight(column: Column, name: str) -> np.ndarray:
    """`(n,) float32`. Raises `UserError` for a null, a negative value and one that is not finite."""
    what, values = f"data.weight column {name!r}", _floats(column)
    bad = ~(values >= 0)
    _refuse(bad, what, f"{column.ordered()[int(np.argmax(bad))]}, but a weight is a number of at least 0", column)
    return _finite(values, values, what, column)


def encode_groups(column: Column, name: str) -> np.ndarray:
    """`(n,) int64`: integers as they are, strings hashed to 64 bits. Raises `UserError` for a null."""
    groups = jagged_keys(column)
    _refuse(groups.lengths == 0, f"data.group column {name!r}", "null, but every row needs a group", column)
    if types.is_integer(column.type.value_type if types.is_dictionary(column.type) else column.type):
        return groups.values
    return splitmix64(groups.values.view(np.uint64)).view(np.int64)


def _floats(column: Column) -> np.ndarray:
    """Nulls as NaN. Wide types stay float64, so that a shift (of a time in seconds, say) loses nothing."""
    narrow = types.is_float32(column.type) or types.is_float16(column.type) or types.is_boolean(column.type)
    values = column.values.cast(pa.float32() if narrow else pa.float64(), safe=False)
    return column.arrange(values.to_numpy(zero_copy_only=False))


def _transform(values: np.ndarray, feature: DenseFeature) -> np.ndarray:
    if feature.transform == "log1p":
        values = np.log1p(np.maximum(values, 0))
    elif feature.transform == "signed_log1p":
        values = np.copysign(np.log1p(np.abs(values)), values)
    if feature.shift:
        values = values - feature.shift
    return values if feature.scale == 1 else values / feature.scale


def _finite(values: np.ndarray, raw: np.ndarray, what: str, column: Column) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is reported below, as an error that names it
        narrow = values.astype(np.float32, copy=False)
    bad = ~np.isfinite(narrow)
    _refuse(bad, what, f"{raw[np.argmax(bad)]:g} is not a finite float32; clean the data", column)
    return narrow


def _refuse(bad: np.ndarray, what: str, why: str, column: Column) -> None:
    """Raise an error that names the first bad row, if there is one."""
    if bad.any():
        raise UserError(f"{what}, {column.where(int(np.argmax(bad)))}: {why}")
