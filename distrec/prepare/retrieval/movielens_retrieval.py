"""MovieLens as retrieval: which movie a user rates next, leave-one-out, whatever the rating."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from distrec.prepare.description import ID_LIST, Column
from distrec.prepare.movielens_source import EDITIONS, fetch, raw_files, source_facts
from distrec.prepare.movielens_tables import GENDERS, GENRES, joined, movies_of
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.retrieval.columns import Catalogue
from distrec.prepare.retrieval.dataset import HISTORY, RetrievalWriter, Rows
from distrec.prepare.retrieval.numbering import numbered
from distrec.prepare.retrieval.splits import leave_one_out

PROFILE = ("gender", "age", "occupation", "zip")


def movielens_retrieval(
    which: str,
    out: str | Path,
    *,
    max_history: int = HISTORY,
    min_history: int = 0,
    seed: int = 0,
    source: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    download_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/retrieval/{train,valid,test,items,users}.

    Every rating is an interaction, in the order of time, ties in that of the file. Each user's last movie is the target of
    test, the one before that of valid. The catalogue holds the movies that somebody rated.

    Args:
        which: a key of `movielens_source.EDITIONS`.
        out: folder for the dataset; a download is kept there too.
        max_history: newest movies kept in a history.
        min_history: training ratings with fewer movies before them give no row.
        seed: of the order of training rows.
        source: the publisher's zip or a folder with its files; without it the zip is downloaded.
        overwrite: replace what OUT/retrieval holds.
        progress: called with (ratings written, ratings in all).
        download_progress: called with (bytes, bytes in all; 0: not known).

    Raises:
        UserError: an option out of its range, a source that is missing, damaged or not the published one, a failed
            download, or a folder that is not empty or cannot be written.
    """
    rows, edition, folder = Rows(max_history, min_history, seed=seed), EDITIONS[which], Path(out) / "retrieval"
    with new_folder(folder, overwrite) as partial:
        path = Path(source) if source else fetch(edition, Path(out), download_progress)
        files = raw_files(edition, path, fetched=source is None)
        ratings = joined(edition, files)
        movies = _rated(movies_of(edition, files), ratings)
        with RetrievalWriter(partial, movies, rows, ratings.height, _profile(ratings), progress=progress) as writer:
            writer.add(*_in_sequence(ratings))
            counts = writer.finish(which, split="leave-one-out", seed=seed, **source_facts(edition))
    return Prepared(folder, counts)


def _rated(movies: pl.DataFrame, ratings: pl.DataFrame) -> Catalogue:
    names = dict(enumerate(GENRES))
    rated = movies.filter(pl.col("movie_id").is_in(ratings["movie_id"].unique().implode())).sort("movie_id")
    frame = rated.select(
        "title", raw_id="movie_id", item_genres="genres", category=pl.col("genres").list.first().replace_strict(names)
    )
    return Catalogue(frame, (Column("item_genres", ID_LIST, "sparse", len(GENRES)),))


def _in_sequence(ratings: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ratings by user, oldest first, and the users; ids count from 0."""
    item, _ = numbered(ratings["movie_id"])
    user, users = numbered(ratings["user_id"])
    frame = ratings.select(PROFILE).with_columns(user_id=user, item_id=item).sort("user_id", maintain_order=True)
    return frame.with_columns(leave_one_out()), pl.DataFrame({"raw_id": users}).with_row_index("user_id")


def _profile(ratings: pl.DataFrame) -> tuple[Column, ...]:
    rows = {"gender": len(GENDERS), "zip": ratings["zip"].n_unique()}
    rows |= {name: int(ratings[name].to_numpy().max()) + 1 for name in ("age", "occupation")}
    return tuple(Column(name, pa.string() if name == "zip" else pa.int64(), "sparse", rows[name]) for name in PROFILE)
