"""What docs/own-data.md shows for a log of one's own works, from the log to a recommendation."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import command_line

PAGE = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")
USERS, ITEMS, ROWS = 60, 50, 900


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.S | re.M) if containing in text]
    assert len(found) == 1
    return found[0]


def write_shop(folder: Path) -> None:
    """The log and the catalogue that the example names."""
    draw = np.random.default_rng(0)
    (folder / "clicks").mkdir()
    clicks = {
        "customer": [f"customer-{n}" for n in draw.integers(0, USERS, ROWS)],
        "sku": [f"sku-{n}" for n in draw.integers(0, ITEMS, ROWS)],
        "clicked_at": pa.array(draw.integers(0, 10**9, ROWS), pa.timestamp("s")),
        "country": draw.choice(["FR", "DE"], ROWS),
        "device": draw.choice(["phone", "desk"], ROWS),
    }
    pq.write_table(pa.table(clicks), folder / "clicks" / "day.parquet")
    products = {
        "sku": [f"sku-{n}" for n in range(ITEMS)],
        "name": [f"Product {n}" for n in range(ITEMS)],
        "department": ["toys"] * ITEMS,
        "price": pa.array([None, *range(1, ITEMS)], pa.float64()),
        "tags": [["new", "red"][: n % 3] for n in range(ITEMS)],
    }
    pq.write_table(pa.table(products), folder / "products.parquet")


def last_to_click(folder: Path) -> tuple[str, set[str]]:
    """The customer of the newest row, who has a query in test, and what they clicked before the latest tenth of the rows."""
    log = pq.read_table(folder / "clicks").sort_by("clicked_at")
    customer, sku = log["customer"].to_pylist(), log["sku"].to_pylist()
    return customer[-1], {s for c, s in zip(customer[: ROWS * 9 // 10], sku, strict=False) if c == customer[-1]}


def test_a_log_becomes_recommendations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    small = ["data.batch_size=64", "train.steps=5", "train.device=cpu"]
    customer, seen = last_to_click(tmp_path)
    left = str(ITEMS - len(seen))
    with command_line(capsys) as distrec:
        prepared = distrec(*shlex.split(block("bash", "prepare interactions clicks/").replace("\\\n", ""))[1:])
        assert prepared.code == 0, prepared.err
        drafted = distrec(*shlex.split(block("bash", "init data/mine/retrieval").partition(">")[0])[1:])
        assert drafted.code == 0, drafted.err
        Path("my.toml").write_text(drafted.out)
        for words in (
            ["check", "my.toml", *small],
            ["train", "my.toml", *small],
            ["export", "runs/mine-retriever", "--program", "none"],
            ["index", "runs/mine-retriever"],
        ):
            ended = distrec(*words)
            assert ended.code == 0, ended.err
        told = json.loads(distrec("recall", "runs/mine-retriever", "--history", "sku-3,sku-4", "-k", "48", "--json").out)
        asked = json.loads(distrec("recall", "runs/mine-retriever", "--query", customer, "-k", left, "--json").out)
        by_number = distrec("recall", "runs/mine-retriever", "retrieval.query_id=user_id", "--query", customer)
        now = ["recall", "runs/mine-retriever", "data.test=data/mine/retrieval/now"]
        latest = json.loads(distrec(*now, "--query", customer, "-k", left, "--json").out)
        everybody = distrec(*now, "--all", "test")
        unknown = distrec("recall", "runs/mine-retriever", "--query", "customer-999")
    for section in block("toml", "[retrieval]\nitems").split("\n\n"):
        assert section in drafted.out
    assert {item["item"] for item in asked["items"]} == {f"sku-{n}" for n in range(ITEMS)} - seen
    log = pq.read_table("clicks")
    had = {s for c, s in zip(*(log[name].to_pylist() for name in ("customer", "sku")), strict=True) if c == customer}
    assert {item["item"] for item in latest["items"]} == {f"sku-{n}" for n in range(ITEMS)} - had
    assert len(had) > len(seen)
    assert f"for {len(log['customer'].unique())} queries of data.test" in everybody.out
    assert (by_number.code, unknown.code) == (2, 2)
    said = f"no query {customer!r} in column 'user_id' of data.test and data.valid; column 'raw_user_id' has it: add "
    assert said + "retrieval.query_id=raw_user_id" in by_number.err
    assert "no query 'customer-999' in column 'raw_user_id' of data.test and data.valid; for a user that" in unknown.err
    assert {item["item"] for item in told["items"]} == {f"sku-{n}" for n in range(ITEMS)} - {"sku-3", "sku-4"}
    assert all(item["title"] == f"Product {item['item'].removeprefix('sku-')}" for item in told["items"])
