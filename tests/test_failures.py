"""What goes wrong on one rank of two: every rank ends promptly, it is said once, and nothing that was learned is lost."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from small_run import ROWS, values, write_rows
from toml_text import to_toml

HALF = ROWS // 2
STEPS = math.ceil(HALF / 64)
PROMPT = 30  # seconds; the ranks' timeout is 120 in the scenarios, and 600 through the command line


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outcome = run_ranks("failures.py", 2, tmp_path_factory.mktemp("failures"), "scenarios")
    assert outcome.code == 0, outcome.output
    return outcome.results


def messages(found: dict[str, Any]) -> str:
    """What rank 0 says, of a run that failed on both ranks."""
    (kind, said), (silent, _) = found["errors"]
    assert (kind, silent) == ("UserError", "AnotherRankFailed")
    assert found["seconds"] < PROMPT
    return said


def test_a_bad_id_in_the_first_batch_of_one_rank_ends_all_before_a_step(scenarios: dict[str, Any]) -> None:
    said = messages(scenarios["first"])
    assert said.startswith("rank 1: ")
    for part in ("'item'", "99", "part-1.parquet", "row 3"):
        assert part in said
    assert (scenarios["first"]["steps"], scenarios["first"]["saved"]) == (0, [])


def test_a_bad_id_later_ends_all_at_the_same_step_and_saves_it(scenarios: dict[str, Any]) -> None:
    found = scenarios["later"]
    said = messages(found)
    for part in ("rank 1: ", "'item'", "99", "part-1.parquet", f"row {9 * 64 + 5}"):
        assert part in said
    assert found["steps"] == 8  # the tenth batch is drawn while the eighth is trained on
    assert found["saved"] == [8]


def test_a_mended_run_goes_on_from_there(scenarios: dict[str, Any]) -> None:
    found = scenarios["mended"]
    assert found["errors"] == [["NoneType", "None"]] * 2
    assert found["steps"] == STEPS
    for rank, rows in enumerate(found["rows"]):
        assert rows == list(range(rank * HALF + 8 * 64, (rank + 1) * HALF))


def test_a_loss_that_is_no_number_stops_all_before_it_is_learned(scenarios: dict[str, Any]) -> None:
    found = scenarios["stop"]
    said = messages(found)
    assert said.startswith("the loss of step 10 is not a finite number (loss on rank 1: inf). ")
    assert "step 9 is saved" in said
    assert (found["steps"], found["saved"], found["finite"]) == (9, [9], True)


def test_so_does_a_variance_that_overflows_behind_a_sound_loss(scenarios: dict[str, Any]) -> None:
    found = scenarios["overflow"]
    assert messages(found).startswith("a running statistic of step 10 is not a finite number (loss on rank 1: ")
    assert (found["steps"], found["saved"], found["finite"]) == (9, [9], True)


def test_or_is_skipped_and_counted(scenarios: dict[str, Any]) -> None:
    found = scenarios["skip"]
    assert found["errors"] == [["NoneType", "None"]] * 2
    assert (found["steps"], found["skipped"], found["finite"]) == (STEPS, 1, True)


def test_bad_rows_to_evaluate_on_end_all_after_the_checkpoint(scenarios: dict[str, Any]) -> None:
    found = scenarios["valid"]
    said = messages(found)
    for part in ("rank 1: ", "'item'", "99", "valid/part-1.parquet", f"row {9 * 64 + 5}"):
        assert part in said
    assert found["saved"] == [STEPS]


def test_one_row_beside_ten_thousand(scenarios: dict[str, Any]) -> None:
    found = scenarios["unequal"]
    assert found["errors"] == [["NoneType", "None"]] * 2
    assert sorted(row for rows in found["rows"] for row in rows) == list(range(10_001))
    assert found["steps"] == math.ceil(5001 / 512)


def test_running_statistics_are_those_of_all_ranks(scenarios: dict[str, Any]) -> None:
    found = scenarios["statistics"]
    means = np.array(found["means"])  # (ranks, steps, width)
    assert np.abs(means[0] - means[1]).max() > 1e-3
    expected = np.zeros(means.shape[2])
    for step in means.mean(0):
        expected = 0.9 * expected + 0.1 * step
    assert found["running"][0] == found["running"][1]
    np.testing.assert_allclose(found["running"][0], expected, rtol=1e-4, atol=1e-6)


def config_of(folder: Path, data: Path, **train: Any) -> Path:
    path = folder / "small.toml"
    sections = {"data": {"train": str(data), "batch_size": 64, "shuffle": False, "shuffle_window": 64}}
    path.write_text(to_toml(values(data, folder / "run", train={"device": "cpu"} | train, **sections)))
    return path


def test_the_command_line_says_it_once(tmp_path: Path) -> None:
    item = np.arange(ROWS) % 40
    item[HALF + 600] = 99
    config = config_of(tmp_path, write_rows(tmp_path / "rows", item=item))
    outcome = run_ranks("failures.py", 2, tmp_path, "train", str(config))
    assert outcome.code == 2, outcome.output
    assert outcome.output.count("99") == 1, outcome.output
    assert "Traceback" not in outcome.output
    assert (tmp_path / "run" / "checkpoints" / "step-000000008" / "manifest.json").exists()


def test_a_killed_rank_takes_the_others_along(tmp_path: Path) -> None:
    config = config_of(tmp_path, write_rows(tmp_path / "rows"), epochs=50)
    began = time.monotonic()
    outcome = run_ranks("failures.py", 2, tmp_path, "killed", str(config))
    assert outcome.code == 128 + 9, outcome.output
    assert time.monotonic() - began < 60
    assert "distrec: rank 1 was killed by SIGKILL" in outcome.output
    assert "Traceback" not in outcome.output, outcome.output
