"""MovieLens preparation on a small edition of our own, against hand-computed rows and a slow reference."""

import hashlib
import json
import math
import random
import zipfile
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
from retrieval_rows import expected, leave_one_out, on_disk, read, same

from distrec.errors import UserError
from distrec.prepare.histories import histories
from distrec.prepare.movielens import movielens
from distrec.prepare.movielens_source import EDITIONS
from distrec.prepare.movielens_tables import GENRES
from distrec.prepare.retrieval.movielens_retrieval import movielens_retrieval

SPLITS = ("train", "valid", "test")
USERS = {1: ("F", 1, 10, "48067"), 2: ("M", 56, 16, "70072-1234"), 3: ("M", 25, 0, "02460")}
MOVIES = {
    1: ("Toy Story (1995)", "Animation|Children's|Comedy"),
    2: ("Misérables, Les (1935)", "Drama"),
    3: ('"Quoted" and | "Half Quoted (2000)', "Sci-Fi|Thriller"),
    4: ("No Year At All", "War"),
    9: ("2001: A Space Odyssey (1968)", "Drama|Sci-Fi"),
}
# user, movie, rating, time: user 1 rates movies 2 and 3 in one second; the lines are not in the order of time
RATINGS = [
    (1, 1, 5, 978300760),
    (1, 9, 4, 978400000),
    (1, 2, 4, 978300800),
    (1, 3, 5, 978300800),
    (2, 3, 3, 978300700),
    (2, 1, 1, 978300900),
    (2, 9, 5, 978300950),
    (1, 4, 2, 978300800),
    (2, 2, 4, 978500000),
    (3, 4, 5, 978600000),
    (3, 1, 4, 978600001),
]


def drawn_ratings(count=600):
    """Many ratings by few users within few seconds, so that equal timestamps and long histories are common."""
    rng = random.Random(0)
    return [
        (rng.choice([1, 2, 3]), rng.choice(list(MOVIES)), rng.randint(1, 5), 978300000 + 977 * rng.randrange(200))
        for _ in range(count)
    ]


def files_1m(ratings=RATINGS):
    return {
        "ratings.dat": "".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in ratings),
        "users.dat": "".join(f"{u}::{'::'.join(map(str, rest))}\n" for u, rest in USERS.items()),
        "movies.dat": "".join(f"{m}::{title}::{genres}\n" for m, (title, genres) in MOVIES.items()),
    }


