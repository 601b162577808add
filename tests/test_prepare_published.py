"""The preparations on MovieLens as it is published."""

import json
import os
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from distrec.prepare.movielens import movielens

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def zips():
    if "DISTREC_DATA" not in os.environ:
        pytest.skip("needs MovieLens' zips; set DISTREC_DATA to the folder that holds them")
    return Path(os.environ["DISTREC_DATA"])


@pytest.fixture(scope="module")
def million(zips, tmp_path_factory):
    return movielens("movielens-1m", tmp_path_factory.mktemp("ml-1m"), source=zips / "ml-1m.zip")


@pytest.fixture(scope="module")
def hundred_thousand(zips, tmp_path_factory):
    out = tmp_path_factory.mktemp("ml-100k")
    return movielens("movielens-100k", out, task="rating", split="random", source=zips / "ml-100k.zip")


def read(prepared, *columns):
    return {name: pq.read_table(prepared.folder / name, columns=list(columns)) for name in SPLITS}


def ratings_of(path, member, separator):
    with zipfile.ZipFile(path) as archive:
        return [tuple(map(int, line.split(separator))) for line in archive.read(member).decode().splitlines()]


def test_one_million_rows_less_those_rated_3(million, zips):
    ratings = ratings_of(zips / "ml-1m.zip", "ml-1m/ratings.dat", "::")
    assert len(ratings) == 1_000_209
    count = Counter(rating for _, _, rating, _ in ratings)
    labels = [int(pc.sum(t["label"]).as_py()) for t in read(million, "label").values()]
    assert sum(million.rows.values()) == 1_000_209 - count[3] == 739_012
    assert sum(labels) == count[4] + count[5]
    assert list(million.rows.values()) == [591_209, 73_901, 73_902]


def test_no_split_reaches_into_the_time_of_the_next(million):
    times = read(million, "timestamp")
    for earlier, later in (("train", "valid"), ("valid", "test")):
        assert pc.max(times[earlier]["timestamp"]).as_py() <= pc.min(times[later]["timestamp"]).as_py()


def test_no_history_holds_the_moment_it_is_shown_at(million, zips):
    """Every hundredth validation row against the raw file."""
    liked = defaultdict(list)
    for user, movie, rating, time in ratings_of(zips / "ml-1m.zip", "ml-1m/ratings.dat", "::"):
        if rating > 3:
            liked[user].append((time, movie))
    rows = read(million, "user_id", "timestamp", "history_movie_id")["valid"].to_pylist()[::100]
    for row in rows:
        before = sorted((e for e in liked[row["user_id"]] if e[0] < row["timestamp"]), key=lambda e: e[0])
        assert row["history_movie_id"] == [movie for _, movie in before][-50:]
    assert sum(len(row["history_movie_id"]) for row in rows) > 10_000


def test_every_row_of_the_small_edition_is_in_one_split(hundred_thousand, zips):
    assert hundred_thousand.rows == {"train": 80_000, "valid": 10_000, "test": 10_000}
    tables = read(hundred_thousand, "user_id", "movie_id", "label", "timestamp").values()
    found = [(r["user_id"], r["movie_id"], int(r["label"]), r["timestamp"]) for t in tables for r in t.to_pylist()]
    assert sorted(found) == sorted(ratings_of(zips / "ml-100k.zip", "ml-100k/u.data", "\t"))


@pytest.mark.parametrize(
    ("name", "users", "movies", "zip_codes"), [("million", 6040, 3952, 3439), ("hundred_thousand", 943, 1682, 795)]
)
def test_cardinalities_are_the_published_ones(request, name, users, movies, zip_codes):
    content = json.loads(request.getfixturevalue(name).description.read_text())
    cardinality = {c["name"]: c.get("cardinality") for c in content["columns"]}
    assert [cardinality[k] for k in ("user_id", "movie_id", "zip")] == [users + 1, movies + 1, zip_codes]
