"""Anybody's log of interactions as a retrieval dataset, in memory that does not grow with the log."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from distrec.errors import UserError
from distrec.log import logger
from distrec.prepare.description import RAW_USER
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.retrieval.buckets import MOST, ROWS_A_BUCKET, Buckets
from distrec.prepare.retrieval.clock import Clock
from distrec.prepare.retrieval.columns import Catalogue
from distrec.prepare.retrieval.dataset import HISTORY, RetrievalWriter, Rows
from distrec.prepare.retrieval.items import ItemFile, items_of_file, items_of_log
from distrec.prepare.retrieval.log import GIVEN, ITEM, TIME, USER, Log, LogColumns
from distrec.prepare.retrieval.moments import nth_smallest
from distrec.prepare.retrieval.numbering import Distinct
from distrec.prepare.retrieval.sequences import SPLITS, TRAIN
from distrec.prepare.retrieval.splits import LEAVE_ONE_OUT, Splitting, leave_one_out, temporal
from distrec.prepare.retrieval.tabular import rows_about, tabular_files
from distrec.prepare.retrieval.tally import Tally

Repeats = Literal["first", "all"]
UnknownItems = Literal["error", "drop"]
IDS = {"integers": pa.int64(), "text": pa.string()}
RESERVED = ("user_id", RAW_USER, "item_id", "history_item_id", "targets", "seen", "split")
RESERVED += ("title", "category", "raw_id", "train_count")


def interactions(
    files: Sequence[Sequence[str | Path]],
    out: str | Path,
    *,
    columns: LogColumns,
    items: ItemFile | None = None,
    splitting: Splitting = LEAVE_ONE_OUT,
    repeats: Repeats = "first",
    unknown_items: UnknownItems = "error",
    max_history: int = HISTORY,
    min_history: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = no_progress,
    read_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/retrieval/{train,valid,test,now,items,users}.

    The log is read once and dealt by user to files of about a million rows in OUT, which are then built one at a time. Memory
    holds one of them and the catalogue; a user's interactions are never divided. Rows of one user and one moment keep the
    order of the files.

    Args:
        files: of train, or of train, valid and test for a split by files: Parquet or CSV files, folders or patterns each.
        out: folder for the dataset.
        columns: what the log calls users, items, times and what describes the user or the moment. A training row has the
            features of its own interaction, a query those of its first target. With a label, only rows where it is over 0
            count: a log of what was shown also holds what nobody took.
        items: the catalogue; default: all items of the log, without features or names.
        splitting: how interactions are divided.
        repeats: `first`: of a user's interactions with one item the first counts, in whatever split. `all`: each is a
            training row; a target that was seen before can then only be found if nothing is masked.
        unknown_items: what becomes of items that the catalogue lacks: an `error`, or `drop` their interactions.
        max_history: newest items kept in a history.
        min_history: training interactions with fewer items before them give no row.
        seed: of the order of training rows.
        overwrite: replace what OUT/retrieval holds.
        progress: called with (interactions written, interactions in all).
        read_progress: called with (rows read, 0: their number is not known).

    Raises:
        UserError: files, lines, values or options that are not as they must be; no row to train on; a folder that is not
            empty or cannot be written.
    """
    _check(columns, items)
    rows, paths = Rows(max_history, min_history, seed=seed), _paths(files)
    folder, log, clock = Path(out) / "retrieval", Log(columns), Clock(columns.time)
    with new_folder(folder, overwrite) as partial:
        with Buckets(partial / ".buckets", _bucket_count(paths), USER) as buckets:
            found = _dealt(log, paths, buckets, clock, read_progress)
            catalogue, unknown = _catalogue(log, items, found, unknown_items)
            split, facts, begins = _split(splitting, buckets)
            sequence, raw_user = _Sequence(catalogue, split, repeats), IDS[log.kind(columns.user)]
            of_log = catalogue, rows, buckets.rows, log.profile(), raw_user
            with RetrievalWriter(partial, *of_log, now=True, progress=progress) as writer:
                for bucket in buckets.frames():
                    writer.add(*sequence.of(bucket))
                counts = writer.finish(
                    "interactions",
                    **facts,
                    **clock.facts(**begins),
                    **sequence.tally.facts(),
                    unknown_items=unknown,
                    seed=seed,
                )
        shutil.rmtree(partial / ".buckets")
    nothing = [name for name, of_split in zip(SPLITS, paths, strict=False) if of_split and name not in counts]
    lost = [
        f"--{name}: no row is left, for each repeats what its user had before, or holds an unknown item" for name in nothing
    ]
    for warning in (*clock.warnings(), *sequence.tally.warnings(), *lost):
        logger.warning("warning: %s", warning)
    dropped = sequence.tally.dropped(log.no_interaction, columns.label, unknown, counts["train"])
    following = f"next: distrec init {shlex.quote(str(folder))} > my.toml drafts a config that trains on it"
    return Prepared(folder, counts, (clock.note(**begins), *dropped, following))


