"""What samples and footers say of a column, against NumPy, SciPy and cases worked by hand."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from parquet_files import write

from distrec.errors import UserError
from distrec.profile import sample as sampling
from distrec.profile.columns import Column, read_columns
from distrec.profile.distinct import contained, distinct
from distrec.profile.footers import ranges, survey
from distrec.profile.moments import moments
from distrec.profile.sample import take_sample


def columns(path: Path, table: dict, **options) -> dict[str, Column]:
    return read_columns(take_sample(survey([write(path / "rows.parquet", table, **options)])))


def test_nulls_and_bounds_are_exact_from_footers_though_the_sample_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 1)
    values = [None if i % 4 == 0 else i for i in range(5000)]
    found = columns(tmp_path, {"x": pa.array(values, pa.int64()), "l": [[i, 7] for i in range(5000)]})["x"]
    assert found.distinct.sampled < 200
    assert (found.nulls, found.nulls_exact) == (0.25, True)
    assert (found.bounds, found.bounds_exact) == ((1, 4999), True)


def test_without_statistics_the_sample_is_all_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [3, 1, None, 2] * 500}, write_statistics=False)
    whole = read_columns(take_sample(survey([path])))["x"]
    assert (whole.bounds, whole.bounds_exact, whole.nulls) == ((1, 3), True, 0.25)
    part = read_columns(take_sample(survey([path]), rows=100))["x"]
    assert (part.bounds, part.bounds_exact) == ((1, 3), False)
    assert not part.nulls_exact


def test_a_struct_before_a_column_does_not_shift_its_statistics(tmp_path: Path) -> None:
    table = {
        "s": [{"a": 1, "b": {"c": 2, "d": 3}}] * 10,
        "m": pa.array([[("k", 9)]] * 10, pa.map_(pa.string(), pa.int64())),
        "l": [[100, 200]] * 10,
        "x": list(range(50, 60)),
    }
    found = columns(tmp_path, table)
    assert found["x"].bounds == (50, 59)
    assert found["l"].bounds == (100, 200)
    assert (found["s"].kind, found["m"].kind) == ("unreadable", "unreadable")


def test_nulls_of_lists_are_rows_without_a_list_and_not_their_elements(tmp_path: Path) -> None:
    found = columns(tmp_path, {"l": [[1, None, None], None, [None], [2]]})["l"]
    assert found.nulls == 0.25


def test_bounds_are_those_of_the_sample_when_one_file_has_no_statistics(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [5, 6]})
    write(tmp_path / "b.parquet", {"x": [1, 9]}, write_statistics=False)
    facts = survey([str(tmp_path)]).columns["x"]
    assert (facts.bounds, facts.nulls) == (None, None)


def test_times_in_different_units_have_no_common_bounds(tmp_path: Path) -> None:
    for unit in ("ms", "us"):
        write(tmp_path / f"{unit}.parquet", {"t": pa.array([1, 2], pa.timestamp(unit)), "n": [1, 2]})
    found = survey([str(tmp_path)]).columns
    assert (found["t"].fault, found["t"].bounds) == ("", None)
    assert found["n"].bounds == (1, 2)


def test_most_frequent_values_and_lengths(tmp_path: Path) -> None:
    lists = [["a", "b"], ["a"], [], None, ["a", None, "c"]]
    found = columns(tmp_path, {"l": pa.array(lists, pa.list_(pa.string()))})["l"]
    assert found.top[0] == ("a", 0.6)
    assert set(found.top[1:]) == {("b", 0.2), ("c", 0.2)}
    assert found.lengths is not None
    assert (found.lengths.mean, found.lengths.longest, found.lengths.empty) == (1.2, 3, 0.4)
    assert (found.distinct.estimate, found.distinct.exact) == (3, True)


def test_the_lowest_zero_is_not_negative(tmp_path: Path) -> None:
    bounds = columns(tmp_path, {"x": [0.0, 1.0]})["x"].bounds
    assert str(bounds) == "(0.0, 1.0)"


def test_zero_has_no_sign(tmp_path: Path) -> None:
    assert columns(tmp_path, {"x": [0.0, -0.0, 1.0, None]})["x"].distinct.seen == 2


@pytest.mark.parametrize("narrow", [pa.float32(), pa.float16()])
@pytest.mark.parametrize("order", [1, -1])
def test_a_number_is_one_value_whatever_width_a_file_gives_it(tmp_path: Path, narrow: pa.DataType, order: int) -> None:
    """The narrow type has neither 1e300 nor 2e300, which stay two; the two next to 0.1 are one there."""
    parts = [([1.74] * 3 + [2.5, -0.0], narrow), ([1.74] * 4 + [0.0, 1e300, 2e300, 0.1, 0.1 + 1e-12], pa.float64())]
    for name, (values, type) in zip("ab", parts[::order], strict=True):
        write(tmp_path / f"{name}.parquet", {"x": pa.array(np.array(values, type.to_pandas_dtype()), type)})
    write(tmp_path / "c.parquet", {"x": pa.array([1.74] * 2)})
    found = read_columns(take_sample(survey([str(tmp_path)])))["x"]
    assert found.top[:2] == (("1.74" if order < 0 or narrow == pa.float32() else "1.74023", 9 / 16), ("0", 2 / 16))
    assert found.distinct.seen == 6
    assert found.bounds == (0.0, 2e300)


def test_numbers_that_differ_little_are_different_where_all_files_have_doubles(tmp_path: Path) -> None:
    assert columns(tmp_path, {"x": [0.1, 0.1 + 1e-12, 0.1]})["x"].distinct.seen == 2


def test_decimals_and_booleans_are_numbers(tmp_path: Path) -> None:
    found = columns(tmp_path, {"d": [Decimal("0.50"), Decimal("1.50"), None], "b": [True, False, None]})
    assert found["d"].bounds == (0.5, 1.5)
    assert found["d"].moments is not None
    assert found["d"].moments.shape.mean == 1.0
    assert found["b"].moments is not None
    assert found["b"].kind == "boolean"
    assert found["b"].moments.shape.mean == 0.5


def test_moments_are_scipys() -> None:
    values = np.random.default_rng(0).gamma(0.5, 3, 1000)
    found = moments(np.append(values, [np.nan, np.inf]))
    assert found.shape.mean == pytest.approx(values.mean())
    assert found.shape.std == pytest.approx(values.std())
    assert found.shape.skewness == pytest.approx(scipy.stats.skew(values))
    assert found.median == pytest.approx(np.median(values))
    assert found.missing == found.infinite == pytest.approx(1 / 1002)


@pytest.mark.parametrize(
    ("values", "transform"),
    [
        (np.linspace(-3, 3, 100), "none"),
        (np.exp(np.linspace(0, 12, 100)), "log1p"),
        (np.append(np.exp(np.linspace(0, 12, 100)), -5.0), "signed_log1p"),
        (np.linspace(0, 1e200, 100), "log1p"),
        (np.linspace(-1e200, 1e200, 100), "signed_log1p"),
    ],
)
def test_a_transform_is_for_skewed_and_for_huge_values(values: np.ndarray, transform: str) -> None:
    assert moments(values).transform == transform


def test_bounds_of_rows_that_were_not_sampled_choose_the_transform() -> None:
    values = np.linspace(0, 1, 100)
    assert moments(values, (0.0, 1e300)).transform == "log1p"
    assert moments(np.exp(12 * values), (-1.0, 1e6)).transform == "signed_log1p"


def test_distinct_is_gee() -> None:
    keys = np.array([1, 1, 1, 2, 2, 3, 4])  # 3 and 4 once, 1 and 2 more often
    assert distinct(keys, total=700, whole=False).estimate == 2 + 10 * 2  # sqrt(700 / 7) = 10
    assert distinct(keys, total=7, whole=True).estimate == 4


def test_distinct_of_many_rows_is_near_the_truth() -> None:
    draw = np.random.default_rng(0)
    truth = 5000
    found = distinct(draw.integers(0, truth, 20_000), total=1_000_000, whole=False)
    assert truth * 0.9 < found.estimate < truth * 1.5


def test_containment_of_sketches_is_near_the_truth() -> None:
    small, large = np.arange(0, 40_000), np.arange(10_000, 400_000)
    part, whole = distinct(small, 40_000, True), distinct(large, 390_000, True)
    assert contained(part, whole) == pytest.approx(0.75, abs=0.15)
    assert contained(distinct(np.arange(5), 5, True), distinct(np.arange(3), 3, True)) == pytest.approx(0.6)


def test_a_sample_reaches_every_part_of_every_row_group(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": np.arange(100_000)}, row_group_size=20_000)
    rows = take_sample(survey([path]), rows=1000)
    [(_, values)] = rows.columns([rows.survey.columns["x"]])
    found = values.to_numpy()
    assert (np.diff(found) > 0).all()
    assert (np.histogram(found, bins=100, range=(0, 100_000))[0] == 10).all()


def test_a_large_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "DECODED_ROWS", 1000)
    monkeypatch.setattr(sampling, "FEWEST_GROUPS", 4)
    path = write(tmp_path / "a.parquet", {"x": np.arange(100_000)}, row_group_size=500)
    rows = take_sample(survey([path]), rows=400)
    assert len({piece.group for piece in rows.pieces}) == 4
    assert (rows.pieces[0].group, rows.pieces[-1].group) == (0, 199)
    assert rows.rows == 400


def test_the_sample_shrinks_with_the_width_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 80_000)
    narrow = take_sample(survey([write(tmp_path / "n.parquet", {"x": np.arange(5000.0)})]))
    wide = take_sample(survey([write(tmp_path / "w.parquet", {f"x{i}": np.arange(5000.0) for i in range(20)})]))
    assert narrow.rows == 5000
    assert 400 <= wide.rows <= 500


def test_columns_are_read_a_bounded_number_of_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 8 * 5000 * 3 + 100)
    path = write(tmp_path / "w.parquet", {f"x{i}": np.arange(5000) for i in range(7)}, use_dictionary=False, compression="none")
    found = survey([path])
    assert [len(block) for block in sampling._blocks(found.readable(), 5000)] == [2, 2, 2, 1]  # footers count levels, too
    values = {facts.name: values.to_pylist() for facts, values in take_sample(found).columns(found.readable())}
    assert values == {f"x{i}": list(range(5000)) for i in range(7)}


def test_files_that_disagree_on_a_column_make_it_unreadable_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1], "y": [1], "z": pa.array([1], pa.int32())})
    write(tmp_path / "b.parquet", {"x": ["a"], "z": pa.array([2**40], pa.int64())})
    found = survey([str(tmp_path)]).columns
    assert "string" in found["x"].fault
    assert "int64" in found["x"].fault
    assert found["y"].fault == "1 of 2 files do not have it"
    assert (found["z"].fault, found["z"].type, found["z"].bounds) == ("", pa.int64(), (1, 2**40))


def test_two_columns_of_one_name_are_unreadable(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), tmp_path / "a.parquet")
    assert survey([str(tmp_path)]).columns["x"].fault == "two columns have this name"


def test_ranges_are_those_of_each_file(tmp_path: Path) -> None:
    for name, low in (("a", 10), ("b", 5)):
        write(tmp_path / f"{name}.parquet", {"t": [low, low + 3, low + 1]}, row_group_size=1)
    write(tmp_path / "c.parquet", {"t": pa.array([], pa.int64())})
    assert ranges(survey([str(tmp_path)]), "t") == [(10, 13), (5, 8), None]


def test_no_rows_and_no_parquet_are_said(tmp_path: Path) -> None:
    write(tmp_path / "empty" / "a.parquet", {"x": pa.array([], pa.int64())})
    with pytest.raises(UserError, match="no rows in"):
        survey([str(tmp_path / "empty")])
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(UserError, match="not a Parquet file"):
        survey([str(tmp_path / "b.parquet")])
