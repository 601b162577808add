"""The self-test: local ranks, started as a run starts them, exchange rows as sharded tables do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from distrec.doctor.finding import Finding

Device = Literal["auto", "cpu", "cuda"]
START_S = 60  # to start the agent and import torch, beside the collective's own timeout
INHERITED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
WORDS = {
    "absent": "did not start",
    "started": "started and did not join the process group",
    "joined": "joined the process group and did not finish the exchange",
}


def self_test(ranks: int, device: Device = "auto", gpus: int = 0, timeout_s: int = 60) -> Finding:
    """Start ranks through `distrec.agent`, let them exchange rows with all-to-all, and say which one failed and where.

    Args:
        ranks: processes on this machine.
        device: `auto`: GPUs when there is one a rank, else CPU.
        gpus: how many torch can use.
        timeout_s: for joining and for the exchange.
    """
    name = f"all-to-all, {ranks} rank{'s' if ranks > 1 else ''}"
    if device == "cuda" and gpus < ranks:
        return Finding(
            name, "fault", f"needs {ranks} GPU{'s' if ranks > 1 else ''}, and torch sees {gpus}", "distrec doctor --device cpu"
        )
    chosen = "cuda" if device == "cuda" or (device == "auto" and gpus >= ranks) else "cpu"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distrec-doctor-") as folder:
        problem = _run(Path(folder), ranks, chosen, timeout_s)
        stages = [_stage(Path(folder) / f"rank-{rank}.json") for rank in range(ranks)]
    said = "; ".join(filter(None, (_words(rank, *stage) for rank, stage in enumerate(stages))))
    backend = "NCCL" if chosen == "cuda" else "Gloo"
    if not said and not problem:
        return Finding(name, "ok", f"{backend}: every value arrived, in {time.perf_counter() - began:.1f} s")
    return Finding(name, "fault", f"{backend}: {'; '.join(filter(None, (problem, said)))}", _fix(ranks, chosen))


def _run(folder: Path, ranks: int, device: str, timeout_s: int) -> str:
    """Run the ranks to their end; what the agent said when they failed."""
    words = ["--nnodes=1", f"--nproc-per-node={ranks}", "--log-dir", str(folder / "logs"), "-m", "distrec.doctor.exchange"]
    command = [sys.executable, "-m", "distrec.agent", *words, str(folder), device, str(timeout_s)]
    environment = {key: value for key, value in os.environ.items() if key not in INHERITED}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "3"  # there is nothing to save
    with (folder / "agent.log").open("w+", encoding="utf-8", errors="replace") as log:
        agent = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        ended = _ended(agent, timeout_s + START_S)
        log.seek(0)
        return "" if agent.returncode == 0 else _said(log.read(), ended, timeout_s + START_S)


def _ended(agent: subprocess.Popen, limit_s: float) -> bool:
    """Wait; at the limit ask the agent to end, which ends its ranks, and then end it."""
    try:
        agent.wait(limit_s)
    except subprocess.TimeoutExpired:
        agent.terminate()
        try:
            agent.wait(40)  # torch 2.11 always leaves its ranks 30 s
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        return False
    except BaseException:  # Ctrl-C must not leave ranks behind
        agent.terminate()
        raise
    return True


def _said(log: str, ended: bool, limit_s: float) -> str:
    """The agent's own line, which names the rank that failed first, and the first error, which is the nearest to the cause."""
    lines = [line.strip() for line in log.splitlines()]
    verdict = [line.removeprefix("distrec: ").partition(";")[0] for line in lines if line.startswith("distrec:")][:1]
    errors = [line for line in lines if "Error" in line][:1]
    return "; ".join(([] if ended else [f"ended after {limit_s:g} s"]) + verdict + errors) or "the agent said nothing"


def _stage(path: Path) -> tuple[str, list[int]]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "absent", []
    return noted["stage"], noted["wrong"]


def _words(rank: int, stage: str, wrong: list[int]) -> str:
    if stage == "wrong":
        return f"rank {rank} got wrong values from rank {', '.join(map(str, wrong))}"
    return f"rank {rank} {WORDS[stage]}" if stage in WORDS else ""


def _fix(ranks: int, device: str) -> str:
    """The command that shows more."""
    detail = "NCCL_DEBUG=INFO" if device == "cuda" else "GLOO_SOCKET_IFNAME=lo"
    words = f"-m distrec.agent --nnodes=1 --nproc-per-node={ranks} -m distrec.doctor.exchange"
    return f"{detail} TORCH_DISTRIBUTED_DEBUG=DETAIL {sys.executable} {words} {tempfile.gettempdir()} {device} 60"