class _Sequence:
    """From a bucket to interactions in sequence; numbers the users as they come."""

    def __init__(self, catalogue: Catalogue, split: pl.Expr, repeats: Repeats) -> None:
        self._items = catalogue.frame.select(pl.col("raw_id").alias(ITEM), item_id=pl.int_range(catalogue.items))
        self._split, self._repeats = split, repeats
        self._users, self.tally = 0, Tally(repeats)

    def of(self, bucket: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(interactions, users) as `RetrievalWriter.add` takes them."""
        known = bucket.join(self._items, on=ITEM, how="inner", maintain_order="left")
        self.tally.read(bucket, known)
        frame = known.sort(USER, GIVEN, TIME, maintain_order=True)
        if self._repeats == "first":
            frame = frame.unique([USER, "item_id"], keep="first", maintain_order=True)
        frame = frame.with_columns(self._split, user_id=pl.col(USER).rle_id().cast(pl.Int64) + self._users)
        if self._repeats == "all":  # a query names a target once
            frame = frame.filter((pl.col("split") == TRAIN) | pl.struct(USER, "item_id", "split").is_first_distinct())
        users = frame.select("user_id", raw_id=USER).unique("user_id", maintain_order=True)
        self.tally.kept(frame)
        self._users += users.height
        return frame.drop(USER, ITEM, TIME, GIVEN), users


def _check(columns: LogColumns, items: ItemFile | None) -> None:
    names = [*RESERVED, *columns.features, *(items.features if items else ())]
    for name in (name for name in names if names.count(name) > 1):
        other = "the dataset has another column" if name in RESERVED else "--feature and --item-feature name another one"
        raise UserError(f"a feature cannot be named {name!r}: {other} of that name; name it once, or rename it in the files")
    if len({columns.user, columns.item, columns.time}) < 3:
        raise UserError(f"user {columns.user!r}, item {columns.item!r} and time {columns.time!r} must be three columns")


def _paths(files: Sequence[Sequence[str | Path]]) -> list[list[Path]]:
    """The files of each split."""
    paths = [tabular_files(sources) for sources in files]
    together = [path for of_split in paths for path in of_split]
    for path in (path for path in together if together.count(path) > 1):
        raise UserError(f"{path} is named twice; its rows would count double")
    return paths


def _bucket_count(paths: Sequence[Sequence[Path]]) -> int:
    rows = sum(rows_about(path) for of_split in paths for path in of_split)
    return min(MOST, -(-rows // ROWS_A_BUCKET) or 1)


def _dealt(log: Log, paths: Sequence[Sequence[Path]], buckets: Buckets, clock: Clock, progress: Progress) -> pl.Series:
    """Deal the log into buckets; its distinct items, ascending."""
    distinct = Distinct()
    for number, of_split in enumerate(paths):
        for frame in (frame for path in of_split for frame in log.blocks(path)):
            buckets.add(frame.with_columns(pl.lit(number, pl.Int8).alias(GIVEN)))
            distinct.add(frame[ITEM])
            clock.add(frame[TIME], log.kind(log.columns.time) == "integers")
            progress(buckets.rows, 0)
    buckets.close()
    if not buckets.rows:
        where = "" if log.columns.label is None else f", where {log.columns.label!r} is over 0,"
        raise UserError(f"there is no interaction{where} in {', '.join(str(path) for of_split in paths for path in of_split)}")
    return distinct.sorted()


def _catalogue(log: Log, items: ItemFile | None, found: pl.Series, unknown_items: UnknownItems) -> tuple[Catalogue, int]:
    """The catalogue, and how many items of the log it lacks."""
    if items is None:
        return items_of_log(found), 0
    kind, catalogue = items_of_file(items)
    in_log = log.kind(log.columns.item)
    if kind != in_log:
        raise UserError(
            f"item ids are {kind} in {items.path}, but {in_log} in the log; write both with one type (ids in CSV are text)"
        )
    unknown = found.filter(~found.is_in(catalogue.frame["raw_id"].implode()))
    if len(unknown) and unknown_items == "error":
        raise UserError(
            f"{items.path} lacks {len(unknown):,} of the {len(found):,} items in the log, such as {unknown[0]!r}; "
            "add them, or drop their interactions with --unknown-items drop"
        )
    return catalogue, len(unknown)


def _split(splitting: Splitting, buckets: Buckets) -> tuple[pl.Expr, dict[str, Any], dict[str, int]]:
    """`split` of rows by user, oldest first, what `dataset.json` says of it, and the moments at which it cuts, by name."""
    facts = {"split": splitting.kind}
    if splitting.kind == "leave-one-out":
        return leave_one_out(USER), facts, {}
    if splitting.kind == "files":
        return pl.col(GIVEN).alias("split"), facts, {}
    shares = (1 - splitting.valid - splitting.test, 1 - splitting.test)
    places = [min(int(share * buckets.rows + 1e-6), buckets.rows - 1) for share in shares]  # the last row is for test
    begins = [nth_smallest(lambda: buckets.column(TIME), place) for place in places]
    facts |= {"valid_share": splitting.valid, "test_share": splitting.test}
    return temporal(TIME, *begins), facts, {"valid_from": begins[0], "test_from": begins[1]}
