"""Which column is what, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from parquet_files import write

from distrec.errors import UserError
from distrec.profile import words
from distrec.profile.clocks import time_column
from distrec.profile.columns import read_columns
from distrec.profile.footers import survey
from distrec.profile.roles import Roles, assign
from distrec.profile.sample import take_sample
from distrec.profile.tables import TableDraft, dim_for, draft_tables

ROWS = 2000
DRAW = np.random.default_rng(0)
LABEL = DRAW.integers(0, 2, ROWS)


def decided(folder: Path, columns: dict, label: str | None = None) -> tuple[Roles, list[TableDraft]]:
    found = survey([write(folder / "rows.parquet", columns)])
    described = read_columns(take_sample(found))
    given = assign(described, found.columns, time_column(found.columns.values()), label)
    return given, draft_tables(given, described)


def purpose_of(folder: Path, column: str, values) -> str:
    return decided(folder, {"label": LABEL, column: values})[0].by_column[column].purpose


@pytest.mark.parametrize(
    ("name", "split"), [("isClicked", ["is", "clicked"]), ("user_ID", ["user", "id"]), ("a b-c9", ["a", "b", "c9"]), ("", [])]
)
def test_words_of_a_name(name: str, split: list[str]) -> None:
    assert words.words(name) == split


@pytest.mark.parametrize(
    ("column", "values", "purpose"),
    [
        ("user_id", DRAW.integers(0, 50, ROWS), "id"),
        ("city", [f"c{i % 30}" for i in range(ROWS)], "id"),
        ("category", pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(), "id"),
        ("price", DRAW.integers(0, 500, ROWS), "dense"),
        ("age", DRAW.integers(0, 7, ROWS), "id"),  # so few values that they are codes
        ("offset", DRAW.integers(-500, 500, ROWS), "dense"),
        ("hashed", DRAW.choice(DRAW.integers(-(2**62), 2**62, 40), ROWS), "id"),
        ("ctr", DRAW.random(ROWS), "dense"),
        ("flag", LABEL == 1, "dense"),
        ("tags", [["a", "b"]] * (ROWS - 1) + [["c"]], "ids"),
        ("clicked_items", [[1, 2]] * (ROWS - 1) + [[3]], "history"),
        ("request_id", [f"{i:x}" for i in range(ROWS)], "left out"),
        ("row_id", np.arange(ROWS), "left out"),
        ("user_id", np.where(LABEL, 3.0, 4.0), "left out"),  # ids as fractions
        ("review", ["long " * 50 + str(i % 9) for i in range(ROWS)], "left out"),
        ("same", [3] * ROWS, "left out"),
        ("embedding", [[0.5, 0.5]] * ROWS, "left out"),
        ("rating", DRAW.integers(1, 6, ROWS), "left out"),  # known only afterwards
        ("void", pa.nulls(ROWS, pa.float64()), "left out"),
        ("timestamp", 1_700_000_000 + np.arange(ROWS), "time"),
        ("day", 20_240_101 + np.arange(ROWS) % 28, "time"),
        ("day", np.arange(ROWS) % 7, "id"),
        ("when", pa.array(np.arange(ROWS), pa.timestamp("ms")), "time"),
        ("sample_weight", DRAW.random(ROWS), "weight"),
        ("sample_weight", DRAW.random(ROWS) - 0.5, "dense"),
        ("weight", DRAW.random(ROWS), "dense"),  # of a parcel, maybe
    ],
)
def test_purpose(tmp_path: Path, column: str, values, purpose: str) -> None:
    assert purpose_of(tmp_path, column, values) == purpose


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"clicked": LABEL, "label": LABEL}, "label"),
        ({"rating": LABEL, "is_click": LABEL, "x": DRAW.random(ROWS)}, "is_click"),
        ({"label": ["a", "b"] * (ROWS // 2), "converted": LABEL}, "converted"),
        ({"x": DRAW.random(ROWS), "won": LABEL}, "won"),  # the only one of 0 and 1
        ({"Target": LABEL}, "Target"),
        ({"label_movie": DRAW.integers(0, 9, ROWS), "y": LABEL}, "y"),
    ],
)
def test_the_label_is_found(tmp_path: Path, columns: dict, label: str) -> None:
    assert decided(tmp_path, columns)[0].label == label


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (
            {"x": DRAW.random(ROWS), "a": LABEL, "b": LABEL},
            None,
            "no column looks like a label; name it with --label COLUMN; there is: x, a, b "
            "(a retriever's data has none: name the folder, with its dataset.json, that `distrec prepare` wrote)",
        ),
        ({"liked": LABEL}, "likes", "no column 'likes' to be the label; did you mean 'liked'?"),
        ({"label": ["yes", "no"] * (ROWS // 2)}, None, "label 'label' cannot be predicted: it is string: write it as 0"),
        ({"label": [None, 1] * (ROWS // 2)}, None, "label 'label' is null or NaN in 50.00% of the rows"),
        ({"label": [np.nan, 1.0] * (ROWS // 2)}, None, "label 'label' is null or NaN in 50.00% of the rows"),
        ({"label": [np.inf, 1.0] * (ROWS // 2)}, None, "label 'label' is infinite in 50.00%"),
        ({"label": [[1]] * ROWS}, "label", "cannot be predicted: it is list"),
    ],
)
def test_a_label_that_cannot_be_is_said(tmp_path: Path, columns: dict, named: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        decided(tmp_path, columns, named)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (LABEL, "binary"),
        (LABEL == 1, "binary"),
        (LABEL.astype(np.float32), "binary"),
        (np.zeros(ROWS), "binary"),
        (LABEL + 1, "regression"),
        (LABEL * 2 - 1, "regression"),
        (DRAW.integers(0, 3, ROWS) / 2, "regression"),  # 0, 0.5, 1
        (DRAW.normal(size=ROWS), "regression"),
    ],
)
def test_the_kind_of_the_label(tmp_path: Path, label, kind: str) -> None:
    assert decided(tmp_path, {"label": label})[0].kind == kind


def test_a_rare_third_value_that_no_sample_meets_makes_a_regression(tmp_path: Path) -> None:
    found = survey([write(tmp_path / "rows.parquet", {"label": [2, *LABEL.tolist()]})])
    rows = take_sample(found, rows=100)
    assert 2 not in [v.as_py() for _, values in rows.columns(found.readable()) for v in values]
    assert assign(read_columns(rows), found.columns, None).kind == "regression"


@pytest.mark.parametrize(
    ("user", "group"),
    [
        (DRAW.integers(0, 50, ROWS), "user_id"),
        (np.arange(ROWS) // 1, None),  # one row each
        ([None, *DRAW.integers(0, 50, ROWS - 1).tolist()], None),  # a group must not be null
    ],
)
def test_persons_with_several_rows_each_and_no_null_are_a_group(tmp_path: Path, user, group: str | None) -> None:
    assert decided(tmp_path, {"label": LABEL, "user_id": user})[0].group == group


def test_a_time_that_is_named_wins_and_one_by_name_comes_before_one_by_type(tmp_path: Path) -> None:
    moments = pa.array(np.arange(5), pa.timestamp("s"))
    found = survey([write(tmp_path / "a.parquet", {"born": moments, "event_time": moments, "x": [1] * 5, "s": ["a"] * 5})])
    assert time_column(found.columns.values()) == "event_time"
    assert time_column(found.columns.values(), "x") == "x"
    assert time_column(found.columns.values(), "s") is None


@pytest.mark.parametrize(
    ("ids", "kind", "rows"),
    [
        (np.arange(ROWS) % 700, "index", 700),
        (np.append(np.arange(ROWS - 1) % 500, 1999), "index", 2000),  # 501 ids in 2000 rows: within four times
        (np.append(np.arange(ROWS - 1) % 499, 2100), "hash", 1024),
        (np.append(np.arange(ROWS - 1) % 5, 999), "index", 1000),  # a small table is not worth a hash
        (np.arange(ROWS) % 700 - 1, "hash", 2048),
        ([f"{i % 600}" for i in range(ROWS)], "hash", 2048),
    ],
)
def test_dense_ids_are_indices_and_others_are_hashed(tmp_path: Path, ids, kind: str, rows: int) -> None:
    [table] = decided(tmp_path, {"label": LABEL, "item_id": ids})[1]
    assert (table.ids, table.rows) == (kind, rows)


def test_bounds_that_are_not_known_of_all_rows_make_a_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": LABEL, "item_id": np.arange(ROWS) % 7}, write_statistics=False)
    found = survey([path])
    described = read_columns(take_sample(found, rows=500))
    [table] = draft_tables(assign(described, found.columns, None), described)
    assert table.ids == "hash"


def test_a_history_shares_the_table_of_what_it_is_of(tmp_path: Path) -> None:
    item = DRAW.integers(0, 40, ROWS)
    columns = {
        "label": LABEL,
        "history_movie_id": [[int(i), 41] for i in item],
        "history_genre": [[i % 3] for i in range(ROWS)],
        "other_movie_id_list": [[1000 + i % 300, 2] for i in range(ROWS)],  # of that name, but other ids
        "movie_id": item,
        "genres": [[i % 3] for i in range(ROWS)],
    }
    tables = {table.columns: (table.ids, table.rows) for table in decided(tmp_path, columns)[1]}
    assert tables[("movie_id", "history_movie_id")] == ("index", 42)
    assert ("genres", "history_genre") in tables
    assert ("other_movie_id_list",) in tables


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (4096, 8), (10_000, 16), (65_536, 16), (10**6, 32), (10**9, 64)])
def test_dim_is_the_fourth_root_in_steps_of_eight(rows: int, dim: int) -> None:
    assert dim_for([TableDraft("t", ("t",), "hash", rows, ""), TableDraft("u", ("u",), "index", 1, "")]) == dim
