"""Anybody's log as a retrieval dataset, against loops over its users."""

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from ranks import PROGRAMS
from retrieval_rows import expected, given, leave_one_out, on_disk, read, same, temporal

from benchmarks.raw_files import write_log
from distrec.errors import UserError
from distrec.prepare.retrieval import buckets as buckets_module
from distrec.prepare.retrieval import interactions as interactions_module
from distrec.prepare.retrieval.interactions import interactions
from distrec.prepare.retrieval.items import ItemFile
from distrec.prepare.retrieval.log import LogColumns
from distrec.prepare.retrieval.moments import nth_smallest
from distrec.prepare.retrieval.splits import Splitting
from distrec.prepare.retrieval.tabular import blocks

COLUMNS = LogColumns("who", "what", "when")


def drawn_log(seed=0, rows=700, users=40, items=60, times=200, text=True):
    """Rows in no order, with equal times, repeated items, and users of one and two rows."""
    rng = random.Random(seed)
    log = [(rng.randrange(users), int(items * rng.random() ** 2), rng.randrange(times), 0) for _ in range(rows)]
    log += [(users, 1, 5, 0), (users + 1, 2, 5, 0), (users + 1, 3, 5, 0)]
    return [(f"u{u}", f"i{i}", t, s) for u, i, t, s in log] if text else [(7 * u - 3, 5 * i, t, s) for u, i, t, s in log]


def table(log, **more):
    user, item, time, _ = zip(*log, strict=True)
    return pa.table({"when": pa.array(time), "what": pa.array(item), "who": pa.array(user), **more})


def write(path, log, **more):
    if path.suffix == ".csv":
        csv.write_csv(table(log, **more), path)
    else:
        pq.write_table(table(log, **more), path, row_group_size=100)
    return path


@pytest.fixture
def small_buckets(monkeypatch):
    """Many buckets, and several writes to each, on a log of some hundred rows."""
    monkeypatch.setattr(interactions_module, "ROWS_A_BUCKET", 60)
    monkeypatch.setattr(buckets_module, "ROWS_A_WRITE", 50)
    monkeypatch.setattr("distrec.prepare.retrieval.tabular.ROWS", 40)
    monkeypatch.setattr("distrec.prepare.retrieval.numbering.PENDING", 30)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("label", [[1, 0], [0.5, None, -1.0], [True, False, None]], ids=["integers", "numbers", "booleans"])
def test_only_what_was_taken_counts(tmp_path, suffix, label):
    log = drawn_log(rows=200)
    labels = [label[i % len(label)] for i in range(len(log))]
    path = write(tmp_path / f"log{suffix}", log, click=pa.array(labels))
    interactions([[path], (), ()], tmp_path, columns=LogColumns("who", "what", "when", label="click"))
    taken = [event for event, value in zip(log, labels, strict=True) if value is not None and value > 0]
    assert 0 < len(taken) < len(log)
    same(on_disk(tmp_path / "retrieval"), expected(taken, leave_one_out))


def test_a_label_that_is_no_number_or_never_true_is_refused(tmp_path):
    path = write(tmp_path / "log.parquet", drawn_log(rows=5), click=pa.array([0] * 8), kind=pa.array(["view"] * 8))
    with pytest.raises(UserError, match="column 'kind' holds string; a label is a number or a boolean"):
        interactions([[path], (), ()], tmp_path, columns=LogColumns("who", "what", "when", label="kind"))
    with pytest.raises(UserError, match="there is no interaction, where 'click' is over 0, in"):
        interactions([[path], (), ()], tmp_path, columns=LogColumns("who", "what", "when", label="click"))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("buckets", [False, True])
def test_leave_one_out_is_what_loops_over_users_find(tmp_path, request, suffix, buckets):
    if buckets:
        request.getfixturevalue("small_buckets")
    log = drawn_log()
    prepared = interactions([[write(tmp_path / f"log{suffix}", log)]], tmp_path, columns=COLUMNS, max_history=7, min_history=2)
    same(on_disk(prepared.folder), expected(log, leave_one_out, longest=7, least=2))
    assert prepared.rows["test"] == 40
    assert prepared.rows["users"] == 42
    assert not (prepared.folder / ".buckets").exists()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("first_only", [True, False])
