"""Datasets that are published as lines of ids, on small files of our own."""

import json
import random
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from retrieval_rows import expected, leave_one_out, on_disk, read, same

from distrec.errors import UserError
from distrec.prepare.published import PublishedFile, checksum
from distrec.prepare.retrieval import amazon_sequences as amazon_module
from distrec.prepare.retrieval import gowalla as gowalla_module
from distrec.prepare.retrieval.amazon_sequences import amazon_sequences
from distrec.prepare.retrieval.gowalla import gowalla

rng = random.Random(0)
TRAIN = {user: rng.sample(range(30), rng.choice([1, 2, 5, 20])) for user in range(25)}
TEST = {user: rng.sample(sorted(set(range(30)) - set(TRAIN[user])), 3) for user in range(25) if user % 5}
SEQUENCES = {user: rng.sample(range(1, 41), rng.choice([2, 3, 8])) for user in range(1, 31)}
ATTRIBUTES = {item: [item % 7 + 1, 9] for item in range(1, 36)}


def lines(users):
    return "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in users.items())


def names(count, factor):
    return "org_id remap_id\n" + "".join(f"{factor * i + 1} {i}\n" for i in range(count))


def files(train=TRAIN, test=TEST):
    return {
        "train.txt": lines(train),
        "test.txt": lines(test),
        "user_list.txt": names(25, 3),
        "item_list.txt": names(30, 5),
    }


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Writes files that pass for Gowalla's as they are now, and returns their folder."""

    def write(content):
        (tmp_path / "source").mkdir(exist_ok=True)
        known = {}
        for name, text in content.items():
            (tmp_path / "source" / name).write_text(text)
            unordered = name in ("train.txt", "test.txt")
            known[name] = PublishedFile(checksum(text.encode(), unordered), unordered)
        monkeypatch.setattr(gowalla_module, "GOWALLA", replace(gowalla_module.GOWALLA, files=known))
        return tmp_path / "source"

    return write


@pytest.mark.parametrize("longest", [4, 50])
def test_a_gowalla_history_is_a_sample_of_the_other_places(source, tmp_path, longest):
    prepared = gowalla(tmp_path, source=source(files()), max_history=longest)
    found = read(prepared.folder, "train")
    assert sorted((row["user_id"], row["item_id"]) for row in found) == sorted(
        (u, i) for u, items in TRAIN.items() for i in items
    )
    for row in found:
        others = set(TRAIN[row["user_id"]]) - {row["item_id"]}
        assert set(row["history_item_id"]) <= others
        assert len(row["history_item_id"]) == len(set(row["history_item_id"])) == min(longest, len(others))
    for user, items in TRAIN.items():  # no place is shown more than another
        shown = Counter(i for row in found if row["user_id"] == user for i in row["history_item_id"])
        assert set(shown.values()) <= {min(longest, len(items) - 1)}


def test_places_of_users_with_few_others_give_no_row_when_told(source, tmp_path):
    prepared = gowalla(tmp_path, source=source(files()), min_history=5)
    assert {row["user_id"] for row in read(prepared.folder, "train")} == {u for u, items in TRAIN.items() if len(items) > 5}


def test_a_gowalla_query_asks_for_all_test_places_and_knows_all_others(source, tmp_path):
    prepared = gowalla(tmp_path, source=source(files()), max_history=4)
    assert prepared.rows == {"train": sum(map(len, TRAIN.values())), "test": 20, "items": 30, "users": 25}
    for row in read(prepared.folder, "test"):
        train = TRAIN[row["user_id"]]
        assert row["raw_user_id"] == 3 * row["user_id"] + 1
        assert sorted(row["targets"]) == sorted(TEST[row["user_id"]])
        assert sorted(row["seen"]) == sorted(train)
        assert set(row["history_item_id"]) <= set(train)
        assert len(set(row["history_item_id"])) == min(4, len(train))
    assert [(r["user_id"], r["raw_id"]) for r in read(prepared.folder, "users")] == [(i, 3 * i + 1) for i in range(25)]
    count = Counter(i for items in TRAIN.values() for i in items)
    assert [(r["item_id"], r["raw_id"], r["title"], r["train_count"]) for r in read(prepared.folder, "items")] == [
        (i, 5 * i + 1, str(5 * i + 1), count[i]) for i in range(30)
    ]
    assert json.loads(prepared.description.read_text())["queries"]["test"]["users_without_query"] == 5


def test_a_share_of_gowallas_users_lend_a_training_place_to_valid(source, tmp_path):
    prepared = gowalla(tmp_path, source=source(files()), valid_share=0.5)
    several = {user for user, items in TRAIN.items() if len(items) > 1}
    queries = read(prepared.folder, "valid")
    assert len(queries) == round(len(several) / 2)
    lent = {row["user_id"]: row["targets"][0] for row in queries}
    assert set(lent) <= several
    kept = {user: sorted(set(items) - {lent.get(user)}) for user, items in TRAIN.items()}
    for row in queries:
        assert row["targets"] == [lent[row["user_id"]]]
        assert sorted(row["seen"]) == sorted(row["history_item_id"]) == kept[row["user_id"]]
    train = [(row["user_id"], row["item_id"]) for row in read(prepared.folder, "train")]
    assert sorted(train) == sorted((u, i) for u, items in kept.items() for i in items)
    assert all(lent.get(row["user_id"]) not in row["history_item_id"] for row in read(prepared.folder, "train"))
    for row in read(prepared.folder, "test"):  # what was lent is known by then
        assert sorted(row["seen"]) == sorted(TRAIN[row["user_id"]])