def files_100k(ratings=RATINGS):
    def flags(genres):
        return "|".join("1" if name in genres.split("|") else "0" for name in GENRES)

    return {
        "u.data": "".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in ratings),
        "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n3|7|M|other|02460\n",
        "u.item": "".join(f"{m}|{t.replace('|', '/')}|01-Jan-1995||http://x|{flags(g)}\n" for m, (t, g) in MOVIES.items()),
        "u.occupation": "administrator\nother\ntechnician\n",
    }


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Writes a zip that passes for an edition, and returns its path."""

    def write(files, which="movielens-1m"):
        edition = EDITIONS[which]
        digest = hashlib.sha256(files[edition.ratings].encode("latin-1")).hexdigest()
        monkeypatch.setitem(EDITIONS, which, replace(edition, sha256=digest))
        with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr(f"ml/{name}", text.encode("latin-1"))
        return tmp_path / "source.zip"

    return write


def rows_of(prepared):
    return {name: pq.read_table(prepared.folder / name).to_pylist() for name in SPLITS}


def in_time(ratings):
    return sorted(ratings, key=lambda rating: rating[3])  # Python's sort is stable: ties stay in the file's order


def reference(ratings, task, member):
    """(user, movie, label, time, history) of each row in time order, by looking at every pair; `member` admits to histories."""
    kept = [r for r in in_time(ratings) if task == "rating" or r[2] != 3]
    for user, movie, rating, time in kept:
        liked = [r for k, r in enumerate(kept) if r[0] == user and r[3] < time and (task == "rating" or r[2] > 3) and member(k)]
        yield user, movie, float(rating) if task == "rating" else int(rating > 3), time, [r[1] for r in liked][-50:]


def test_rows_by_hand(source, tmp_path):
    rows = rows_of(movielens("movielens-1m", tmp_path / "out", source=source(files_1m())))
    assert [len(rows[name]) for name in SPLITS] == [8, 1, 1]
    seen = [(r["user_id"], r["movie_id"], r["label"], r["history_movie_id"]) for name in SPLITS for r in rows[name]]
    assert seen == [
        (1, 1, 1, []),
        (1, 2, 1, [1]),  # movies 2, 3 and 4 were rated in one second: none is in the history of another
        (1, 3, 1, [1]),
        (1, 4, 0, [1]),
        (2, 1, 0, []),  # the rating of 3 before it is dropped
        (2, 9, 1, []),  # and a disliked movie is no part of a history
        (1, 9, 1, [1, 2, 3]),
        (2, 2, 1, [9]),
        (3, 4, 1, []),
        (3, 1, 1, [4]),
    ]
    assert rows["train"][6]["history_genre"] == [GENRES.index(name) for name in ("Animation", "Drama", "Sci-Fi")]
    first = rows["train"][0]
    assert {k: first[k] for k in ("gender", "age", "occupation", "zip", "genre", "genres", "year")} == {
        "gender": 0,
        "age": 1,
        "occupation": 10,
        "zip": "48067",
        "genre": 3,
        "genres": [3, 4, 5],
        "year": 1995.0,
    }
    assert [r["year"] for r in rows["train"][:4]] == [1995.0, 1935.0, 2000.0, None]
    assert rows["train"][4]["zip"] == "70072-1234"


def test_the_clock_is_that_of_utc(source, tmp_path):
    rows = rows_of(movielens("movielens-1m", tmp_path / "out", source=source(files_1m())))
    for row in (r for name in SPLITS for r in rows[name]):
        moment = datetime.fromtimestamp(row["timestamp"], UTC)
        for name, turn in (("hour", moment.hour / 24), ("weekday", moment.weekday() / 7)):
            assert row[f"{name}_sin"] == pytest.approx(math.sin(2 * math.pi * turn), abs=1e-6)
            assert row[f"{name}_cos"] == pytest.approx(math.cos(2 * math.pi * turn), abs=1e-6)


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_a_split_by_time_against_the_reference(source, tmp_path, task):
    ratings = drawn_ratings()
    prepared = movielens("movielens-1m", tmp_path / "out", task=task, source=source(files_1m(ratings)))
    rows = rows_of(prepared)
    expected = list(reference(ratings, task, member=lambda k: True))
    found = [r for name in SPLITS for r in rows[name]]
    assert [(r["user_id"], r["movie_id"], r["label"], r["timestamp"], r["history_movie_id"]) for r in found] == expected
    assert max(len(row[4]) for row in expected) == 50
    total = len(expected)
    assert [len(rows[name]) for name in SPLITS] == [total * 8 // 10, total * 9 // 10 - total * 8 // 10, total - total * 9 // 10]
    assert prepared.rows == {name: len(rows[name]) for name in SPLITS}
    genre = {movie: GENRES.index(genres.split("|")[0]) for movie, (_, genres) in MOVIES.items()}
    assert all(r["history_genre"] == [genre[m] for m in r["history_movie_id"]] for r in found)


def test_a_random_split_shows_only_training_rows_in_histories(source, tmp_path):
    ratings = drawn_ratings()
    path = source(files_1m(ratings))
    made = {
        seed: rows_of(movielens("movielens-1m", tmp_path / str(seed), split="random", seed=seed, source=path))
        for seed in (1, 2)
    }
    again = rows_of(movielens("movielens-1m", tmp_path / "again", split="random", seed=1, source=path))
    assert again == made[1] != made[2]
    assert [len(made[1][name]) for name in SPLITS] == [len(made[2][name]) for name in SPLITS]

    place = np.random.default_rng(1).permutation(sum(len(made[1][name]) for name in SPLITS))
    train = place < len(made[1]["train"])
    expected = list(reference(ratings, "ctr", member=lambda k: train[k]))
    found = [(r["user_id"], r["movie_id"], r["label"], r["timestamp"], r["history_movie_id"]) for r in made[1]["train"]]
    assert found == [row for k, row in enumerate(expected) if train[k]]
    held_out = [(r["movie_id"], r["timestamp"], r["history_movie_id"]) for name in SPLITS[1:] for r in made[1][name]]
    assert sorted(held_out) == sorted((row[1], row[3], row[4]) for k, row in enumerate(expected) if not train[k])


def test_the_hundred_k_edition_has_the_same_columns(source, tmp_path):
    small = movielens("movielens-1m", tmp_path / "1m", source=source(files_1m()))
    schema = pq.read_schema(small.files[0])
    prepared = movielens("movielens-100k", tmp_path / "100k", source=source(files_100k(), "movielens-100k"))
    assert pq.read_schema(prepared.files[0]).equals(schema)
    first = rows_of(prepared)["train"][0]
    keys = ("gender", "age", "occupation", "zip", "genre", "genres", "year")
    assert [first[k] for k in keys] == [1, 24, 2, "85711", 3, [3, 4, 5], 1995.0]
    assert rows_of(prepared)["train"][4]["zip"] == "T8H1N"


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_the_description_gives_table_rows_of_the_whole_edition(source, tmp_path, task):
    """Movie 9 and user 3 must fit even where a split or a task never shows them."""
    prepared = movielens("movielens-1m", tmp_path / "out", task=task, source=source(files_1m()))
    content = json.loads(prepared.description.read_text())
    cardinality = {c["name"]: c.get("cardinality") for c in content["columns"]}
    assert [cardinality[k] for k in ("user_id", "movie_id", "history_movie_id", "age", "zip")] == [4, 10, 10, 57, 3]
    assert cardinality["genres"] == len(GENRES)
    assert content["rows"] == prepared.rows
    assert content["source"]["sha256"] == hashlib.sha256(files_1m()["ratings.dat"].encode()).hexdigest()
    assert {c["name"]: c["role"] for c in content["columns"]}["label"] == "label"


def test_an_extracted_folder_is_read_too(source, tmp_path):
    path = source(files_1m())
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "extracted")
    for folder in (tmp_path / "extracted", tmp_path / "extracted" / "ml"):
        prepared = movielens("movielens-1m", tmp_path / "out", source=folder, overwrite=True)
        assert sum(prepared.rows.values()) == 10


def test_other_ratings_than_the_published_ones_are_refused(source, tmp_path):
    path = source(files_1m())
    expected = EDITIONS["movielens-1m"].sha256
    changed = files_1m([*RATINGS[:-1], (3, 1, 5, 978600001)])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in changed.items():
            archive.writestr(name, text.encode("latin-1"))
    found = hashlib.sha256(changed["ratings.dat"].encode()).hexdigest()
    with pytest.raises(UserError, match=f"expected sha256 {expected}, found {found}"):
        movielens("movielens-1m", tmp_path / "out", source=path)
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_or_missing_source_is_named(source, tmp_path):
    path = source(files_1m())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"source\.zip cannot be read.*download it anew"):
        movielens("movielens-1m", tmp_path / "out", source=path)
    with pytest.raises(UserError, match=r"no MovieLens source at .*nowhere"):
        movielens("movielens-1m", tmp_path / "out", source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds 0 files named ratings\.dat"):
        movielens("movielens-1m", tmp_path / "out", source=tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users.dat": "1::F::young::10::48067\n"}, r"users\.dat is not in MovieLens' form"),
        ({"users.dat": "1::X::1::10::48067\n"}, r"users\.dat is not in MovieLens' form"),
        ({"movies.dat": "1::Toy Story (1995)::Cartoon\n"}, r"movies\.dat is not in MovieLens' form"),
        ({"users.dat": "2::M::25::1::1\n3::M::25::1::1\n"}, r"names user_id 1, which users\.dat does not describe"),
        ({"movies.dat": "1::Toy Story (1995)::Comedy\n"}, r"names movie_id \d, which movies\.dat does not describe"),
    ],
)
def test_files_that_do_not_fit_are_named(source, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        movielens("movielens-1m", tmp_path / "out", source=source(files_1m() | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"which": "movielens-20m"}, "dataset 'movielens-20m' is not known; there is: movielens-1m, movielens-100k"),
        ({"which": "movielens-1m", "task": "clicks"}, "task 'clicks' is not known; there is: ctr, rating"),
        ({"which": "movielens-1m", "split": "user"}, "split 'user' is not known; there is: time, random"),
    ],
)
def test_unknown_words_are_named_with_the_known_ones(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        movielens(out=tmp_path / "out", source=tmp_path, **arguments)


def test_progress_ends_at_the_total(source, tmp_path):
    calls = []
    movielens("movielens-1m", tmp_path / "out", source=source(files_1m()), progress=lambda *call: calls.append(call))
    assert calls[-1] == (10, 10)


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_histories_against_every_pair(longest):
    rng = np.random.default_rng(0)
    user, timestamp = rng.integers(5, size=300), np.sort(rng.integers(60, size=300))
    eligible = rng.random(300) < 0.6
    made = histories(user, timestamp, eligible, longest)
    rows = rng.permutation(300)[:100]
    values, offsets = made.take(rows)
    for k, i in enumerate(rows):
        expected = [j for j in range(300) if user[j] == user[i] and timestamp[j] < timestamp[i] and eligible[j]][-longest:]
        assert values[offsets[k] : offsets[k + 1]].tolist() == expected


def test_retrieval_leaves_one_out_in_the_order_of_time(source, tmp_path):
    ratings = drawn_ratings()
    once = {(u, m): (u, m, r, t) for u, m, r, t in reversed(in_time(ratings))}  # each movie at the time of its first rating
    lines = list(once.values())
    prepared = movielens_retrieval("movielens-1m", tmp_path / "out", source=source(files_1m(lines)), max_history=2)
    same(on_disk(prepared.folder), expected([(u, m, t, 0) for u, m, _, t in lines], leave_one_out, longest=2))
    items, users = (read(prepared.folder, part) for part in ("items", "users"))
    for row in items:
        title, genres = MOVIES[row["raw_id"]]
        assert (row["title"], row["category"]) == (title, genres.split("|")[0])
        assert row["item_genres"] == [GENRES.index(name) for name in genres.split("|")]
    for row in read(prepared.folder, "train") + read(prepared.folder, "test"):
        gender, *rest = USERS[users[row["user_id"]]["raw_id"]]
        assert [row["gender"], row["age"], row["occupation"], row["zip"]] == ["FM".index(gender), *rest]
        assert "item_id" not in row or row["item_genres"] == items[row["item_id"]]["item_genres"]
