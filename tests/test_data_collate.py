"""Columns to batches, against plain Python row by row, and every rule for a value that is missing or wrong."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from parquet_files import lists, read_columns, write
from test_data_hashing import reference_fnv, reference_mix, reference_row

from distrec.config.layout import Lookup
from distrec.config.schema import DenseFeature, SequenceFeature, SparseFeature, Table, Task
from distrec.data.encoded import KeyedIds
from distrec.data.ids import encode_ids, jagged_keys
from distrec.data.numbers import encode_dense
from distrec.data.window import Column, Window
from distrec.errors import UserError

TEN = {"t": Table(rows=10, dim=4)}


def dense_of(tmp_path, values, kind=None, **rules) -> list[float]:
    path = write(tmp_path / "a.parquet", {"x": pa.array(values, kind)})
    return read_columns(path, dense=[DenseFeature(name="x", **rules)]).dense[:, 0].tolist()


def ids_of(tmp_path, values, kind=None, tables=TEN, **rules) -> list[list[int]]:
    path = write(tmp_path / "a.parquet", {"c": values if isinstance(values, pa.Array) else pa.array(values, kind)})
    return lists(read_columns(path, sparse=[SparseFeature(name="c", table="t", **rules)], tables=tables).sparse, "c")


KINDS = [
    pa.int8(),
    pa.uint16(),
    pa.int64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(10, 2),
    pa.decimal256(40, 2),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dense_takes_every_numeric_type(tmp_path, kind):
    values = [Decimal(v) for v in (0, 3, 7)] if pa.types.is_decimal(kind) else np.array([0, 3, 7], kind.to_pandas_dtype())
    assert dense_of(tmp_path, values, kind) == [0.0, 3.0, 7.0]


def test_dense_takes_booleans_and_an_all_null_column(tmp_path):
    assert dense_of(tmp_path, [True, False, None], null=0.5) == [1.0, 0.0, 0.5]
    assert dense_of(tmp_path, [None, None], null=0.5) == [0.5, 0.5]


def test_null_and_nan_take_the_features_value_before_its_transform(tmp_path):
    assert dense_of(tmp_path, [1.0, None, math.nan], null=4, shift=1, scale=2) == [0.0, 1.5, 1.5]
    assert dense_of(tmp_path, [5, None], null=-2, shift=1) == [4.0, -3.0]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_transforms_follow_their_definitions(tmp_path, kind):
    values = [-20.5, -1.0, 0.0, 0.25, 300.0]
    log1p = [(math.log(1 + max(x, 0)) - 1) / 2 for x in values]
    signed = [math.copysign(math.log(1 + abs(x)), x) for x in values]
    assert dense_of(tmp_path, values, kind, transform="log1p", shift=1, scale=2) == pytest.approx(log1p, rel=1e-6)
    assert dense_of(tmp_path, values, kind, transform="signed_log1p") == pytest.approx(signed, rel=1e-6)


def test_a_shift_of_large_integers_is_exact(tmp_path):
    assert dense_of(tmp_path, [1_700_000_001, 1_700_000_002], shift=1_700_000_000) == [1.0, 2.0]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_without_a_rule_names_feature_file_row_and_fix(tmp_path, missing):
    with pytest.raises(UserError, match=r"feature 'x', .*a\.parquet, row 2: null or NaN.*null = 0\.0"):
        dense_of(tmp_path, [1.0, 2.0, missing])


HUGE = [{"null": 1e300}, {"scale": 1e-300}, {"shift": -1e308}, {"shift": 1e300, "scale": 5e-324}]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("rules", HUGE)
def test_a_huge_number_in_the_config_is_an_error_and_not_a_warning(tmp_path, kind, rules):
    with pytest.raises(UserError, match=r"row \d: .* is not a finite float32; .* mend the feature's null, shift and scale"):
        dense_of(tmp_path, [3e38, None], kind, **{"null": 0.0} | rules)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_an_infinite_value_is_refused_with_its_place(tmp_path, value):
    with pytest.raises(UserError, match=r"feature 'x', .*a\.parquet, row 1: .*not a finite float32"):
        dense_of(tmp_path, [1.0, value], null=0)


def labels_of(tmp_path, values, kind="binary") -> list[float]:
    path = write(tmp_path / "a.parquet", {"y": values})
    return read_columns(path, tasks=[Task(label="y", kind=kind)]).labels[:, 0].tolist()


def test_labels_take_numbers_and_booleans(tmp_path):
    assert labels_of(tmp_path, [0, 1, 1]) == [0.0, 1.0, 1.0]
    assert labels_of(tmp_path, [True, False]) == [1.0, 0.0]
    assert labels_of(tmp_path, [-2.5, 4.0], "regression") == [-2.5, 4.0]


BAD_LABELS = [
    ([1, None], "null", "binary"),
    ([1.0, math.nan], "NaN", "binary"),
    ([1, 2], "2, but a binary label is 0 or 1", "binary"),
    ([0.0, 0.5], r"0\.5, but", "binary"),
    ([0.0, None], "null", "regression"),
    ([0.0, math.inf], "inf", "regression"),
]


@pytest.mark.parametrize(("values", "message", "kind"), BAD_LABELS)
def test_a_bad_label_is_refused_with_its_place(tmp_path, values, message, kind):
    with pytest.raises(UserError, match=rf"label 'y' .*a\.parquet, row 1: .*{message}"):
        labels_of(tmp_path, values, kind)


def test_several_tasks_are_the_columns_of_labels(tmp_path):
    path = write(tmp_path / "a.parquet", {"click": [0, 1], "price": [2.5, 3.5]})
    tasks = [Task(name="b", label="price", kind="regression"), Task(name="a", label="click")]
    batch = read_columns(path, tasks=tasks)
    assert batch.labels.tolist() == [[2.5, 0.0], [3.5, 1.0]]
    assert batch.labels.dtype == torch.float32


def test_weights_are_read_and_default_to_one(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0, 2.0], "w": [0.0, 2.5]})
    features = [DenseFeature(name="x")]
    assert read_columns(path, dense=features).weights.tolist() == [1.0, 1.0]
    assert read_columns(path, dense=features, data={"weight": "w"}).weights.tolist() == [0.0, 2.5]


@pytest.mark.parametrize(
    ("bad", "why"), [(None, "None, but"), (-1.0, "-1.0, but"), (math.nan, "nan, but"), (math.inf, "inf is not a finite")]
)
def test_a_bad_weight_is_refused_with_its_place(tmp_path, bad, why):
    path = write(tmp_path / "a.parquet", {"w": [1.0, bad]})
    with pytest.raises(UserError, match=rf"data\.weight column 'w', .*a\.parquet, row 1: {why}"):
        read_columns(path, data={"weight": "w"})


def test_integer_groups_stay_and_string_groups_are_hashed(tmp_path):
    path = write(tmp_path / "a.parquet", {"i": [7, -3], "s": ["ann", "bob"]})
    assert read_columns(path, data={"group": "i"}).groups.tolist() == [7, -3]
    expected = np.array([reference_mix(reference_fnv(s)) for s in ("ann", "bob")], np.uint64).view(np.int64)
    assert read_columns(path, data={"group": "s"}).groups.tolist() == expected.tolist()


def test_a_null_group_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", {"g": [1, None]})
    with pytest.raises(UserError, match=r"data\.group column 'g', .*a\.parquet, row 1: null"):
        read_columns(path, data={"group": "g"})


def test_braces_in_a_column_name_stay_as_they_are(tmp_path):
    path = write(tmp_path / "a.parquet", {"{y}": [None, 1]})
    with pytest.raises(UserError, match=r"'\{y\}'"):
        read_columns(path, tasks=[Task(label="{y}")])


INT_LISTS = [[1, 2], None, [], [3, None, 4], [None]]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint8()), pa.list_(pa.int64())], ids=str)
def test_null_rows_null_elements_and_empty_lists_are_no_id(tmp_path, kind):
    assert ids_of(tmp_path, INT_LISTS, kind) == [[1, 2], [], [], [3, 4], []]


def test_scalars_dictionaries_and_fixed_size_lists(tmp_path):
    assert ids_of(tmp_path, [1, None, 3], pa.int16()) == [[1], [], [3]]
    assert ids_of(tmp_path, pa.array([5, None, 5]).dictionary_encode()) == [[5], [], [5]]
    assert ids_of(tmp_path, [[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)) == [[1, 2], [], [3]]
    assert ids_of(tmp_path, [None, None]) == [[], []]
    assert ids_of(tmp_path, [[], None], pa.list_(pa.null())) == [[], []]


def test_lists_of_strings_hash_each_element(tmp_path):
    expected = [[reference_row("a", 10), reference_row("b", 10)], [], [reference_row("a", 10)]]
    assert ids_of(tmp_path, [["a", "b"], None, [None, "a"]], ids="hash") == expected


def test_long_lists_keep_the_newest_ids_that_are_ids(tmp_path):
    values = [[1, 2, 3, 4], [5], None, [6, 7, None]]
    assert ids_of(tmp_path, values, max_length=2) == [[3, 4], [5], [], [6, 7]]
    assert ids_of(tmp_path, values, max_length=2, ids="hash") == [
        [reference_row(k, 10) for k in row] for row in ([3, 4], [5], [], [6, 7])
    ]
    assert ids_of(tmp_path, [[1, 2, 99]], max_length=2, out_of_range="null") == [[1, 2]]


@pytest.mark.parametrize("bad", [-1, 10, 1 << 40])
def test_an_id_out_of_range_names_everything(tmp_path, bad):
    message = rf"feature 'c', .*a\.parquet, row 2: id {bad} is outside \[0, 10\).*'t'.*more rows.*\"null\".*\"hash\""
    with pytest.raises(UserError, match=message):
        ids_of(tmp_path, [0, 9, bad])
    with pytest.raises(UserError, match=rf"row 1: id {bad} "):
        ids_of(tmp_path, [[1], [2, bad]])


def test_a_huge_unsigned_id_is_named_as_it_is(tmp_path):
    with pytest.raises(UserError, match=f"id {(1 << 64) - 1} is outside"):
        ids_of(tmp_path, [(1 << 64) - 1], pa.uint64())


def test_out_of_range_ids_are_dropped_or_hashed_on_request(tmp_path):
    values = [[-1, 3], [10], None, [9, 1 << 40, 0]]
    assert ids_of(tmp_path, values, out_of_range="null") == [[3], [], [], [9, 0]]
    wild = {k: reference_row(k, 10) for k in (-1, 10, 1 << 40)}
    assert ids_of(tmp_path, values, out_of_range="hash") == [[wild[-1], 3], [wild[10]], [], [9, wild[1 << 40], 0]]


def test_features_lie_in_the_layouts_order_with_kernel_types(tmp_path):
    path = write(tmp_path / "a.parquet", {"a": [1, 2], "h": [[3, 4], [5]], "b": [6, None], "g": [[7], [8, 9]]})
    batch = read_columns(
        path,
        sparse=[SparseFeature(name="b", table="t"), SparseFeature(name="a", table="movie"), SparseFeature(name="g", table="t")],
        sequence=[SequenceFeature(name="h", table="movie", max_length=1)],
        tables=TEN | {"movie": Table(rows=10, dim=4)},
    )
    assert batch.sparse.keys() == ["b", "g"]
    assert batch.sequence.keys() == ["h", "a"]  # `a` shares its table with a history
    assert batch.sparse.values().tolist() == [6, 7, 8, 9]
    assert batch.sparse.lengths().tolist() == [1, 0, 1, 2]
    assert batch.sparse.offsets().tolist() == [0, 1, 1, 2, 4]
    assert lists(batch.sequence, "h") == [[4], [5]]
    assert lists(batch.sequence, "a") == [[1], [2]]
    assert (batch.sparse.values().dtype, batch.sparse.lengths().dtype, batch.dense.dtype) == (
        torch.int64,
        torch.int32,
        torch.float32,
    )
    assert (batch.dense.shape, batch.labels.shape, batch.groups) == ((2, 0), (2, 0), None)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_lies_in_one_piece_whatever_its_size(size):
    ids = KeyedIds(["a", "b"], [np.arange(3)] * 2, np.array([[1, 2], [1, 2]], np.int32), np.array([[0, 3], [0, 3]]))
    batch = ids.batch(0, 0, size)
    assert batch is not None
    assert batch.lengths().is_contiguous()  # the kernels go by the pointer, not by the strides
    assert batch.lengths().tolist() == [1, 2, 0, 0][:size] * 2


def test_without_id_features_there_are_no_jagged_parts(tmp_path):
    batch = read_columns(write(tmp_path / "a.parquet", {"x": [1.0]}), dense=[DenseFeature(name="x")])
    assert batch.sparse is None
    assert batch.sequence is None


def test_a_column_may_serve_two_features(tmp_path):
    path = write(tmp_path / "a.parquet", {"c": [3, 4]})
    batch = read_columns(
        path, dense=[DenseFeature(name="x", column="c")], sparse=[SparseFeature(name="c", table="t")], tables=TEN
    )
    assert batch.dense[:, 0].tolist() == [3.0, 4.0]
    assert lists(batch.sparse, "c") == [[3], [4]]


# Against row-by-row Python, on sliced arrays in random order: what an Arrow buffer holds before its offset, under its
# nulls, and behind its end must not leak into the result.


def random_row(random, scalar: bool):
    ids = [None if random.random() < 0.2 else int(random.integers(-3, 13)) for _ in range(random.integers(0, 6))]
    if random.random() < 0.2:
        return None
    return (ids[0] if ids else None) if scalar else ids


def reference_ids(row, feature) -> list[int]:
    ids = [i for i in (row if isinstance(row, list) else [row]) if i is not None] if row is not None else []
    if feature.ids == "hash":
        ids = [reference_row(i, feature.rows) for i in ids]
    elif feature.out_of_range == "null":
        ids = [i for i in ids if 0 <= i < feature.rows]
    else:
        ids = [i if 0 <= i < feature.rows else reference_row(i, feature.rows) for i in ids]
    return ids[-feature.max_length :]


def lookup(ids: str, policy: str) -> Lookup:
    return Lookup("c", "c", "t", 10, 4, ids, policy, 3, "sum")


SHAPES = [pa.int64(), pa.int32(), pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 2)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", SHAPES, ids=str)
@pytest.mark.parametrize(("ids", "policy"), [("hash", "error"), ("index", "null"), ("index", "hash")])
def test_ids_equal_row_by_row_python(kind, ids, policy, seed):
    random = np.random.default_rng(seed)
    rows = [random_row(random, pa.types.is_integer(kind)) for _ in range(40)]
    if pa.types.is_fixed_size_list(kind):
        rows = [None if r is None else [*r, None, None][:2] for r in rows]
    array, order = pa.array(rows, kind).slice(7, 25), random.permutation(25).astype(np.uint32)
    feature = lookup(ids, policy)
    for permuted in (None, order):
        found = encode_ids(Column(array, permuted, str), feature)
        expected = [reference_ids(rows[7 + i], feature) for i in (range(25) if permuted is None else permuted)]
        assert [part.tolist() for part in np.split(found.values, np.cumsum(found.lengths)[:-1])] == expected


def test_ids_under_a_null_list_do_not_leak():
    hidden = pa.ListArray.from_arrays(pa.array([0, 2, 4]), pa.array([1, 2, 3, 4]), mask=pa.array([True, False]))
    keys = jagged_keys(Column(hidden, None, str))
    assert (keys.values.tolist(), keys.lengths.tolist()) == ([3, 4], [0, 2])


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_sliced_strings_hash_as_they_read(kind):
    array = pa.array(["p", "q", None, "r", "q", "s"]).cast(kind).slice(1, 4)
    keys = jagged_keys(Column(array, np.array([3, 2, 1, 0], np.uint32), str))
    assert keys.values.view(np.uint64).tolist() == [reference_fnv(s) for s in ("q", "r", "q")]
    assert keys.lengths.tolist() == [1, 1, 0, 1]


def test_a_sliced_dictionary_hashes_its_own_strings():
    words = pa.array(["p", "q", "r"], pa.large_string()).slice(1)
    keys = jagged_keys(Column(pa.DictionaryArray.from_arrays(pa.array([1, 0]), words), None, str))
    assert keys.values.view(np.uint64).tolist() == [reference_fnv("r"), reference_fnv("q")]


def test_a_window_too_large_for_one_array_says_what_to_change():
    half = pa.ListArray.from_arrays(pa.array([0, 1_500_000_000], pa.int32()), pa.nulls(1_500_000_000))
    table = pa.table({"c": pa.chunked_array([half, half])})
    with pytest.raises(UserError, match=r"column 'c': 2 rows do not fit.*data\.shuffle_window"):
        Window(table, None, str).column("c")


def test_a_dictionary_that_holds_null_is_read_as_null():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    assert jagged_keys(Column(array, None, str)).lengths.tolist() == [1, 0, 1]


def test_sliced_dense_columns_read_their_own_rows():
    array = pa.array([9.0, 1.0, None, 3.0, 9.0]).slice(1, 3)
    order = np.array([2, 0, 1], np.uint32)
    values = encode_dense(Column(array, order, str), DenseFeature(name="x", null=5))
    assert values.tolist() == [1.0, 5.0, 3.0]  # in file order still
    with pytest.raises(UserError, match="'x', 1: null"):
        encode_dense(Column(array, order, str), DenseFeature(name="x"))
