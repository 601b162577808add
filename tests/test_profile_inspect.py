"""`distrec inspect`: true numbers, warnings first, and exit code 0 whatever it finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from command import Command
from hypothesis import HealthCheck, given, settings
from parquet_files import write
from toml_text import to_toml
from ugly_tables import START, labelled, tables, ugly

from distrec import screen
from distrec.errors import UserError
from distrec.profile.footers import survey
from distrec.profile.inspection import inspect_files
from distrec.profile.rates import label_rates
from distrec.profile.sample import take_sample
from distrec.profile.screen import to_json

ROWS = 1000


def rows(folder: Path, name: str, first: int, **replaced) -> str:
    draw = np.random.default_rng(first)
    columns = {
        "label": draw.integers(0, 2, ROWS),
        "item": draw.integers(0, 50, ROWS),
        "tags": [[int(i), 60] for i in draw.integers(0, 50, ROWS)],
        "x": [None if i % 4 == 0 else float(i) for i in range(ROWS)],
        "timestamp": START + first + np.arange(ROWS),
    }
    return write(folder / f"{name}.parquet", columns | replaced)


def inspected_or_said(path: str) -> str:
    try:
        return to_json(inspect_files([path]))
    except UserError as error:
        return str(error)


def config(folder: Path, **data) -> Path:
    features = {
        "dense": [{"name": "x", "null": 0.0}],
        "sparse": [{"name": "item", "table": "item"}, {"name": "tags", "table": "item"}],
    }
    path = folder / "my.toml"
    values = {"name": "n", "data": data, "tables": {"item": {"rows": 50, "dim": 4}}, "features": features}
    path.write_text(to_toml({**values, "model": {"name": "deepfm"}}), encoding="utf-8")
    return path


def found(distrec: Command, *words: object) -> dict:
    ended = distrec("inspect", *words, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_columns_of_a_config(distrec: Command, tmp_path: Path) -> None:
    train, valid = rows(tmp_path, "a", 0), rows(tmp_path, "b", 5000)
    seen = found(distrec, config(tmp_path, train=train, valid=valid))
    columns = {column["name"]: column for column in seen["columns"]}
    assert {name: column["use"] for name, column in columns.items()} == {
        "label": "label",
        "item": "id",
        "tags": "id",
        "x": "dense",
        "timestamp": "time",
    }
    assert (columns["x"]["nulls"], columns["x"]["nulls_exact"]) == (0.25, True)
    assert columns["x"]["bounds"] == [1.0, 999.0]
    assert columns["item"]["out_of_range"] == 0.0
    assert columns["tags"]["out_of_range"] == 0.5  # each second id is 60, in a table of 50 rows
    assert columns["item"]["distinct"] == 50
    assert (seen["rows"], seen["sampled"]) == ({"train": ROWS, "valid": ROWS},) * 2


def test_warnings_come_first_and_name_what_is_wrong(distrec: Command, tmp_path: Path) -> None:
    label = np.random.default_rng(1).integers(0, 2, ROWS)
    train = rows(tmp_path, "a", 0, label=label, x=label * 2.0 + 1)
    same = rows(tmp_path, "b", 0, label=label, x=label * 2.0 + 1)
    ended = distrec("inspect", config(tmp_path, train=[train], valid=[same, train]))
    assert ended.code == 0
    told = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert ended.out.startswith("warning: ")
    for expected in (
        f"{train} is in data.train and in data.valid",
        "valid begins before train ends",
        "feature 'x': alone it tells the label (AUC 1.0000)",
        "about 100.0% of the rows of valid stand in train, too",
        "column 'tags' has ids from 0 to 60, outside the 50 rows of its table (50.00% of the sampled ones)",
    ):
        assert any(expected in line for line in told), expected


def test_a_sound_dataset_warns_of_nothing(distrec: Command, tmp_path: Path) -> None:
    tags = [[i % 50] for i in range(ROWS)]
    paths = {"train": rows(tmp_path, "a", 0, tags=tags), "valid": rows(tmp_path, "b", 5000, tags=tags)}
    ended = distrec("inspect", config(tmp_path, **paths))
    assert "warning" not in ended.out
    assert "rows of valid that stand in train, too: none found" in ended.out
    assert "a share over 0.300% would have shown" in ended.out  # 3 of 1,000 rows, all of train sampled


def test_a_narrow_screen_has_a_paragraph_for_each_column(
    distrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rows(tmp_path, "rows", 0)
    monkeypatch.setattr(screen.console, "width", 80)
    narrow = distrec("inspect", path).out
    assert "x: dense, double\n    nulls 25.0%; distinct 750; from 1; to 999; skew 0.0; AUC alone" in narrow
    assert "most frequent" not in narrow.split("x: dense")[1].split("timestamp:")[0]  # every number stands there once
    monkeypatch.setattr(screen.console, "width", 160)
    wide = distrec("inspect", path).out
    assert "x: dense" not in wide
    assert "│ x " in wide


def test_files_are_split_as_init_splits_them(distrec: Command, tmp_path: Path) -> None:
    for name, first in (("a", 5000), ("b", 0)):
        rows(tmp_path, name, first)
    seen = found(distrec, tmp_path)
    assert seen["label_rates"]["train"][0]["first"] == "2023-11-14 22:13"
    assert set(seen["shared_rows"]) == {"valid"}


def test_the_label_over_time_is_numpys(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    seconds = draw.permutation(ROWS)
    label = (seconds / ROWS > draw.random(ROWS)).astype(float)
    read = take_sample(survey([write(tmp_path / "a.parquet", {"label": label, "t": START + seconds})]))
    by_time = label[np.argsort(seconds)].reshape(10, 100).mean(axis=1)
    assert [p.rate for p in label_rates(read, "label", "t")] == pytest.approx(by_time.tolist())
    in_order = label.reshape(10, 100).mean(axis=1)
    assert [p.rate for p in label_rates(read, "label", None)] == pytest.approx(in_order.tolist())
    assert [p.first for p in label_rates(read, "label", None)][:3] == ["0% of the rows", "10% of the rows", "20% of the rows"]


@pytest.mark.parametrize(
    ("times", "first"),
    [
        (pa.array([0, 86_400_000], pa.timestamp("ms")), "1970-01-01 00:00"),
        (pa.array([1, 2], pa.date32()), "1970-01-02"),
        (pa.array([START, START + 60]), "2023-11-14 22:13"),
        (pa.array([START * 1000, START * 1000 + 60]), "2023-11-14 22:13"),
        (pa.array([7, 8]), "7"),
        (pa.array([None, 7]), "7"),
    ],
)
def test_moments_are_told_in_their_unit(tmp_path: Path, times: pa.Array, first: str) -> None:
    read = take_sample(survey([write(tmp_path / "a.parquet", {"label": [0, 1], "t": times})]))
    assert label_rates(read, "label", "t")[0].first == first


def test_rows_of_one_time_are_never_parted(tmp_path: Path) -> None:
    read = take_sample(survey([write(tmp_path / "a.parquet", {"label": [0, 1] * 50, "t": [START] * 90 + [START + 1] * 10})]))
    assert [period.rows for period in label_rates(read, "label", "t")] == [90, 10]


@pytest.mark.parametrize("name", ugly())
def test_an_ugly_table_is_inspected(distrec: Command, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "rows.parquet", dict(zip(ugly()[name].column_names, ugly()[name].columns, strict=True)))
    ended = distrec("inspect", path)
    assert ended.code == 0, ended.err
    assert "columns, from all" in ended.out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(table=tables())
def test_any_schema_is_inspected_or_gets_a_message(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "rows.parquet", dict(zip(table.column_names, table.columns, strict=True)))
    assert "label" in inspected_or_said(path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"items": [1], "item": None}, "no column 'item', which the config names; did you mean 'items'?"),
        ({"item": [[0.5]]}, "column 'item', which the config names, cannot be read: it is list<"),
    ],
)
def test_a_column_that_the_config_needs_and_is_not_there_is_said(
    distrec: Command, tmp_path: Path, replaced: dict, message: str
) -> None:
    columns = {"label": [1], "item": [1], "tags": [[1]], "x": [0.5]} | replaced
    path = write(tmp_path / "a.parquet", {name: values for name, values in columns.items() if values is not None})
    ended = distrec("inspect", config(tmp_path, train=path))
    assert ended.code == 2
    assert message in ended.err


def test_overrides_follow_a_config(distrec: Command, tmp_path: Path) -> None:
    path = config(tmp_path, train=rows(tmp_path, "a", 0))
    [tags] = [c for c in found(distrec, path, "tables.item.rows=61")["columns"] if c["name"] == "tags"]
    assert tags["out_of_range"] == 0.0


def test_a_table_without_any_honest_label_says_so(distrec: Command, tmp_path: Path) -> None:
    table = labelled(x=[0.5] * 300).drop_columns("label")
    path = write(tmp_path / "a.parquet", {"x": table["x"]})
    ended = distrec("inspect", path)
    assert (ended.code, "no column looks like a label" in ended.err) == (2, True)
