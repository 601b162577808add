"""A run holds on to what its ids stand for: `distrec prepare` numbers anew when its log changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Ended, command_line

from distrec.data.columns import Use, is_number
from distrec.data.files import find_files
from distrec.data.numbering import Numbering, descriptions, numbers_of
from distrec.data.parquet import open_dataset
from distrec.errors import UserError
from distrec.prepare.criteo_ids import Vocabulary
from distrec.prepare.criteo_rows import IDS
from distrec.prepare.id_order import IdOrder

SAID = {
    "numbering": {"user_id": "u1", "item_id": "i1"},
    "columns": [{"name": "user_id"}, {"name": "item_id"}, {"name": "country"}],
    "query_columns": [{"name": "targets", "shares": "item_id"}, {"name": "raw_user_id"}],
}
ANY = [Use("user_id", "x", is_number, "a number")]
CONFIG = """
name = "small"
[data]
train = "mine/retrieval/train"
valid = "mine/retrieval/valid"
test = "mine/retrieval/test"
batch_size = 16
[tables]
user = { rows = 100, dim = 8 }
item = { rows = 100, dim = 8 }
[features]
sparse = [
  { name = "user_id", table = "user" },
  { name = "history_item_id", table = "item", pooling = "mean", max_length = 10 },
  { name = "item_id", table = "item" },
]
[retrieval]
items = "mine/retrieval/items"
item_features = ["item_id"]
mask = "seen"
query_id = "raw_user_id"
own_id = "raw_id"
ks = [5]
[model]
name = "two_tower"
params = { dim = 8 }
[optimizer]
sparse = { lr = 0.1 }
[train]
steps = 3
device = "cpu"
"""


def write_log(path: Path, first_user: int = 10, first_item: int = 10) -> None:
    """Users and items count up from these: a smaller first one comes before all others when ids are put in order."""
    draw = np.random.default_rng(0)
    user = np.concatenate([draw.integers(10, 30, 300), [first_user] * 4])
    item = np.concatenate([draw.integers(10, 40, 300), np.arange(first_item, first_item + 4)])
    table = pa.table({"u": user, "i": item, "t": np.arange(len(user))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def prepare(log: str, out: str, *more: str) -> list[str]:
    return ["prepare", "interactions", log, "--out", out, "--user", "u", "--item", "i", "--time", "t", *more]


def test_only_columns_in_use_have_numbers() -> None:
    assert numbers_of(SAID, ["targets", "raw_user_id", "country"]) == {"item_id": "i1"}
    assert numbers_of(SAID, ["user_id", "item_id"]) == {"user_id": "u1", "item_id": "i1"}
    assert numbers_of({key: value for key, value in SAID.items() if key != "numbering"}, ["user_id"]) == {}


def test_all_that_is_read_must_agree_and_what_says_nothing_agrees() -> None:
    numbering = Numbering()
    numbering.require({"item_id": "i1"}, "retrieval.items")
    numbering.require({}, "data.valid")
    numbering.require({"user_id": "u1", "item_id": "i1"}, "data.train")
    assert numbering.numbers == {"user_id": "u1", "item_id": "i1"}
    with pytest.raises(UserError, match=r"^data\.test does not go with data\.train: a number in 'user_id' stands for") as error:
        numbering.require({"user_id": "u2"}, "data.test")
    assert "Name files of one `distrec prepare` (data.train, data.valid, data.test, retrieval.items)" in str(error.value)


def write_split(folder: Path, said: str | None) -> Path:
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [1, 2]}), folder / "train" / "part-0.parquet")
    if said is not None:
        (folder / "dataset.json").write_text(said)
    return folder / "train"


@pytest.mark.parametrize("said", [None, "{", "[]", "{}"], ids=["none", "torn", "list", "empty"])
def test_what_no_prepare_wrote_has_no_numbers(said: str | None, tmp_path: Path) -> None:
    assert open_dataset([str(write_split(tmp_path, said))], ANY).numbering == {}


def test_one_split_of_two_prepares_is_refused(tmp_path: Path) -> None:
    one = write_split(tmp_path / "one", json.dumps(SAID))
    other = write_split(tmp_path / "other", json.dumps(SAID | {"numbering": {"user_id": "u2"}}))
    assert open_dataset([str(one)], ANY).numbering == {"user_id": "u1"}
    with pytest.raises(UserError, match=f"^{other.parent} does not go with {one.parent}: a number in 'user_id'"):
        _ = open_dataset([str(one), str(other)], ANY).numbering


def test_a_description_is_found_beside_remote_splits(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(write_split(tmp_path / "d", json.dumps(SAID)).parent), "/numbering/d", recursive=True)
    try:
        assert list(descriptions(find_files(["memory://numbering/d/train"])).values()) == [SAID]
        assert open_dataset(["memory://numbering/d/train"], ANY).numbering == {"user_id": "u1"}
    finally:
        fs.rm("/numbering", recursive=True)


def test_a_file_that_is_replaced_while_it_is_in_use_is_refused(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        pq.write_table(pa.table({"user_id": np.random.default_rng(seed).permutation(5000)}), tmp_path / "a.parquet")

    write(0)
    dataset = open_dataset([str(tmp_path)], ANY)
    before = pa.Table.from_batches(dataset.read(dataset.row_groups, verify_checksums=True))
    write(0)
    assert pa.Table.from_batches(dataset.read(dataset.row_groups, verify_checksums=True)).equals(before)
    write(1)
    with pytest.raises(UserError, match=r"a\.parquet: the file was replaced while it was in use"):
        list(dataset.read(dataset.row_groups, verify_checksums=True))


def test_a_hash_is_of_ids_in_their_order_however_they_come() -> None:
    ids = pl.Series(["a", "b", "c"])
    parts = IdOrder().add(ids[:1]).add(ids[1:])
    assert parts.hash() == IdOrder().add(ids).hash()
    others = [["a", "b", "c"], ["b", "a", "c"], ["ab", "c"], ["a"]]
    assert len({IdOrder().add(pl.Series(other)).hash() for other in others}) == len(others)


def test_a_hash_takes_no_memory_for_each_id() -> None:
    """Ids by the hundred million are hashed part by part, and their hash stays what runs have noted."""
    assert IdOrder().add(pl.Series([7, -5, 300])).hash() == hashlib.sha256(b"7\x00-5\x00300\x00").hexdigest()[:16]
    ids = pl.int_range(2_000_000, eager=True)
    order = IdOrder().add(ids[:0])
    tracemalloc.start()
    try:
        order.add(ids)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_vocabulary_of_other_days_is_another_numbering() -> None:
    days = [[np.array(ids)] * len(IDS) for ids in ([7, 5], [7, 5], [5, 7])]
    one, same, other = (Vocabulary(ids).numbering for ids in days)
    assert one == same
    assert set(one) == set(IDS)
    assert all(one[name] != other[name] for name in IDS)


@pytest.mark.parametrize(("first_user", "first_item"), [(1, 10), (10, 1)], ids=["users", "items"])
def test_a_run_refuses_data_that_number_anew(
    first_user: int, first_item: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_log(Path("log/a.parquet"))
    Path("my.toml").write_text(CONFIG)
    verbs = [
        ["evaluate", "runs/small"],
        ["export", "runs/small", "--program", "none"],
        ["recall", "runs/small", "--query", "12"],
        ["recall", "runs/small", "--report"],
        ["train", "my.toml", "--resume", "newest", "train.steps=4"],
    ]
    with command_line(capsys) as distrec:

        def all_end(sequence: Sequence[Sequence[str]], well: Callable[[Ended], bool]) -> list[str]:
            ends = [distrec(*words) for words in sequence]
            assert [list(words) for words, end in zip(sequence, ends, strict=True) if not well(end)] == []
            return [end.err for end in ends]

        def ends_well(end: Ended) -> bool:
            return end.code == 0

        indexed = [["export", "runs/small", "--program", "none"], ["index", "runs/small"]]
        all_end([prepare("log", "mine"), ["check", "my.toml"], ["train", "my.toml"], *indexed], ends_well)
        all_end([prepare("log", "mine", "--overwrite", "--max-history", "9"), *verbs[:4]], ends_well)  # the same numbers

        write_log(Path("log/b.parquet"), first_user, first_item)
        all_end([prepare("log", "new"), prepare("log/a.parquet", "mine", "--overwrite")], ends_well)
        column = "user_id" if first_user == 1 else "item_id"
        mixed = ["data.test=new/retrieval/test", "data.valid=new/retrieval/valid"]
        elsewhere = all_end(
            [
                ["check", "my.toml", *mixed],
                ["train", "my.toml", "folder=runs/mixed", *mixed],
                ["evaluate", "runs/small", *mixed],
                ["recall", "runs/small", "--query", "12", *mixed],
            ],
            lambda end: end.code == 2,
        )
        assert all(f"a number in {column!r} stands for one thing" in said for said in elsewhere)
        all_end([verbs[0]], ends_well)  # what the run was trained on is still there

        shutil.rmtree("mine")
        shutil.move("new", "mine")
        anew = all_end(verbs, lambda end: end.code == 2)
        assert all(f"a number in {column!r} stands for one thing" in said for said in anew)
        assert "does not go with" in anew[0]
        assert "the checkpoint of step 3 in runs/small" in anew[0]
        all_end([["train", "my.toml", "folder=runs/anew"]], ends_well)
