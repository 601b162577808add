"""Programs on several ranks, through the door that production uses: the agent, torchrun's environment, `distrec.dist.start`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    results: dict[str, Any]  # what the program's rank 0 wrote


def run_ranks(program: str, ranks: int, folder: Path, *words: str, timeout: int = 280) -> Outcome:
    """Run tests/programs/PROGRAM on local ranks; it gets `folder` as its first argument and writes `results.json` there."""
    agent = [sys.executable, "-m", "distrec.agent", "--nnodes=1", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROGRAMS), str(PROGRAMS.parent), *sys.path])}
    done = subprocess.run(
        [*agent, str(PROGRAMS / "rank.py"), str(PROGRAMS / program), str(folder), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    return Outcome(done.returncode, done.stdout + done.stderr, results)
