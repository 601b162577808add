"""`distrec prepare`, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Command
from retrieval_rows import read

ROWS = "who,what,when,device\n" + "".join(f"u{n % 4},i{n % 7},{n},d{n % 2}\n" for n in range(28))


@pytest.fixture
def log(tmp_path: Path) -> list[object]:
    """The words that every preparation of this log begins with."""
    (tmp_path / "log.csv").write_text(ROWS)
    return ["prepare", "interactions", tmp_path / "log.csv", "--user", "who", "--item", "what", "--time", "when"]


def test_every_option_of_interactions_reaches_its_place(distrec: Command, log: list[object], tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("what,name,kind,price\n" + "".join(f"i{n},Item {n},k{n % 2},{n}.5\n" for n in range(6)))
    words = [*log, "--out", tmp_path, "--feature", "device", "--items", tmp_path / "items.csv", "--unknown-items", "drop"]
    words += ["--item-feature", "price", "--item-feature", "kind", "--title", "name", "--category", "kind", "--repeats", "all"]
    words += ["--split", "temporal", "--valid-share", 0.25, "--test-share", 0.25, "--max-history", 2, "--min-history", 1]
    ended = distrec(*words, "--seed", 3)
    assert ended.code == 0, ended.err
    items = read(tmp_path / "retrieval", "items")
    item = {"item_id": 5, "price": 5.5, "kind": "k1", "title": "Item 5", "category": "k1", "raw_id": "i5", "train_count": 2}
    assert (len(items), items[5]) == (6, item)
    train = read(tmp_path / "retrieval", "train")
    assert {len(row["history_item_id"]) for row in train} == {1, 2}
    assert {row["device"] for row in train} == {"d0", "d1"}
    assert len(train) == 12 - 4  # the first 14 rows less those with i6, less the first of each user
    assert {len(read(tmp_path / "retrieval", split)) for split in ("valid", "test")} == {4}


def test_files_of_ones_own_are_a_split(distrec: Command, log: list[object], tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("who,what,when\nu0,i1,90\n")
    (tmp_path / "test.csv").write_text("who,what,when\nu0,i2,99\nu9,i2,99\n")
    words = [*log, "--out", tmp_path, "--valid", tmp_path / "valid.csv", "--test", tmp_path / "test.csv", "--repeats", "all"]
    ended = distrec(*words)
    assert ended.code == 0, ended.err
    assert "train 28, valid 1, test 2, items 7, users 5 rows" in ended.out.replace("\n", " ")
    ended = distrec(*words, "--overwrite", "--split", "temporal")
    assert (ended.code, "--valid and --test are a split already" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--title", "name"], "--items"),
        (["--min-history", "-1"], "--min-history -1: must be at least 0"),
        (["--split", "random"], "'random' is not one of 'leave-one-out', 'temporal'"),
        (["--item", "sku"], "has no column 'sku'; there is: who, what, when, device"),
    ],
)
def test_a_mistake_is_one_message(distrec: Command, log: list[object], tmp_path: Path, words: list[str], message: str) -> None:
    ended = distrec(*log, "--out", tmp_path, *words)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["movielens-1m", "--task", "retrieval", "--split", "time"], "the split of --task retrieval is leave-one-out"),
        (["movielens-1m", "--max-history", "20"], "--max-history and --min-history are for --task retrieval"),
        (["gowalla", "--valid-share", "2"], "--valid-share 2.0: must lie between 0 and 1"),
        (["gowalla", "--source", "nowhere"], "nowhere cannot be read"),
        (["amazon-sequences", "--source", "nowhere"], "Beauty.txt, Beauty_item2attributes.json"),
        (["movielens-100k", "--task", "retrieval", "--source", "nowhere"], "no MovieLens source at nowhere"),
    ],
)
def test_datasets_refuse_what_they_cannot_do(distrec: Command, tmp_path: Path, words: list[str], message: str) -> None:
    ended = distrec("prepare", *words, "--out", tmp_path / "out")
    assert ended.code == 2
    assert message in " ".join(ended.err.split())


def test_prepare_writes_once_and_again_when_told(distrec: Command, tmp_path: Path) -> None:
    words = ["prepare", "synthetic", "--out", tmp_path / "data", "--rows", 200, "--valid-rows", 100]
    first = distrec(*words)
    assert first.code == 0, first.err
    assert "train 200" in first.out.replace("\n", " ")
    second = distrec(*words)
    assert second.code == 2
    assert "overwrite" in second.err
    assert distrec(*words, "--overwrite").code == 0


def test_prepare_refuses_a_source_that_is_not_there(distrec: Command, tmp_path: Path) -> None:
    ended = distrec("prepare", "movielens-1m", "--out", tmp_path / "out", "--source", tmp_path / "ml-1m.zip")
    assert ended.code == 2
    assert "ml-1m.zip" in ended.err
