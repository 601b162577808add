"""The hash is a contract: fixed vectors from its publishers, and a slow reference in Python's integers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parquet_files import lists, read_columns, write

from distrec.config.schema import SparseFeature, Table
from distrec.data.hashing import fnv1a64, rows_of, splitmix64

MASK = (1 << 64) - 1
# From the reference code of FNV (draft-eastlake-fnv, appendix C).
FNV_VECTORS = {"": 0xCBF29CE484222325, "a": 0xAF63DC4C8601EC8C, "foobar": 0x85944171F73967E8}


def reference_fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def reference_mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def reference_row(key: int | str, rows: int) -> int:
    word = reference_fnv(key) if isinstance(key, str) else key & MASK
    return (reference_mix(word) >> 32) * rows >> 32 if rows <= 1 << 32 else reference_mix(word) * rows >> 64


def packed(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [s.encode() for s in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])


def test_fnv_has_the_published_values():
    assert fnv1a64(*packed(list(FNV_VECTORS))).tolist() == list(FNV_VECTORS.values())


def test_splitmix_has_the_published_stream():
    # The generator of seed 0 mixes multiples of the golden gamma; these are its first three outputs.
    gammas = np.array([i * 0x9E3779B97F4A7C15 & MASK for i in (1, 2, 3)], np.uint64)
    assert splitmix64(gammas).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.text(), max_size=20))
def test_fnv_equals_the_reference(strings):
    assert fnv1a64(*packed(strings)).tolist() == [reference_fnv(s) for s in strings]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, MASK), min_size=1, max_size=20), st.integers(1, 1 << 32) | st.integers(1, 1 << 40))
def test_rows_equal_the_reference(keys, rows):
    assert rows_of(np.array(keys, np.uint64), rows).tolist() == [reference_row(k, rows) for k in keys]


def test_rows_are_spread_evenly():
    counts = np.bincount(rows_of(np.arange(100_000, dtype=np.uint64), 100), minlength=100)
    assert 800 < counts.min() <= counts.max() < 1200


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()])
def test_integers_hash_by_value_whatever_their_width(tmp_path, kind):
    keys = [0, 1, 100, 127] + ([-1, -128] if pa.types.is_signed_integer(kind) else [])
    path = write(tmp_path / "a.parquet", {"c": pa.array(keys, kind)})
    batch = read_columns(path, sparse=[SparseFeature(name="c", table="t", ids="hash")], tables={"t": Table(rows=997, dim=4)})
    assert lists(batch.sparse, "c") == [[reference_row(k, 997)] for k in keys]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_hash_by_their_bytes_whatever_their_type(tmp_path, kind):
    keys = ["", "a", "Zürich", "a", None, "x" * 300]
    path = write(tmp_path / "a.parquet", {"c": pa.array(keys).cast(kind)})
    batch = read_columns(path, sparse=[SparseFeature(name="c", table="t", ids="hash")], tables={"t": Table(rows=997, dim=4)})
    assert lists(batch.sparse, "c") == [[] if k is None else [reference_row(k, 997)] for k in keys]
