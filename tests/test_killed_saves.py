"""kill -9 at any moment of a save: a checkpoint stands, and the run goes on from it as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_in_its_saves_ends_as_one_that_was_not(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, str(TESTS / "programs" / "killed_saves.py"), str(tmp_path), str(kills)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    died = tmp_path / "killed" / "died.txt"
    assert done.returncode == 0, (died.read_text() if died.exists() else "") + done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["code"] == 0
    assert found["hits"].count("in") >= kills, found["hits"]
    assert all(left for left in found["left"]), "a checkpoint stands after each kill"
    newest = [left[-1] for left in found["left"]]
    assert newest == sorted(newest), "each life went on from where the last one was killed"
    assert len(set(newest)) > 1
    assert len(found["ends"]["whole"]) > 5
    assert found["ends"]["killed"] == found["ends"]["whole"]
