"""What do huge pages, and threads, do for lookups on CPU?

torch takes memory for large tensors in huge pages when `THP_MEM_ALLOC_ENABLE=1` stands before its first allocation and the
kernel's setting is `madvise` or `always`. So each setting has a process of its own; they work by turns.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.embedding import BATCHES, work
from benchmarks.embedding_layers import Shape, draw, layer
from benchmarks.harness import Case, Run, Took, compare, timed
from benchmarks.report import options, publish, quiet
from distrec import dist

QUESTION = "Lookups a second on CPU, by memory pages and threads"
REFERENCE = "small pages, 1 thread"
ROWS = {"tiny": 1_000, "short": 1_000_000, "full": 2_000_000}
REPEATS = {"tiny": 1, "short": 5, "full": 5}

_work: dict[bool, Callable[[], None]] = {}  # of a worker's process: by whether it trains


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    with ExitStack() as stack:
        started = {name: start(setting, chosen.size) for name, setting in settings().items()}
        workers = {name: stack.enter_context(pool) for name, (pool, _) in started.items()}
        huge = {name: mib for name, (_, mib) in started.items()}
        cases = [measure(workers, backward, chosen.size, chosen.rounds, huge) for backward in (False, True)]
    return publish("huge_pages", QUESTION, cases, chosen)


def settings() -> dict[str, dict[str, str]]:
    """Environments, by name."""
    cores = len(os.sched_getaffinity(0))
    return {
        f"{pages} pages, {threads} thread{'s' if threads > 1 else ''}": {
            "THP_MEM_ALLOC_ENABLE": str(int(pages == "huge")),
            "OMP_NUM_THREADS": str(threads),
        }
        for threads in dict.fromkeys((1, cores))
        for pages in ("small", "huge")
    }


def start(environment: Mapping[str, str], size: str) -> tuple[ProcessPoolExecutor, float]:
    """A process with tables, and how many MiB of it lie in huge pages."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with patch.dict(os.environ, environment):  # what a process finds when it starts
        return pool, pool.submit(prepare, size).result()


def prepare(size: str) -> float:
    """In a worker: build the layer that lookups are timed on; returns MiB in huge pages."""
    quiet()
    ranks, shape = dist.start("cpu"), Shape(rows=ROWS[size])
    lookup, batches = layer(shape, ranks), [draw(shape, seed, ranks.device) for seed in range(BATCHES)]
    _work.update({backward: partial(work, lookup, batches, REPEATS[size], backward) for backward in (False, True)})
    smaps = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in smaps if line.startswith("AnonHugePages"))


def once(backward: bool) -> Took:
    """In a worker: one run."""
    return timed(_work[backward])


def measure(
    workers: Mapping[str, ProcessPoolExecutor], backward: bool, size: str, rounds: int, huge: Mapping[str, float]
) -> Case:
    """The settings by turns."""
    shape = Shape(rows=ROWS[size])
    runs: dict[str, Run] = {name: lambda pool=pool: pool.submit(once, backward).result() for name, pool in workers.items()}
    name = f"{shape.name}; {'forward, backward, update' if backward else 'forward'}"
    facts: dict[str, Any] = vars(shape) | {"huge_pages_mib": huge}
    return compare(name, "lookups/s", shape.lookups * REPEATS[size], runs, REFERENCE, rounds, **facts)


if __name__ == "__main__":
    main(sys.argv[1:])
