"""Which columns a run reads, what each is for, and which Arrow types fit that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

from distrec.config.check import MAX_ROWS
from distrec.config.layout import Layout, Lookup
from distrec.config.load import nearest
from distrec.config.schema import Data, Task
from distrec.errors import UserError


@dataclass(frozen=True)
class Use:
    """One use of a column."""

    column: str
    what: str  # for messages: "dense feature 'price'"
    fits: Callable[[pa.DataType], bool]
    needs: str  # for messages: the types that fit, and the fix


def uses(data: Data, layout: Layout, tasks: Sequence[Task]) -> tuple[Use, ...]:
    """Every use of a column by the config, in the order of a batch's parts."""
    found = [Use(f.column or f.name, f"dense feature {f.name!r}", is_number, "a numeric or boolean type") for f in layout.dense]
    found += [_id_use(f) for f in (*layout.bags, *layout.sequences)]
    found += [Use(t.label, f"label of task {t.name!r}", is_number, "a numeric or boolean type") for t in tasks]
    if data.weight is not None:
        found.append(Use(data.weight, "data.weight", is_number, "a numeric type"))
    if data.group is not None:
        found.append(Use(data.group, "data.group", is_key, "an integer or string type"))
    return tuple(found)


def check_schema(schema: pa.Schema, file: str, uses: Sequence[Use]) -> None:
    """Raise `UserError` when a column is missing from `schema` or its type does not fit its use."""
    for use in uses:
        if use.column not in schema.names:
            raise UserError(f"{file}: no column {use.column!r} ({use.what}){nearest(use.column, schema.names)}")
        kind = schema.field(use.column).type
        if not types.is_null(kind) and not use.fits(kind):
            raise UserError(f"{file}: column {use.column!r} ({use.what}) has type {kind}; it needs {use.needs}")


def is_number(kind: pa.DataType) -> bool:
    """Whether a dense value or a label can be read from a column of this type."""
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def is_string(kind: pa.DataType) -> bool:
    """Whether the type holds UTF-8 text, with 32- or 64-bit offsets."""
    return types.is_string(kind) or types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a row of this type is a list."""
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def is_text_key(kind: pa.DataType) -> bool:
    """Whether a row of this type is a string, or a list of strings."""
    return is_string(_elements(kind))


def is_integer_key(kind: pa.DataType) -> bool:
    """Whether a row of this type is an integer, or a list of integers."""
    return types.is_integer(_elements(kind))


def _id_use(feature: Lookup) -> Use:
    if feature.rows > MAX_ROWS:
        raise UserError(f"table {feature.table!r} has {feature.rows} rows; ids address at most {MAX_ROWS}: split the table")
    if feature.ids == "hash":
        return Use(feature.column, f"feature {feature.name!r}", is_key_or_list, "integers, strings, or lists of those")
    needs = 'integers or lists of integers while ids = "index"; use ids = "hash" for strings'
    return Use(feature.column, f"feature {feature.name!r}", _is_index_or_list, needs)


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _elements(kind: pa.DataType) -> pa.DataType:
    return _values(kind.value_type if is_list(kind) else kind)


def is_key(kind: pa.DataType) -> bool:
    """Whether a row of this type is an integer or a string."""
    return types.is_integer(_values(kind)) or is_string(_values(kind))


def is_key_or_list(kind: pa.DataType) -> bool:
    """Whether a row of this type is a key, or a list of keys."""
    return types.is_null(_elements(kind)) or is_key(_elements(kind))


def _is_index_or_list(kind: pa.DataType) -> bool:
    return types.is_null(_elements(kind)) or types.is_integer(_elements(kind))
