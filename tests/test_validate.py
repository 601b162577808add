"""What `distrec check` knows of ids before training reads them: from footers, and for items from a sample of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_retrieval import ITEMS, retrieval_values, write_retrieval
from small_run import values, write_rows

from distrec.config.load import parse
from distrec.errors import UserError
from distrec.validate import validate

ROWS = 600
FIX = 'Give the table more rows, or set out_of_range = "null" (no id) or "hash" (share a row)'
LACKING = "is not in the catalogue (retrieval.items); add it there, or leave out what refers to it"


def said(config: dict[str, Any]) -> list[str]:
    """The faults, each on its line."""
    with pytest.raises(UserError) as error:
        validate(parse(config))
    return [line.strip() for line in str(error.value).splitlines() if not line.endswith("faults:")]


def edit(folder: Path, column: str, change: Any, part: int = 1, **options: Any) -> Path:
    """Change the list of a column's values in one file; returns the file."""
    path = folder / f"part-{part}.parquet"
    table = pq.read_table(path)
    old = table.column(column)
    new = pa.array(change(old.to_pylist()), old.type)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, new), path, **options)
    return path


def test_a_run_to_start_from_must_have_a_checkpoint(tmp_path: Path) -> None:
    config = values(write_rows(tmp_path / "train", ROWS), tmp_path)
    config["train"]["start_from"] = str(tmp_path / "monday")
    fault = f"train.start_from: {tmp_path}/monday has no checkpoint; name the folder of a run that was trained"
    assert said(config) == [fault]
    saved = tmp_path / "monday/checkpoints/step-000000005"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    assert "600 rows in data.train" in validate(parse(config))


# -- ids and tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "bad", "value", "feature"),
    [
        ("user", lambda ids: [*ids[:-1], 50], "id 50 is outside [0, 50), the rows of table 'user'", "user"),
        ("user", lambda ids: [-1, *ids[1:]], "id -1 is outside [0, 50), the rows of table 'user'", "user"),
        ("history", lambda rows: [*rows[:-1], [3, 99]], "id 99 is outside [0, 40), the rows of table 'item'", "history"),
    ],
)
def test_an_id_outside_its_table_is_known_from_the_footers(
    tmp_path: Path, column: str, bad: Any, value: str, feature: str
) -> None:
    config = values(write_rows(tmp_path / "train", ROWS), tmp_path)
    config["data"]["valid"] = str(write_rows(tmp_path / "valid", ROWS, seed=1))
    assert "600 rows in data.valid" in validate(parse(config))
    path = edit(tmp_path / "valid", column, bad)
    assert said(config) == [f"feature {feature!r}, column {column!r} of {path}: {value}. {FIX}"]


