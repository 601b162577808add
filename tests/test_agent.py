"""The agent: exit codes, its one line, signals, restarts, and what ranks inherit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from distrec import agent

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", *agent.DEFAULTS)


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}


class Agent:
    """A running agent whose ranks execute `script` in `folder`."""

    def __init__(self, folder: Path, script: str, *options: str):
        (folder / "rank.py").write_text(textwrap.dedent(script))
        command = [sys.executable, "-m", "distrec.agent", "--log-dir", str(folder / "logs"), *options, "rank.py"]
        self.folder = folder
        self.process = subprocess.Popen(
            command, cwd=folder, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def wait_for(self, *names: str) -> None:
        deadline = time.monotonic() + 60
        while not all((self.folder / name).exists() for name in names):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {names}"
            time.sleep(0.05)

    def end(self) -> tuple[int, list[str], list[str]]:
        """Exit code, lines of stdout, lines of stderr."""
        try:
            out, err = self.process.communicate(timeout=90)
        finally:
            self.process.kill()
        return self.process.returncode, out.splitlines(), err.splitlines()


def test_a_failed_rank_names_itself_and_gives_its_exit_code(tmp_path):
    script = """
        import os, sys, time
        from pathlib import Path
        rank = os.environ["RANK"]
        print("stdout of", rank, flush=True)
        Path("ready" + rank).touch()
        if rank == "10":
            while len(list(Path().glob("ready*"))) < 11:
                time.sleep(0.05)
            print("id 7 is out of range", file=sys.stderr)
            sys.exit(2)
        time.sleep(60)
    """
    code, out, err = Agent(tmp_path, script, "--nproc-per-node=11").end()
    assert code == 2
    assert out == ["stdout of 0"]
    assert err == ["[rank 10] id 7 is out of range", "distrec: rank 10 failed with exit code 2; see the message above"]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_reaches_each_rank_once_and_leaves_time_to_save(tmp_path, name, code):
    script = """
        import os, signal, sys, time
        from pathlib import Path
        rank, got = os.environ["RANK"], []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
        Path("ready" + rank).touch()
        while not got:
            time.sleep(0.05)
        time.sleep(1)
        Path("saved" + rank).write_text(" ".join(got))
    """
    running = Agent(tmp_path, script, "--nproc-per-node=2")
    running.wait_for("ready0", "ready1")
    running.process.send_signal(getattr(signal, name))
    ended, _, err = running.end()
    assert [(tmp_path / f"saved{rank}").read_text() for rank in (0, 1)] == [name, name]
    assert ended == code
    assert err[-1] == f"distrec: stopped by {name}"
    assert not any("Traceback" in line for line in err)


def test_a_killed_rank_is_restarted_with_its_peers(tmp_path):
    script = """
        import os, signal
        from pathlib import Path
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        rank, attempt = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
        total = torch.tensor(rank + 1)
        dist.all_reduce(total)
        if (rank, attempt) == (1, "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
        dist.destroy_process_group()
        Path(f"sum{rank}").write_text(f"{int(total)} in attempt {attempt}")
    """
    code, _, err = Agent(tmp_path, script, "--nproc-per-node=2", "--max-restarts=1").end()
    assert code == 0, err
    assert [(tmp_path / f"sum{rank}").read_text() for rank in (0, 1)] == ["3 in attempt 1"] * 2
    assert any("failed (exitcode: -9) local_rank: 1" in line for line in err)


def test_a_users_mistake_is_not_tried_again(tmp_path):
    script = """
        import os, sys
        from pathlib import Path
        Path(f"attempt{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
        sys.exit(2)
    """
    code, _, err = Agent(tmp_path, script, "--nproc-per-node=2", "--max-restarts=3").end()
    assert (code, sorted(path.name for path in tmp_path.glob("attempt*"))) == (2, ["attempt0"]), err


def failures(codes: dict[int, int]) -> dict[int, ProcessFailure]:
    return {rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="") for rank, code in codes.items()}


@pytest.mark.parametrize(
    ("codes", "line", "code"),
    [
        ({0: 1, 1: 2}, "rank 1 failed with exit code 2; see the message above", 2),
        ({0: -15, 3: 1}, "rank 3 failed with exit code 1; see the message above", 1),
        ({4: -9}, "rank 4 was killed by SIGKILL; the kernel does that when memory runs out", 137),
        ({4: -11, 5: -15}, "rank 4 was killed by SIGSEGV", 139),
    ],
)
def test_the_line_is_about_the_cause(codes, line, code):
    assert agent.describe(failures(codes)) == (line, code)


def test_of_equal_failures_the_first_in_time_is_the_cause():
    failed = failures({2: 1, 5: 3})
    failed[2].timestamp, failed[5].timestamp = 200, 100
    assert agent.describe(failed)[1] == 3


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(os, "environ", clean_environment())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    return os.environ


def configure(folder: Path, *options: str):
    return agent.configure(torchrun.parse_args(["--log-dir", str(folder), *options, "-m", "distrec", "train", "c.toml"]))


@pytest.mark.parametrize(("ranks", "threads"), [(1, "12"), (5, "2"), (16, "1")])
def test_ranks_share_the_cores_they_may_use(environment, tmp_path, ranks, threads):
    configure(tmp_path, f"--nproc-per-node={ranks}")
    assert environment["OMP_NUM_THREADS"] == threads


def test_the_environment_has_what_recovery_and_large_tables_need(environment, tmp_path):
    config, _, words = configure(tmp_path, "--nproc-per-node=2")
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert environment["THP_MEM_ALLOC_ENABLE"] == "1"
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"
    assert getattr(config, "shutdown_timeout", 120) == 120
    assert words[-4:] == ["-m", "distrec", "train", "c.toml"]


def test_what_the_user_has_set_stays(environment, tmp_path):
    chosen = dict.fromkeys(("OMP_NUM_THREADS", *agent.DEFAULTS), "7")
    environment.update(chosen)
    configure(tmp_path, "--nproc-per-node=2")
    assert {name: environment[name] for name in chosen} == chosen


def test_one_node_meets_itself_and_several_meet_where_they_are_told(environment, tmp_path):
    alone, _, _ = configure(tmp_path)
    assert (alone.rdzv_backend, alone.rdzv_endpoint) == ("c10d", "localhost:0")
    several, _, _ = configure(tmp_path, "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=a:1", "--rdzv-id=9")
    assert (several.rdzv_endpoint, several.run_id, several.min_nodes) == ("a:1", "9", 2)


def test_nodes_that_do_not_meet_are_one_line(environment, tmp_path, capsys):
    meet = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:9", "--rdzv-conf=is_host=0,read_timeout=1"]
    assert agent.main(["--log-dir", str(tmp_path), *meet, "-m", "distrec"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("distrec: the nodes cannot meet at localhost:9, or have lost it: ")
    assert error.count("\n") == 1


def test_options_that_do_not_fit_are_one_line(environment, capsys):
    assert agent.main(["--nnodes=two", "-m", "distrec"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distrec: the agent's options do not fit: ")
    assert "two" in error


def test_the_agent_needs_nothing_but_torch(tmp_path):
    """It runs on every node before anything else; TorchRec's kernels and the data path load in the ranks."""
    heavy = ("torchrec", "fbgemm_gpu", "pyarrow", "tensorboard", "typer", "pydantic", "torchx")
    program = f"import distrec.agent, json, sys; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
