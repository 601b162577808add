"""What a server would do with an export: look up rows in the tables' files, run the program, and get the model's answers."""

from __future__ import annotations

import json
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import Command
from sklearn.metrics import roc_auc_score
from small_retrieval import retrieval_values, write_retrieval
from small_run import values, write_rows
from toml_text import to_toml

from distrec.recall.command import UNKNOWN


class Server:
    """Tables and program of an export, without distrec."""

    def __init__(self, folder: Path):
        self.facts = json.loads((folder / "manifest.json").read_text())
        self.program = torch.export.load(folder / self.facts["program"]["files"][0]).module()
        self.tables = {name: self._table(folder, facts) for name, facts in self.facts["tables"].items()}

    def _table(self, folder: Path, facts: dict[str, Any]) -> torch.Tensor:
        parts = [pq.read_table(folder / part["file"]) for part in facts["parts"]]
        return torch.tensor(np.concatenate([part["values"].to_pylist() for part in parts]), dtype=torch.float32)

    def answer(self, dense: np.ndarray | None, ids: dict[str, list[list[int]]]) -> torch.Tensor:
        """Outputs for rows: `dense` (B, n) as transformed, and the ids of each feature."""
        given: dict[str, torch.Tensor] = {} if dense is None else {"dense": torch.from_numpy(dense.astype(np.float32))}
        for lookup in self.facts["inputs"]["ids"]:
            name = lookup["name"]
            if name not in ids:
                continue
            rows = [
                self.tables[lookup["table"]][row[-(lookup["max_length"] or len(row)) :] if row else []] for row in ids[name]
            ]
            if lookup["pooling"] is None:
                given[f"{name}.values"] = torch.cat(rows)
                given[f"{name}.offsets"] = torch.tensor([0, *map(len, rows)]).cumsum(0)
            else:
                given[name] = torch.stack([row.sum(0) if lookup["pooling"] == "sum" else row.mean(0) for row in rows])
        with torch.no_grad():
            return self.program(*(given[name] for name in self.facts["program"]["inputs"]))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.11's own loader
