"""How long does a run take to its first step, and what of it are imports?

Fresh processes, by turns: one that trains one step on a small model, and two that only import what it imports most of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.criteo_shape import config_values, write_rows
from benchmarks.harness import Case, Variant
from benchmarks.report import options, publish, quiet

QUESTION = "Seconds to the first step"
PHASES = ("python", "imports", "process group", "build", "first step")
TOTAL = "all"
ROOT = Path(__file__).parents[1]
IMPORTS = {"import torch": "import torch", "import torch, torchrec": "import torch, torchrec.distributed"}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    seconds: dict[str, list[float]] = {name: [] for name in (TOTAL, *PHASES, *IMPORTS)}
    with TemporaryDirectory() as folder:
        rows = write_rows(Path(folder, "rows"), 8192)
        for turn in range(chosen.rounds + 1):  # the first one reads the libraries from disk
            found = one_start(rows, Path(folder, f"run-{turn}"))
            found |= {name: seconds_of([sys.executable, "-c", code]) for name, code in IMPORTS.items()}
            for name, value in found.items() if turn else ():
                seconds[name].append(value)
    variants = {name: Variant(name, values, [], None) for name, values in seconds.items()}
    case = Case("a small model, one process; libraries in the page cache", "s", TOTAL, variants, {})
    return publish("start", QUESTION, [case], chosen)


def one_start(rows: Path, folder: Path) -> dict[str, float]:
    """Seconds of each phase of a process that trains one step, and of all."""
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(config_values(rows, folder, lists=0, rows=1000, dim=16, batch_size=1024)), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.first_step", str(time.time()), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    times = json.loads(done.stdout.splitlines()[-1])
    phases = dict(zip(PHASES, (after - before for before, after in pairwise(times)), strict=True))
    return {TOTAL: times[-1] - times[0]} | phases


def seconds_of(command: list[str]) -> float:
    """Wall seconds of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
