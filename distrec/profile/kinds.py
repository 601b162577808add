"""Arrow types by what they can be to a model."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pyarrow import types

from distrec.data.columns import is_list, is_number, is_string

Kind = Literal["integer", "real", "boolean", "text", "time", "integers", "texts", "unreadable"]
NUMBERS: tuple[Kind, ...] = ("integer", "real", "boolean")
LISTS: tuple[Kind, ...] = ("integers", "texts")


def kind_of(type: pa.DataType) -> Kind:
    """What a column of this Arrow type holds; `unreadable` is what no feature, label, weight or time can be made of."""
    if is_list(type):
        return {"integer": "integers", "text": "texts"}.get(_key_kind(type.value_type), "unreadable")  # type: ignore[return-value]
    if types.is_timestamp(type) or types.is_date(type):
        return "time"
    if types.is_boolean(type):
        return "boolean"
    return _key_kind(type) or ("real" if is_number(type) else "unreadable")


def leaves(type: pa.DataType) -> int:
    """How many Parquet columns an Arrow column of this type is stored in."""
    if types.is_struct(type):
        return sum(leaves(type.field(i).type) for i in range(type.num_fields))
    if types.is_map(type):
        return leaves(type.key_type) + leaves(type.item_type)
    if is_list(type):
        return leaves(type.value_type)
    return leaves(type.storage_type) if isinstance(type, pa.BaseExtensionType) else 1


def _key_kind(type: pa.DataType) -> Kind | None:
    values = type.value_type if types.is_dictionary(type) else type
    if types.is_integer(values):
        return "integer"
    return "text" if is_string(values) else None