def test_a_temporal_split_cuts_all_users_at_the_same_moments(tmp_path, small_buckets, seed, first_only):
    log = drawn_log(seed, text=False)
    prepared = interactions(
        [[write(tmp_path / "log.parquet", log)]],
        tmp_path,
        columns=COLUMNS,
        splitting=Splitting("temporal", valid=0.15, test=0.2),
        repeats="first" if first_only else "all",
        max_history=5,
    )
    same(on_disk(prepared.folder), expected(log, temporal(log, 0.15, 0.2), longest=5, first_only=first_only))


def test_the_smallest_share_leaves_the_last_moment_for_test(tmp_path):
    log = [("a", f"i{n}", n, 0) for n in range(10)]
    path = write(tmp_path / "log.parquet", log)
    prepared = interactions([[path]], tmp_path, columns=COLUMNS, splitting=Splitting("temporal", valid=0, test=1e-9))
    assert [targets for _, _, targets, _ in on_disk(prepared.folder).test] == [("i9",)]


def test_files_of_ones_own_are_the_splits(tmp_path):
    log = [(u, i, t, random.Random(n).choice([0, 0, 0, 1, 2])) for n, (u, i, t, _) in enumerate(drawn_log())]
    parts = [[row for row in log if row[3] == split] for split in range(3)]
    (tmp_path / "test").mkdir()
    files = [
        [write(tmp_path / "a.parquet", parts[0][:100]), write(tmp_path / "b.parquet", parts[0][100:])],
        [write(tmp_path / "valid.csv", parts[1])],
        [write(tmp_path / "test" / "x.parquet", parts[2]).parent],
    ]
    prepared = interactions(files, tmp_path, columns=COLUMNS, splitting=Splitting("files"))
    same(on_disk(prepared.folder), expected(log, given))


def test_the_description_counts_what_no_training_prepares_for(tmp_path):
    log = [("a", "x", 1, 0), ("a", "x", 2, 0), ("a", "y", 3, 0), ("b", "z", 9, 0), ("a", "z", 9, 0), ("b", "x", 9, 0)]
    prepared = interactions(
        [[write(tmp_path / "log.parquet", log)]], tmp_path, columns=COLUMNS, splitting=Splitting("temporal", valid=0, test=0.5)
    )
    content = json.loads(prepared.description.read_text())
    assert content["rows"] == {"train": 2, "test": 2, "items": 3, "users": 2, "now": 2}
    assert (content["interactions"], content["repeats_dropped"]) == (5, 1)
    assert (content["valid_from"], content["test_from"]) == (9, 9)
    test = {"users_without_query": 0, "without_history": 1, "targets": 3, "targets_never_trained_on": 2}
    assert content["queries"] == {"test": test}
    assert [(row["raw_id"], row["train_count"]) for row in read(prepared.folder, "items")] == [("x", 1), ("y", 1), ("z", 0)]


@pytest.mark.parametrize(("text", "kind"), [(True, "string"), (False, "int64")])
def test_queries_name_users_as_the_log_does_and_training_rows_do_not(tmp_path, text, kind):
    prepared = interactions([[write(tmp_path / "log.parquet", drawn_log(text=text))]], tmp_path, columns=COLUMNS)
    content = json.loads(prepared.description.read_text())
    assert {"name": "raw_user_id", "type": kind, "role": "text"} in content["query_columns"]
    assert "raw_user_id" not in {column["name"] for column in content["columns"]}
    assert str(pq.read_table(prepared.folder / "test").schema.field("raw_user_id").type) == kind


