"""What goes wrong on one rank only, and what the ranks make of it.

failures.py FOLDER scenarios         runs that fail or must not, one after the other; results.json says how each ended
failures.py FOLDER train CONFIG      `distrec train CONFIG`
failures.py FOLDER killed CONFIG     the same, but rank 1 gets SIGKILL when it reads its sixth batch
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resume import Spied, gather
from small_run import ROWS, values, write_rows

from distrec import dist, log
from distrec.__main__ import main as distrec
from distrec.data import Reader
from distrec.embeddings import shard
from distrec.errors import UserError
from distrec.trainer import Trainer

IN_ORDER = {"batch_size": 64, "shuffle": False, "shuffle_window": 64}
HALF = ROWS // 2  # the first row of rank 1
FIRST, LATER = HALF + 3, HALF + 9 * 64 + 5  # in its first batch, and in its tenth
NORMED = {"name": "dlrm", "params": {"bottom_mlp": [8], "top_mlp": [16], "batch_norm": True}}
REGRESSION = [{"label": "y", "kind": "regression"}]
TRAIN = {"device": "cpu", "log_every": 5}


def ids(bad: int) -> np.ndarray:
    found = np.arange(ROWS) % 40
    found[bad] = 99
    return found


def numbers(start: np.ndarray, bad: int) -> np.ndarray:
    """Finite in float32, with a square that is not."""
    found = start.astype(np.float64)
    found[bad] = 3e38
    return found


def write_all(folder: Path) -> None:
    write_rows(folder / "good" / "train")
    write_rows(folder / "first" / "train", item=ids(FIRST))
    write_rows(folder / "later" / "train", item=ids(LATER))
    write_rows(folder / "large" / "train", x=numbers(np.arange(ROWS), LATER))
    write_rows(folder / "target" / "train", y=numbers(np.zeros(ROWS), LATER))
    write_rows(folder / "valid", item=ids(LATER))
    write_rows(folder / "unequal" / "train", 10_000, files=1)
    write_rows(folder / "one-row", 1, files=1, x=np.array([10_000.0]))
    (folder / "one-row" / "part-0.parquet").rename(folder / "unequal" / "train" / "tiny.parquet")
    write_rows(folder / "one-row", 1, files=1)


def attempt(ranks: dist.Ranks, folder: Path, rows: str, name: str, resume: str | None = None, **sections: Any) -> dict:
    """How a run of that name on those rows ends; the same on all ranks, but for what is listed by rank."""
    data = {"train": str(folder / rows / "train"), **IN_ORDER} | sections.pop("data", {})
    spied = Spied(ranks, folder / rows, folder / name, resume, **{"train": TRAIN, "data": data} | sections)
    began, error = time.monotonic(), None
    try:
        spied.trainer.run()
    except UserError as raised:
        error = raised
    trainer = spied.trainer
    return {
        "errors": gather([type(error).__name__, str(error)]),
        "seconds": time.monotonic() - began,
        "steps": trainer.optimizers.steps,
        "saved": trainer.checkpoints.steps(),
        "skipped": trainer.memory.skipped,
        "finite": all(gather(is_finite(trainer))),
        "statistics": gather([buffer.tolist() for buffer in trainer.engine.model.module.head.buffers()]),
        "rows": gather([row for batch in spied.rows for row in batch]),
    }


def is_finite(trainer: Trainer) -> bool:
    parts = [tensor for parts in shard.local_shards(trainer.engine.model).values() for tensor, _, _ in parts]
    dense = [*trainer.engine.model.module.head.parameters(), *trainer.engine.model.module.head.buffers()]
    return all(bool(tensor.isfinite().all()) for tensor in (*parts, *dense))


def features(**item: Any) -> dict:
    """The features of a small run, with more said of `item`."""
    found = values(Path(), Path())["features"]
    found["sparse"][1] |= item
    return found


def statistics(ranks: dist.Ranks, folder: Path) -> dict[str, Any]:
    """Running mean of the first batch norm at the end of a run, and each rank's batch means on the way."""
    sections = {"data": {"train": str(folder / "good" / "train"), **IN_ORDER}, "model": NORMED}
    spied = Spied(ranks, folder / "good", folder / "normed", None, train=TRAIN, **sections)
    norm = next(m for m in spied.trainer.engine.model.module.modules() if isinstance(m, torch.nn.BatchNorm1d))
    means: list[list[float]] = []
    norm.register_forward_pre_hook(lambda module, args: means.append(args[0].detach().double().mean(0).tolist()))
    spied.trainer.run()
    return {"means": gather(means), "running": gather(norm.running_mean.tolist())}


def scenarios(ranks: dist.Ranks, folder: Path) -> dict[str, Any]:
    if ranks.first:
        write_all(folder)
    torch.distributed.barrier()

    skip, few_steps = TRAIN | {"non_finite": "skip"}, {"batch_size": 512}
    return {
        "first": attempt(ranks, folder, "first", "first-run"),
        "later": attempt(ranks, folder, "later", "later-run"),
        "mended": attempt(ranks, folder, "later", "later-run", "newest", features=features(out_of_range="null")),
        "stop": attempt(ranks, folder, "target", "stop-run", tasks=REGRESSION),
        "overflow": attempt(ranks, folder, "large", "overflow-run", model=NORMED),
        "skip": attempt(ranks, folder, "large", "skip-run", model=NORMED, train=skip),
        "valid": attempt(ranks, folder, "good", "valid-run", data={"valid": str(folder / "valid")}),
        "unequal": attempt(ranks, folder, "unequal", "unequal-run", data=few_steps | {"valid": str(folder / "one-row")}),
        "statistics": statistics(ranks, folder),
    }


def kill_at_sixth_batch() -> None:
    batches = Reader.batches

    def killed(self: Reader, *args: Any, **options: Any) -> Iterator:
        for count, batch in enumerate(batches(self, *args, **options), 1):
            if count == 6 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Reader.batches = killed  # type: ignore[method-assign]


def main() -> None:
    folder, verb, *words = Path(sys.argv[1]), *sys.argv[2:]
    if verb == "killed":
        kill_at_sixth_batch()
    if words:
        distrec(["train", *words])
    log.quiet_dependencies()
    ranks = dist.start("cpu", 120)
    results = scenarios(ranks, folder)
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
