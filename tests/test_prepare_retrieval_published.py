"""Retrieval datasets as they are published: the published counts, and every query against the raw files."""

import json
import os
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from retrieval_rows import Expected, expected, leave_one_out, on_disk, read

from distrec.prepare.retrieval.amazon_sequences import amazon_sequences
from distrec.prepare.retrieval.gowalla import gowalla
from distrec.prepare.retrieval.movielens_retrieval import movielens_retrieval


@pytest.fixture
def zips():
    if "DISTREC_DATA" not in os.environ:
        pytest.skip("needs the publishers' files; set DISTREC_DATA to the folder that holds them")
    return Path(os.environ["DISTREC_DATA"])


def id_lists(path, member):
    with zipfile.ZipFile(path) as archive:
        rows = [[int(word) for word in line.split()] for line in archive.read(member).decode().splitlines()]
    return {user: items for user, *items in rows}


def test_gowalla(zips, tmp_path):
    prepared = gowalla(tmp_path, source=zips / "gowalla.zip")
    assert prepared.rows == {"train": 810_128, "test": 29_858, "items": 40_981, "users": 29_858}
    content = json.loads(prepared.description.read_text())
    assert content["queries"]["test"]["targets"] == 217_242
    train, test = (id_lists(zips / "gowalla.zip", f"gowalla/{part}.txt") for part in ("train", "test"))
    for row in read(prepared.folder, "test"):
        assert sorted(row["targets"]) == sorted(test[row["user_id"]])
        assert sorted(row["seen"]) == sorted(train[row["user_id"]])
    assert sum(row["train_count"] for row in read(prepared.folder, "items")) == 810_128


def test_movielens(zips, tmp_path):
    prepared = movielens_retrieval("movielens-1m", tmp_path, source=zips / "ml-1m.zip")
    assert prepared.rows == {"train": 1_000_209 - 2 * 6040, "valid": 6040, "test": 6040, "items": 3706, "users": 6040}
    with zipfile.ZipFile(zips / "ml-1m.zip") as archive:
        ratings = [[int(word) for word in line.split("::")] for line in archive.read("ml-1m/ratings.dat").decode().splitlines()]
        movies = [line.split("::") for line in archive.read("ml-1m/movies.dat").decode("latin-1").splitlines()]
    by_user = defaultdict(list)
    for user, movie, _, time in ratings:
        by_user[user].append((time, movie))
    user = [row["raw_id"] for row in read(prepared.folder, "users")]
    movie = [row["raw_id"] for row in read(prepared.folder, "items")]
    for row in read(prepared.folder, "test"):
        ordered = [item for _, item in sorted(by_user[user[row["user_id"]]], key=lambda event: event[0])]
        assert [movie[i] for i in row["targets"]] == ordered[-1:]
        assert [movie[i] for i in row["seen"]] == ordered[:-1]
        assert [movie[i] for i in row["history_item_id"]] == ordered[:-1][-50:]
    titles = {int(number): (title, genres.split("|")[0]) for number, title, genres in movies}
    assert all((row["title"], row["category"]) == titles[row["raw_id"]] for row in read(prepared.folder, "items"))


def test_beauty(zips, tmp_path):
    prepared = amazon_sequences(tmp_path, source=zips / "amazon-beauty-5core-sequences.zip")
    assert prepared.rows == {"train": 198_502 - 2 * 22_363, "valid": 22_363, "test": 22_363, "items": 12_101, "users": 22_363}
    sequences = id_lists(zips / "amazon-beauty-5core-sequences.zip", "amazon-beauty/Beauty.txt")
    log = [(user, item, place, 0) for user, items in sequences.items() for place, item in enumerate(items)]
    found, wanted = on_disk(prepared.folder), expected(log, leave_one_out)
    assert set(found.train) == set(wanted.train)
    assert Expected([], found.valid, found.test) == Expected([], wanted.valid, wanted.test)
