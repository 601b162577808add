"""How many rows a second `distrec prepare criteo` turns into Parquet, and how much memory it takes.

    python benchmarks/prepare_criteo.py [--rows 2000000] [--repeats 3] [--json FILE]

The rows are generated in Criteo's form: 13 integers and 26 ids with blanks, ids drawn from Zipf's law over as many distinct
ids as Kaggle's columns have. Each run is a process of its own, so that its peak memory is its own. On a machine that
others use too, compare the rows a second of CPU time.
"""

from __future__ import annotations

import argparse
import gzip
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

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

KAGGLE = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)  # distinct ids of each column, as facebookresearch/dlrm lists them
BLANK = 0.12  # of all fields, as in Kaggle's first 10,000 rows
PART = 100_000
VARIANTS = {
    "plain text": ("train.txt", {}),
    "gzip": ("train.txt.gz", {}),
    "hash sizes of MLPerf": ("train.txt", {"hash_sizes": "mlperf"}),
    "vocabulary, at least 10": ("train.txt", {"min_count": 10}),
}


def generate(path: Path, rows: int) -> None:
    """Write rows in Criteo's form, with the same seed every time."""
    draw = np.random.default_rng(0)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file:
        for start in range(0, rows, PART):
            csv.write_csv(part(draw, min(PART, rows - start)), file, options)


def part(draw: np.random.Generator, rows: int) -> pa.Table:
    """Some rows."""
    columns = [pa.array(draw.integers(0, 2, rows))]
    columns += [pa.array(draw.geometric(0.02, rows), mask=draw.random(rows) < BLANK) for _ in range(13)]
    columns += [pa.array(hexadecimal(draw, rows, distinct), mask=draw.random(rows) < BLANK) for distinct in KAGGLE]
    return pa.Table.from_arrays(columns, names=[f"f{n}" for n in range(40)])


def hexadecimal(draw: np.random.Generator, rows: int, distinct: int) -> np.ndarray:
    """(rows,) eight digits each, of `distinct` possible ids with frequencies about 1 / rank."""
    rank = np.exp(draw.random(rows) * np.log(distinct)).astype(np.uint32)
    ids = rank * np.uint32(2654435761)  # a bijection on 32 bits
    nibbles = (ids[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & np.uint32(15)
    return np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles].view("S8").ravel().astype("U8")


def run_once(source: Path, out: Path, options: dict) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one preparation, in a process of its own."""
    words = [sys.executable, __file__, "--child", json.dumps([str(source), str(out), options])]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def child(source: str, out: str, options: dict) -> None:
    """What that process does."""
    from distrec.prepare.criteo import criteo

    wall, cpu = time.perf_counter(), time.process_time()
    criteo([source], out, overwrite=True, **options)
    used = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(used | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measure(folder: Path, rows: int, repeats: int) -> dict[str, list[dict[str, float]]]:
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
            f"{name:<26}{statistics.median(rates):>9,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f}), "
            f"{rows / cpu:,.0f} rows/s of CPU time, peak {peak:,.0f} MiB"
        )


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        child(*json.loads(words.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "train.txt"
        generate(plain, words.rows)
        with plain.open("rb") as source, gzip.open(f"{plain}.gz", "wb", compresslevel=5) as packed:
            shutil.copyfileobj(source, packed, 1 << 20)
        found = measure(Path(folder), words.rows, words.repeats)
    report(found, words.rows)
    if words.json:
        words.json.write_text(json.dumps({"rows": words.rows, "runs": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
