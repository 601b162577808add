"""How many rows a second does distrec train, beside a bare TorchRec loop that is handed its batches?

26 tables, DLRM with dot interactions, row-wise Adagrad fused into backward, on one rank and on two. The ranks are started as
those of a run are; what is timed is `benchmarks.train_ranks`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.criteo_shape import write_rows
from benchmarks.harness import Case
from benchmarks.report import options, publish, quiet

QUESTION = "Rows a second of training, 26 tables"
ROWS = {"tiny": 2_000, "short": 200_000, "full": 400_000}
ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    with TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows"), ROWS[chosen.size])
        cases = [measure(Path(folder), ranks, chosen.size, chosen.rounds) for ranks in (1, 2)]
    return publish("train", QUESTION, cases, chosen)


def measure(folder: Path, ranks: int, size: str, rounds: int) -> Case:
    """The loops on `ranks` processes, by turns."""
    words = [f"--nproc-per-node={ranks}", "-m", "benchmarks.train_ranks", str(folder), size, str(rounds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-m", "distrec.agent", "--nnodes=1", *words], env=environment, check=True)
    return Case.from_json(json.loads((folder / f"ranks-{ranks}.json").read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
