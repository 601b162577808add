"""A training that gets a signal ends at a step, saved, with the signal's exit code; and goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import command_line
from small_run import values, write_rows
from toml_text import to_toml


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str, str]]:
    """By signal: the config of a training that got it after some steps, its exit code, and what it said."""
    running, rows = {}, write_rows(tmp_path_factory.mktemp("data") / "rows", rows=600)
    for name in ("SIGTERM", "SIGINT"):
        folder = tmp_path_factory.mktemp(name)
        path = folder / "small.toml"
        train = {"device": "cpu", "log_every": 2, "steps": 1_000_000}
        path.write_text(to_toml(values(rows, folder / "run", train=train)), encoding="utf-8")
        command = [sys.executable, "-m", "distrec", "train", str(path)]
        environment = {key: value for key, value in os.environ.items() if key != "RANK"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        running[name] = (path, process)
    return {name: stop(path, process, getattr(signal, name)) for name, (path, process) in running.items()}


def stop(path: Path, process: subprocess.Popen[str], number: signal.Signals) -> tuple[Path, int, str, str]:
    numbers = path.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    try:
        while not (numbers.exists() and numbers.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return path, process.returncode, out, err


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_that_is_asked_to_stop_saves_and_can_go_on(
    interrupted: dict[str, tuple[Path, int, str, str]], capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    path, ended, out, err = interrupted[name]
    assert (ended, err) == (code, ""), err
    steps = summary(path.parent / "run")["steps"]
    assert steps >= 2
    assert f"stopped by {name} after {steps} of 1000000 steps, saved" in out
    assert max(path.parent.glob("run/checkpoints/step-*/manifest.json")).parent.name == f"step-{steps:09d}"
    with command_line(capsys) as distrec:
        resumed = distrec("train", path, f"train.steps={steps + 3}", "--resume")
    assert resumed.code == 0
    assert f"resuming after step {steps}" in resumed.out
    assert summary(path.parent / "run")["steps"] == steps + 3


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
