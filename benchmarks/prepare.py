"""How many rows a second does `distrec prepare` turn into Parquet, and how much memory does it take?

Criteo's text, beside PyArrow's CSV parser alone, which writes nothing; and logs of interactions of two sizes: if memory is
bounded, the peak stays while the rows grow. Each run is a process of its own, so that its peak memory is its own; what is
timed leaves out starting it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Case, Took, compare, peak_mib
from benchmarks.launch import ROOT
from benchmarks.raw_files import write_criteo, write_log
from benchmarks.report import options, publish

QUESTION = "Rows a second of distrec prepare"
SIZES = {"tiny": (2_000, (2_000,)), "short": (200_000, (200_000,)), "full": (1_000_000, (1_000_000, 8_000_000))}
PARSER = "PyArrow's CSV parser"
LOGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Parquet, leave-one-out": ("log.parquet", {}),
    "Parquet, temporal": ("log.parquet", {"kind": "temporal"}),
    "CSV, leave-one-out": ("log.csv", {}),
}
CRITEO: dict[str, tuple[str, dict[str, Any]]] = {
    "plain text": ("train.txt", {}),
    "gzip": ("train.txt.gz", {}),
    "hash sizes of MLPerf": ("train.txt", {"hash_sizes": "mlperf"}),
    "vocabulary, at least 10": ("train.txt", {"min_count": 10}),
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    criteo_rows, log_rows = SIZES[chosen.size]
    criteo: dict[str, tuple[str, str, dict[str, Any]]] = {name: ("criteo", *how) for name, how in CRITEO.items()}
    cases = [measure("Criteo", criteo_rows, write_criteo, criteo | {PARSER: ("parse", "train.txt", {})}, PARSER, chosen.rounds)]
    logs = {name: ("interactions", *how) for name, how in LOGS.items()}
    cases += [measure("interactions", rows, write_log, logs, next(iter(logs)), chosen.rounds) for rows in log_rows]
    return publish("prepare", QUESTION, cases, chosen)


def measure(
    what: str,
    rows: int,
    write: Callable[[Path, int], None],
    ways: dict[str, tuple[str, str, dict[str, Any]]],
    reference: str,
    rounds: int,
) -> Case:
    """Every way to prepare the files that `write` leaves: a function of `WORK`, a file, options."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows)
        runs = {way: partial(apart, work, folder / file, folder / "out", how) for way, (work, file, how) in ways.items()}
        return compare(f"{what}, {rows:,} rows", "rows/s", rows, runs, reference, rounds, 0)


def apart(work: str, source: Path, out: Path, how: dict[str, Any]) -> Took:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--child", json.dumps([work, str(source), str(out), how])]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    shutil.rmtree(out, ignore_errors=True)
    return Took(**json.loads(said))


def child(work: str, source: str, out: str, how: dict[str, Any]) -> None:
    """What that process does."""
    run = WORK[work]()
    wall, cpu = time.perf_counter(), time.process_time()
    run(source, out, how)
    used = {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps(used | {"peak_mib": peak_mib()}))  # `ru_maxrss` would begin with that of the process that started this one


Work = Callable[[str, str, dict[str, Any]], object]  # of a source, an output folder, options


def _criteo() -> Work:
    from distrec.prepare.criteo import criteo

    return lambda source, out, how: criteo([source], out, **how)


def _interactions() -> Work:
    from distrec.prepare.retrieval.interactions import interactions
    from distrec.prepare.retrieval.log import LogColumns
    from distrec.prepare.retrieval.splits import Splitting

    columns = LogColumns("user_id", "item_id", "timestamp")
    return lambda source, out, how: interactions([[source]], out, columns=columns, splitting=Splitting(**how))


def _parse() -> Work:
    import pyarrow.csv as csv

    read, parse = csv.ReadOptions(autogenerate_column_names=True), csv.ParseOptions(delimiter="\t")
    return lambda source, _out, _how: sum(
        batch.num_rows for batch in csv.open_csv(source, read_options=read, parse_options=parse)
    )


WORK: dict[str, Callable[[], Work]] = {"criteo": _criteo, "interactions": _interactions, "parse": _parse}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
