"""`distrec init`: what it writes always loads, passes the check and trains; what it cannot write for, it says."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command
from hypothesis import HealthCheck, given, settings
from parquet_files import write
from ugly_tables import START, labelled, tables, ugly

from distrec.config.layout import layout
from distrec.config.load import load, parse
from distrec.config.schema import Config
from distrec.data import Reader
from distrec.data.numbering import Numbering
from distrec.engine import open_split, reading_of
from distrec.errors import UserError
from distrec.prepare.movielens import movielens
from distrec.prepare.synthetic import synthetic
from distrec.profile.draft import draft
from distrec.profile.toml_out import to_toml
from distrec.validate import validate

UGLY = ugly()


def written(*paths: object, **options: str) -> Config:
    """What `init` writes, loaded."""
    return parse(tomllib.loads(to_toml(draft([str(path) for path in paths], **options))))


def written_or_said(path: Path) -> Config | str:
    """The config, or the message that there is none."""
    try:
        return written(path)
    except UserError as error:
        return str(error)


def file_of(folder: Path, table: pa.Table, name: str = "rows.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return folder / name


def trained(distrec: Command, tmp_path: Path, *paths: object, steps: int = 2) -> Config:
    """Write a config by the command line, check it, train some steps on it."""
    drafted = distrec("init", *paths)
    assert drafted.code == 0, drafted.err
    (tmp_path / "my.toml").write_text(drafted.out, encoding="utf-8")
    checked = distrec("check", tmp_path / "my.toml")
    assert checked.code == 0, checked.err
    fast = ["data.test=[]", "data.eval_batch_size=8192"]
    run = distrec(
        "train", tmp_path / "my.toml", f"train.steps={steps}", "train.device=cpu", f"folder={tmp_path / 'run'}", *fast
    )
    assert run.code == 0, run.err
    assert (tmp_path / "run" / "summary.json").exists()
    return load(tmp_path / "my.toml")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def read_all(config: Config) -> int:
    """Rows that the reader delivers: none is refused."""
    order = layout(config.features, config.tables)
    rows = 0
    for split in ("train", "valid"):
        if getattr(config.data, split):
            reader = Reader(
                open_split(config, reading_of(config, order, None, split), split, Numbering()),
                config.data,
                order,
                config.tasks,
                rank=0,
                world=1,
            )
            rows += sum(int((batch.weights > 0).sum()) for batch in reader.batches(epochs=1))
    return rows


@pytest.mark.parametrize("name", UGLY)
def test_what_init_writes_for_an_ugly_table_loads_and_reads_every_row(tmp_path: Path, name: str) -> None:
    config = written(file_of(tmp_path, UGLY[name]))
    assert validate(config)
    if config.data.weight is None:
        assert read_all(config) == UGLY[name].num_rows


@pytest.mark.parametrize(
    "name", ["string ids", "history of strings", "names of all kinds", "extreme numbers", "only one feature"]
)
def test_it_trains(distrec: Command, tmp_path: Path, name: str) -> None:
    trained(distrec, tmp_path, file_of(tmp_path / "data", UGLY[name]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(table=tables())
def test_any_schema_gives_a_config_that_reads_or_a_message(tmp_path: Path, table: pa.Table) -> None:
    path = file_of(tmp_path, table)
    config = written_or_said(path)
    if isinstance(config, str):
        assert "label" in config
    else:
        assert validate(config)
        assert read_all(config) == table.num_rows


def test_a_thousand_columns_of_each_kind_load_and_build(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    wide = {f"d{i}": draw.normal(size=200).astype(np.float32) for i in range(1000)}
    wide |= {f"c{i}": draw.integers(0, 9, 200) for i in range(1000)}
    config = written(file_of(tmp_path, labelled(200, **wide)))
    assert (len(config.features.dense), len(config.features.sparse)) == (1000, 1000)
    assert (config.model.name, config.model.params["interaction"]) == ("dlrm", "dcn")


def test_files_that_disagree_leave_the_column_out(tmp_path: Path) -> None:
    same = {"city": ["a", "b", "c"] * 20, "m": pa.array(range(60), pa.int32())}
    file_of(tmp_path, labelled(60, x=["text"] * 60, gone=[1, 2] * 30, **same), "a.parquet")
    file_of(tmp_path, labelled(60, x=[0.5, 1.5] * 30, **(same | {"m": pa.array(range(60), pa.int64())})), "b.parquet")
    config = written(tmp_path)
    assert {f.name for f in config.features.sparse} == {"city", "m"}
    assert config.features.dense == ()
    assert read_all(config) == 120


def test_every_null_and_value_of_the_files_that_were_not_sampled_is_taken(tmp_path: Path) -> None:
    """Footers know of the null, the NaN-free bounds and the large id in the last file, which is held out."""
    time = {"timestamp": np.arange(200) + START}
    file_of(tmp_path, labelled(200, x=np.linspace(0, 1, 200), item_id=np.arange(200) % 100, **time), "a.parquet")
    late = {"timestamp": np.arange(200) + START + 200}
    file_of(tmp_path, labelled(200, x=[None, 1e300] * 100, item_id=np.arange(200) + 100, **late), "b.parquet")
    config = written(tmp_path)
    assert config.data.valid == (str(tmp_path / "b.parquet"),)
    [x] = config.features.dense
    assert (x.transform, x.null) == ("log1p", pytest.approx(0.5, abs=0.01))
    assert config.tables["item_id"].rows == 300
    assert read_all(config) == 400


def test_dense_columns_come_out_near_zero_and_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = {"far": draw.normal(1e6, 50, 5000), "tail": draw.lognormal(3, 2, 5000), "unit": draw.normal(size=5000)}
    config = written(file_of(tmp_path, labelled(5000, city=["a", "b"] * 2500, **columns)))
    order = layout(config.features, config.tables)
    reader = Reader(
        open_split(config, reading_of(config, order, None, "train"), "train", Numbering()),
        config.data,
        order,
        config.tasks,
        rank=0,
        world=1,
    )
    dense = np.concatenate([batch.dense[batch.weights > 0].numpy() for batch in reader.batches(epochs=1)])
    assert abs(dense.mean(axis=0)).max() < 0.1
    assert abs(dense.std(axis=0) - 1).max() < 0.1
    assert [f.transform for f in config.features.dense] == ["none", "log1p", "none"]
    assert config.features.dense[2].scale == 1.0


def test_a_feature_that_alone_tells_the_label_is_left_out_with_the_reason(distrec: Command, tmp_path: Path) -> None:
    table = labelled(city=[f"c{i % 9}" for i in range(300)])
    path = file_of(tmp_path, table.append_column("paid", pa.array(table["label"].to_numpy() * 9.5)))
    drafted = distrec("init", path)
    assert [f["name"] for f in tomllib.loads(drafted.out)["features"]["sparse"]] == ["city"]
    assert '#   "paid": alone it tells the label (AUC 1.0000)' in drafted.out
    assert "left out 'paid': alone it tells the label" in drafted.err


def test_a_second_label_stands_ready_as_a_task_and_trains_once_it_is_uncommented(distrec: Command, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    others = {"is_purchased": draw.random(300) < 0.25, "did\nlike": draw.integers(0, 2, 300)}
    no_tasks = {"liked": pa.array([None, 1, 0] * 100), "rating": draw.integers(1, 6, 300), "bought": [0] * 300}
    table = labelled(city=[f"c{i % 9}" for i in range(300)], **others, **no_tasks)
    path = file_of(tmp_path / "data", table)
    drafted = distrec("init", path)
    assert [task["label"] for task in tomllib.loads(drafted.out)["tasks"]] == ["label"]
    ready = re.sub(r'^# (\[\[tasks\]\]|(?:name|label|kind) = ".*)$', r"\1", drafted.out, flags=re.M)
    assert [(t["name"], t["label"], t["kind"]) for t in tomllib.loads(ready)["tasks"]] == [
        ("label", "label", "binary"),
        ("is_purchased", "is_purchased", "binary"),
        ("did_like", "did\nlike", "binary"),
    ]
    assert f"# {others['is_purchased'].mean():.2%} are 1" in ready
    for name in ("is_purchased", "did like"):
        assert f"left out '{name}': named like something" in drafted.err.replace("\\n", " ")
    assert "\ntasks for 'is_purchased', 'did\\nlike' stand in the config, commented out\n" in drafted.err
    assert drafted.out.count("# Other labels") == 1
    (tmp_path / "my.toml").write_text(ready, encoding="utf-8")
    run = distrec("train", tmp_path / "my.toml", f'data.valid=["{path}"]', "train.device=cpu", f"folder={tmp_path / 'run'}")
    assert run.code == 0, run.err
    assert {"valid/label/auc", "valid/is_purchased/auc", "valid/did_like/auc"} <= set(summary(tmp_path / "run")["metrics"])


def test_a_split_that_would_leak_is_not_written_and_said(distrec: Command, tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 100)):
        file_of(tmp_path, labelled(200, x=np.arange(200) % 7, timestamp=np.arange(200) + START + first), f"{name}.parquet")
    drafted = distrec("init", tmp_path)
    assert "valid" not in tomllib.loads(drafted.out)["data"]
    assert "# WARNING: files overlap in 'timestamp'" in drafted.out
    assert "warning: files overlap in 'timestamp'" in drafted.err


def test_the_config_goes_to_stdout_and_all_else_to_stderr(distrec: Command, tmp_path: Path) -> None:
    drafted = distrec("init", file_of(tmp_path, UGLY["string ids"]))
    assert tomllib.loads(drafted.out)["name"] == "rows"
    assert "looked at all 300 rows" in drafted.err
    assert "all 300 rows" in drafted.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.parquet"], "nowhere.parquet: no Parquet file there"),
        (["rows.parquet", "--label", "lable"], "no column 'lable' to be the label; did you mean 'label'?"),
        (["rows.parquet", "--time", "city"], "--time 'city' names no column of times or integers"),
        (
            ["none.parquet"],
            "no column beside the label 'label' holds ids, and a run needs an embedding table\n  'same': always 3",
        ),
    ],
)
def test_a_mistake_is_one_message(
    distrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    file_of(tmp_path, labelled(city=["a", "b", "c"] * 100))
    file_of(tmp_path, labelled(same=[3] * 300), "none.parquet")
    monkeypatch.chdir(tmp_path)
    ended = distrec("init", *words)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_label_and_time_can_be_named(tmp_path: Path) -> None:
    table = {"won": [0, 1] * 30, "rank": [1, 2, 3] * 20, "city": ["a", "b", "c"] * 20}
    for name, first in (("a", 100), ("b", 0)):
        write(tmp_path / f"{name}.parquet", {**table, "turn": list(range(first, first + 60))})
    config = written(tmp_path, label="rank", time="turn")
    assert (config.tasks[0].label, config.tasks[0].kind) == ("rank", "regression")
    assert config.data.valid == (str(tmp_path / "a.parquet"),)
    assert "turn" not in {f.name for f in (*config.features.dense, *config.features.sparse)}


def test_weight_and_group_are_used(tmp_path: Path) -> None:
    users = [f"u{i % 20}" for i in range(300)]
    config = written(
        file_of(tmp_path, labelled(user_id=users, item=[i % 7 for i in range(300)], sample_weight=[0.5, 1.5] * 150))
    )
    assert (config.data.weight, config.data.group) == ("sample_weight", "user_id")
    assert "sample_weight" not in {f.name for f in config.features.dense}


ROLES = {"sparse": "sparse", "sequence": "sequence", "dense": "dense", "group": "sparse"}


def described_roles(folder: Path) -> dict[str, str]:
    """What dataset.json says of each column that is a feature."""
    columns = json.loads((folder / "dataset.json").read_text())["columns"]
    return {c["name"]: ROLES[c["role"]] for c in columns if c["role"] in ROLES}


def drafted_roles(config: Config) -> dict[str, str]:
    return {f.column or f.name: part for part in ("dense", "sparse", "sequence") for f in getattr(config.features, part)}


def test_synthetic_data_get_the_roles_that_they_were_made_with(distrec: Command, tmp_path: Path) -> None:
    synthetic(tmp_path / "data", rows=3000, valid_rows=500)
    config = trained(distrec, tmp_path, tmp_path / "data" / "ctr")
    assert drafted_roles(config) == described_roles(tmp_path / "data" / "ctr")
    assert config.data.valid == (str(tmp_path / "data" / "ctr" / "valid"),)
    assert config.model.name == "din"
    assert (config.model.params["targets"], config.model.params["histories"]) == (["item"], ["history_item"])


@pytest.mark.parametrize(("task", "kind"), [("ctr", "binary"), ("rating", "regression")])
def test_movielens_gets_the_roles_that_it_was_prepared_with(distrec: Command, tmp_path: Path, task: str, kind: str) -> None:
    if "DISTREC_DATA" not in os.environ:
        pytest.skip("needs ml-100k.zip; set DISTREC_DATA")
    movielens("movielens-100k", tmp_path / "data", task=task, source=Path(os.environ["DISTREC_DATA"]) / "ml-100k.zip")  # type: ignore[arg-type]
    folder = tmp_path / "data" / task
    config = trained(distrec, tmp_path, folder)
    expected = described_roles(folder) | {"age": "dense"}  # years of age, not MovieLens-1M's seven codes
    assert drafted_roles(config) == expected
    assert config.tasks[0].kind == kind
    largest = max(max(pq.read_table(path, columns=["movie_id"])["movie_id"].to_pylist()) for path in folder.glob("*/*.parquet"))
    assert (config.tables["movie_id"].rows, config.tables["movie_id"].dim) == (largest + 1, 8)
    assert config.data.group == ("user_id" if kind == "binary" else None)  # GAUC is of probabilities
    assert {f.name: f.table for f in config.features.sequence} == {"history_movie_id": "movie_id", "history_genre": "genre"}


def test_criteo_is_hashed_and_transformed(distrec: Command, tmp_path: Path) -> None:
    if "DISTREC_DATA" not in os.environ:
        pytest.skip("needs criteo-tb-80k; set DISTREC_DATA")
    config = trained(distrec, tmp_path, Path(os.environ["DISTREC_DATA"]) / "criteo-tb-80k")
    assert drafted_roles(config) == {f"i{i}": "dense" for i in range(1, 14)} | {f"c{i}": "sparse" for i in range(1, 27)}
    assert {f.ids for f in config.features.sparse} == {"hash"}
    assert config.features.dense[0].transform == "log1p"
    assert [Path(path).name for path in config.data.valid] == ["part-7.parquet"]
