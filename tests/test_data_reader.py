"""Every row exactly once an epoch, in an order that any run can take up again."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parquet_files import NUMBERED_LAYOUT, lists, numbered, numbered_reader, real_rows, write

from distrec.batch import Batch, Deal, Position
from distrec.config.schema import Data, Task
from distrec.data import Reader, open_dataset, uses
from distrec.data.columns import Use
from distrec.data.single import find_rows, places_of
from distrec.errors import UserError

GROUPS = [[7, 1], [0], [12, 5, 3], [9]]  # 37 rows
ROWS = 37


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return numbered(tmp_path_factory.mktemp("numbered") / "d", GROUPS)


def same(a: Batch, b: Batch) -> bool:
    parts = ("dense", "labels", "weights", "normalizer")
    jagged = torch.equal(a.sparse.values(), b.sparse.values()) and torch.equal(a.sparse.lengths(), b.sparse.lengths())
    return jagged and a.position == b.position and all(torch.equal(getattr(a, p), getattr(b, p)) for p in parts)


def read_ranks(
    folder: str, world: int, start: Position, steps: int | None = None, **options
) -> tuple[list[list[Batch]], Position]:
    """What each rank reads in up to `steps` steps of one epoch, and where they then stand, which must be the same place."""
    ranks = []
    for rank in range(world):
        batches = numbered_reader(folder, rank, world, **options).batches(start, epochs=start.epoch + 1)
        ranks.append(list(islice(batches, steps)))
    positions = {tuple(b.position for b in batches) for batches in ranks}
    assert len(positions) == 1, "ranks disagree on where they stand"
    (common,) = positions
    return ranks, common[-1] if common else start


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5)), max_size=4),
    st.integers(1, 11),
    st.booleans(),
)
def test_every_row_is_read_once_whatever_the_chain_of_ranks_and_batches(folder, chain, window, shuffle):
    seen, position = [], Position()
    for world, batch_size, steps in [*chain, (2, 5, None)]:
        if position.epoch == 0:
            options = {"batch_size": batch_size, "window": window, "shuffle": shuffle, "seed": 3}
            ranks, position = read_ranks(folder, world, position, steps, **options)
            seen += [row for batches in ranks for row in real_rows(batches)]
    assert sorted(seen) == list(range(ROWS))
    assert position == Position(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 13), st.integers(0, 40))
def test_a_resume_on_as_many_ranks_is_the_same_run(folder, world, batch_size, window, stop):
    reader = numbered_reader(folder, world - 1, world, batch_size, window, seed=1)
    whole = list(reader.batches(epochs=2))
    stop %= len(whole)
    start = Position.from_json(whole[stop].position.to_json())
    rest = list(reader.batches(start, epochs=2))
    assert len(rest) == len(whole) - stop - 1
    assert all(same(a, b) for a, b in zip(rest, whole[stop + 1 :], strict=True))


def test_ranks_differ_by_one_row_and_agree_on_their_steps(folder):
    for world in (1, 2, 3, 4, 8):
        ranks, _ = read_ranks(folder, world, Position())
        shares = [len(real_rows(batches)) for batches in ranks]
        assert max(shares) - min(shares) <= 1
        steps = -(-max(shares) // 4)
        assert {len(batches) for batches in ranks} == {steps}
        for step in zip(*ranks, strict=True):  # row-wise lookups need as many rows of every rank
            assert len({len(batch.weights) for batch in step}) == 1
        assert numbered_reader(folder, 0, world).steps_per_epoch == steps


def test_fewer_rows_than_ranks_leaves_one_padding_row_each(tmp_path):
    folder = numbered(tmp_path / "d", [[1]])
    ranks, position = read_ranks(folder, 4, Position())
    assert [len(batches) for batches in ranks] == [1] * 4
    assert sorted(row for batches in ranks for row in real_rows(batches)) == [0]
    padded = [batches[0] for batches in ranks if not batches[0].weights.any()]
    assert len(padded) == 3
    for batch in padded:
        assert (batch.dense.tolist(), batch.labels.tolist(), batch.weights.tolist()) == ([[0.0]], [[0.0]], [0.0])
        assert lists(batch.sparse, "ids") == [[]]
    assert position == Position(1)


def test_one_row_beside_ten_thousand(tmp_path):
    folder = numbered(tmp_path / "d", [[1], [10_000]])
    ranks, _ = read_ranks(folder, 3, Position(), batch_size=512, window=2048)
    assert sorted(row for batches in ranks for row in real_rows(batches)) == list(range(10_001))
    assert {len(batches) for batches in ranks} == {7}


def test_the_normalizer_is_the_mean_over_ranks_of_real_rows(folder):
    ranks, _ = read_ranks(folder, 3, Position(), batch_size=4)
    for step in zip(*ranks, strict=True):
        real = sum(int((batch.weights > 0).sum()) for batch in step)
        assert [float(batch.normalizer) for batch in step] == pytest.approx([real / 3] * 3)
        assert {batch.normalizer.shape for batch in step} == {torch.Size([])}


def test_a_batch_carries_its_rows_ids_through_the_shuffle(folder):
    for batch in numbered_reader(folder, batch_size=5, window=10).batches(epochs=1):
        rows = [int(r) for r in batch.dense[:, 0]]
        assert lists(batch.sparse, "ids") == [[r] * (r % 10) for r in rows]


def test_positions_count_the_steps_of_their_deal(folder):
    reader = numbered_reader(folder, 0, 2, batch_size=8)  # 19 rows at most: 3 steps
    positions = [b.position for b in reader.batches(epochs=2)]
    assert positions[:3] == [Position(0, (Deal(2, 8, 1),)), Position(0, (Deal(2, 8, 2),)), Position(1)]
    assert positions[3:] == [Position(1, (Deal(2, 8, 1),)), Position(1, (Deal(2, 8, 2),)), Position(2)]
    later = numbered_reader(folder, 0, 1, batch_size=8)
    assert next(later.batches(positions[0])).position == Position(0, (Deal(2, 8, 1), Deal(1, 8, 1)))
    assert later.steps_left(positions[0]) == 3  # 37 - 2 * 8 = 21 rows are left


def test_a_finished_deal_leads_to_the_next_epoch(folder):
    done = Position(4, (Deal(2, 8, 3),))
    for world in (1, 2, 3):
        assert next(numbered_reader(folder, 0, world, batch_size=8).batches(done)).position.epoch == 5


def test_epochs_count_from_the_start_of_training(folder):
    reader = numbered_reader(folder)
    assert len(list(reader.batches(Position(1), epochs=3))) == 2 * reader.steps_per_epoch
    assert list(reader.batches(Position(3), epochs=3)) == []
    assert len(list(islice(reader.batches(), 50))) == 50  # without an end


def order(folder: str, start: Position | None = None, **options) -> list[int]:
    start = start or Position()
    return real_rows(numbered_reader(folder, **options).batches(start, epochs=start.epoch + 1))


def test_seed_and_epoch_decide_the_order(folder):
    assert order(folder, seed=1) == order(folder, seed=1)
    orders = [order(folder, seed=1), order(folder, seed=2), order(folder, Position(1), seed=1), order(folder, shuffle=False)]
    assert len({tuple(o) for o in orders}) == 4
    assert orders[3] == list(range(ROWS))


def test_rows_are_shuffled_over_a_whole_window_and_not_beyond(tmp_path):
    folder = numbered(tmp_path / "d", [[100]])
    rows = order(folder, batch_size=8, window=30)  # four batches: 32 rows
    for start in range(0, 100, 32):
        window = rows[start : start + 32]
        assert sorted(window) == list(range(start, min(start + 32, 100)))
        assert window != sorted(window)
    assert np.ptp(rows[:8]) > 8


def test_row_groups_are_shuffled_too(tmp_path):
    folder = numbered(tmp_path / "d", [[2]] * 40)
    firsts = [row // 2 for row in order(folder, batch_size=2, window=2)[::2]]
    assert sorted(firsts) == list(range(40))
    assert firsts != list(range(40))


def test_each_epoch_orders_the_row_groups_anew(tmp_path):
    folder = numbered(tmp_path / "d", [[1] * 40])
    assert order(folder, batch_size=1, window=1) != order(folder, Position(1), batch_size=1, window=1)


def test_each_epoch_window_rank_and_deal_orders_its_rows_anew(tmp_path):
    folder = numbered(tmp_path / "d", [[80]])
    options = {"batch_size": 10, "window": 20}
    whole = order(folder, **options)
    ranks, _ = read_ranks(folder, 2, Position(), **options)
    starts = [whole[:20], whole[20:40], order(folder, Position(1), **options)[:20], real_rows(ranks[1])[:20]]
    after_a_deal = order(folder, Position(0, (Deal(4, 10, 1),)), **options)[:20]
    windows = [tuple(np.argsort(rows)) for rows in (*starts, after_a_deal)]
    assert len(set(windows)) == 5


def test_batch_size_and_shuffle_may_be_overridden_for_evaluation(folder):
    batches = list(numbered_reader(folder, batch_size=4, shuffle=False).batches(epochs=1))
    assert len(batches) == 10
    data = Data(train=folder, batch_size=4)
    dataset = open_dataset(data.train, uses(data, NUMBERED_LAYOUT, (Task(),)))
    reader = Reader(dataset, data, NUMBERED_LAYOUT, (Task(),), rank=0, world=1, batch_size=20, shuffle=False)
    assert [int(b.weights.sum()) for b in reader.batches(epochs=1)] == [20, 17]


def test_the_fingerprint_follows_the_files_and_the_order_but_not_the_rank(folder, tmp_path):
    same_one = {numbered_reader(folder, rank, 2, batch_size).fingerprint for rank in (0, 1) for batch_size in (4, 8)}
    other = numbered(tmp_path / "d", [[7, 1], [12, 5, 3], [10]])
    others = {
        numbered_reader(other).fingerprint,
        numbered_reader(folder, seed=1).fingerprint,
        numbered_reader(folder, window=9).fingerprint,
        numbered_reader(folder, shuffle=False).fingerprint,
    }
    assert len(same_one) == 1
    assert len(others | same_one) == 5


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("distrec")}


def test_the_threads_end_with_the_iterator(folder):
    batches = numbered_reader(folder).batches()
    next(batches)
    assert ours()
    batches.close()
    assert not ours()
    assert len(list(numbered_reader(folder).batches(epochs=1))) == 10
    assert not ours()


def test_a_dropped_iterator_ends_its_threads_too(folder):
    next(numbered_reader(folder).batches())
    assert not ours()


def test_an_error_comes_after_the_windows_before_it(tmp_path):
    path = write(tmp_path / "a.parquet", {"row": [0, 1, 2, 3, 4, None, 6], "label": [0] * 7, "ids": [[1]] * 7})
    batches = numbered_reader(path, batch_size=2, window=2, shuffle=False).batches(epochs=1)
    assert real_rows([next(batches), next(batches)]) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"feature 'row', .*a\.parquet, row 5: null"):
        next(batches)
    assert not ours()


@pytest.mark.parametrize("start", [Position(), Position(0, (Deal(3, 2, 1),))])
def test_an_error_names_the_row_in_its_file_after_shuffling_and_resharding(tmp_path, start):
    folder = numbered(tmp_path / "d", [[6, 5]])
    rows = [*range(11, 20), None, 21]
    write(tmp_path / "d" / "z.parquet", {"row": rows, "label": [0] * 11, "ids": [[1]] * 11}, row_group_size=4)
    with pytest.raises(UserError, match=r"feature 'row', .*z\.parquet, row 9: null"):
        read_ranks(folder, 2, start, batch_size=3, window=6)


def test_batches_for_a_gpu_are_pinned_in_the_background_with_the_ids_of_each_key_counted(folder, monkeypatch):
    """There is no page-locked memory without a GPU, so its place is taken by a copy that says which thread made it."""
    pinned, plain = [], list(numbered_reader(folder, batch_size=4).batches(epochs=1))

    def pin(tensor):
        pinned.append((tensor.data_ptr(), threading.current_thread().name))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batches = list(numbered_reader(folder, batch_size=4, pin_memory=True).batches(epochs=1))
    assert len(batches) == len(plain)
    assert all(same(a, b) for a, b in zip(batches, plain, strict=True))
    assert {thread for _, thread in pinned} == {"distrec-collate"}
    tensors = 4 + 2  # of a batch; and of its ids
    assert len(pinned) == tensors * len(batches)
    for batch in batches:
        assert batch.sparse._length_per_key == [int(batch.sparse.lengths().sum())]  # one key, counted before any is asked
        assert batch.sparse.to(torch.device("cpu"))._length_per_key is not None


def test_a_batch_that_has_to_be_completed_is_pinned_once_and_whole(folder, monkeypatch):
    pinned = []
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: pinned.append(batch) or batch)
    completed = []

    def complete(batch):
        completed.append(replace(batch, queries=len(batch.weights)))
        return completed[-1]

    batches = list(numbered_reader(folder, batch_size=4, pin_memory=True, complete=complete).batches(epochs=1))
    assert len(batches) == len(pinned) == len(completed)
    assert all(a is b is c for a, b, c in zip(batches, pinned, completed, strict=True))


def test_waiting_is_measured(folder):
    reader = numbered_reader(folder)
    list(reader.batches(epochs=1))
    first = reader.wait_s
    assert first > 0
    list(reader.batches(epochs=1))
    assert reader.wait_s > first


def test_rows_are_found_by_their_ids_from_the_end_and_no_further_than_needed(tmp_path, monkeypatch):
    for part, ids in enumerate([[1, 2, 3, None], [2, 4, 2, 5], [6, 7, 5, 8]]):
        rows = [10 * part + i for i in range(4)]
        write(tmp_path / f"part-{part}.parquet", {"id": ids, "row": rows, "wide": ["x"] * 4}, row_group_size=2)
    path = (str(tmp_path),)
    dataset = open_dataset(path, [Use(name, name, lambda kind: True, "") for name in ("id", "row", "wide")])
    decoded = []
    really = type(dataset)._decode
    monkeypatch.setattr(
        type(dataset),
        "_decode",
        lambda self, file, piece, size: (
            decoded.append((piece.file, piece.group, self.schema.names)) or really(self, file, piece, size)
        ),
    )
    found = find_rows(dataset, "id", ["2", "5", "6", "5"])
    assert {value: table["row"].to_pylist() for value, (table, _) in found.items()} == {"2": [12], "5": [22], "6": [20]}
    assert found["2"][1](0) == f"{tmp_path}/part-1.parquet, row 2"
    ids, every = ["id"], ["id", "row", "wide"]
    assert decoded == [(2, 1, ids), (2, 1, every), (2, 0, ids), (2, 0, every), (1, 1, ids), (1, 1, every)]
    odd = ("02", "--5", "²", "", "ann", "9" * 30, "None", "1.0")  # none of them is how an id is written
    assert find_rows(dataset, "id", odd) == {}
    write(tmp_path / "text.parquet", {"id": pa.array(["ann", None, "bob", "ann"]).dictionary_encode()})
    text = open_dataset((str(tmp_path / "text.parquet"),), [Use("id", "id", lambda kind: True, "")])
    (rows,) = find_rows(text, "id", ["ann", "None"]).values()
    assert rows[1](0).endswith("text.parquet, row 3")


def test_finding_a_few_ids_makes_no_python_object_of_the_others():
    ids = pa.array(np.arange(500_000)).cast(pa.large_string())
    tracemalloc.start()
    try:
        assert places_of(ids, ["7", "499999", "x"]) == {"7": 7, "499999": 499_999}
        assert tracemalloc.get_traced_memory()[1] < 2**20  # a byte an item at the most; a dict of them all takes 100
    finally:
        tracemalloc.stop()
