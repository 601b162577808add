"""`distrec init` on what `distrec prepare` wrote for a retriever: the config loads, passes the check and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from command import Command

from distrec.config.load import load
from distrec.config.schema import Config
from distrec.prepare.retrieval.interactions import interactions
from distrec.prepare.retrieval.items import ItemFile
from distrec.prepare.retrieval.log import LogColumns
from distrec.prepare.retrieval.splits import Splitting

USERS, ITEMS, ROWS = 30, 70, 600
FEATURES = ("device", "user", "last_items", "shop area", "weight", "member")


def write_shop(folder: Path, suffix: str = ".parquet") -> None:
    """A log and a catalogue with a column of every kind, some of them named as the config names things of its own."""
    draw = np.random.default_rng(0)
    log = {
        "who": [f"u{n}" for n in draw.integers(0, USERS, ROWS)],
        "what": [f"i{n}" for n in draw.integers(0, ITEMS, ROWS)],
        "when": np.arange(ROWS) + 1_700_000_000,
        "device": draw.choice(["phone", "desk"], ROWS),
        "user": draw.integers(0, 9, ROWS),
        "last_items": draw.integers(0, 9, ROWS),
        "shop area": draw.integers(0, 24, ROWS),
        "weight": draw.lognormal(6, 2, ROWS),
        "member": draw.random(ROWS) < 0.5,
    }
    catalogue: dict[str, Any] = {
        "what": [f"i{n}" for n in range(ITEMS)],
        "name": [f"Item {n}" for n in range(ITEMS)],
        "kind": [f"k{n % 3}" for n in range(ITEMS)],
        "price": pa.array([None, *np.arange(1.0, ITEMS)], pa.float64()),
    }
    if suffix == ".csv":
        csv.write_csv(pa.table(log), folder / "log.csv")
        csv.write_csv(pa.table(catalogue), folder / "items.csv")
    else:
        lists = {"tags": [list(range(2 * n)) for n in range(ITEMS)], "words": [["new", "red"][: n % 3] for n in range(ITEMS)]}
        pq.write_table(pa.table(log), folder / "log.parquet")
        pq.write_table(pa.table(catalogue | lists), folder / "items.parquet")


def prepare(folder: Path, features: tuple[str, ...] = (), items: ItemFile | None = None, **options: Any) -> Path:
    columns = LogColumns("who", "what", "when", features)
    log = next(folder.glob("log.*"))
    return interactions([[log]], folder / "shop", columns=columns, items=items, overwrite=True, **options).folder


def drafted(distrec: Command, data: Path) -> Config:
    """What `init` writes, checked and trained on for two steps."""
    ended = distrec("init", data)
    assert (ended.code, ended.err) == (0, "")
    config = data.parent / "my.toml"
    config.write_text(ended.out, encoding="utf-8")
    checked = distrec("check", config)
    assert checked.code == 0, checked.err
    run = distrec("train", config, "train.steps=2", "train.device=cpu", f"folder={data.parent / 'run'}")
    assert run.code == 0, run.err
    for split in ("valid", "test"):
        assert (f"{split}/recall@20" in run.out) == (data / split).exists()
    return load(config)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_config_for_columns_of_every_kind(distrec: Command, tmp_path: Path, suffix: str) -> None:
    write_shop(tmp_path, suffix)
    described = ["kind", "price", *(["tags", "words"] if suffix == ".parquet" else [])]
    items = ItemFile(tmp_path / f"items{suffix}", "what", title="name", category="kind", features=described)
    data = prepare(tmp_path, FEATURES, items)
    config = drafted(distrec, data)
    assert config.name == "shop-retriever"
    assert (config.tables["user"].rows, config.tables["item"].rows) == (USERS, ITEMS)
    sparse = {feature.name: feature for feature in config.features.sparse}
    hashed = {"device", "user", "last_items_2", "shop_area", *described} - {"price"}
    rows = {name: config.tables[feature.table].rows for name, feature in sparse.items() if feature.ids == "hash"}
    assert rows == dict.fromkeys(hashed, 1024)
    tables = {name: feature.table for name, feature in sparse.items() if feature.ids == "index"}
    assert tables == {"user_id": "user", "last_items": "item", "history_item_id": "item", "item_id": "item"}
    assert (sparse["last_items"].column, sparse["last_items"].max_length) == ("history_item_id", 3)
    assert (sparse["last_items_2"].column, sparse["shop_area"].column) == ("last_items", "shop area")
    dense = {feature.name: feature for feature in config.features.dense}
    transforms = {"weight": "log1p", "member": "none", "price": "none"}
    assert {name: feature.transform for name, feature in dense.items()} == transforms
    assert dense["price"].null == 35  # the median of 1 to 69, which CSV writes as integers
    rows = pq.read_table(data / "train")
    medians = {name: np.median(rows[name].to_numpy().astype(float)) for name in ("weight", "member")}  # no row lacks them,
    assert {name: dense[name].null for name in medians} == pytest.approx(medians, rel=0.005)  # but a history alone does
    assert config.retrieval is not None
    assert set(config.retrieval.item_features) == {"item_id", *described}
    assert (config.retrieval.mask, config.retrieval.query_id, config.retrieval.own_id) == ("seen", "raw_user_id", "raw_id")
    assert (config.retrieval.title, config.retrieval.category) == ("title", "category")
    if suffix == ".parquet":
        assert (sparse["tags"].max_length, sparse["words"].max_length, sparse["words"].pooling) == (100, None, "mean")


def test_a_config_for_ids_alone_and_no_valid(distrec: Command, tmp_path: Path) -> None:
    write_shop(tmp_path)
    data = prepare(tmp_path, splitting=Splitting("temporal", 0, 0.2), repeats="all", max_history=2)
    config = drafted(distrec, data)
    assert (config.data.valid, config.data.test) == ((), (str(data / "test"),))
    assert [feature.name for feature in config.features.sparse] == ["user_id", "history_item_id", "item_id"]
    assert config.features.sparse[1].max_length == 2
    assert config.retrieval is not None
    assert (config.retrieval.mask, config.retrieval.category) == (None, None)


def test_of_what_nothing_can_be_learned_it_makes_no_feature(distrec: Command, tmp_path: Path) -> None:
    write_shop(tmp_path)
    log = pq.read_table(tmp_path / "log.parquet")
    weight = np.array(log["weight"].to_pylist())
    weight[7] = np.inf
    names = ["endless", "same", "none"]
    for name, values in zip(names, (weight, ["x"] * ROWS, pa.nulls(ROWS, pa.float64())), strict=True):
        log = log.append_column(name, pa.array(values))
    pq.write_table(log, tmp_path / "log.parquet")
    folder = prepare(tmp_path, ("device", *names))
    ended = distrec("init", folder)
    assert ended.code == 0, ended.err
    (tmp_path / "my.toml").write_text(ended.out)
    config = load(tmp_path / "my.toml")
    told = {*config.tables, *(feature.name for feature in (*config.features.dense, *config.features.sparse))}
    assert "device" in told
    assert not told & set(names)
    assert "# left out 'endless': infinite in 0." in ended.out
    assert "# left out 'same': always x" in ended.out
    assert "# left out 'none': there is no value" in ended.out
    assert distrec("check", tmp_path / "my.toml").code == 0


def test_a_small_catalogue_is_asked_for_fewer_items(distrec: Command, tmp_path: Path) -> None:
    rows = pa.table({"who": ["a", "b"] * 40, "what": [f"i{n // 2}" for n in range(80)], "when": range(80)})
    pq.write_table(rows, tmp_path / "log.parquet")
    config = drafted(distrec, prepare(tmp_path))
    assert config.retrieval is not None
    assert config.retrieval.ks == (10, 20)
    assert config.data.batch_size == 64


def test_cardinalities_that_are_told_are_taken_and_an_order_that_is_not_known_is_not(distrec: Command, tmp_path: Path) -> None:
    write_shop(tmp_path)
    data = prepare(tmp_path, ("shop area",))
    told = json.loads((data / "dataset.json").read_text())
    next(column for column in told["columns"] if column["name"] == "shop area")["cardinality"] = 24
    (data / "dataset.json").write_text(json.dumps(told | {"split": "given"}))
    config = drafted(distrec, data)
    assert config.tables["shop_area"].rows == 24
    assert [feature.name for feature in config.features.sparse] == ["user_id", "shop_area", "history_item_id", "item_id"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shop/retrieval", "--label", "x"], "--label and --time are for rankers, and shop/retrieval holds a retriever's data"),
        (["shop"], "name the folder, with its dataset.json, that `distrec prepare` wrote"),
        (["damaged"], "damaged/dataset.json cannot be read: "),
    ],
)
def test_what_is_no_folder_of_a_retriever_is_said(
    distrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    prepare(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset.json").write_text("{")
    ended = distrec("init", *words)
    assert (ended.code, message in ended.err) == (2, True), ended.err


def test_inspect_does_not_look_for_a_label_in_it(distrec: Command, tmp_path: Path) -> None:
    write_shop(tmp_path)
    data = prepare(tmp_path)
    ended = distrec("inspect", data)
    assert (ended.code, ended.err.startswith("distrec: inspect looks for what gives a label away")) == (2, True), ended.err
