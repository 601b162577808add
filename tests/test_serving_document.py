"""The script of docs/serving.md, as it stands there, scores rows as the run evaluated them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import Command
from small_retrieval import retrieval_values, write_retrieval
from small_run import values, write_rows
from toml_text import to_toml

PAGE = (Path(__file__).parents[1] / "docs/serving.md").read_text(encoding="utf-8")
ROWS = 300
TASKS = [{"name": "click", "label": "label"}, {"name": "stars", "label": "stars", "kind": "regression"}]
FEATURES = {
    "dense": [
        {"name": "x", "transform": "log1p", "scale": 3.0},
        {"name": "delta", "column": "change", "null": 0.5, "transform": "signed_log1p", "shift": 0.25},
    ],
    "sparse": [
        {"name": "user", "table": "user", "ids": "hash"},
        {"name": "place", "table": "user", "ids": "hash"},
        {"name": "item", "table": "item"},
        {"name": "tags", "table": "tag", "ids": "hash", "pooling": "mean", "max_length": 2},
        {"name": "far", "table": "far", "out_of_range": "null", "pooling": "mean"},
        {"name": "wrapped", "column": "far", "table": "wrapped", "out_of_range": "hash"},
    ],
    "sequence": [{"name": "history", "table": "item", "max_length": 4}],
}
SHAPES = {"user": (64, 8), "item": (40, 8), "tag": (32, 8), "far": (9, 8), "wrapped": (9, 8)}


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.S | re.M)
    found: dict[str, Any] = {"__name__": "serve"}
    exec(compile(text, "serve.py", "exec"), found)  # a document of this repository
    return SimpleNamespace(**found)


@pytest.fixture
def run(distrec: Command, tmp_path: Path) -> Path:
    """A run on rows with every kind of feature, exported."""
    draw = np.random.default_rng(3)
    tags = [draw.choice(["a", "b", "Küche", ""], n).tolist() for n in draw.integers(0, 4, ROWS)]
    far = [draw.integers(-3, 12, n).tolist() for n in draw.integers(0, 4, ROWS)]
    columns = {
        "user": [None if i % 9 == 0 else f"u-{i % 37}" for i in range(ROWS)],
        "place": draw.integers(-(2**62), 2**62, ROWS),
        "change": pa.array(draw.normal(size=ROWS), mask=draw.random(ROWS) < 0.2),
        "tags": pa.array(tags, pa.list_(pa.string())),
        "far": pa.array(far, pa.list_(pa.int64())),
        "stars": draw.normal(size=ROWS),
    }
    rows = write_rows(tmp_path / "rows", rows=ROWS, **columns)
    tables = {name: {"rows": n, "dim": dim, "init_scale": 0.5} for name, (n, dim) in SHAPES.items()}
    model = {"name": "wide_deep", "params": {"mlp": [8]}}
    given = values(rows, tmp_path / "run", features=FEATURES, tables=tables, tasks=TASKS, model=model)
    given["train"] |= {"steps": 8}
    given["data"] |= {"valid": str(rows)}
    (tmp_path / "my.toml").write_text(to_toml(given), encoding="utf-8")
    assert distrec("train", tmp_path / "my.toml").code == 0
    exported = distrec("export", tmp_path / "run")
    assert exported.code == 0, exported.err
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.11's own loader
def test_it_scores_every_row_as_the_run_was_evaluated(distrec: Command, script: SimpleNamespace, run: Path) -> None:
    rows = [row for part in sorted((run.parent / "rows").glob("*")) for row in pq.read_table(part).to_pylist()]
    evaluated = json.loads((run / "summary.json").read_text())["metrics"]
    ranker = script.Ranker(run / "export")
    assert entropy(ranker, rows) == pytest.approx(evaluated["valid/click/logloss"], rel=1e-5)
    assert error(ranker, rows) == pytest.approx(evaluated["valid/stars/mse"], rel=1e-5)

    program = torch.export.load(run / "export/ranker.pt2").module()
    given = ranker.inputs(rows[1])
    logits = program(*(torch.from_numpy(given[name]) for name in ranker.facts["program"]["inputs"]))
    assert logits[0, 1].item() == pytest.approx(ranker(rows[1])["stars"], abs=1e-5)

    assert distrec("export", run, "--precision", "int8", "--out", run / "int8").code == 0
    told = json.loads((run / "int8/manifest.json").read_text())["rounding"]["after"]
    assert entropy(script.Ranker(run / "int8"), rows) == pytest.approx(told["click/logloss"], rel=1e-5)
    assert script.first_row(run.parent / "rows") == rows[0]


def entropy(ranker: Any, rows: list[dict[str, Any]]) -> float:
    """Of the label, in nats."""
    chances = [ranker(row)["click"] if row["label"] else 1 - ranker(row)["click"] for row in rows]
    return -float(np.mean(np.log(chances)))


def error(ranker: Any, rows: list[dict[str, Any]]) -> float:
    """The mean square."""
    return float(np.mean([(ranker(row)["stars"] - row["stars"]) ** 2 for row in rows]))


def test_it_refuses_an_id_that_the_reader_refuses(script: SimpleNamespace) -> None:
    lookup = {"name": "item", "ids": "index", "rows": 40, "out_of_range": "error", "max_length": None}
    with pytest.raises(ValueError, match="item: 40 is outside"):
        script.ids(40, lookup)


@pytest.fixture
def retriever(distrec: Command, tmp_path: Path) -> Path:
    """A run on rows with text for items, a number and a history, exported and indexed."""
    data = write_retrieval(tmp_path / "data", text=True)
    given = retrieval_values(data, tmp_path / "run")
    given["train"] |= {"steps": 8}
    given["data"] |= {"valid": str(data / "valid")}
    given["retrieval"] |= {"query_id": "user_id"}
    (tmp_path / "my.toml").write_text(to_toml(given), encoding="utf-8")
    words = ["--factory", "IVF4,Flat", "--recall", "0.5"]
    for ended in (
        distrec("train", tmp_path / "my.toml"),
        distrec("export", tmp_path / "run"),
        distrec("index", tmp_path / "run", *words),
        distrec("index", tmp_path / "run", *words[:2], "--recall", "1", "--out", tmp_path / "wide"),
    ):
        assert ended.code == 0, ended.err
    return tmp_path / "run"


def test_it_recommends_what_distrec_recommends(distrec: Command, script: SimpleNamespace, retriever: Path) -> None:
    rows = pq.read_table(retriever.parent / "data/valid").to_pylist()
    indexes = {name: retriever.parent / name for name in ("run/index", "wide")}
    parameters = {json.loads((index / "manifest.json").read_text())["parameters"] for index in indexes.values()}
    assert len(parameters) == 2  # so that it shows whether they are set
    for index in indexes.values():
        served = script.Retriever(retriever / "export", index)
        for row in rows[:8]:
            words = ["--query", row["user_id"], "-k", 5, "--index", index, "--json"]
            told = json.loads(distrec("recall", retriever, *words).out)["items"]
            found = served(row, 5, seen=set(row["seen"]))
            assert [item for item, _ in found] == [item["item"] for item in told]
            assert [score for _, score in found] == pytest.approx([item["score"] for item in told], abs=1e-4)
    shutil.copytree(retriever / "export", retriever / "other")
    manifest = json.loads((retriever / "other/manifest.json").read_text())
    (retriever / "other/manifest.json").write_text(json.dumps(manifest | {"model": {"step": 9}}))
    with pytest.raises(ValueError, match="is of another model"):
        script.Retriever(retriever / "other", retriever / "index")
