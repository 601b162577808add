"""Raw files as people bring them to `distrec prepare`: Criteo's text, and a log of interactions."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

PART = 100_000  # rows made at once
KAGGLE = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)  # distinct ids of each column, as facebookresearch/dlrm lists them
BLANK = 0.12  # of all fields, as in Kaggle's first 10,000 rows
ITEMS = 100_000
ROWS_A_USER = 20
LOG = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.int64())])


def write_criteo(folder: Path, rows: int) -> None:
    """Write `train.txt`, 13 integers and 26 ids with blanks and ids by Zipf's law, and `train.txt.gz`; the same every time."""
    draw, plain = np.random.default_rng(0), folder / "train.txt"
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with plain.open("wb") as file:
        for _, count in _parts(rows):
            csv.write_csv(_criteo(draw, count), file, options)
    with plain.open("rb") as source, gzip.open(f"{plain}.gz", "wb", compresslevel=5) as packed:
        shutil.copyfileobj(source, packed, 1 << 20)


def write_log(folder: Path, rows: int) -> None:
    """Write `log.parquet` and `log.csv`: 20 rows a user on average, spread all over the file; the same every time."""
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "log.parquet", LOG) as packed, csv.CSVWriter(folder / "log.csv", LOG) as text:
        for start, count in _parts(rows):
            user, item = (_popular(draw, count, distinct) for distinct in (rows // ROWS_A_USER, ITEMS))
            table = pa.Table.from_arrays([pa.array(user), pa.array(item), pa.array(start + np.arange(count))], schema=LOG)
            packed.write_table(table)
            text.write_table(table)


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(PART, rows - start)) for start in range(0, rows, PART))


def _criteo(draw: np.random.Generator, rows: int) -> pa.Table:
    columns = [pa.array(draw.integers(0, 2, rows))]
    columns += [pa.array(draw.geometric(0.02, rows), mask=draw.random(rows) < BLANK) for _ in range(13)]
    columns += [pa.array(_hexadecimal(draw, rows, distinct), mask=draw.random(rows) < BLANK) for distinct in KAGGLE]
    return pa.Table.from_arrays(columns, names=[f"f{n}" for n in range(40)])


def _hexadecimal(draw: np.random.Generator, rows: int, distinct: int) -> np.ndarray:
    """(rows,) eight digits each, of `distinct` possible ids with frequencies about 1 / rank."""
    rank = np.exp(draw.random(rows) * np.log(distinct)).astype(np.uint32)
    ids = rank * np.uint32(2654435761)  # a bijection on 32 bits
    nibbles = (ids[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & np.uint32(15)
    return np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles].view("S8").ravel().astype("U8")


def _popular(draw: np.random.Generator, rows: int, distinct: int) -> np.ndarray:
    """(rows,) ids, `distinct` possible ones in no order, with frequencies about 1 / sqrt(rank)."""
    rank = (draw.random(rows) ** 2 * distinct).astype(np.int64)
    return rank * 2_654_435_761 % 2**40