def test_what_is_held_out_and_shown_depends_on_the_seed_alone(source, tmp_path):
    folder = source(files())
    first, again, other = (
        gowalla(tmp_path / name, source=folder, valid_share=0.5, max_history=4, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in again.files]
    assert read(first.folder, "valid") != read(other.folder, "valid")
    a, b = (gowalla(tmp_path / name, source=folder, max_history=4, seed=seed) for name, seed in (("d", 0), ("e", 1)))
    assert shown(a.folder) != shown(b.folder)


def shown(folder):
    """The places in each history, in no order."""
    return {(row["user_id"], row["item_id"]): set(row["history_item_id"]) for row in read(folder, "train")}


def test_the_order_in_a_line_and_line_ends_do_not_change_the_checksum():
    assert checksum(b"1 30 4 5\n2 7\n", unordered=True) == checksum(b"1 4 5 30 \r\n2 7", unordered=True)
    assert checksum(b"1 30 4\n", unordered=True) != checksum(b"1 30 5\n", unordered=True)
    assert checksum(b"1 30 4\n", unordered=True) != checksum(b"30 1 4\n", unordered=True)
    assert checksum(b"1 30 4\n") != checksum(b"1 4 30\n")


def test_files_other_than_the_published_ones_are_refused(source, tmp_path):
    folder = source(files())
    (folder / "train.txt").write_text(lines(TRAIN | {0: [1]}))
    with pytest.raises(UserError, match=r"train\.txt in .*source is not Gowalla_m1's: expected sha256 .*fetch https://"):
        gowalla(tmp_path, source=folder)
    (folder / "train.txt").unlink()
    with pytest.raises(UserError, match=r"source holds 0 files named train\.txt"):
        gowalla(tmp_path, source=folder)
    with pytest.raises(UserError, match=r"nowhere cannot be read: .*name a zip or a folder with train\.txt, test\.txt"):
        gowalla(tmp_path, source=tmp_path / "nowhere")
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"no\.zip cannot be read: File is not a zip file"):
        gowalla(tmp_path, source=tmp_path / "no.zip")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["source"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("0 1 2\n1 x 3\n", r"train\.txt, line 2: b'1 x 3' is not a user's id and the ids"),
        ("0 1 2\n\n1\n", r"train\.txt, line 3: b'1' is not"),
        ("0 1 2\n0 3\n", r"train\.txt has 2 lines for user 0; one is needed"),
        ("\n", r"train\.txt is empty"),
    ],
)
def test_a_line_of_another_form_is_named(source, tmp_path, train, message):
    with pytest.raises(UserError, match=message):
        gowalla(tmp_path, source=source(files() | {"train.txt": train}))


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_share_is_a_share(tmp_path, share):
    with pytest.raises(UserError, match=r"--valid-share .*: must lie between 0 and 1"):
        gowalla(tmp_path, valid_share=share)


def amazon(tmp_path, sequences=None, attributes=None):
    with zipfile.ZipFile(tmp_path / "toys.zip", "w") as archive:
        archive.writestr("data/Toys.txt", lines(SEQUENCES) if sequences is None else sequences)
        archive.writestr("data/Toys_item2attributes.json", json.dumps(ATTRIBUTES) if attributes is None else attributes)
    return amazon_sequences(tmp_path, category="Toys", source=tmp_path / "toys.zip", max_history=5)


def test_amazon_sequences_are_split_leave_one_out(tmp_path):
    prepared = amazon(tmp_path)
    log = [(user, item, place, 0) for user, items in SEQUENCES.items() for place, item in enumerate(items)]
    same(on_disk(prepared.folder), expected(log, leave_one_out, longest=5))
    for row in read(prepared.folder, "items"):
        assert row["item_attributes"] == ATTRIBUTES.get(row["raw_id"], [])
    content = json.loads(prepared.description.read_text())
    assert {c["name"]: c.get("cardinality") for c in content["columns"]} == {
        "user_id": 30,
        "history_item_id": len({i for items in SEQUENCES.values() for i in items}),
        "item_id": len({i for items in SEQUENCES.values() for i in items}),
        "item_attributes": 10,
    }


def test_a_category_with_a_known_checksum_is_verified(tmp_path, monkeypatch):
    monkeypatch.setitem(amazon_module.CHECKSUMS, "Toys.txt", checksum(lines(SEQUENCES).encode()))
    assert amazon(tmp_path).rows["users"] == 30
    with pytest.raises(UserError, match=r"Toys\.txt in .*toys\.zip is not S3-Rec Toys's: expected sha256"):
        amazon_sequences(tmp_path / "b", category="Toys", source=changed(tmp_path))


def changed(tmp_path):
    with zipfile.ZipFile(tmp_path / "toys.zip", "w") as archive:
        archive.writestr("Toys.txt", lines(SEQUENCES | {1: [5, 6, 7]}))
        archive.writestr("Toys_item2attributes.json", json.dumps(ATTRIBUTES))
    return tmp_path / "toys.zip"


@pytest.mark.parametrize("attributes", ["{", '{"x": [1]}', '{"1": ["a"]}', "[1]", '{"1": 2}'])
def test_attributes_of_another_form_are_named(tmp_path, attributes):
    with pytest.raises(UserError, match=r"Toys_item2attributes\.json is not in the form"):
        amazon(tmp_path, attributes=attributes)
