"""Real processes from the command to the run folder: TorchX, the agent, the ranks, and what a signal leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_run import values, write_rows
from toml_text import to_toml

ROOT = Path(__file__).parents[1]
COMPONENT = f"{ROOT / 'launch' / 'component.py'}:train"


def environment() -> dict[str, str]:
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return os.environ | paths | {"OMP_NUM_THREADS": "1"}


def torchx(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["torchx", "run", "-s", "local_cwd", COMPONENT, *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def write_config(folder: Path, run: str = "run", **train: Any) -> str:
    path = folder / f"{run}.toml"
    data = {"train": str(folder / "train"), "valid": str(folder / "valid"), "batch_size": 64, "shuffle_window": 256}
    path.write_text(to_toml(values(folder, Path(run), data=data, train={"device": "cpu", "log_every": 5} | train)))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train")
    write_rows(tmp_path / "valid", 500, seed=1)
    return tmp_path


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_torchx_trains(folder: Path, ranks: int) -> None:
    done = torchx(folder, "--config", write_config(folder, epochs=2), "-j", f"1x{ranks}")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert len(re.findall(r"valid/auc +│", said)) == 1
    assert "distrec evaluate run" in said
    run = folder / "run"
    found = json.loads((run / "summary.json").read_text())
    assert found["steps"] == found["total_steps"] == 2 * -(-2000 // (64 * ranks))
    assert f"│ {found['metrics']['valid/auc']:.5f} │" in re.sub(" +", " ", said)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "logs"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in (run / "logs").iterdir()} == {f"rank-{rank}.log" for rank in range(ranks)}
    manifest = json.loads((run / "checkpoints" / f"step-{found['steps']:09d}" / "manifest.json").read_text())
    assert manifest["world"] == ranks


class Agent:
    """`distrec train` on two ranks, under an agent that can be signalled."""

    def __init__(self, folder: Path, *words: str):
        self.folder = folder
        command = [sys.executable, "-m", "distrec.agent", "--nproc-per-node=2", "-m", "distrec", "train", *words]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def wait_for_step(self, run: str, step: int) -> None:
        numbers = self.folder / run / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (numbers.exists() and f'"step": {step}' in numbers.read_text()):
            assert time.monotonic() < deadline, "training does not begin"
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        try:
            said = self.process.communicate(timeout=120)[0]
        finally:
            self.process.kill()
        return self.process.returncode, said


def checksums(run: Path) -> dict[str, list[int]]:
    """Of every file of the newest checkpoint, as its manifest has them."""
    manifest = sorted(run.glob("checkpoints/step-*/manifest.json"))[-1]
    return {name: found for name, found in json.loads(manifest.read_text())["files"].items() if name.endswith(".distcp")}


@pytest.mark.slow
def test_a_run_that_is_terminated_and_resumed_is_the_run_that_was_not(folder: Path) -> None:
    code, said = Agent(folder, write_config(folder, "whole", epochs=12)).end()
    assert code == 0, said
    config = write_config(folder, "parts", epochs=12)
    agent = Agent(folder, config)
    agent.wait_for_step("parts", 10)
    agent.process.send_signal(signal.SIGTERM)
    code, said = agent.end()
    assert code == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert "Traceback" not in said
    stopped = json.loads((folder / "parts" / "summary.json").read_text())
    assert stopped["stopped_by"] == "SIGTERM"
    assert 10 <= stopped["steps"] < stopped["total_steps"] == 12 * 16
    code, said = Agent(folder, config, "--resume").end()
    assert code == 0, said
    assert f"resuming after step {stopped['steps']}" in said
    assert checksums(folder / "parts") == checksums(folder / "whole")
    whole, parts = (json.loads((folder / name / "summary.json").read_text())["metrics"] for name in ("whole", "parts"))
    assert whole == parts


def test_a_config_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = torchx(tmp_path, "--config", "absent.toml")
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["distrec: no config file at absent.toml"]
