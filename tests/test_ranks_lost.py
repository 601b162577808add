"""A rank that dies is restarted with the others, and nothing is lost; a rank that hangs is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as torch_dist
from single_rank import summary
from small_run import values, write_rows
from test_end_to_end import COMPONENT, ROOT, checksums, environment
from toml_text import to_toml
from torch._C._distributed_c10d import HashStore

from distrec import __main__, dist

PROGRAMS = ROOT / "tests" / "programs"
PARAMS = {"bottom_mlp": [8], "top_mlp": [16], "dropout": 0.1}


def config_of(folder: Path, run: str, **sections: Any) -> Path:
    path = folder / f"{run}.toml"
    path.write_text(to_toml(values(folder / "rows", folder / run, **sections)))
    return path


# -- a rank dies -----------------------------------------------------------------------------------------------------


def train_with_torchx(folder: Path, run: str, dies_at: int) -> subprocess.CompletedProcess[str]:
    model = {"name": "mortal:Mortal", "params": PARAMS}
    train = {"device": "cpu", "log_every": 5, "epochs": 2}
    config = config_of(folder, run, model=model, train=train, checkpoint={"every_steps": 4})
    command = ["torchx", "run", "-s", "local_cwd", COMPONENT, "--config", str(config), "-j", "1x2", "--max_retries", "1"]
    more = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(PROGRAMS)]), "MORTAL_STEP": str(dies_at)}
    return subprocess.run(
        command, cwd=folder, env=environment() | more, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_torchx_and_the_result_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows")
    whole, cut = (train_with_torchx(tmp_path, run, dies_at) for run, dies_at in (("whole", 0), ("cut", 11)))
    assert (whole.returncode, cut.returncode) == (0, 0), cut.stdout + cut.stderr
    said = cut.stdout + cut.stderr
    assert "resuming after step 8" in said
    assert "Traceback" not in said
    assert "resuming" not in whole.stdout + whole.stderr
    whole_files, cut_files = checksums(tmp_path / "whole"), checksums(tmp_path / "cut")
    assert len(whole_files) == 2
    assert whole_files == cut_files
    assert summary(tmp_path / "whole")["metrics"] == summary(tmp_path / "cut")["metrics"]


# -- a rank hangs ----------------------------------------------------------------------------------------------------


class Stubborn:
    """A store whose server does not answer."""

    def set(self, key: str, value: str) -> None:
        threading.Event().wait()


class Gone:
    """A store whose server is dead."""

    def set(self, key: str, value: str) -> None:
        raise torch_dist.DistNetworkError("failed to send: Broken pipe")


def call(monkeypatch: pytest.MonkeyPatch, store: Any, rank: int, world: int) -> tuple[set[int], float]:
    monkeypatch.setattr(torch_dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(torch_dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch_dist, "get_rank", lambda: rank)
    monkeypatch.setattr(torch_dist, "get_world_size", lambda: world)
    began = time.monotonic()
    return dist.roll_call(0.5), time.monotonic() - began


def test_who_answers_is_heard_and_who_does_not_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    assert call(monkeypatch, store, 2, 4)[0] == {2}
    heard, took = call(monkeypatch, store, 0, 4)
    assert heard == {0, 2}
    assert 0.4 < took < 5
    call(monkeypatch, store, 1, 4)
    heard, took = call(monkeypatch, store, 3, 4)
    assert heard == {0, 1, 2, 3}
    assert took < 0.4


@pytest.mark.parametrize("store", [Stubborn(), Gone()])
def test_where_the_store_is_gone_with_its_rank_nobody_is_heard(monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    assert call(monkeypatch, store, 1, 2)[0] == {1}


@pytest.mark.parametrize(
    ("rank", "heard", "said"),
    [
        (0, {0, 2}, "distrec: rank 0 lost contact with ranks 1, 3, which failed, hangs or is stopped\n"),
        (2, {0, 2}, ""),
        (2, {2, 3, 1}, ""),
        (1, {1, 2, 3}, "distrec: rank 1 lost contact with rank 0, which failed, hangs or is stopped\n"),
        (3, set(), "distrec: rank 3 did not meet the other ranks: ERROR\n"),
        (0, {0, 1, 2, 3}, "distrec: rank 0 lost contact with another rank, which failed, hangs or is stopped\n"),
    ],
)
@pytest.mark.parametrize(
    "error", ["Timed out waiting 5000ms for recv operation to complete", "Application timeout caused pair closure"]
)
def test_one_of_those_that_answer_names_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str, rank: int, heard: set[int], said: str
) -> None:
    def fail(*words: object, **options: object) -> None:
        raise RuntimeError(error)

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(dist, "roll_call", lambda: heard)
    monkeypatch.setattr("distrec.cli.app", fail)
    monkeypatch.setattr(__main__, "_leave", lambda code: sys.exit(code))
    with pytest.raises(SystemExit) as end:
        __main__.main(["train"])
    assert end.value.code == 1
    assert capsys.readouterr().err == said.replace("ERROR", error)


def test_without_a_group_nobody_is_heard() -> None:
    assert dist.roll_call(0.1) == set()


def process_of(rank: int, config: Path) -> int:
    """The process that is this rank of a run."""
    for place in Path("/proc").iterdir():
        try:
            is_rank = place.name.isdigit() and f"\0RANK={rank}\0" in (place / "environ").read_text(errors="replace")
            if is_rank and str(config) in (place / "cmdline").read_text():
                return int(place.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no rank {rank} runs {config}")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_within_the_timeout(tmp_path: Path, stopped: int) -> None:
    write_rows(tmp_path / "rows")
    config = config_of(tmp_path, "run", train={"device": "cpu", "epochs": 10_000, "timeout_s": 5, "log_every": 2})
    command = [sys.executable, "-m", "distrec.agent", "--nproc-per-node=2", "-m", "distrec", "train", str(config)]
    agent = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert agent.stderr is not None
    numbers = tmp_path / "run" / "metrics.jsonl"
    while not (numbers.exists() and numbers.stat().st_size):
        assert agent.poll() is None, agent.stderr.read()
        time.sleep(0.1)
    target = process_of(stopped, config)
    os.kill(target, signal.SIGSTOP)
    began = time.monotonic()
    try:
        line = next(line for line in agent.stderr if "lost contact" in line or "Traceback" in line)
        assert time.monotonic() - began < 5 + dist.ROLL_CALL_S + 10  # the last for a machine that is busy
    finally:
        os.kill(target, signal.SIGKILL)
        agent.terminate()
        rest = agent.communicate(timeout=60)[1]
    assert re.search(rf"rank {1 - stopped} lost contact with rank {stopped}, which failed, hangs or is stopped", line)
    assert "Traceback" not in rest
    assert agent.returncode != 0
