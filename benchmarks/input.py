"""How many rows a second does the reader turn from Parquet into batches, beside PyArrow's own scan of the same columns?

The scans decode and drop. "Scan, hash, copy" also does the least that batches of hashed ids need: it hashes every id and
copies every number once, with neither nulls, lengths nor shuffling; a reader that works by columns in NumPy cannot be faster.
The reader decodes, shuffles, hashes ids, fills nulls and makes a `Batch`. "Row by row" makes the same batch from Python rows;
"default collate" is a torch `DataLoader` over numpy rows of the same file, lists left out, for torch's collate knows no
ragged rows. Both are run on a part of the rows, for they are slow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.criteo_shape import config_values, write_rows
from benchmarks.harness import Case, Run, compare, scaled
from benchmarks.report import options, publish, quiet
from distrec.batch import KeyedJaggedTensor
from distrec.config.layout import Layout, layout
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.data import Dataset, Reader, open_dataset, uses
from distrec.data.columns import is_list
from distrec.data.deal import cut
from distrec.data.hashing import rows_of
from distrec.data.window import memory

QUESTION = "Rows a second from Parquet to batches"
ROWS = {"tiny": 8_000, "short": 200_000, "full": 600_000}
COPIES = {"tiny": 1, "short": 3, "full": 8}  # of the 80,000 real rows
BATCH, TABLE_ROWS = 4096, 200_000
SCAN = "PyArrow, all threads"


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    with TemporaryDirectory() as folder:
        rows = ROWS[chosen.size]
        lists = write_rows(Path(folder, "lists"), rows, lists=4)
        plain = write_rows(Path(folder, "plain"), rows)
        cases = [
            case("13 floats, 26 ids, 4 lists; shuffled", config(lists, 4), True, chosen.rounds),
            case("13 floats, 26 ids, 4 lists; file order", config(lists, 4), False, chosen.rounds),
            case("13 floats, 26 ids; shuffled", config(plain, 0), True, chosen.rounds),
        ]
        if root := os.environ.get("DISTREC_DATA"):
            real = repeated(Path(root) / "criteo-tb-80k", Path(folder, "real"), COPIES[chosen.size])
            cases.append(case("Criteo TB sample; shuffled", config(real, 0), True, chosen.rounds))
        return publish("input", QUESTION, cases, chosen, threads=pa.cpu_count())


def config(rows: Path, lists: int) -> Config:
    """A config that reads every column."""
    return parse(config_values(rows, rows / "run", lists=lists, rows=TABLE_ROWS, dim=4, batch_size=BATCH))


def repeated(source: Path, folder: Path, times: int) -> Path:
    """A folder in which each file of `source` stands `times` times, as links."""
    folder.mkdir()
    for copy in range(times):
        for file in source.glob("*.parquet"):
            (folder / f"{copy}-{file.name}").symlink_to(file)
    return folder


def case(name: str, run: Config, shuffle: bool, rounds: int) -> Case:
    """All ways to read one dataset, by turns."""
    features = layout(run.features, run.tables)
    dataset = open_dataset(run.data.train, uses(run.data, features, run.tasks))
    runs: dict[str, Run] = {
        SCAN: partial(scan, dataset, threads=True),
        "PyArrow, one thread": partial(scan, dataset, threads=False),
        "scan, hash, copy": partial(least, dataset, features),
        "distrec": partial(read, dataset, run, features, shuffle),
        "row by row": scaled(partial(row_by_row, first_rows(dataset, 64), features), 64),
        "default collate": scaled(partial(default_collate, first_rows(dataset, 16), features), 16),
    }
    return compare(name, "rows/s", dataset.rows, runs, SCAN, rounds, rows=dataset.rows, batch_size=BATCH, shuffle=shuffle)


def scan(dataset: Dataset, threads: bool) -> None:
    """Decode every column and drop it."""
    for file in dataset.files:
        parts = pq.ParquetFile(file.path).iter_batches(columns=dataset.schema.names, use_threads=threads)
        for _ in parts:
            pass


def least(dataset: Dataset, features: Layout) -> None:
    """Decode every column; hash and copy what is in it."""
    for file in dataset.files:
        for part in pq.ParquetFile(file.path).iter_batches(columns=dataset.schema.names):
            for dense in features.dense:
                memory(part[dense.column or dense.name]).copy()
            for bag in features.bags:
                column = part[bag.column]
                rows_of(memory(column.flatten() if is_list(column.type) else column).view(np.uint64), bag.rows)


def read(dataset: Dataset, run: Config, features: Layout, shuffle: bool) -> None:
    """One epoch of the reader."""
    reader = Reader(dataset, run.data, features, run.tasks, rank=0, world=1, shuffle=shuffle)
    rows = sum(len(batch.weights) for batch in reader.batches(epochs=1))
    if rows != dataset.rows:
        raise AssertionError(f"{rows} of {dataset.rows} rows")


def row_by_row(read: Callable[[], pa.Table], features: Layout) -> None:
    """Rows as dicts, a loop over them and over their ids."""
    table = read()
    for low in range(0, len(table), BATCH):
        rows = table.slice(low, BATCH).to_pylist()
        torch.tensor([[np.log1p(max(row[f.column or f.name] or 0.0, 0.0)) for f in features.dense] for row in rows])
        values, lengths = [], []
        for feature in features.bags:
            for row in rows:
                ids = _hashed(row[feature.column], feature.rows)
                values += ids
                lengths.append(len(ids))
        KeyedJaggedTensor(
            [f.name for f in features.bags], torch.tensor(values), lengths=torch.tensor(lengths, dtype=torch.int32)
        )


def default_collate(read: Callable[[], pa.Table], features: Layout) -> None:
    """A map-style dataset of numpy rows under torch's default collate."""
    table = read()
    dense = np.stack([table[f.column or f.name].fill_null(0).to_numpy() for f in features.dense], axis=1)
    scalars = [f for f in features.bags if not pa.types.is_list(table.schema.field(f.column).type)]
    ids = np.stack([table[f.column].fill_null(0).to_numpy() % f.rows for f in scalars], axis=1)
    rows = TensorDataset(torch.from_numpy(np.log1p(np.maximum(dense, 0))), torch.from_numpy(ids))
    for _ in DataLoader(rows, BATCH, shuffle=True):
        pass


def first_rows(dataset: Dataset, part: int) -> Callable[[], pa.Table]:
    """What reads the first `part`-th of the rows."""
    wanted = cut(dataset.row_groups, 0, dataset.rows // part)
    return lambda: pa.Table.from_batches(dataset.read(wanted, verify_checksums=False))


def _hashed(value: int | Iterable[int] | None, rows: int) -> list[int]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    return [hash(each) % rows for each in found]


if __name__ == "__main__":
    main(sys.argv[1:])
