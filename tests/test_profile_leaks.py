"""Leaks: planted ones are found, and honest features are not accused. AUCs are scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parquet_files import write
from sklearn.metrics import roc_auc_score

from distrec.profile.draft import look_at
from distrec.profile.footers import survey
from distrec.profile.leaks import SharedRows, auc, row_hashes, shared_rows, too_good
from distrec.profile.sample import take_sample

ROWS = 4000


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=50))
def test_auc_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, positive = (np.array(part) for part in zip(*rows, strict=True))
    if positive.any() and not positive.all():
        assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    else:
        assert np.isnan(auc(scores, positive))


@pytest.fixture(scope="module")
def aucs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    draw = np.random.default_rng(0)
    label = draw.random(ROWS) < 0.3
    half = draw.normal(size=ROWS) + label
    columns = {
        "label": label.astype(np.int8),
        "honest": half,
        "noise": draw.normal(size=ROWS),
        "up": label * 5 + draw.random(ROWS),
        "down": label * -5 - draw.random(ROWS),
        "high_or_null": pa.array(label * 5 + draw.random(ROWS), mask=label & (draw.random(ROWS) < 0.5)),
        "low_or_null": pa.array(label * -5 - draw.random(ROWS), mask=label & (draw.random(ROWS) < 0.5)),
        "present": pa.array(draw.random(ROWS), mask=label),
        "code": np.where(label, draw.choice([3, 7, 11], ROWS), draw.choice([2, 5, 13], ROWS)),
        "many_ids": [f"{i % 1500}" for i in draw.permutation(ROWS)],
        "few_ids": draw.integers(0, 30, ROWS),
        "tags": pa.array([[1, 4] if y else [2, 4] if i % 2 else None for i, y in enumerate(label)], pa.list_(pa.int64())),
        "zigzag": np.where(label, draw.choice([1.0, 3.0, 5.0], ROWS), draw.choice([2.0, 4.0], ROWS)),
    }
    found = dict(look_at([write(tmp_path_factory.mktemp("leaks") / "rows.parquet", columns)]).aucs)
    found["truth"] = roc_auc_score(label, half)
    return found


@pytest.mark.parametrize("leak", ["up", "down", "high_or_null", "low_or_null", "present", "code", "tags", "zigzag"])
def test_a_feature_that_tells_the_label_is_found(aucs: dict[str, float], leak: str) -> None:
    assert leak in too_good(aucs)


@pytest.mark.parametrize("honest", ["honest", "noise", "many_ids", "few_ids"])
def test_an_honest_feature_is_not_accused(aucs: dict[str, float], honest: str) -> None:
    assert honest not in too_good(aucs)


def test_the_auc_of_a_number_is_that_of_its_values(aucs: dict[str, float]) -> None:
    assert aucs["honest"] == pytest.approx(aucs["truth"])
    assert aucs["noise"] < 0.55


def test_an_id_is_scored_on_rows_that_it_was_not_learned_from(aucs: dict[str, float]) -> None:
    assert aucs["many_ids"] < 0.56  # in its own rows, so many ids would tell the label almost surely
    assert aucs["few_ids"] < 0.56


def test_too_few_rows_of_a_label_accuse_nobody(tmp_path: Path) -> None:
    label = np.arange(ROWS) < 49
    path = write(tmp_path / "rows.parquet", {"label": label.astype(int), "x": label + 0.0, "c": np.arange(ROWS) % 7})
    assert look_at([path]).aucs == {}


def test_a_regression_label_counts_over_its_median(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    label = draw.normal(size=ROWS)
    path = write(tmp_path / "rows.parquet", {"label": label, "copy": label * -2 + 7, "noise": draw.normal(size=ROWS)})
    assert set(too_good(look_at([path]).aucs)) == {"copy"}


def shared(folder: Path, train: dict, valid: dict, rows: Sequence[int] = (100_000, 100_000)) -> SharedRows:
    found = survey([write(folder / "a.parquet", train, row_group_size=1000), write(folder / "b.parquet", valid)])
    samples = [take_sample(found, [i], rows=n) for i, n in enumerate(rows)]
    return shared_rows(*samples, list(found.columns))


def rows_of(ids: np.ndarray) -> dict:
    """Rows that are equal when their ids are; a column of each kind, with nulls."""
    some = [None if i % 5 == 0 else int(i) for i in ids]
    return {
        "a": ids,
        "b": pa.array([None if i is None else f"s{i}" for i in some]),
        "c": pa.array([None if i is None else [i, None, i + 1] for i in some], pa.list_(pa.int64())),
        "d": ids / 7,
        "e": ids % 2 == 0,
    }


def test_rows_in_both_splits_are_counted(tmp_path: Path) -> None:
    found = shared(tmp_path, rows_of(np.arange(1000)), rows_of(np.arange(900, 1300)))
    assert found.share == pytest.approx(100 / 400)
    assert found.leaks


def test_rows_are_equal_though_one_split_has_floats_and_the_other_doubles(tmp_path: Path) -> None:
    prices = np.arange(400) / 100
    found = shared(tmp_path, {"price": prices.astype(np.float32)}, {"price": prices + np.repeat([0, 1000], 200)})
    assert (found.share, found.pairs) == (0.5, 200)


def test_splits_without_a_common_row_share_none(tmp_path: Path) -> None:
    found = shared(tmp_path, rows_of(np.arange(1000)), rows_of(np.arange(1000, 1400)))
    assert (found.share, found.pairs, found.leaks) == (0.0, 0, False)
    assert found.smallest == pytest.approx(3 / 400)


def test_a_sample_estimates_the_share(tmp_path: Path) -> None:
    found = shared(tmp_path, rows_of(np.arange(20_000)), rows_of(np.arange(10_000, 30_000)), rows=(4000, 4000))
    assert found.share == pytest.approx(0.5, abs=0.08)
    assert found.leaks


def test_rows_that_are_often_equal_by_themselves_are_no_leak(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    found = shared(tmp_path, {"a": draw.integers(0, 50, 3000)}, {"a": draw.integers(0, 50, 3000)})
    assert found.pairs > 100_000
    assert not found.leaks


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([[1, 2]], [[2, 1]]),
        ([[1], [2]], [[1, 2], []]),
        ([[None, 1]], [[1]]),
        ([["ab"]], [["a", "b"]]),
        ([0.0], [None]),
        ([0], [None]),
        (["", "a"], [None, "a"]),
    ],
)
def test_rows_that_differ_hash_differently(tmp_path: Path, left: list, right: list) -> None:
    kind = pa.array([*left, *right]).type
    hashes = []
    for name, values in (("l", left), ("r", right)):
        path = write(tmp_path / f"{name}.parquet", {"a": pa.array(values, kind)})
        hashes.append(row_hashes(take_sample(survey([path])), ["a"]))
    assert (hashes[0] != hashes[1]).any()


def test_the_place_of_a_value_matters(tmp_path: Path) -> None:
    found = survey([write(tmp_path / "a.parquet", {"x": [1, 2], "y": [2, 1]})])
    first, second = row_hashes(take_sample(found), ["x", "y"])
    assert first != second
