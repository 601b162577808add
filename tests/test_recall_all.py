"""`distrec recall --all`: every query of a split, in Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command
from served_run import ranking, table, valid_rows


@pytest.fixture
def run(served: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy that has an index, and not what other tests have made there."""
    shutil.copytree(served[0] / "run", tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    shutil.copytree(served[0] / "index", tmp_path / "run/index")
    return tmp_path / "run"


def written(folder: Path) -> list[dict[str, Any]]:
    parts = json.loads((folder / "manifest.json").read_text())["parts"]
    return [row for part in parts for row in pq.read_table(folder / part, page_checksum_verification=True).to_pylist()]


def test_two_ranks_write_every_query_with_its_best_items(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    users, items = (table(folder / "run/export", results["export"], name) for name in ("user", "item"))
    rows, facts = valid_rows(folder), json.loads((folder / "everyone/manifest.json").read_text())
    assert (facts["rows"], facts["k"], facts["split"], facts["query"]) == (60, 7, "valid", "user_id")
    assert (facts["short"], facts["zero"]) == (0, 0)
    assert [pq.read_table(folder / "everyone" / part).num_rows for part in facts["parts"]] == [30, 30]
    found = written(folder / "everyone")
    assert [row["user_id"] for row in found] == [row["user_id"] for row in rows]
    for row, told in zip(rows, found, strict=True):
        best = ranking(items @ users[row["user_id"]], row["seen"])[:7]
        assert told["items"] == best
        np.testing.assert_allclose(told["scores"], (items @ users[row["user_id"]])[best], rtol=1e-5)


def test_what_one_rank_cannot_write_ends_all_with_its_words(served: tuple[Path, dict[str, Any]]) -> None:
    folder, results = served
    assert results["refused"] == ["rank 0: no room for them", "no room for them"]
    assert not [path.name for path in folder.iterdir() if "refused" in path.name]


def test_queries_need_no_targets_and_names_may_be_text(
    distrec: Command, served: tuple[Path, dict[str, Any]], run: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(served[0] / "data/valid").drop_columns(["targets"])
    names = pa.array([None if user == 3 else f"user {user}" for user in rows["user_id"].to_pylist()])
    pq.write_table(rows.append_column("name", names), tmp_path / "new.parquet", row_group_size=13)
    asked = ["recall", run, f"data.test={tmp_path / 'new.parquet'}", "retrieval.query_id=name", "--all", "test", "-k", "39"]
    ended = distrec(*asked)
    assert ended.code == 0, ended.err
    assert f"wrote {run / 'recommended/lists'}: the best 39 for 60 queries of data.test, in one file" in ended.out
    assert pq.read_table(run / "recommended/lists").num_rows == 60  # as any reader takes a folder
    found = written(run / "recommended")
    assert [row["name"] for row in found] == names.to_pylist()
    seen = [len(set(row["seen"])) for row in rows.to_pylist()]
    assert [len(row["items"]) for row in found] == [min(39, 40 - hidden) for hidden in seen]
    short = sum(40 - hidden < 39 for hidden in seen)
    assert f"  {short} lists are shorter, for the index found no more or little was left to show" in ended.out
    assert distrec(*asked, "--out", run / "again").code == 0
    assert written(run / "again") == found
    alone = json.loads(distrec("recall", run, "--query", "5", "-k", "10", "--json").out)
    assert [item["item"] for item in alone["items"]] == found[5]["items"][:10]


def test_what_is_there_is_replaced_and_what_it_did_not_write_is_not(distrec: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    refused = distrec("recall", run, "--all", "valid", "--out", tmp_path / "mine")
    assert refused.code == 2
    assert "mine holds something that 'distrec recall --all' did not write" in refused.err
    assert [path.name for path in tmp_path.glob("mine/*")] == ["thesis.txt"]
    for k in ("3", "4"):
        assert distrec("recall", run, "--all", "valid", "-k", k).code == 0
    assert {len(row["items"]) for row in written(run / "recommended")} == {4}
    assert not list(run.glob(".recommended*"))
