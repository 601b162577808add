"""The sharding types that `benchmarks.embedding` compares, on the ranks of one run. Usage: RESULT SIZE ROUNDS."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed

from benchmarks.embedding import AMOUNT, BATCHES, KERNEL, work
from benchmarks.embedding_layers import Shape, draw, kernel, layer
from benchmarks.harness import Case, Run, compare
from benchmarks.launch import leave
from benchmarks.report import quiet
from distrec import dist

TYPES = ("table_wise", "row_wise", "column_wise")
SHAPES = {  # adagrad, with which every one of these types learns the same
    "tiny": Shape(rows=1_000, dim=8, batch=64, optimizer="adagrad"),
    "short": Shape(rows=200_000, batch=8192, optimizer="adagrad"),
    "full": Shape(rows=200_000, batch=8192, optimizer="adagrad"),
}


def main(found: Path, size: str, rounds: int) -> None:
    """Measure; rank 0 writes the cases."""
    quiet()
    ranks, shape = dist.start(), SHAPES[size]
    leave(
        [measure(shape, ranks, 1 if size == "tiny" else -(-AMOUNT[ranks.device.type] // shape.lookups), rounds)], found, ranks
    )


def measure(shape: Shape, ranks: dist.Ranks, repeats: int, rounds: int) -> Case:
    """Forward, backward and update, every type by turns."""
    share = replace(shape, tables=shape.tables // ranks.world, batch=shape.batch * ranks.world)  # whole tables, all rows
    lookups = {kind: (layer(shape, ranks, kind), shape) for kind in TYPES} | {KERNEL: (kernel(share, ranks.device), share)}
    runs: dict[str, Run] = {}
    for name, (lookup, taken) in lookups.items():
        batches = [draw(taken, seed + BATCHES * ranks.rank, ranks.device) for seed in range(BATCHES)]
        runs[name] = partial(together, partial(work, lookup, batches, repeats, True))
    title = f"{shape.name}; forward, backward, update; {ranks.world} rank{'s' if ranks.world > 1 else ''}"
    facts: dict[str, Any] = vars(shape) | {"ranks": ranks.world, "repeats": repeats}
    return compare(title, "lookups/s", shape.lookups * repeats * ranks.world, runs, KERNEL, rounds, **facts)


def together(run: Run) -> None:
    """From the first rank's start to the last one's end."""
    torch.distributed.barrier()
    run()
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