def test_a_rankers_export_scores_as_the_model_was_evaluated(distrec: Command, tmp_path: Path) -> None:
    rows, run = write_rows(tmp_path / "rows", rows=600), tmp_path / "run"
    path = tmp_path / "small.toml"
    path.write_text(to_toml(values(rows, run, train={"device": "cpu", "log_every": 2, "steps": 6})), encoding="utf-8")
    assert distrec("train", path, f"data.valid={rows}").code == 0
    ended = distrec("export", run, f"data.valid={rows}", "--precision", "int8", "--program", "torch")
    assert ended.code == 0, ended.err
    told = json.loads((run / "export/manifest.json").read_text())["rounding"]
    evaluated = json.loads((run / "summary.json").read_text())["metrics"]
    assert told["before"]["auc"] == evaluated["valid/auc"]
    assert f"{told['after']['auc'] - told['before']['auc']:+.5f}" in ended.out
    assert "tables in fp32 and in int8" in ended.out

    assert distrec("export", run, "--program", "torch", "--out", tmp_path / "plain").code == 0
    server, table = Server(tmp_path / "plain"), pq.read_table(rows)
    ids = {name: [[i] for i in table[name].to_pylist()] for name in ("user", "item")}
    ids["history"] = [row[-4:] for row in table["history"].to_pylist()]
    logits = server.answer(table["x"].to_numpy()[:, None] / 2000, ids)
    assert roc_auc_score(table["label"].to_numpy(), logits[:, 0].numpy()) == pytest.approx(evaluated["valid/auc"], abs=1e-6)

    assert "is the export of a ranker" in distrec("index", run).err
    assert "this run is a ranker" in distrec("recall", run, "--query", "1").err


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data whose item ids are text, and a config of a two-tower with a history."""
    folder = tmp_path_factory.mktemp("retriever")
    data = write_retrieval(folder / "data", rows=600, text=True)
    given = retrieval_values(data, folder / "run", train={"device": "cpu", "log_every": 5, "steps": 5})
    given["data"] |= {"valid": str(data / "valid")}
    given["retrieval"] |= {"query_id": "user_id"}
    (folder / "small.toml").write_text(to_toml(given), encoding="utf-8")
    return data, folder / "small.toml"


def test_a_query_tower_gives_the_vectors_that_recommendations_come_from(distrec: Command, retriever: tuple[Path, Path]) -> None:
    data, path = retriever
    run = path.parent / "run"
    assert distrec("train", path).code == 0
    assert distrec("export", run, "--program", "torch").code == 0
    assert distrec("index", run).code == 0
    rows, server = pq.read_table(data / "valid"), Server(run / "export")
    queries = {"user_id": [[u] for u in rows["user_id"].to_pylist()], "history": rows["history"].to_pylist()}
    inputs = server.facts["inputs"]
    assert {lookup["name"] for lookup in inputs["ids"]} == {*queries}  # of the query alone: the program knows no item
    vectors = server.answer(np.stack([rows[feature["name"]] for feature in inputs["dense"]], axis=1), queries).numpy()
    written = pq.read_table(run / "export/queries")
    np.testing.assert_allclose(vectors, np.array(written["vector"].to_pylist()), rtol=1e-4, atol=1e-6)

    items = pq.read_table(run / "export/items")
    assert items["id"].to_pylist() == [f"item-{i}" for i in range(40)]
    told = json.loads(distrec("recall", run, "--query", "11", "-k", "5", "--json").out)["items"]
    scores = np.array(items["vector"].to_pylist()) @ vectors[11]
    scores[[int(text.removeprefix("item-")) for text in rows["seen"][11].as_py()]] = -np.inf
    assert [item["item"] for item in told] == [f"item-{i}" for i in np.argsort(-scores)[:5]]

    refused = distrec("recall", run, "--history", "item-3,item-7")
    assert refused.code == 2
    assert "feature 'x', the query of --history, of which nothing else is known: null or NaN; set null = 0.0" in refused.err
    config = json.loads((run / "config.json").read_text())
    config["features"]["dense"][0]["null"] = 0.0
    (run / "config.json").write_text(json.dumps(config))
    asked = distrec("recall", run, "--history", "item-3, item-7", "-k", "40", "--json")
    assert asked.code == 0, asked.err
    told = json.loads(asked.out)["items"]
    unknown = server.answer(np.zeros((1, 1)), {"user_id": [[]], "history": [[3, 7]]}).numpy()[0]
    scores = np.array(items["vector"].to_pylist()) @ unknown
    assert [item["item"] for item in told] == [f"item-{i}" for i in np.argsort(-scores) if i not in (3, 7)]
    again = distrec("recall", run, "--history", "item-3,item-7,item-3", "-k", "1").out
    assert "for item-3, item-7, item-3; 2 items seen before are left out" in again
    assert "for item-3; 1 item seen before is left out" in distrec("recall", run, "--history", "item-3").out
    assert "item 'item-99' is not in the catalogue" in distrec("recall", run, "--history", "item-99").err


def test_a_history_reaches_pooled_features_too(distrec: Command, retriever: tuple[Path, Path], tmp_path: Path) -> None:
    config = tomllib.loads(retriever[1].read_text())
    pooled = {"column": "history", "table": "item", "pooling": "mean"}
    config["features"] = {
        "sparse": [
            *config["features"]["sparse"][:1],
            {"name": "item_index", "table": "item", "pooling": "mean"},
            {"name": "last", "max_length": 1} | pooled,
            {"name": "recent", "max_length": 2} | pooled,
            {"name": "genre", "table": "genre"},
        ]
    }
    config["retrieval"]["item_features"] = ["item_index", "genre"]
    path, run = tmp_path / "pooled.toml", tmp_path / "run"
    path.write_text(to_toml(config | {"folder": str(run)}))
    for words in (("train", path), ("export", run, "--program", "torch"), ("index", run)):
        assert distrec(*words).code == 0
    told = json.loads(distrec("recall", run, "--history", "item-9,item-3,item-7", "-k", "37", "--json").out)["items"]
    asked = Server(run / "export").answer(None, {"user_id": [[]], "last": [[7]], "recent": [[3, 7]]}).numpy()[0]
    scores = np.array(pq.read_table(run / "export/items")["vector"].to_pylist()) @ asked
    assert [item["item"] for item in told] == [f"item-{i}" for i in np.argsort(-scores) if i not in (3, 7, 9)]


def test_ids_of_ones_own_are_what_an_index_answers_with(distrec: Command, retriever: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = f"data.test={retriever[0] / 'valid'}"
    trained = distrec("train", retriever[1], f"folder={run}", "retrieval.own_id=title", "train.steps=2", "data.valid=[]", rows)
    assert trained.code == 0, trained.err
    assert f"distrec evaluate {run} --split test\n" in trained.out
    exported = distrec("export", run, "--program", "none")
    assert exported.code == 0, exported.err
    assert "60 queries of data.test, to measure an index with" in exported.out
    assert pq.read_table(run / "export/items")["id"].to_pylist() == [f"Item {i}" for i in range(40)]


def test_without_rows_to_evaluate_on_items_stand_in_for_queries(
    distrec: Command, retriever: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = distrec("train", retriever[1], f"folder={run}", "data.valid=[]", "train.steps=2")
    assert trained.code == 0, trained.err
    told = trained.out.partition("Next:\n")[2]
    assert "distrec evaluate" not in told  # there is nothing to score it on
    assert f"distrec index {run}\n" in told
    assert "--report" not in told  # nor to measure an index by
    exported = distrec("export", run, "--program", "none", "--precision", "fp16")
    assert exported.code == 0
    facts = json.loads((run / "export/manifest.json").read_text())
    assert (facts["queries"]["split"], facts["rounding"]) == (None, {"precision": "fp16"})
    assert "what fewer bits cost is not measured" in exported.out
    assert facts["config_sha256"] == sha256((run / "config.json").read_bytes()).hexdigest()
    items, queries = (pq.read_table(run / "export" / name) for name in ("items", "queries"))
    assert queries["vector"].to_pylist() == items["vector"].to_pylist()
    assert queries["targets"].to_pylist() == [[]] * 40
    assert (facts["dtype"], items["vector"].type.value_type) == ("float32", pa.float32())
    assert distrec("index", run).code == 0
    ended = distrec("recall", run, "--report")
    assert ended.code == 2
    assert "the report needs queries with targets" in ended.err


def test_items_and_queries_of_which_nothing_is_known_are_told(distrec: Command, tmp_path: Path) -> None:
    data = write_retrieval(tmp_path / "data", rows=600)
    for split, unknown in (("items", 3), ("valid", 2)):
        part = data / split / "part-0.parquet"
        table, name = pq.read_table(part), {"items": "item_index", "valid": "user_id"}[split]
        ids = pa.array([None] * unknown + table[name].to_pylist()[unknown:], pa.int64())
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, ids), part)
    for part, first in ((data / "valid/part-0.parquet", 0), (data / "valid/part-1.parquet", 30)):
        table = pq.read_table(part)
        pq.write_table(table.append_column("who", pa.array(range(first, first + len(table)))), part)
    features = {"sparse": [{"name": "user_id", "table": "user"}, {"name": "item_index", "table": "item"}]}
    given = retrieval_values(data, tmp_path / "run", features=features, model={"name": "two_tower"})
    given["data"] |= {"valid": str(data / "valid")}
    given["retrieval"] |= {"item_features": ["item_index"], "query_id": "who"}
    given["train"] |= {"steps": 2}
    del given["tables"]["genre"]
    (tmp_path / "small.toml").write_text(to_toml(given), encoding="utf-8")
    trained = distrec("train", tmp_path / "small.toml")
    assert trained.code == 0
    assert "warning: 2 of 60 queries have a zero vector" in trained.err + trained.out
    exported = distrec("export", tmp_path / "run", "--program", "none")
    assert exported.code == 0
    assert "warning: 3 items have a zero vector" in exported.out
    assert distrec("index", tmp_path / "run").code == 0
    asked = distrec("recall", tmp_path / "run", "--query", "1", "--query", "2", "--json")
    assert "1 (data.valid): its vector is zero: the model knows no feature of it" in asked.err
    unknown, known = (json.loads(line)["warnings"] for line in asked.out.splitlines())
    assert known == []
    assert unknown == [UNKNOWN]


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_k_larger_than_the_catalogue_is_refused_before_training(
    distrec: Command, retriever: tuple[Path, Path], tmp_path: Path, verb: str
) -> None:
    ended = distrec(verb, retriever[1], f"folder={tmp_path / 'run'}", "retrieval.ks=[10,50]")
    assert ended.code == 2
    assert "retrieval.ks asks for the best 50 items, and retrieval.items has 40; ask for fewer" in ended.err


@pytest.mark.parametrize(
    ("column", "split", "row", "value", "said"),
    [
        ("item_id", "items", 4, "item-7", "row 7: item 'item-7' of column 'item_id' is there twice"),
        ("item_id", "train", 70, "tuba", "row 70: item 'tuba' is not in the catalogue (retrieval.items)"),
        ("targets", "valid", 3, ["tuba"], "row 3: item 'tuba' is not in the catalogue (retrieval.items)"),
    ],
)
def test_what_log_and_catalogue_disagree_on_ends_a_run(
    distrec: Command, tmp_path: Path, column: str, split: str, row: int, value: Any, said: str
) -> None:
    data = write_retrieval(tmp_path / "data", rows=600, text=True)
    part = data / split / "part-0.parquet"
    table = pq.read_table(part)
    values = table[column].to_pylist()
    values[row] = value
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), part)
    given = retrieval_values(data, tmp_path / "run", train={"device": "cpu", "epochs": 1})
    given["data"] |= {"valid": str(data / "valid")}
    (tmp_path / "small.toml").write_text(to_toml(given), encoding="utf-8")
    ended = distrec("train", tmp_path / "small.toml")
    assert ended.code == 2
    assert f"{split}/part-0.parquet" in ended.err
    assert said in ended.err