@pytest.mark.parametrize("repeats", ["first", "all"])
@pytest.mark.parametrize("longest", [3, 50])
def test_now_has_everybody_with_all_that_they_have_had(tmp_path, small_buckets, repeats, longest):
    log = drawn_log()
    path = write(tmp_path / "log.parquet", log, price=pa.array([n / 2 for n in range(len(log))]))
    columns = LogColumns("who", "what", "when", ["price"])
    prepared = interactions(
        [[path]], tmp_path, columns=columns, repeats=repeats, max_history=longest, splitting=Splitting("temporal")
    )
    item = [row["raw_id"] for row in read(prepared.folder, "items")]
    number = {row["raw_id"]: row["user_id"] for row in read(prepared.folder, "users")}
    found = {row["raw_user_id"]: row for row in read(prepared.folder, "now")}
    had = {user: [] for user in number}
    for place, (user, what, time, _) in sorted(enumerate(log), key=lambda row: row[1][2]):
        if repeats == "all" or what not in [known for known, *_ in had[user]]:
            had[user].append((what, time, place))
    assert len(found) == prepared.rows["now"] == len(number)
    for user, row in found.items():
        assert (row["user_id"], set(row)) == (number[user], {*("user_id", "raw_user_id", "price", "history_item_id", "seen")})
        seen = [item[i] for i in row["seen"]]
        if repeats == "first":
            assert seen == [what for what, *_ in had[user]]
        assert set(seen) == {what for what, *_ in had[user]}
        assert [item[i] for i in row["history_item_id"]] == seen[-longest:]
        assert row["price"] in [place / 2 for what, time, place in had[user] if (what, time) == (seen[-1], had[user][-1][1])]


def test_train_counts_count_the_rows_that_are_trained_on(tmp_path):
    log = drawn_log()
    prepared = interactions([[write(tmp_path / "log.parquet", log)]], tmp_path, columns=COLUMNS, min_history=3)
    count = Counter(item for _, _, item in expected(log, leave_one_out, least=3).train)
    assert sum(count.values()) == prepared.rows["train"] < len(expected(log, leave_one_out).train)
    assert {row["raw_id"]: row["train_count"] for row in read(prepared.folder, "items")} == {
        item: count[item] for item in {row[1] for row in log}
    }


def test_every_row_has_the_features_of_its_moment_and_of_its_item(tmp_path):
    log = drawn_log()
    number = {(user, item, time): n for n, (user, item, time, _) in reversed(list(enumerate(log)))}
    path = write(tmp_path / "log.parquet", log, price=pa.array([n / 2 for n in range(len(log))]))
    catalogue = pa.table(
        {
            "what": [f"i{i}" for i in reversed(range(70))],
            "name": [f"Item {i}" if i else None for i in reversed(range(70))],
            "kind": [f"k{i % 3}" for i in reversed(range(70))],
            "tags": [[i, i + 1] for i in reversed(range(70))],
        }
    )
    pq.write_table(catalogue, tmp_path / "items.parquet")
    items = ItemFile(tmp_path / "items.parquet", "what", title="name", category="kind", features=["tags", "kind"])
    columns = LogColumns("who", "what", "when", ["price"])
    prepared = interactions([[path]], tmp_path, columns=columns, items=items)
    same(on_disk(prepared.folder), expected(log, leave_one_out))
    found = read(prepared.folder, "items")
    assert [row["raw_id"] for row in found] == catalogue["what"].to_pylist()
    assert (found[0]["title"], found[0]["category"], found[0]["kind"], found[0]["tags"]) == ("Item 69", "k0", "k0", [69, 70])
    assert found[69]["title"] == "i0"  # an item without a title goes by its id
    users = {row["user_id"]: row["raw_id"] for row in read(prepared.folder, "users")}
    oldest = {}
    for user, item, time, _ in sorted(log, key=lambda row: row[2]):
        oldest.setdefault((user, item), (user, item, time))
    for row in read(prepared.folder, "train"):
        event = oldest[users[row["user_id"]], found[row["item_id"]]["raw_id"]]
        assert row["price"] == number[event] / 2
        assert row["tags"] == found[row["item_id"]]["tags"]
    for row in read(prepared.folder, "test"):
        assert row["price"] == number[oldest[users[row["user_id"]], found[row["targets"][0]]["raw_id"]]] / 2


