"""Cases that need several ranks, measured in processes that are started as a run's ranks are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Case
from distrec import dist

ROOT = Path(__file__).parents[1]


def on_ranks(program: str, ranks: int, found: Path, *words: str) -> list[Case]:
    """Run module `program` on `ranks` processes of this machine, with `found` and `words`; it leaves its cases in `found`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    agent = [sys.executable, "-m", "distrec.agent", "--nnodes=1", f"--nproc-per-node={ranks}", "-m", program]
    subprocess.run([*agent, str(found), *words], env=environment, check=True)
    return [Case.from_json(case) for case in json.loads(found.read_text(encoding="utf-8"))]


def leave(cases: Sequence[Case], found: Path, ranks: dist.Ranks) -> None:
    """What such a program ends with."""
    if ranks.first:
        found.write_text(json.dumps([case.to_json() for case in cases]), encoding="utf-8")
    dist.stop()
