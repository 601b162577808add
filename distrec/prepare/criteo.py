"""Criteo's click logs as they are published: Kaggle's train.txt, or the day files of the terabyte, plain or gzipped."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from distrec.errors import UserError
from distrec.prepare.criteo_ids import MLPERF, AsTheyAre, Counts, IdMap, Modulo, Vocabulary, replace_ids
from distrec.prepare.criteo_lines import count_rows, files_of
from distrec.prepare.criteo_rows import DENSE, IDS, SCHEMA
from distrec.prepare.criteo_stream import WORKERS, Cut, Reading
from distrec.prepare.description import Column, write_description
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.parquet_out import write_split

HashSizes = Literal["mlperf"]


def criteo(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    hash_sizes: HashSizes | None = None,
    max_rows_per_table: int | None = None,
    min_count: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    count_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/ctr/{train,valid,test}, with rows in the order of the files.

    Split, by order and so by time: of several files the last is held out, of a single one the last seventh (Kaggle's file
    holds seven days). The first half of what is held out is `valid`, the rest `test`.

    Ids are 64-bit integers as published, unless an option makes them index ids, whose cardinalities stand in `dataset.json`.
    Blanks are null. Memory holds some blocks of text and one row group; with `min_count` also 16 bytes a distinct id.

    Args:
        sources: files, folders or patterns.
        out: folder for the dataset.
        hash_sizes: `mlperf`: tables have at most the rows that MLPerf's DLRM-DCNv2 gives them.
        max_rows_per_table: no table has more rows.
        min_count: ids seen at least so often in training rows are numbered from 1 by falling frequency, as many as a table
            has rows for; others are 0. Without it, ids are taken modulo the rows, where an option says how many.
        overwrite: replace what OUT/ctr holds.
        progress: called with (rows read, rows to read); a vocabulary reads the training rows twice.
        count_progress: called with (files counted, files in all).

    Raises:
        UserError: no such file, one that is empty or damaged, a line that is not in Criteo's form, too few rows, an option
            that is not positive, or a folder that is not empty or cannot be written.
    """
    limits = _limits(hash_sizes, max_rows_per_table, min_count)
    folder = Path(out) / "ctr"
    with new_folder(folder, overwrite) as partial:
        files = files_of(sources)
        splits = _splits(_counted(files, count_progress))
        reading = Reading(files, sum(splits.values()) + (splits["train"] if min_count else 0), progress)
        ids = (
            _vocabulary(reading, splits["train"], min_count, limits) if min_count else Modulo(limits) if limits else AsTheyAre()
        )
        rows = Cut(reading.tables(lambda table: replace_ids(table, ids)))
        counts = {name: write_split(partial / name, SCHEMA, rows.row_groups(count)) for name, count in splits.items()}
        options = {"hash_sizes": hash_sizes, "max_rows_per_table": max_rows_per_table, "min_count": min_count}
        facts = {"split": "order", "files": [file.name for file in files], "ids": _kind(ids), **options}
        if isinstance(ids, Vocabulary):
            facts["numbering"] = ids.numbering
        write_description(partial, "criteo", "ctr", _columns(ids), counts, **facts)
    return Prepared(folder, counts)


def _limits(hash_sizes: HashSizes | None, most: int | None, min_count: int | None) -> tuple[int, ...] | None:
    """Rows that each table may have; None: any number."""
    for name, value, least in (("max-rows-per-table", most, 2), ("min-count", min_count, 1)):
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if hash_sizes not in (None, "mlperf"):
        raise UserError(f"--hash-sizes {hash_sizes}: known is mlperf")
    sizes = MLPERF if hash_sizes else (most,) * len(IDS) if most else None
    return tuple(min(size, most or size) for size in sizes) if sizes else None


def _counted(files: Sequence[Path], progress: Progress) -> list[int]:
    """Rows of each file; this alone finds a file that is cut short before anything is written."""
    counts = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for rows in pool.map(count_rows, files):
            counts.append(rows)
            progress(len(counts), len(files))
    return counts


def _splits(counts: Sequence[int]) -> dict[str, int]:
    """Rows of each split, which follow each other."""
    held_out = counts[-1] if len(counts) > 1 else -(-counts[0] // 7)
    splits = {"train": sum(counts) - held_out, "valid": held_out // 2, "test": held_out - held_out // 2}
    if not all(splits.values()):
        raise UserError(f"{sum(counts)} rows are too few for three splits; name a file with at least 8")
    return splits


def _vocabulary(reading: Reading, rows: int, min_count: int, limits: Sequence[int] | None) -> Vocabulary:
    """The ids that the first `rows` rows hold often enough."""
    counts = [Counts() for _ in IDS]
    with ThreadPoolExecutor(WORKERS) as pool:
        for table in Cut(reading.tables()).parts(rows):
            seen = (table[name].combine_chunks().drop_null().to_numpy() for name in IDS)
            list(pool.map(Counts.add, counts, seen))
    most = [size - 1 for size in limits] if limits else [None] * len(IDS)
    return Vocabulary([count.frequent(min_count, size) for count, size in zip(counts, most, strict=True)])


def _kind(ids: IdMap) -> str:
    return {AsTheyAre: "as published", Modulo: "modulo", Vocabulary: "vocabulary"}[type(ids)]


def _columns(ids: IdMap) -> tuple[Column, ...]:
    return (
        Column("label", SCHEMA.field("label").type, "label"),
        *(Column(name, SCHEMA.field(name).type, "dense") for name in DENSE),
        *(Column(name, SCHEMA.field(name).type, "sparse", rows) for name, rows in zip(IDS, ids.cardinalities, strict=True)),
    )
