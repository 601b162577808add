"""How fast is a checkpoint saved and loaded, beside the disk's own rate for the same bytes?

A save is synchronous: training stands still for all of it. It writes, forces to disk, reads back for the checksums and
then names itself valid. The disk's own rate is one file written and forced to disk. A load checks every file, then reads
them into the tables; beside it, the same files are read and dropped. Before each load the page cache is asked to forget them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.criteo_shape import config_values, write_rows
from benchmarks.harness import MIB, Case, Run, compare
from benchmarks.report import options, publish, quiet
from distrec import dist
from distrec.checkpoint import Checkpoints, Manifest
from distrec.config.load import parse
from distrec.engine import Engine

QUESTION = "Checkpoints: MiB a second"
SHAPES = {"tiny": (1_000, 8), "short": (50_000, 64), "full": (200_000, 64)}  # rows a table, embedding dim
CHUNK = bytes(16 * MIB)
MANIFEST = Manifest(step=1, world=1, model={}, data="", position={}, progress={})


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    ranks = dist.start("cpu")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=chosen.out) as folder:  # on that disk, for the usual place is often in memory
        rows, dim = SHAPES[chosen.size]
        data = write_rows(Path(folder, "rows"), 100)
        values = config_values(data, Path(folder, "run"), lists=0, rows=rows, dim=dim, batch_size=50)
        engine = Engine.build(parse(values), ranks)
        engine.optimizers.prepare_to_load()
        cases = measure(engine, Checkpoints(Path(folder, "checkpoints"), 1, ranks), Path(folder), chosen.rounds)
    dist.stop()
    return publish("checkpoint", QUESTION, cases, chosen)


def measure(engine: Engine, checkpoints: Checkpoints, folder: Path, rounds: int) -> list[Case]:
    """Saving, then loading."""
    files = list(checkpoints.save(engine.state(), MANIFEST).iterdir())
    size = sum(file.stat().st_size for file in files) / MIB
    saving: dict[str, Run] = {
        "distrec, save": lambda: save(engine, checkpoints),
        "disk, write and fsync": partial(write, folder / "plain", size),
    }
    loading: dict[str, Run] = {
        "distrec, check and load": partial(load, engine, checkpoints),
        "disk, read": partial(read, checkpoints.path(MANIFEST.step)),
    }
    facts = {"mib": size, "files": len(files)}
    return [
        compare(f"save {size:,.0f} MiB", "MiB/s", size, saving, "disk, write and fsync", rounds, **facts),
        compare(f"load {size:,.0f} MiB", "MiB/s", size, loading, "disk, read", rounds, **facts),
    ]


def save(engine: Engine, checkpoints: Checkpoints) -> float:
    """Seconds that training stands still."""
    began = perf_counter()
    checkpoints.save(engine.state(), MANIFEST)
    return perf_counter() - began


def load(engine: Engine, checkpoints: Checkpoints) -> float:
    """Seconds of what a resumed run does: check the files, fill the tables."""
    forget(checkpoints.path(MANIFEST.step))
    began = perf_counter()
    checkpoints.read_manifest(MANIFEST.step)
    engine.load(checkpoints, MANIFEST.step)
    return perf_counter() - began


def read(folder: Path) -> float:
    """Seconds to read the files of a folder."""
    forget(folder)
    began = perf_counter()
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(len(CHUNK)):
                pass
    return perf_counter() - began


def write(path: Path, size: float) -> None:
    """Write `size` MiB into a new file and wait until they are on disk."""
    with path.open("wb", buffering=0) as file:
        left = int(size * MIB)
        while left > 0:
            left -= file.write(CHUNK[:left])
        os.fsync(file.fileno())
    path.unlink()


def forget(folder: Path) -> None:
    """Ask the system to drop what it caches of a folder's files, where one can ask."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


if __name__ == "__main__":
    main(sys.argv[1:])
