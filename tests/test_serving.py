"""From training on two ranks to recommendations: every number against NumPy on the exported tables."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import Command
from served_run import ranking, table, valid_rows

from distrec.models.two_tower import TwoTower
from distrec.recall import command
from distrec.seal import seal

KS = (5, 10)


def test_exact_search_over_shares_is_search_over_all(served: tuple[Path, dict[str, Any]]) -> None:
    draw = np.random.default_rng(0)
    items, queries = draw.integers(-2, 3, (101, 4)), draw.integers(-2, 3, (30, 4))
    found = served[1]["exact"]["found"]
    hits = []
    for mine, (rows, pairs, scores) in zip((queries[:11], queries), found, strict=True):
        expected = [ranking(items @ query, [number])[:7] for number, query in enumerate(mine)]
        assert rows == expected
        assert pairs == scores == [[float(items[i] @ q) for i in best] for q, best in zip(mine, expected, strict=True)]
        hits += [best.index(number + 1) if number + 1 in best else None for number, best in enumerate(expected)]
    metrics = served[1]["exact"]["metrics"]
    assert metrics["recall@7"] == pytest.approx(sum(hit is not None for hit in hits) / 41)
    assert metrics["recall@3"] == pytest.approx(sum(hit is not None and hit < 3 for hit in hits) / 41)
    assert metrics["mrr@7"] == pytest.approx(sum(1 / (hit + 1) for hit in hits if hit is not None) / 41)
    assert metrics["coverage@7"] == len({i for rows, *_ in found for best in rows for i in best}) / 101


def test_what_training_reports_is_what_the_exported_tables_rank(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    users, items = (table(folder / "run/export", results["export"], name) for name in ("user", "item"))
    rows = valid_rows(folder)
    best = [ranking(items @ users[row["user_id"]], row["seen"]) for row in rows]
    for k in KS:
        hits = [row["targets"][0] in found[:k] for row, found in zip(rows, best, strict=True)]
        gains = [1 / math.log2(f.index(r["targets"][0]) + 2) for r, f, hit in zip(rows, best, hits, strict=True) if hit]
        assert results["evaluated"][f"valid/recall@{k}"] == pytest.approx(np.mean(hits))
        assert results["evaluated"][f"valid/hit_rate@{k}"] == pytest.approx(np.mean(hits))
        assert results["evaluated"][f"valid/ndcg@{k}"] == pytest.approx(sum(gains) / len(rows))
        assert results["evaluated"][f"valid/coverage@{k}"] == len({i for found in best for i in found[:k]}) / len(items)
    sampled, full = (results["evaluated"][f"valid/{name}hit_rate@10"] for name in ("sampled_20/", ""))
    assert full < sampled <= 1  # against 20 items it is easier than against 40


def test_a_model_without_dense_parameters_is_read_by_ranks_that_lack_a_table(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    assert len(results["moved"]["tables"]["item"]["parts"]) == 1
    moved, own = (
        table(folder / name, results[which], "item") for name, which in (("moved", "moved"), ("run/export", "export"))
    )
    np.testing.assert_array_equal(moved, own)


def test_item_vectors_are_the_ranks_shares_and_queries_are_there_to_measure_with(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    users, items = (table(folder / "run/export", results["export"], name) for name in ("user", "item"))
    facts = results["export"]
    parts = [pq.read_table(folder / "run/export" / name) for name in facts["items"]["parts"]]
    assert [part.num_rows for part in parts] == [20, 20]
    assert [i for part in parts for i in part["id"].to_pylist()] == list(range(40))
    np.testing.assert_allclose(np.concatenate([part["vector"].to_pylist() for part in parts]), items, rtol=1e-6)
    written = [row for name in facts["queries"]["parts"] for row in pq.read_table(folder / "run/export" / name).to_pylist()]
    whose = [int(np.abs(users - row["vector"]).sum(1).argmin()) for row in written]
    assert sorted(whose) == list(range(60))
    rows = {row["user_id"]: row for row in valid_rows(folder)}
    for user, row in zip(whose, written, strict=True):
        np.testing.assert_allclose(row["vector"], users[user], rtol=1e-6)
        assert (row["hidden"], row["targets"]) == (rows[user]["seen"], rows[user]["targets"])
    assert (facts["metric"], facts["dim"], facts["queries"]["split"]) == ("inner_product", 8, "valid")


def test_int8_tables_are_near_and_what_they_cost_is_told(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    for name in ("user", "item"):
        full, rounded = (
            table(f, results[k], name) for f, k in ((folder / "run/export", "export"), (folder / "int8", "rounded"))
        )
        steps = (full.max(1) - full.min(1))[:, None] / 255
        assert (np.abs(full - rounded) <= 0.51 * steps + 1e-7).all()
        assert np.abs(full - rounded).max() > 0
    users, items = (table(folder / "int8", results["rounded"], name) for name in ("user", "item"))
    told, rows = results["rounded"]["rounding"], valid_rows(folder)
    assert told["before"] == {k.removeprefix("valid/"): v for k, v in results["evaluated"].items() if k.startswith("valid/")}
    hits = [row["targets"][0] in ranking(items @ users[row["user_id"]], row["seen"])[:10] for row in rows]
    assert told["after"]["recall@10"] == pytest.approx(np.mean(hits))


def test_the_vectors_are_those_of_the_tables_beside_them(
    distrec: Command, served: tuple[Path, dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    """A server looks queries up in the int8 tables: the items, and what `distrec recall` asks, must have gone the same way."""
    folder, results = served
    users, items = (table(folder / "int8", results["rounded"], name) for name in ("user", "item"))
    for kind, rows in (("items", items), ("queries", users)):
        parts = [pq.read_table(folder / "int8" / name)["vector"].to_pylist() for name in results["rounded"][kind]["parts"]]
        np.testing.assert_allclose(sorted(np.concatenate(parts).tolist()), sorted(rows.tolist()), atol=1e-6)
    assert results["rounded"]["model"] == results["export"]["model"] | {"tables": "int8"}
    assert distrec("index", run, "--export", folder / "int8", "--out", tmp_path / "index").code == 0
    told = json.loads(distrec("recall", run, "--index", tmp_path / "index", "--query", "7", "-k", "40", "--json").out)["items"]
    found = {item["item"]: item["score"] for item in told}
    assert len(found) == 38
    np.testing.assert_allclose(list(found.values()), (items @ users[7])[list(found)], atol=2e-6)  # which has 6 digits
    full = table(folder / "run/export", results["export"], "item") @ table(folder / "run/export", results["export"], "user")[7]
    assert np.abs(np.array(list(found.values())) - full[list(found)]).max() > 1e-4
    report = distrec("recall", run, "--index", tmp_path / "index", "--report", f"data.test={folder / 'data/valid'}")
    assert "is of another model (tables int8, now fp32)" in report.err  # RUN/export has other vectors


def test_tensorboard_gets_items_with_their_titles(served: tuple[Path, dict[str, Any]]) -> None:
    page = served[0] / "run/items"
    assert "items/metadata.tsv" in (page / "projector_config.pbtxt").read_text()
    lines = next(page.rglob("metadata.tsv")).read_text().splitlines()
    assert lines[:3] == ["title\tid", "Item 0\t0", "Item 1\t1"]
    assert len(lines) == 41


# -- the verbs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(served: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(served[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_index_and_recall_answer_in_the_users_words(
    distrec: Command, served: tuple[Path, dict[str, Any]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = distrec("index", run, "--factory", "IVFx,Flat", "--recall", "1")
    assert built.code == 0, built.err
    assert "`IVF1,Flat` with `nprobe=1`, 40 vectors of 8" in built.out
    asked = distrec("recall", run, "--query", "7", "-k", "4", "--json")
    assert asked.code == 0, asked.err
    folder, results = served
    users, items = (table(folder / "run/export", results["export"], name) for name in ("user", "item"))
    row = next(row for row in valid_rows(folder) if row["user_id"] == 7)
    expected = ranking(items @ users[7], row["seen"])[:4]
    told = json.loads(asked.out)
    assert [item["item"] for item in told["items"]] == expected
    assert [item["title"] for item in told["items"]] == [f"Item {i}" for i in expected]
    assert told["items"][0]["score"] == pytest.approx(items[expected[0]] @ users[7], abs=1e-5)
    shown = distrec("recall", run, "--query", "7", "--query", "8", "-k", "2").out
    assert len(json.loads(distrec("recall", run, "--query", "7", "--json").out)["items"]) == 10
    monkeypatch.setattr(command, "SHOWN", 50)  # more than there are
    assert len(json.loads(distrec("recall", run, "--query", "7", "--json").out)["items"]) == 38
    assert "for 7 (data.valid); 2 items seen before are left out" in shown
    assert f"Item {expected[0]}" in shown


def test_the_report_tells_model_and_index_apart(distrec: Command, served: tuple[Path, dict[str, Any]], run: Path) -> None:
    assert distrec("index", run, "--factory", "IVF4,Flat", "--recall", "0.5").code == 0
    test = f"data.test={served[0] / 'data/valid'}"
    ended = distrec("recall", run, test, "--report")
    assert ended.code == 0, ended.err
    report = json.loads((run / "report/report.json").read_text())
    exact = {k.removeprefix("valid/"): v for k, v in served[1]["evaluated"].items() if k.startswith("valid/")}
    assert report["exact"] == pytest.approx(exact)
    measured = report["measured"]
    assert (measured["queries"], measured["k"]) == (30, 40)  # half of them chose the parameters
    assert measured["recall@40"] < 1  # some lists are not looked at
    asked = json.loads(distrec("recall", run, "--query", "7", "-k", "38", "--json").out)
    assert (len(asked["items"]) < 38, asked["warnings"]) == (True, [command.FEW])
    assert json.loads(distrec("recall", run, "--query", "7", "-k", "2", "--json").out)["warnings"] == []
    assert measured["model_through_index"]["recall@10"] <= measured["model"]["recall@10"]
    assert set(measured["qps"]) >= {"1"}
    assert {"batch", "single"} == set(measured["flat_qps"]["1"])
    page = (run / "report/report.md").read_text()
    assert page.strip() in ended.out
    assert f"| recall | {exact['recall@5']:.4f} | {exact['recall@10']:.4f} |" in page
    assert (run / "report/recall.png").read_bytes().startswith(b"\x89PNG")
    assert report["command"] == f"distrec recall {run} {test} --report"
    assert "Every query of data.test (60) ranks" in page
    assert "Measured on 30 queries of data.valid that its parameters were not chosen on." in page  # an export holds those


def test_where_nothing_is_to_be_found_the_report_says_so(
    distrec: Command, served: tuple[Path, dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(served[0] / "data/valid")
    nothing = pa.array([[]] * len(rows), rows["targets"].type)
    untargeted = rows.set_column(rows.schema.get_field_index("targets"), "targets", nothing)
    pq.write_table(untargeted, tmp_path / "none.parquet")
    none = f"data.test={tmp_path / 'none.parquet'}"
    assert distrec("index", run).code == 0
    ended = distrec("recall", run, none, "--report")
    assert ended.code == 0, ended.err
    report = json.loads((run / "report/report.json").read_text(), parse_constant=pytest.fail)
    assert report["exact"]["recall@5"] is None
    page = (run / "report/report.md").read_text()
    assert page.count("No query has a target, so that how much of it is found cannot be said.") == 1  # the export has some
    assert "Warning: 60 of 60 queries have no targets, and count for nothing but coverage and popularity." in page
    assert "nan" not in page
    told = distrec("evaluate", run, none, "--split", "test")
    assert told.code == 0
    assert "warning: 60 of 60 queries have no targets" in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query", "999"], "no query '999' in column 'user_id' of data.valid"),
        (["--query", "ann"], "no query 'ann' in column 'user_id' of data.valid"),
        (["--query", "7", "--query", "9" * 20], f"no query {'9' * 20!r} in column"),  # no int64
        (["--history", ""], "--history is empty: name items of the catalogue"),
        (
            ["--history", "3,77"],
            "item '77' is not in the catalogue: column 'item_id' of retrieval.items has no such id; leave it out",
        ),
        (["--history", "3"], "--history needs a model that reads one"),
        (["--query", "7", "-k", "41"], "-k 41, and the index has 40 items"),
        (["retrieval.query_id=none", "--query", "7"], "no column 'none' (retrieval.query_id)"),
        ([], "say for whom: --query USER, --history ITEM,ITEM,…, --all test or --report"),
        (["--report", "--query", "7"], "--report, --all, and --query with --history are three questions; ask one at a time"),
        (["--report", "--all", "valid"], "--report, --all, and --query with --history are three questions"),
        (
            ["--report", "-k", "5"],
            "-k is for recommendations; the report measures at each of retrieval.ks: retrieval.ks=[10,50]",
        ),
        (["--report", "--json"], "--json is for --query and --history, which print; --report writes report.json"),
        (["--all", "valid", "--json"], "which print; --all writes Parquet, and manifest.json beside it"),
        (["--all", "test"], "the run has no data.test; name the queries: distrec recall RUN --all test data.test=PATH"),
        (["--all", "valid", "-k", "41"], "-k 41, and the index has 40 items"),
        (["--all", "valid", "retrieval.query_id=none"], "no column 'none' (retrieval.query_id)"),
    ],
)
def test_a_question_that_cannot_be_answered(
    distrec: Command, served: tuple[Path, dict[str, Any]], words: list[str], said: str
) -> None:
    run = served[0] / "run"
    if not (run / "index").exists():
        assert distrec("index", run).code == 0
    ended = distrec("recall", run, *words)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize("words", [["evaluate"], ["export"], ["recall", "--report"]], ids=lambda words: words[0])
def test_a_k_larger_than_the_catalogue_is_refused(
    distrec: Command, served: tuple[Path, dict[str, Any]], tmp_path: Path, words: list[str]
) -> None:
    run = served[0] / "run"
    if "recall" in words:
        assert distrec("index", run, "--out", tmp_path / "index").code == 0
        words = [*words, "--index", str(tmp_path / "index")]
    ended = distrec(words[0], run, *words[1:], "retrieval.ks=[5,41]")
    assert ended.code == 2
    assert "retrieval.ks asks for the best 41 items, and retrieval.items has 40; ask for fewer" in ended.err


def test_vectors_that_are_not_finite_serve_nobody(
    distrec: Command, served: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served[0] / "run"
    assert distrec("index", run, "--out", tmp_path / "index").code == 0
    for side in ("query", "item"):
        monkeypatch.setattr(TwoTower, side, lambda self, inputs: next(iter(inputs.pooled.values())) * torch.nan)
    for words, said in (
        (("export", run, "--out", tmp_path / "export", "--program", "none"), "the vectors of 40 of 40 items are not finite"),
        (("evaluate", run), "the vectors of 40 of 40 items are not finite"),
        (("recall", run, "--query", "7", "--index", tmp_path / "index"), "query 0: its vector is not finite"),
    ):
        ended = distrec(*words)
        assert (ended.code, said in ended.err) == (2, True), ended.err


def test_an_index_of_other_weights_is_refused(distrec: Command, run: Path) -> None:
    assert distrec("index", run).code == 0
    facts = json.loads((run / "index/manifest.json").read_text())
    for key, value in (("checkpoint", "0123456789abcdef"), ("run", "another")):
        kept = {k: v for k, v in facts.items() if k not in ("crc32", "kind", "format", "files")}
        kept["model"] = {**facts["model"], key: value}
        seal(run / "index", "distrec index", kept, facts["files"])
        ended = distrec("recall", run, "--query", "7")
        assert ended.code == 2
        assert f"is of another model ({key} {value}, now " in ended.err
        assert "build it again: distrec index RUN" in ended.err


def test_an_index_of_another_catalogue_is_refused(distrec: Command, run: Path, tmp_path: Path) -> None:
    """Its places would have the titles of other items, and hide others than those that a user has seen."""
    assert distrec("index", run).code == 0
    items = pq.read_table(json.loads((run / "config.json").read_text())["retrieval"]["items"][0])
    for name, kept in (("moved", range(39, -1, -1)), ("fewer", range(39))):
        pq.write_table(items.take(list(kept)), tmp_path / f"{name}.parquet")
        ended = distrec("recall", run, f"retrieval.items={tmp_path / name}.parquet", "--query", "7")
        assert ended.code == 2
        assert "index is of another catalogue: retrieval.items has other items now, or in another order" in ended.err


def test_damaged_files_are_named(distrec: Command, run: Path) -> None:
    assert distrec("index", run).code == 0
    file = run / "index/index.faiss"
    file.write_bytes(file.read_bytes()[:-100])
    cut = distrec("recall", run, "--query", "7")
    assert (cut.code, "index.faiss is damaged: it has" in cut.err) == (2, True)
    part = run / "export/items/part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    flipped = distrec("index", run)
    assert flipped.code == 2
    assert "part-00001.parquet is damaged: its crc32 is not what the manifest says; export the run again" in flipped.err
    (run / "export/manifest.json").unlink()
    assert "export holds no distrec export: it has no manifest.json" in distrec("index", run).err
    shutil.rmtree(run / "index")
    assert "index holds no distrec index" in distrec("recall", run, "--query", "7").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--factory", "IVFFlat!"], "factory 'IVFFlat!' is none that Faiss takes"),
        (["--factory", "IVF64,Flat"], "factory 'IVF64,Flat' sorts vectors into 64 lists, and 40 vectors are too few"),
        (["--factory", "PQ4x8"], "factory 'PQ4x8' cannot learn from 40 vectors"),
        (["--factory", "HNSW1"], "factory 'HNSW1': HNSW1 is too few to find anything by; try"),
        (["--factory", "IVF0,Flat"], "factory 'IVF0,Flat': IVF0 is too few"),
        (["--factory", "IDMap,Flat"], "factory 'IDMap,Flat' makes an index that takes no vectors from distrec: add does not"),
        (["--factory", "PQ3"], "factory 'PQ3' is none that Faiss takes for vectors of 8"),
        (["--recall", "1.5"], "--recall 1.5: the share of the exact best items to find"),
        (["-k", "41"], "-k 41, and the export has 40 items"),
    ],
)
def test_an_index_that_cannot_be_built(
    distrec: Command, served: tuple[Path, dict[str, Any]], words: list[str], said: str
) -> None:
    ended = distrec("index", served[0] / "run", *words)
    assert ended.code == 2
    assert said in ended.err


def test_an_export_does_not_replace_what_is_none(distrec: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    ended = distrec("export", run, "--out", tmp_path / "mine", "--program", "none")
    assert ended.code == 2
    assert "mine holds something that 'distrec export' did not write" in ended.err
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
