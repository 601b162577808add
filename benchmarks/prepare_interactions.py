"""How many interactions a second `distrec prepare interactions` turns into a retrieval dataset, and how much memory it takes.

    python benchmarks/prepare_interactions.py [--rows 1000000 8000000] [--repeats 3] [--json FILE]

Logs of several sizes are generated, the rows of a user spread all over the file: users are drawn from Zipf's law, 20 rows a
user on average, and so are 100,000 items. If memory is bounded, the peak stays while the rows grow. Each run is a process of
its own, so that its peak memory is its own. On a machine that others use too, compare the rows a second of CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

ITEMS = 100_000
ROWS_A_USER = 20
PART = 500_000
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Parquet, leave-one-out": ("log.parquet", {}),
    "Parquet, temporal": ("log.parquet", {"split": "temporal"}),
    "CSV, leave-one-out": ("log.csv", {}),
}


def generate(folder: Path, rows: int) -> None:
    """Write a log as Parquet and as CSV, with the same seed every time."""
    draw = np.random.default_rng(0)
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(folder / "log.parquet", schema) as packed, csv.CSVWriter(folder / "log.csv", schema) as text:
        for start in range(0, rows, PART):
            part = _part(draw, start, min(PART, rows - start), rows // ROWS_A_USER, schema)
            packed.write_table(part)
            text.write_table(part)


def _part(draw: np.random.Generator, start: int, rows: int, users: int, schema: pa.Schema) -> pa.Table:
    user, item = (_zipf(draw, rows, distinct) for distinct in (users, ITEMS))
    return pa.Table.from_arrays([pa.array(user), pa.array(item), pa.array(start + np.arange(rows))], schema=schema)


def _zipf(draw: np.random.Generator, rows: int, distinct: int) -> np.ndarray:
    """(rows,) ids under `distinct`, frequencies about 1 / sqrt(rank), in no order."""
    rank = (draw.random(rows) ** 2 * distinct).astype(np.int64)
    return rank * 2_654_435_761 % 2**40


def run_once(source: Path, out: Path, options: dict[str, Any]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one preparation, in a process of its own."""
    words = [sys.executable, __file__, "--child", json.dumps([str(source), str(out), options])]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def child(source: str, out: str, options: dict[str, Any]) -> None:
    """What that process does."""
    from distrec.prepare.retrieval.interactions import interactions
    from distrec.prepare.retrieval.log import LogColumns
    from distrec.prepare.retrieval.splits import Splitting

    splitting = Splitting(options.get("split", "leave-one-out"))
    wall, cpu = time.perf_counter(), time.process_time()
    interactions([[source]], out, columns=LogColumns("user_id", "item_id", "timestamp"), splitting=splitting, overwrite=True)
    used = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(used | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measure(folder: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """All variants in turn, `repeats` times, so that a disturbance does not fall on one alone."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(repeats):
        for name, (file, options) in VARIANTS.items():
            found[name].append(run_once(folder / file, folder / "out", options))
            shutil.rmtree(folder / "out")
    return found


def report(found: dict[str, list[dict[str, float]]], rows: int) -> None:
    """One line a variant: median, slowest and fastest run."""
    print(f"{rows:,} rows, {len(os.sched_getaffinity(0))} cores; rows/s: median (slowest to fastest)")
    for name, runs in found.items():
        rates = sorted(rows / run["seconds"] for run in runs)
        cpu, peak = (statistics.median(run[key] for run in runs) for key in ("cpu_seconds", "peak_mib"))
        print(
            f"{name:<24}{statistics.median(rates):>9,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f}), "
            f"{rows / cpu:,.0f} rows/s of CPU time, peak {peak:,.0f} MiB"
        )


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 8_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        child(*json.loads(words.child))
        return
    results = []
    for rows in words.rows:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), rows)
            results.append({"rows": rows, "runs": measure(Path(folder), words.repeats)})
        report(results[-1]["runs"], rows)
    if words.json:
        words.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
