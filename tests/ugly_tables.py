"""Tables as people have them: odd types, odd names, nulls everywhere. Each has a label of 0 and 1 that nothing tells."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

ROWS = 300
START = 1_700_000_000  # seconds since 1970
LISTS_OF_TEXT = pa.list_(pa.string())


def labelled(rows: int = ROWS, seed: int = 0, **columns) -> pa.Table:
    """`columns` beside a `label` drawn at random."""
    return pa.table({"label": np.random.default_rng(seed).integers(0, 2, rows), **columns})


ODD = ("a b", "ä", "né", "", "x.y", 'q"', "l\nm", "\x7f", "😀", "#", "-", "A b", "a_b")
TORCHS = ("items", "type", "values", "forward", "T_destination")


def ugly() -> dict[str, pa.Table]:
    """Name -> table."""
    draw = np.random.default_rng(1)
    numbers = draw.normal(size=ROWS)
    plain = {"city": [f"c{i % 9}" for i in range(ROWS)], "x": numbers}
    mixed = _ids() | {name: {"city": plain["city"], **columns} for name, columns in _numbers(numbers).items()}
    return {name: labelled(**columns) for name, columns in mixed.items()} | {
        "timestamps": labelled(**plain, **_times()),
        "constant columns": labelled(**plain, **_constants()),
        "unreadable": labelled(**plain, **_unreadable()),
        "a label of 1 and 2": pa.table({"label": draw.integers(1, 3, ROWS), **plain}),
        "a boolean label": pa.table({"clicked": [i % 2 == 0 for i in range(ROWS)], **plain}),
        "a real label": pa.table({"rating": draw.normal(3, 1, ROWS), **plain}),
        "one label only": pa.table({"label": [0] * ROWS, **plain}),
        "three rows": labelled(3, x=[0.5, 1.5, 2.5], c=["a", "b", None]),
        "two rows": pa.table({"label": [1, 0], "c": ["a", None], "x": [0.5, None]}),
        "weights": labelled(**plain, sample_weight=draw.random(ROWS)),
    }


def _ids() -> dict[str, dict]:
    item = [f"item-{i % 17}" for i in range(ROWS)]
    lists = [[f"t{i % 5}", None, f"t{i % 7}"] if i % 4 else None for i in range(ROWS)]
    few = [i % 5 for i in range(ROWS)]
    return {
        "string ids": {"item": item, "user_id": [f"u{i % 31}" for i in range(ROWS)]},
        "lists of strings": {"item": item, "tags": pa.array(lists, pa.list_(pa.string()))},
        "history of strings": {"item_id": item, "last_items": [[item[j] for j in range(i % 4)] for i in range(ROWS)]},
        "fixed lists": {"item": item, "pair": pa.array([[i % 3, i % 5] for i in range(ROWS)], pa.list_(pa.int32(), 2))},
        "empty lists": {"item": item, "e": pa.array([[]] * ROWS, pa.list_(pa.int64())), "n": pa.nulls(ROWS, LISTS_OF_TEXT)},
        "dictionaries": {
            "item": pa.array(item).dictionary_encode(),
            "code": pa.array([i % 4 for i in range(ROWS)]).dictionary_encode(),
        },
        "names that torch would refuse": dict.fromkeys(TORCHS, few),
        "names of all kinds": dict.fromkeys(ODD, few),
        "unsigned": {
            "h": pa.array([2**64 - 1 - i % 50 for i in range(ROWS)], pa.uint64()),
            "n": pa.array([i % 200 for i in range(ROWS)], pa.uint8()),
        },
        "only one feature": {"user_id": [i % 20 for i in range(ROWS)]},
    }


def _numbers(numbers: np.ndarray) -> dict[str, dict]:
    flags = [None if i % 3 == 0 else bool(i % 2) for i in range(ROWS)]
    return {
        "decimals": {"price": pa.array([Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(38, 2)), "x": numbers},
        "huge decimals": {"big": pa.array([Decimal(10) ** (i % 60) for i in range(ROWS)], pa.decimal256(70, 0)), "x": numbers},
        "booleans": {"flag": flags, "other": [i % 5 == 0 for i in range(ROWS)]},
        "infinite": {"x": numbers, "inf": np.where(numbers > 1, np.inf, numbers)},
        "NaN": {"x": np.where(numbers > 0, np.nan, numbers)},
        "extreme numbers": {"large": numbers * 1e300, "small": numbers * 1e-300, "far": numbers + 1e15},
        "halves": {"h": pa.array(numbers.astype(np.float16))},
    }


def _times() -> dict:
    return {
        "event_time": pa.array(np.arange(ROWS) + START, pa.timestamp("s", "UTC")),
        "seen_at": pa.array(np.arange(ROWS) * 10**9 + 1, pa.timestamp("ns")),
        "born": pa.array(np.arange(ROWS, dtype=np.int32), pa.date32()),
    }


def _constants() -> dict:
    return {"one": [1] * ROWS, "text": ["two\n[lines]"] * ROWS, "none": pa.nulls(ROWS), "void": pa.nulls(ROWS, pa.int64())}


def _unreadable() -> dict:
    """And a readable column after all of them."""
    return {
        "blob": [b"x"] * ROWS,
        "struct": [{"a": 1, "b": 2}] * ROWS,
        "map": pa.array([[("k", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
        "nested": [[[1]]] * ROWS,
        "vector": [[0.5, 0.25]] * ROWS,
        "clock": pa.array([1] * ROWS, pa.time32("s")),
        "after": list(range(ROWS)),
    }


NAMES = st.one_of(
    st.sampled_from(["label", "user_id", "item_id", "last_item_id", "price", "timestamp", "items", "a.b", "a", "A"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = [
    (pa.int64(), INT64),
    (pa.int64(), st.integers(0, 5)),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats(width=64)),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.binary(), st.binary(max_size=3)),
    (pa.decimal128(20, 3), st.decimals(-(10**12), 10**12, places=3)),
    (pa.timestamp("us"), st.integers(0, 2**50)),
    (pa.date32(), st.integers(0, 40000)),
    (pa.list_(pa.int64()), st.lists(st.one_of(st.none(), st.integers(-3, 9)), max_size=4)),
    (pa.list_(pa.string()), st.lists(st.one_of(st.none(), TEXTS), max_size=4)),
    (pa.list_(pa.float32()), st.lists(st.floats(width=32), max_size=2)),
    (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))]),
        st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.just([1])}),
    ),
    (pa.null(), st.none()),
]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table of any schema; nulls where they fall, and a label that is one more often than not."""
    rows = draw(st.integers(1, 12))
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    columns = {name: draw(_column(rows)) for name in names}
    if draw(st.integers(0, 9)):
        columns["clicked"] = pa.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), pa.int8())
    return pa.table(columns)


@st.composite
def _column(draw: st.DrawFn, rows: int) -> pa.Array:
    type, values = draw(st.sampled_from(VALUES))
    optional = values if draw(st.booleans()) else st.one_of(st.none(), values)
    return pa.array(draw(st.lists(optional, min_size=rows, max_size=rows)), type)
