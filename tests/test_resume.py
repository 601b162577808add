"""A run that stops and goes on is the run that never stopped."""

import math
from pathlib import Path

import pytest
from ranks import Outcome, run_ranks
from small_run import ROWS, write_rows

ONE_EPOCH_SCHEDULE_ROWS = 7 * 2 * 64  # rows of the first 7 steps on 2 ranks


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("resume")
    write_rows(folder / "train")
    return folder, run_ranks("resume.py", 2, folder, "straight")


def test_twelve_steps_are_seven_and_five_to_the_last_bit(stopped: tuple[Path, Outcome]) -> None:
    outcome = stopped[1]
    assert outcome.code == 0, outcome.output
    whole, parts = outcome.results["whole"], outcome.results["parts"]
    assert whole == parts
    assert whole[0] != whole[1]  # the digests see that ranks hold different shards
    assert any(key.startswith("/optimizers/tables/") for key in whole[0])
    assert any(key.startswith("/random/") for key in whole[0])


def test_the_resumed_half_reads_the_rows_that_the_whole_run_read(stopped: tuple[Path, Outcome]) -> None:
    results = stopped[1].results
    for whole, rest in zip(results["rows"], results["rest_rows"], strict=True):
        assert len(rest) == 5 * 64
        assert whole[7 * 64 :] == rest


@pytest.mark.parametrize(("ranks", "kind"), [(1, "table_wise"), pytest.param(4, "row_wise", marks=pytest.mark.slow)])
def test_other_ranks_and_plan_read_each_remaining_row_once(stopped: tuple[Path, Outcome], ranks: int, kind: str) -> None:
    folder, outcome = stopped
    seen = [row for rank in outcome.results["rows"] for row in rank[: 7 * 64]]
    assert len(seen) == ONE_EPOCH_SCHEDULE_ROWS
    resumed = run_ranks("resume.py", ranks, folder, "resume", kind)
    assert resumed.code == 0, resumed.output
    rest = [row for rank in resumed.results["rows"] for row in rank]
    assert sorted(seen + rest) == list(range(ROWS))
    assert resumed.results["steps"] == 7 + math.ceil((ROWS - len(seen)) / (ranks * 64))
    for name, value in outcome.results["probe"].items():
        assert resumed.results["probe"][name] == pytest.approx(value, abs=1e-6), name
