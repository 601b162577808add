"""MovieLens-1M and -100K as click prediction or rating regression, with each user's history up to the event."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from distrec.errors import UserError
from distrec.prepare.description import ID_LIST, Column, arrow_schema, write_description
from distrec.prepare.histories import Histories, histories
from distrec.prepare.movielens_source import EDITIONS, Edition, fetch, raw_files, source_facts
from distrec.prepare.movielens_tables import GENDERS, GENRES, joined
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.parquet_out import id_lists, row_group_rows, write_split

MovieLensTask = Literal["ctr", "rating"]
Split = Literal["time", "random"]
HISTORY = 50  # newest movies kept
SHARES = {"train": 0.8, "valid": 0.1}  # test: the rest


def movielens(
    which: str,
    out: str | Path,
    *,
    task: MovieLensTask = "ctr",
    split: Split = "time",
    seed: int = 0,
    source: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    download_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/<task>/{train,valid,test}.

    `ctr`: label 1 for a rating above 3, 0 below; ratings of 3 are dropped. `rating`: the label is the rating, 1 to 5.

    Split: 80, 10 and 10 % of the rows, by time over all users (ties in the order of the file) or at random. A
    history holds the user's positively rated movies (`rating`: all rated ones) strictly before the event, oldest first,
    the newest 50. Under a random split only training rows enter histories, for a movie in a history tells its label.

    Args:
        which: a key of `movielens_source.EDITIONS`.
        out: folder for the dataset; a download is kept there too.
        task: what to predict.
        split: how rows are divided.
        seed: of the random split.
        source: the publisher's zip or a folder with its files; without it the zip is downloaded.
        overwrite: replace what OUT/<task> holds.
        progress: called with (rows written, rows in all).
        download_progress: called with (bytes, bytes in all; 0: not known).

    Raises:
        UserError: an unknown name, a source that is missing, damaged or not the published one, a failed download, or a
            folder that is not empty or cannot be written.
    """
    _known("dataset", which, EDITIONS)
    _known("task", task, get_args(MovieLensTask))
    _known("split", split, get_args(Split))
    edition, folder = EDITIONS[which], Path(out) / task
    with new_folder(folder, overwrite) as partial:
        path = Path(source) if source else fetch(edition, Path(out), download_progress)
        rows = _Rows(joined(edition, raw_files(edition, path, fetched=source is None)), task, split, seed)
        counts = {name: write_split(partial / name, rows.schema, rows.blocks(name, progress)) for name in (*SHARES, "test")}
        write_description(partial, which, task, rows.columns, counts, **_facts(edition, split, seed))
    return Prepared(folder, counts)


def _known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(f"{kind} {name!r} is not known; there is: {', '.join(known)}")


def _facts(edition: Edition, split: Split, seed: int) -> dict:
    how = {"split": split} | ({"seed": seed} if split == "random" else {})
    return how | source_facts(edition)


class _Rows:
    """The rows of a task in time order, each with its split and its history."""

    def __init__(self, ratings: pl.DataFrame, task: MovieLensTask, split: Split, seed: int) -> None:
        self._frame = _with_label(ratings, task).with_columns(*_clock())
        self._split = _split_of(self._frame.height, split, seed)
        self._histories = self._seen(task, split)
        self.columns = _columns(ratings, task)
        self.schema = arrow_schema(self.columns)
        self._done = 0

    def blocks(self, name: str, progress: Progress) -> Iterator[pa.Table]:
        """The rows of a split in time order, a row group at a time."""
        rows = np.flatnonzero(self._split == name)
        size = row_group_rows(len(rows))
        for first in range(0, len(rows), size):
            yield self._block(rows[first : first + size])
            self._done += len(rows[first : first + size])
            progress(self._done, self._frame.height)

    def _seen(self, task: MovieLensTask, split: Split) -> Histories:
        label = self._frame["label"].to_numpy()
        eligible = (label > 0) & ((self._split == "train") | (split == "time"))
        return histories(self._frame["user_id"].to_numpy(), self._frame["timestamp"].to_numpy(), eligible, HISTORY)

    def _block(self, rows: NDArray[np.int64]) -> pa.Table:
        events, offsets = self._histories.take(rows)
        lists = {f"history_{of}": id_lists(self._frame[of].to_numpy()[events], offsets) for of in ("movie_id", "genre")}
        plain = self._frame[rows].to_arrow()
        arrays = [lists[c.name] if c.name in lists else plain[c.name].cast(c.type) for c in self.columns]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def _with_label(ratings: pl.DataFrame, task: MovieLensTask) -> pl.DataFrame:
    if task == "rating":
        return ratings.with_columns(pl.col("rating").cast(pl.Float32).alias("label"))
    kept = ratings.filter(pl.col("rating") != 3)
    return kept.with_columns((pl.col("rating") > 3).cast(pl.Int8).alias("label"))


def _clock() -> list[pl.Expr]:
    """Hour of day (0 to 23) and day of week (Monday 0) in UTC, on circles, so that 23 h lies beside 0 h."""
    moment = pl.from_epoch("timestamp", time_unit="s")
    angles = {"hour": moment.dt.hour() * (2 * np.pi / 24), "weekday": (moment.dt.weekday() - 1) * (2 * np.pi / 7)}
    return [e.alias(f"{name}_{f}") for name, angle in angles.items() for f, e in (("sin", angle.sin()), ("cos", angle.cos()))]


def _split_of(rows: int, split: Split, seed: int) -> NDArray[np.str_]:
    """(rows,) the split of each row, rows being in time order."""
    ends = np.floor(np.cumsum(list(SHARES.values())) * rows + 1e-9)
    place = np.random.default_rng(seed).permutation(rows) if split == "random" else np.arange(rows)
    return np.array([*SHARES, "test"])[np.searchsorted(ends, place, side="right")]


def _columns(ratings: pl.DataFrame, task: MovieLensTask) -> tuple[Column, ...]:
    """Cardinalities come from all ratings, so that both tasks and all splits fit the same tables."""
    largest = {name: int(ratings[name].to_numpy().max()) + 1 for name in ("user_id", "age", "occupation", "movie_id")}
    largest |= {"gender": len(GENDERS), "genre": len(GENRES), "zip": ratings["zip"].n_unique()}
    ids = ("user_id", "gender", "age", "occupation", "zip", "movie_id", "genre")
    return (
        Column("label", pa.int8() if task == "ctr" else pa.float32(), "label"),
        *(Column(name, pa.string() if name == "zip" else pa.int64(), "sparse", largest[name]) for name in ids),
        Column("genres", ID_LIST, "sparse", len(GENRES), shares="genre"),
        Column("history_movie_id", ID_LIST, "sequence", largest["movie_id"], shares="movie_id"),
        Column("history_genre", ID_LIST, "sequence", len(GENRES), shares="genre"),
        *(Column(name, pa.float32(), "dense") for name in ("year", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")),
        Column("timestamp", pa.int64(), "time"),
    )