def test_interactions_with_items_that_a_catalogue_lacks_are_dropped_when_asked(tmp_path):
    log = drawn_log()
    pq.write_table(pa.table({"what": [f"i{i}" for i in range(30)]}), tmp_path / "items.parquet")
    items = ItemFile(tmp_path / "items.parquet", "what")
    prepared = interactions(
        [[write(tmp_path / "log.parquet", log)]], tmp_path, columns=COLUMNS, items=items, unknown_items="drop"
    )
    same(on_disk(prepared.folder), expected([row for row in log if int(row[1][1:]) < 30], leave_one_out))
    unknown = {row[1] for row in log if int(row[1][1:]) >= 30}
    assert json.loads(prepared.description.read_text())["unknown_items"] == len(unknown) > 5


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["2024-03-01T10:00:00Z", "2024-03-01T11:00:00Z", "2024-03-02T09:00:00Z"]),
        pa.array(["2024-03-01", "2024-03-02", "2024-03-10"]),
        pa.array([1.3, 1.4, 2e9]),
        pa.array([10**9, 2 * 10**9, 3 * 10**9], pa.timestamp("ns", "Europe/Paris")),
        pa.array([1, 2, 3], pa.date32()),
        pa.array([-5, 0, 7], pa.int16()),
    ],
    ids=["ISO 8601", "dates as text", "seconds", "timestamps", "dates", "integers"],
)
def test_times_of_every_type_keep_their_order(tmp_path, times):
    order = [2, 1, 0]
    log = pa.table({"who": [1, 1, 1], "what": ["c", "b", "a"], "when": times.take(pa.array(order))})
    pq.write_table(log, tmp_path / "log.parquet")
    prepared = interactions([[tmp_path / "log.parquet"]], tmp_path, columns=COLUMNS)
    assert on_disk(prepared.folder).test == [(1, ("a", "b"), ("c",), ("a", "b"))]


