"""distrec's trainer beside torch-rechub's, on the same DeepFM and rows. Usage: RESULT FOLDER SIZE ROUNDS PYTHON.

torch-rechub does not fit into distrec's environment; PYTHON is that of one of its own (see `benchmarks.train`). Both train 26
tables, an MLP of 256 and 128 with batch norm, and the same ids. distrec reads them from Parquet and hashes them; torch-rechub
has them as table rows in memory, through its own `DataGenerator`. Optimizers are each one's own: row-wise Adagrad for tables
and Adam for the rest; Adam with weight decay for everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.criteo_shape import SPARSE, config_values
from benchmarks.harness import Case, Run, Took, compare, scaled
from benchmarks.launch import leave
from benchmarks.report import quiet
from benchmarks.train_ranks import from_parquet
from distrec import dist
from distrec.config.load import parse
from distrec.trainer import Trainer, build

SIZES = {  # rows a table, embedding dim, rows a batch, steps a run of distrec and of torch-rechub
    "tiny": (1_000, 8, 64, 4, 1),
    "short": (200_000, 64, 2048, 12, 1),
    "full": (200_000, 64, 2048, 64, 2),
}
PEER = "torch-rechub's trainer"
LOOP = Path(__file__).with_name("rechub_loop.py")


def main(result: Path, folder: Path, size: str, rounds: int, python: str) -> None:
    """Measure; writes the case."""
    quiet()
    rows, dim, batch_size, steps, peer_steps = SIZES[size]
    ranks = dist.start("cpu")
    trainer = make(folder, rows, dim, batch_size, steps // 2 * batch_size, ranks)
    columns = folder / "rows.npz"
    np.savez(columns, **ids(trainer, peer_steps))  # type: ignore[arg-type]
    words = [python, str(LOOP), str(columns), *map(str, (batch_size, rows, dim, peer_steps))]
    with peer(words, folder / "rechub.log") as run:
        leave([measure(trainer, run, steps, peer_steps, batch_size, rounds)], result, ranks)


def make(folder: Path, rows: int, dim: int, batch_size: int, window: int, ranks: dist.Ranks) -> Trainer:
    """distrec's side."""
    values = config_values(folder / "rows", folder / "run-rechub", lists=0, rows=rows, dim=dim, batch_size=batch_size)
    values["features"]["dense"], values["data"]["shuffle_window"] = [], window
    values["model"] = {"name": "deepfm", "params": {"mlp": [256, 128], "batch_norm": True}}
    return build(parse(values), ranks, None)


def ids(trainer: Trainer, steps: int) -> dict[str, np.ndarray]:
    """The first batches as torch-rechub takes them: labels, and a table row of each feature; 0 where there is none."""
    batches = [batch for batch, _ in zip(trainer.readers["train"].batches(), range(steps), strict=False)]
    found = {"labels": np.concatenate([batch.labels[:, 0].numpy() for batch in batches])}
    for index in range(1, SPARSE + 1):
        parts = [batch.sparse[f"c{index}"].to_padded_dense(1).squeeze(1).long() for batch in batches if batch.sparse]
        found[f"c{index}"] = np.concatenate([part.numpy() for part in parts])
    return found


@contextmanager
def peer(command: list[str], log: Path) -> Iterator[Run]:
    """torch-rechub's process; what is yielded has it train once."""
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout
        if answers.readline() != b"ready\n":
            raise RuntimeError(f"{command[0]} cannot run torch-rechub:\n{log.read_text()}")

        def run() -> Took:
            ask.write(b"\n")
            ask.flush()
            return Took(**json.loads(answers.readline()))

        yield run
        ask.close()


def measure(trainer: Trainer, run: Run, steps: int, peer_steps: int, batch_size: int, rounds: int) -> Case:
    """By turns. torch-rechub's `peer_steps` are scaled up to `steps`."""
    runs: dict[str, Run] = {
        "distrec, from Parquet": partial(from_parquet, trainer, steps),
        PEER: scaled(run, steps / peer_steps),
    }
    facts: dict[str, Any] = {"batch_size": batch_size, "steps": steps, "peer_steps": peer_steps}
    return compare("DeepFM, 1 rank", "rows/s", steps * batch_size, runs, PEER, rounds, **facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
