"""Columns of anybody's files -> ids, times and features of known types, or a message that names the row."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.types as kinds

from distrec.errors import UserError
from distrec.log import logger
from distrec.prepare.description import ID_LIST, Column
from distrec.prepare.retrieval.tabular import Block, is_text

TEXT_LIST = pa.list_(pa.field("element", pa.string()))
FEATURES = {  # what a feature may hold, and as what it is written
    "integers": Column("", pa.int64(), "sparse"),
    "text": Column("", pa.string(), "sparse"),
    "lists of integers": Column("", ID_LIST, "sparse"),
    "lists of text": Column("", TEXT_LIST, "sparse"),
    "numbers": Column("", pa.float64(), "dense"),
    "booleans": Column("", pa.bool_(), "dense"),
}


# What pandas and SQL write for an id that is missing, spelt as they do.
MISSING = ("NULL", "null", "\\N", "NA", "<NA>", "#N/A", "N/A", "n/a", "NaN", "nan", "None")


def ids(block: Block, name: str, literal: bool = False) -> tuple[str, pl.Series]:
    """(`integers` or `text`, values) of a column of ids.

    Args:
        block: rows.
        name: of the column.
        literal: whether a text such as NULL is an id like any other.

    Raises:
        UserError: a null, an empty text, one of `MISSING`, an integer over 63 bits, or a column of another type.
    """
    found = _plain(block, name)
    kind = _kind(found.type)
    if kind not in ("integers", "text"):
        hint = "; beware: nulls make some programs write integers as floating-point" if kind == "numbers" else ""
        raise UserError(f"{block.file}: column {name!r} holds {found.type}; ids are integers or text{hint}")
    series = pl.Series(name, found)
    values = series.cast(pl.Int64 if kind == "integers" else pl.String, strict=False)
    _refuse(
        block, name, series, values.is_null() if kind == "integers" else values.is_null() | (values == ""), "an id is needed"
    )
    if kind == "text" and not literal:
        hint = "an id is needed; programs write that where there is none: leave such rows out. If it is one: --literal-ids"
        _refuse(block, name, series, values.is_in(MISSING), hint)
    return kind, values


def times(block: Block, name: str) -> tuple[str, pl.Series]:
    """(`integers` or `moments`, Int64 values that keep the order) of a column of times.

    Integers stay as they are. Timestamps, dates, ISO 8601 text and floating-point seconds become microseconds since 1970, in
    UTC where no zone is named.

    Raises:
        UserError: a null, text that is no moment, a number that is not finite, or a column of another type.
    """
    found = _plain(block, name)
    series = pl.Series(name, found)
    if kinds.is_integer(found.type):
        kind, values = "integers", series.cast(pl.Int64, strict=False)
    else:
        kind, values = "moments", _moments(block, name, found.type, series)
    _refuse(
        block,
        name,
        series,
        values.is_null(),
        "a time: an integer, a timestamp or ISO 8601, the same form in all rows is needed",
    )
    return kind, values


def features(block: Block, name: str) -> tuple[str, pl.Series]:
    """(a key of `FEATURES`, values) of a column that describes something. Nulls stay.

    Raises:
        UserError: a column of another type.
    """
    found = _plain(block, name)
    kind = _kind(found.type)
    if kind not in FEATURES:
        raise UserError(f"{block.file}: column {name!r} holds {found.type}; a feature holds {', '.join(FEATURES)}")
    return kind, pl.Series(name, found.cast(FEATURES[kind].type))


def warn_of_text(block: Block, name: str, values: pl.Series) -> None:
    """Say so where one value of a CSV file makes a feature text that is a number in most rows."""
    if not is_text(block.file) or values.dtype != pl.String:
        return
    given = values.is_not_null()
    text = given & values.cast(pl.Float64, strict=False).is_null()
    numbers, place = int(given.sum()) - int(text.sum()), text.arg_max()
    if text.any() and place is not None and numbers > int(text.sum()):
        logger.warning(
            f"warning: {block.at(place)}: column {name!r} holds {values[place]!r} and so becomes text, to be hashed like ids, "
            f"though {numbers:,} of its first {int(given.sum()):,} values are numbers; for a dense feature, leave it empty"
        )


def taken(block: Block, name: str) -> pl.Series:
    """Whether a label is over 0; where it is null, it is not.

    Raises:
        UserError: a column of another type than numbers and booleans.
    """
    found = _plain(block, name)
    if _kind(found.type) not in ("integers", "numbers", "booleans"):
        raise UserError(f"{block.file}: column {name!r} holds {found.type}; a label is a number or a boolean")
    return (pl.Series(name, found).cast(pl.Float64) > 0).fill_null(False)


def _plain(block: Block, name: str) -> pa.ChunkedArray:
    """The column without a dictionary."""
    column = block.rows[name]
    return column.cast(column.type.value_type) if kinds.is_dictionary(column.type) else column


def _kind(of: pa.DataType) -> str:
    if kinds.is_list(of) or kinds.is_large_list(of):
        return f"lists of {_kind(of.value_type)}"
    tests = {
        "integers": kinds.is_integer,
        "text": lambda t: kinds.is_string(t) or kinds.is_large_string(t) or kinds.is_string_view(t),
        "numbers": kinds.is_floating,
        "booleans": kinds.is_boolean,
    }
    return next((kind for kind, test in tests.items() if test(of)), str(of))


def _moments(block: Block, name: str, of: pa.DataType, series: pl.Series) -> pl.Series:
    """Microseconds since 1970; null where a value is no moment."""
    if _kind(of) == "text":
        series = _parsed(series.cast(pl.String))
    elif _kind(of) == "numbers":
        seconds = pl.when(series.is_finite()).then(series.cast(pl.Float64))
        return pl.select((seconds * 1e6).round().cast(pl.Int64, strict=False)).to_series()
    elif not (kinds.is_timestamp(of) or kinds.is_date(of) or kinds.is_null(of)):
        raise UserError(f"{block.file}: column {name!r} holds {of}; times are integers, timestamps, dates or ISO 8601 text")
    return series.cast(pl.Datetime("us")).cast(pl.Int64)


def _parsed(text: pl.Series) -> pl.Series:
    try:
        return text.str.to_datetime(time_unit="us", strict=False)
    except pl.exceptions.ComputeError:  # no form fits the first value
        return pl.repeat(None, len(text), dtype=pl.Datetime("us"), eager=True)


def _refuse(block: Block, name: str, values: pl.Series, bad: pl.Series, wanted: str) -> None:
    place = bad.arg_max() if bad.any() else None
    if place is not None:
        value = values[place]
        said = "is null" if value is None else f"holds {value!r}"
        raise UserError(f"{block.at(place)}: column {name!r} {said}, where {wanted}")