def test_both_ends_of_all_files_and_splits_are_told_at_once(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_rows(tmp_path / split, ROWS)
    config = values(tmp_path / "train", tmp_path)
    config["data"] |= {split: str(tmp_path / split) for split in ("valid", "test")}
    low, high = (edit(tmp_path / "train", "user", lambda ids, v=v: [v, *ids[1:]], part) for part, v in ((0, -7), (1, 70)))
    edit(tmp_path / "train", "item", lambda ids: [41, *ids[1:]], part=0)
    worst = edit(tmp_path / "train", "item", lambda ids: [45, *ids[1:]], part=1)
    test = edit(tmp_path / "test", "user", lambda ids: [51, *ids[1:]])
    found = said(config)
    assert len(found) == 4
    assert [(str(path) in line, f"id {v} " in line) for line, path, v in zip(found, (low, high), (-7, 70), strict=False)] == [
        (True, True),
        (True, True),
    ]
    assert f"column 'item' of {worst}: id 45 " in found[2]  # so many rows would be enough
    assert f"column 'user' of {test}: id 51 " in found[3]


@pytest.mark.parametrize("policy", [{"ids": "hash"}, {"out_of_range": "null"}, {"out_of_range": "hash"}])
def test_ids_that_training_takes_are_no_fault(tmp_path: Path, policy: dict[str, str]) -> None:
    config = values(write_rows(tmp_path / "rows", ROWS), tmp_path)
    edit(tmp_path / "rows", "user", lambda ids: [5000, *ids[1:]])
    assert len(said(config)) == 1
    config["features"]["sparse"][0] |= policy
    assert validate(parse(config))


def test_of_files_without_statistics_nothing_is_claimed_and_of_others_it_is(tmp_path: Path) -> None:
    config = values(write_rows(tmp_path / "rows", ROWS), tmp_path)
    edit(tmp_path / "rows", "user", lambda ids: [5000, *ids[1:]], part=1, write_statistics=False)
    assert validate(parse(config))
    path = edit(tmp_path / "rows", "user", lambda ids: [60, *ids[1:]], part=0)
    assert f"column 'user' of {path}: id 60 is outside" in said(config)[0]


@pytest.mark.parametrize(("kind", "largest"), [(pa.uint64(), 2**63 + 5), (pa.uint32(), 2**31 + 5), (pa.int8(), 100)])
def test_numbers_of_every_width_are_told_as_they_are(tmp_path: Path, kind: pa.DataType, largest: int) -> None:
    config = values(write_rows(tmp_path / "rows", ROWS, user=pa.array([largest] + [3] * (ROWS - 1), kind)), tmp_path)
    assert f"id {largest} is outside [0, 50)" in said(config)[0]


# -- items and the catalogue -----------------------------------------------------------------------------------------


def retriever(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """A config on rows of items 0 to 39, or of text."""
    data = write_retrieval(tmp_path / "data", rows=ROWS, **options)
    config = retrieval_values(data, tmp_path / "run")
    config["data"]["valid"] = str(data / "valid")
    return config


def without(tmp_path: Path, gone: int) -> None:
    """Take an item out of the catalogue."""
    for path in (tmp_path / "data" / "items").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array(i != gone for i in table.column("item_index").to_pylist())), path)


def test_an_item_beyond_the_catalogue_is_known_from_the_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrec.profile.outside.ITEM_ROWS", 1)
    config = retriever(tmp_path, negatives=pa.array([[0, 39]] * ROWS))
    edit(tmp_path / "data" / "valid", "targets", lambda rows: [*rows[:-1], [ITEMS - 1]])
    assert validate(parse(config))
    without(tmp_path, ITEMS - 1)
    named = [line.partition(" of ")[0] for line in said(config) if line.endswith(f": item {ITEMS - 1} {LACKING}")]
    assert named == ["column 'item_id'", "column 'targets'"]
    config["retrieval"] |= {"negatives": {"column": "negatives", "column_length": 1}, "log_q": False}
    assert len(said(config)) == 2  # only the first of each list is used


@pytest.mark.parametrize("text", [False, True])
def test_an_item_that_footers_do_not_tell_is_met_in_a_sample(tmp_path: Path, text: bool) -> None:
    config = retriever(tmp_path, text=text)
    assert validate(parse(config))
    without(tmp_path, 20)
    named = {
        line.partition(",")[0] for line in said(config) if line.endswith(f": item {'item-20' if text else 20!r} {LACKING}")
    }
    assert "column 'item_id'" in named
    assert "row" in said(config)[0]


def test_an_item_that_is_only_masked_may_be_gone(tmp_path: Path) -> None:
    config = retriever(tmp_path)
    edit(tmp_path / "data" / "valid", "seen", lambda rows: [[5000], *rows[1:]])
    assert validate(parse(config))


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_id", [None, "user_id"])
def test_every_path_that_is_not_there_is_told_with_its_key(tmp_path: Path, query_id: str | None) -> None:
    config = retriever(tmp_path)
    config["data"] |= {"train": "no/train", "valid": ["no/valid", "nor/valid"]}
    config["retrieval"] |= {"items": "no/items", "query_id": query_id}
    none = f"no Parquet file there, seen from {Path.cwd()}; give a file, a folder that holds *.parquet, or a glob"
    assert said(config) == [
        f"retrieval.items: no/items: {none}",
        f"data.train: no/train: {none}",
        "data.valid: paths that cannot be used:",
        f"no/valid: {none}",
        f"nor/valid: {none}",
    ]


def test_files_without_rows_are_told_with_their_key(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", ROWS)
    for path in (tmp_path / "rows").glob("*"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert said(values(tmp_path / "rows", tmp_path)) == [f"data.train: no rows in {tmp_path}/rows: 2 Parquet files, all empty"]
