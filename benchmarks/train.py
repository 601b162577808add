"""How many rows a second does distrec train, beside a bare TorchRec loop that is handed its batches?

A ranker: 26 tables, DLRM with dot interactions. A retriever: a two-tower model with a history, and softmax over the batch's
items. Row-wise Adagrad fused into backward, on one rank and on two. The ranks are started as those of a run are; what is
timed is `benchmarks.train_ranks`.

`--rechub PYTHON` adds torch-rechub's own trainer on the same DeepFM (`benchmarks.train_rechub`). Its environment, with the
same torch and another Python:

    python3.11 -m venv rechub && rechub/bin/pip install torch==2.13.0 torch-rechub==0.9.0
    python -m benchmarks.train --rechub rechub/bin/python
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.criteo_shape import write_rows
from benchmarks.interactions_shape import write_log
from benchmarks.launch import on_ranks
from benchmarks.report import options, publish, quiet

QUESTION = "Rows a second of training"
ROWS = {"tiny": 2_000, "short": 200_000, "full": 800_000}
IDS = {"tiny": 1_000, "short": 200_000, "full": 200_000}  # users, and items


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv, **{"--rechub": "Python of an environment that has torch-rechub; default: left out"})
    quiet()
    with TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows"), ROWS[chosen.size])
        write_log(Path(folder, "log"), ROWS[chosen.size], IDS[chosen.size])
        cases, words = [], (str(folder), chosen.size, str(chosen.rounds))
        for ranks in (1, 2):
            cases += on_ranks("benchmarks.train_ranks", ranks, Path(folder, f"ranks-{ranks}.json"), *words)
        if chosen.rechub:
            cases += on_ranks("benchmarks.train_rechub", 1, Path(folder, "rechub.json"), *words, chosen.rechub)
        else:
            print("torch-rechub's trainer: left out, for no --rechub PYTHON is given")
    return publish("train", QUESTION, cases, chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
