"""What a sample says of one column: distinct values, the most frequent ones, moments, lengths of lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from distrec.data.ids import jagged_keys
from distrec.data.window import Column as Keyed
from distrec.profile.distinct import Distinct, distinct
from distrec.profile.footers import Bound, Facts
from distrec.profile.kinds import LISTS, NUMBERS, Kind
from distrec.profile.moments import Moments, moments
from distrec.profile.sample import Sample

TOP = 5
LONGEST_SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class Lengths:
    """Of the lists of a column; null counts as empty."""

    mean: float
    longest: int
    p99: int
    empty: float  # share of rows


@dataclass(frozen=True)
class Column:
    """One column, as far as footers and a sample tell."""

    name: str
    type: str
    kind: Kind
    rows: int
    nulls: float  # share of rows
    nulls_exact: bool
    bounds: tuple[Bound, Bound] | None  # of all rows where `bounds_exact`, else of the sample; None: no value, or text
    bounds_exact: bool
    distinct: Distinct
    top: tuple[tuple[str, float], ...] = ()  # the most frequent values and their share of all that are not null
    moments: Moments | None = None  # numbers only
    lengths: Lengths | None = None  # lists only
    characters: float = 0.0  # mean length of text
    fault: str = ""

    @property
    def constant(self) -> bool:
        """Whether the sample holds one value at most, and the bounds of all rows do not say otherwise."""
        return self.distinct.seen <= 1 and (self.bounds is None or self.bounds[0] == self.bounds[1])


def read_columns(sample: Sample) -> dict[str, Column]:
    """Every column of the files, unreadable ones too, in the files' order."""
    described = {facts.name: describe(facts, values, sample) for facts, values in sample.columns(sample.survey.readable())}
    return {name: described.get(name) or _unread(facts) for name, facts in sample.survey.columns.items()}


def describe(facts: Facts, values: pa.Array, sample: Sample) -> Column:
    """From the sampled values of one column."""
    whole = sample.whole and sample.total == facts.rows
    flat, lengths = flatten(values, facts.kind)
    present = (flat.dictionary_decode() if types.is_dictionary(flat.type) else flat).drop_null()
    keys = keys_of(present, facts)
    numbers = floats(values) if facts.kind in NUMBERS else None
    bounds, bounds_exact = _bounds(facts, present, whole)
    return Column(
        name=facts.name,
        type=str(facts.type),
        kind=facts.kind,
        rows=facts.rows,
        nulls=facts.nulls / max(facts.rows, 1) if facts.nulls is not None else values.null_count / max(len(values), 1),
        nulls_exact=facts.nulls is not None or whole,
        bounds=bounds,
        bounds_exact=bounds_exact,
        distinct=distinct(keys, round(len(keys) * facts.rows / max(len(values), 1)), whole),
        top=() if facts.kind == "time" else _top(present, keys),
        moments=None if numbers is None else moments(numbers, facts.bounds),
        lengths=None if facts.kind not in LISTS else _lengths(lengths),
        characters=_characters(present) if facts.kind in ("text", "texts") else 0.0,
    )


def flatten(values: pa.Array, kind: Kind) -> tuple[pa.Array, np.ndarray]:
    """The ids of all rows one after the other, and how many each row has: 1 where the column holds no lists."""
    if kind not in LISTS:
        return values, np.ones(len(values), np.int64)
    lengths = pc.call_function("list_value_length", [values]).fill_null(0).to_numpy(zero_copy_only=False)
    return pc.call_function("list_flatten", [values]), lengths.astype(np.int64)


def keys_of(present: pa.Array, facts: Facts) -> np.ndarray:
    """`(N,) int64`: equal for equal values, and for text almost surely only for those. `present` has no nulls."""
    if facts.kind in ("real", "boolean"):
        return (_rounded(floats(present), facts.coarsest) + 0.0).view(np.int64)  # + 0.0: -0.0 equals 0.0
    if facts.kind == "time":
        return clock(present)
    return jagged_keys(Keyed(present, None, str)).values


def clock(values: pa.Array) -> np.ndarray:
    """`(n,) int64`: times in the column's own unit, integers as they are; 0 for null."""
    width = 32 if types.is_date32(values.type) or types.is_time32(values.type) else 64
    if not types.is_integer(values.type):
        values = values.cast(pa.int32() if width == 32 else pa.int64())
    return values.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)


def floats(values: pa.Array) -> np.ndarray:
    """`(n,) float64`, NaN for null. Raises nothing: a number of any Arrow type has a nearest float64."""
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_boolean(values.type) or types.is_float16(values.type):
        values = values.cast(pa.float32())
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


def _rounded(numbers: np.ndarray, type: pa.DataType | None) -> np.ndarray:
    """As the narrowest type has them, where it can hold them: one number then is the same from files of every type."""
    if type is None:
        return numbers
    with np.errstate(over="ignore"):
        rounded = numbers.astype(type.to_pandas_dtype()).astype(np.float64)
    return np.where(np.isinf(rounded), numbers, rounded)


def _bounds(facts: Facts, present: pa.Array, whole: bool) -> tuple[tuple[Bound, Bound] | None, bool]:
    if facts.bounds is not None:
        return facts.bounds, True
    if facts.kind in ("text", "texts") or not len(present):
        return None, False
    if facts.kind == "time":
        values = clock(present)
    else:
        values = present.to_numpy(zero_copy_only=False) if facts.kind in ("integer", "integers") else floats(present)
        values = values[np.isfinite(values)] if facts.kind == "real" else values
    return ((values.min().item(), values.max().item()), whole) if len(values) else (None, False)


def _top(present: pa.Array, keys: np.ndarray) -> tuple[tuple[str, float], ...]:
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:TOP]
    return tuple((_shown(present[int(first[i])]), float(counts[i] / len(keys))) for i in order)


def _shown(value: pa.Scalar) -> str:
    text = f"{value.as_py() + 0.0:g}" if types.is_floating(value.type) else str(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def _lengths(lengths: np.ndarray) -> Lengths:
    p99 = int(np.ceil(np.percentile(lengths, 99)))
    return Lengths(float(lengths.mean()), int(lengths.max()), p99, float((lengths == 0).mean()))


def _characters(present: pa.Array) -> float:
    return float(np.mean(pc.call_function("utf8_length", [present]).to_numpy())) if len(present) else 0.0


def _unread(facts: Facts) -> Column:
    none = Distinct(0, False, 0, 0, np.empty(0, np.uint64))
    nulls = (facts.nulls or 0) / max(facts.rows, 1)
    return Column(facts.name, str(facts.type), "unreadable", facts.rows, nulls, False, None, False, none, fault=facts.fault)
