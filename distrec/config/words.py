"""What config sections are made of: the strict section itself, and the types of keys that several sections use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


def _alone(value: Any) -> Any:
    """A text is a list of one, and an empty one a list of none."""
    return tuple(filter(None, [value])) if isinstance(value, str) else value


Path = Annotated[str, Field(min_length=1)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_alone, json_schema_input_type=str | tuple[Path, ...])]
ShardingType = Literal[
    "data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"
]
ShardingTypes = Annotated[
    tuple[ShardingType, ...], BeforeValidator(_alone, json_schema_input_type=ShardingType | tuple[ShardingType, ...])
]
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", re.IGNORECASE)  # "12GB"


class Section(BaseModel):
    """A part of a config: immutable, and strict about its keys. A model's `Params` derive from it too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