def test_the_same_log_and_seed_give_the_same_files(tmp_path, small_buckets):
    path = write(tmp_path / "log.parquet", drawn_log())
    first, again, other = (
        interactions([[path]], tmp_path / name, columns=COLUMNS, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in again.files]
    assert read(first.folder, "train") != read(other.folder, "train")
    assert sorted(map(str, read(first.folder, "train"))) == sorted(map(str, read(other.folder, "train")))


def test_training_rows_of_a_user_do_not_stand_together(tmp_path):
    """An in-batch loss would make a user's own items its negatives."""
    prepared = interactions([[write(tmp_path / "log.parquet", drawn_log())]], tmp_path, columns=COLUMNS)
    users = [row["user_id"] for row in read(prepared.folder, "train")]
    assert sum(a == b for a, b in pairwise(users)) < len(users) / 8


def test_long_histories_make_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.retrieval.dataset.LIST_VALUES", 100)
    prepared = interactions([[write(tmp_path / "log.parquet", drawn_log())]], tmp_path, columns=COLUMNS, max_history=9)
    train = pq.read_metadata(prepared.folder / "train" / "part-0.parquet")
    assert {train.row_group(i).num_rows for i in range(train.num_row_groups - 1)} == {100 // 9}
    same(on_disk(prepared.folder), expected(drawn_log(), leave_one_out, longest=9))


def test_a_limit_that_no_history_reaches_costs_nothing(tmp_path):
    """Row groups are as large as what lies in them lets, not as what might."""
    path = write(tmp_path / "log.parquet", drawn_log())
    plain, unlimited = (
        interactions([[path]], tmp_path / str(longest), columns=COLUMNS, max_history=longest) for longest in (1000, 10**30)
    )
    assert [file.read_bytes() for file in plain.files] == [file.read_bytes() for file in unlimited.files]
    train = pq.read_metadata(unlimited.folder / "train" / "part-0.parquet")
    assert train.num_row_groups <= 16
    same(on_disk(unlimited.folder), expected(drawn_log(), leave_one_out, longest=10**30))


def test_progress_says_what_was_read_and_ends_at_the_total(tmp_path, small_buckets):
    log = list({row[:2]: row for row in drawn_log()}.values())
    read_calls, calls = [], []
    interactions(
        [[write(tmp_path / "log.parquet", log)]],
        tmp_path,
        columns=COLUMNS,
        progress=lambda *call: calls.append(call),
        read_progress=lambda *call: read_calls.append(call),
    )
    assert (read_calls[-1], calls[-1]) == ((len(log), 0), (len(log), len(log)))
    assert len(calls) > 3


def test_columns_that_nobody_asked_for_are_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.retrieval.tabular.TEXT", 64)
    lines = [f'"u, 1",{i},{i},{i if i < 40 else "n/a"}' for i in range(50)]
    (tmp_path / "log.tsv").write_text("\n".join(["who,what,when,junk", *lines]).replace(",", "\t").replace("u\t", "u,"))
    (tmp_path / "log.csv").write_text("\n".join(["who,what,when,junk", *lines]))
    for name in ("log.csv", "log.tsv"):
        prepared = interactions([[tmp_path / name]], tmp_path / name[-3:], columns=COLUMNS)
        items = tuple(str(i) for i in range(49))
        assert on_disk(prepared.folder).test == [("u, 1", items, ("49",), items)]


@pytest.mark.parametrize("name", ["LOG.CSV", "log.Tsv", "LOG.CSV.GZ", "log.TSV.gz", "LOG.PARQUET", "log.PQ"])
def test_suffixes_may_be_written_in_capitals(tmp_path, name):
    rows = [("who", "what", "when"), *(("u", f"i{n}", str(n)) for n in range(4))]
    raw = "\n".join(("\t" if "TSV" in name.upper() else ",").join(row) for row in rows).encode()
    (tmp_path / "logs").mkdir()
    if "P" in name:
        write(tmp_path / "logs" / name, [("u", f"i{n}", n, 0) for n in range(4)])
    else:
        (tmp_path / "logs" / name).write_bytes(gzip.compress(raw) if name.upper().endswith("GZ") else raw)
    assert on_disk(interactions([[tmp_path / "logs"]], tmp_path, columns=COLUMNS).folder).test[0][2] == ("i3",)


def test_what_was_read_of_a_long_file_is_not_kept(tmp_path):
    """The whole log lies in one file as often as not."""
    draw, rows = np.random.default_rng(0), 600_000
    log = pa.table({name: draw.integers(-(2**63), 2**63 - 1, rows) for name in ("who", "what", "when")})
    pq.write_table(log, tmp_path / "log.parquet", row_group_size=20_000)
    before, most, read_rows = pa.total_allocated_bytes(), 0, 0
    for block in blocks(tmp_path / "log.parquet", ["who", "what", "when"]):
        most, read_rows = max(most, pa.total_allocated_bytes() - before), read_rows + block.rows.num_rows
    assert read_rows == rows
    assert most < log.nbytes / 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status")
def test_memory_does_not_grow_with_the_log(tmp_path):
    """Five million more rows are 120 MiB of ids and times alone, before any history; runs of one log differ by 40 MiB."""
    peaks = []
    for rows in (1_000_000, 6_000_000):
        write_log(tmp_path, rows)
        program = [sys.executable, PROGRAMS / "prepare_peak.py", tmp_path / "log.parquet", tmp_path / f"out-{rows}"]
        peaks.append(float(subprocess.run(program, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 90


@drawn(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), min_size=1, max_size=50),
    st.integers(0, 49),
    st.integers(1, 50),
)
def test_the_nth_smallest_is_that_of_a_sort(numbers, n, size):
    n %= len(numbers)
    parts = [np.array(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    assert nth_smallest(lambda: parts, n) == sorted(numbers)[n]
