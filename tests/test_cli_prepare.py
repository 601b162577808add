"""`distrec prepare`, as a user meets it."""

from __future__ import annotations

import json
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from command import Command
from retrieval_rows import read

from distrec.errors import UserError

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


def test_ids_are_taken_literally_when_told(distrec: Command, log: list[object], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(ROWS + "NA,i1,90,d0\nu1,nan,91,d0\n")
    (tmp_path / "items.csv").write_text("what\nnan\n" + "".join(f"i{n}\n" for n in range(7)))
    words = [*log, "--out", tmp_path, "--items", tmp_path / "items.csv"]
    refused = distrec(*words)
    assert (refused.code, "log.csv, line 30: column 'who' holds 'NA'" in refused.err) == (2, True)
    ended = distrec(*words, "--literal-ids")
    assert ended.code == 0, ended.err
    assert "items 8, users 5, now 5 rows" in ended.out


@pytest.mark.parametrize(
    ("words", "shares"),
    [([], (0.1, 0.1)), (["--valid-share", "0"], (0, 0.1)), (["--test-share", "0.25"], (0.1, 0.25))],
    ids=["none", "valid", "test"],
)
def test_a_share_that_is_not_given_is_a_tenth(
    distrec: Command, log: list[object], tmp_path: Path, words: list[str], shares: tuple[float, float]
) -> None:
    assert distrec(*log, "--out", tmp_path, "--split", "temporal", *words).code == 0
    told = json.loads((tmp_path / "retrieval" / "dataset.json").read_text())
    assert (told["valid_share"], told["test_share"]) == shares


def test_files_of_ones_own_are_a_split(distrec: Command, log: list[object], tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("who,what,when\nu0,i1,90\n")
    (tmp_path / "test.csv").write_text("who,what,when\nu0,i2,99\nu9,i2,99\n")
    words = [*log, "--out", tmp_path, "--valid", tmp_path / "valid.csv", "--test", tmp_path / "test.csv", "--repeats", "all"]
    ended = distrec(*words)
    assert ended.code == 0, ended.err
    assert "train 28, valid 1, test 2, items 7, users 5, now 5 rows" in ended.out.replace("\n", " ")
    ended = distrec(*words, "--overwrite", "--split", "temporal")
    assert (ended.code, "--valid and --test are a split already" in ended.err) == (2, True)


FETCHED = {"seed": 3, "source": Path("here"), "overwrite": True}
SEQUENCES = FETCHED | {"max_history": 7, "min_history": 2}


@pytest.mark.parametrize(
    ("words", "where", "reached"),
    [
        ("synthetic --rows 5 --valid-rows 4 --seed 3", "synthetic", {"rows": 5, "valid_rows": 4, "seed": 3}),
        ("gowalla --valid-share 0.5", "retrieval.gowalla", SEQUENCES | {"valid_share": 0.5}),
        ("amazon-sequences --category Toys", "retrieval.amazon_sequences", SEQUENCES | {"category": "Toys"}),
        ("movielens-1m --task retrieval", "retrieval.movielens_retrieval", SEQUENCES | {"which": "movielens-1m"}),
        ("movielens-100k --task rating", "movielens", FETCHED | {"which": "movielens-100k", "task": "rating", "split": "time"}),
        (
            "criteo --source a --source b --hash-sizes mlperf --max-rows-per-table 9 --min-count 2",
            "criteo",
            {"sources": ["a", "b"], "hash_sizes": "mlperf", "max_rows_per_table": 9, "min_count": 2},
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_every_option_reaches_the_preparation(
    distrec: Command, words: str, where: str, reached: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = import_module(f"distrec.prepare.{where}"), where.rpartition(".")[2]
    takes, given = signature(getattr(module, name)), {}

    def stand_in(*places: Any, **options: Any) -> None:
        given.update(takes.bind(*places, **options).arguments)
        raise UserError("enough")

    monkeypatch.setattr(module, name, stand_in)
    shared = [("--seed", 3), ("--source", "here"), ("--max-history", 7), ("--min-history", 2)]
    more = [word for option, value in shared if option[2:].replace("-", "_") in reached for word in (option, value)]
    ended = distrec("prepare", *words.split(), *more, "--out", "there", "--overwrite")
    assert (ended.code, ended.err.strip()) == (2, "distrec: enough")
    progress = {option for option in given if option.endswith("progress")}
    assert progress == {option for option in takes.parameters if option.endswith("progress")}  # each has a bar
    assert {option: value for option, value in given.items() if option not in progress} == (
        {"out": Path("there"), "overwrite": True} | reached
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--title", "name"], "--unknown-items are about --items; name that file too"),
        (["--unknown-items", "drop"], "--unknown-items are about --items; name that file too"),
        (["--valid-share", "0.2"], "--valid-share and --test-share are for --split temporal; name that split"),
        (["--test-share", "0.1", "--split", "leave-one-out"], "are for --split temporal; name that split, or leave them away"),
        (["--test-share", "0.1", "--test", "log.csv"], "are for --split temporal"),
        (["--min-history", "-1"], "--min-history -1: must be at least 0"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (
            ["--feature", "device", "--feature", "device"],
            "cannot be named 'device': --feature and --item-feature name another one of that name; name it once",
        ),
        (["--feature", "seen"], "a feature cannot be named 'seen': the dataset has another column of that name"),
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
