"""One rank with a batch and two ranks with half of it each learn the same; a stop leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import PROGRAMS, Outcome, run_ranks
from single_rank import alone
from small_retrieval import write_retrieval

ROWS, BATCH = 600, 32  # rows a rank and step on two ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = write_retrieval(tmp_path_factory.mktemp("two"), rows=ROWS)
    outcome = run_ranks("retrieval.py", 2, folder)
    assert outcome.code == 0, outcome.output
    return outcome, folder


@pytest.fixture(scope="module")
def program() -> Any:
    """What the ranks run, to run it here too."""
    sys.path[:0] = [str(PROGRAMS)]
    try:
        import retrieval  # a program of tests/programs
    finally:
        sys.path.remove(str(PROGRAMS))
    return retrieval


@pytest.fixture(scope="module")
def one(program: Any, two: tuple[Outcome, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same steps on one rank: its log has the rows in the order in which two ranks trained on them."""
    folder = write_retrieval(tmp_path_factory.mktemp("one"), rows=ROWS)
    log = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "train").glob("*"))])
    half = ROWS // 2
    order = [r * half + step + i for step in range(0, half, BATCH) for r in range(2) for i in range(min(BATCH, half - step))]
    assert sorted(order) == list(range(ROWS))
    for path in (folder / "train").glob("*"):
        path.unlink()
    pq.write_table(log.take(order), folder / "train/part-0.parquet")
    with alone() as ranks:
        return {name: program.learn(ranks, folder, folder / name, 2 * BATCH, config) for name, config in program.LOSSES.items()}


LOSSES = ["softmax", "softmax alone", "bpr", "ccl", "bce"]
NEGATIVES = ["mixed", "draws", "popular", "of each row", "of groups", "of groups, ccl", "hard", "column"]


@pytest.mark.parametrize("loss", [*LOSSES, *NEGATIVES])
def test_two_ranks_learn_what_one_learns_of_the_same_batches(loss: str, one: dict, two: tuple[Outcome, Path]) -> None:
    split, whole = two[0].results["learned"][loss], one[loss]
    assert len(split["losses"]) == 6
    assert split["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    for part in ("items", "queries"):
        for row, expected in zip(split[part], whole[part], strict=True):
            assert row == pytest.approx(expected, abs=2e-4)
    assert split["dense"] == pytest.approx(whole["dense"], abs=2e-3)
    assert split["buffers"] == pytest.approx(whole["buffers"], rel=1e-4)


def test_losses_differ_so_that_equal_ones_mean_something(one: dict) -> None:
    found = {tuple(round(loss, 3) for loss in result["losses"]) for result in one.values()}
    assert len(found) == len(one) == len([*LOSSES, *NEGATIVES])
    assert all(result["losses"][0] != result["losses"][-1] for result in one.values())


@pytest.mark.parametrize("name", ["softmax", "ccl"])
def test_ranks_that_share_nothing_lose_what_each_would_lose_alone(name: str, program: Any, two: tuple[Outcome, Path]) -> None:
    found = two[0].results["within"][name]
    with alone():
        expected = [program.loss_of(rank, program.WITHIN[name]) for rank in range(2)]
    for part in ("loss", "gradients"):
        own, shared, by_itself = ([each[part] for each in ranks] for ranks in (found["False"], found["True"], expected))
        for rank in range(2):
            assert own[rank] == pytest.approx(by_itself[rank], rel=1e-5, abs=1e-6), part
            assert shared[rank] != pytest.approx(own[rank], rel=1e-2), part
    losses = [each["loss"] for each in expected]
    assert np.mean([each["loss"] for each in found["False"]]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)


def test_every_rank_knows_the_nearest_items_of_every_item(program: Any, two: tuple[Outcome, Path]) -> None:
    scores = program.ITEMS.astype(np.float64) @ program.ITEMS.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1)[:, : program.POOL].tolist()
    assert two[0].results["near"] == [nearest, nearest]


def test_rows_of_all_ranks_come_to_each_and_gradients_go_back_to_their_owners(two: tuple[Outcome, Path]) -> None:
    exchange = two[0].results["exchange"]
    assert exchange["rows"] == [[1, 1, 2, 2]] * 2
    assert exchange["gradients"] == [[[3.0] * 3, [6.0] * 3], [[9.0] * 3, [12.0] * 3]]  # (1 + 2) x place


def test_an_item_is_expected_as_often_as_the_rows_and_draws_of_all_ranks_may_hold_it(two: tuple[Outcome, Path]) -> None:
    """5 of 6 rows are real; a query sees 2 draws of each rank and 1 of its own. Item i: 1 + i of 55 rows, i of 45 draws."""
    found = two[0].results["corrected"]
    for keys, expected in zip(found["keys"], found["expected"], strict=True):
        assert keys[1] == [1, 2, -1, 3, 4, 2, 8, 9, 9, 0]
        for part, counts in zip(keys, expected, strict=True):
            wanted = [5 * (1 + key) / 55 + (2 * 2 + 1) * key / 45 for key in part]
            assert [c for c, key in zip(counts, part, strict=True) if key >= 0] == pytest.approx(
                [w for w, key in zip(wanted, part, strict=True) if key >= 0], rel=1e-5
            )


def test_too_large_a_sample_for_a_query_of_one_rank_ends_all_ranks(two: tuple[Outcome, Path]) -> None:
    said = two[0].results["greedy"]
    assert said[0] == f"rank 1: {said[1]}"
    assert "retrieval.rank_among = 3: a query has all but 2 of the 6 items in its targets and its mask" in said[0]


@pytest.mark.parametrize("negatives", ["drawn", "hard"])
def test_a_stop_between_two_steps_leaves_no_trace(negatives: str, two: tuple[Outcome, Path]) -> None:
    found = two[0].results["resumed"][negatives]
    assert found["whole"] == found["parts"]
    keys = set(found["whole"][0])
    assert any("frequency" in key for key in keys) == (negatives == "drawn")
    assert ("/neighbours" in keys) == (negatives == "hard")
