"""Writes a retrieval dataset: training rows and queries, some users at a time, then the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa

from distrec.errors import UserError
from distrec.prepare.description import RAW_USER, Column, arrow_schema, entry, write_description
from distrec.prepare.histories import Ints
from distrec.prepare.id_order import IdOrder
from distrec.prepare.output import Progress, no_progress
from distrec.prepare.parquet_out import LARGEST_ROW_GROUP, SplitWriter, row_group_rows
from distrec.prepare.retrieval.columns import Catalogue, columns
from distrec.prepare.retrieval.sequences import SPLITS, Sequences

HISTORY = 50  # items kept where nobody says otherwise
LIST_VALUES = LARGEST_ROW_GROUP * HISTORY  # ids in one column of a row group: bounds what a reader decodes at once


@dataclass(frozen=True)
class Rows:
    """How rows are made of interactions."""

    max_history: int = HISTORY  # newest items kept
    min_history: int = 0  # training interactions with fewer items to look back on give no row
    ordered: bool = True  # False: histories of training rows are samples of the user's other training items
    seed: int = 0  # of the order of training rows

    def __post_init__(self) -> None:
        for name, value, least in (("max-history", self.max_history, 1), ("min-history", self.min_history, 0)):
            if value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")


class RetrievalWriter:
    """Fills a folder with `train`, `valid`, `test`, `items`, `users` and `dataset.json`, and `now` where it is asked for.

    A split without rows is left out.

    `train_count` of an item is its rows in `train`: what is trained on, which is what samplers and popularity mean by it. An
    interaction that `min_history` leaves out is not among them, though histories may show its item.
    """

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        rows: Rows,
        total: int,
        profile: Sequence[Column] = (),
        raw_user: pa.DataType | None = None,
        now: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Take what is known before the interactions.

        Args:
            folder: exists and is empty.
            catalogue: the items.
            rows: how rows are made.
            total: interactions to come; row groups are sized for so many.
            profile: columns of the interactions that describe the user or the moment.
            raw_user: type of the users' own ids; default: int64.
            now: also write `now`: a query without targets for each user, who has had all there is.
            progress: called with (interactions written, `total`).
        """
        self._folder, self._catalogue, self._rows, self._total = folder, catalogue, rows, total
        self._profile, self._raw_user, self._progress = profile, raw_user or pa.int64(), progress
        self._columns, self._now = columns(catalogue, profile, None, self._raw_user), now
        features = catalogue.frame.select(c.name for c in catalogue.features).to_arrow()
        self._features = features.cast(arrow_schema(catalogue.features)) if catalogue.features else features
        self._draw = np.random.default_rng(rows.seed)
        self._train_count = np.zeros(catalogue.items, np.int64)
        self._targets = {split: np.zeros(catalogue.items, np.int64) for split in SPLITS}
        self._user_order = IdOrder()
        self._done, self._without_history = 0, dict.fromkeys(SPLITS, 0)
        self._stack, self._open = ExitStack(), dict[str, SplitWriter]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, interactions: pl.DataFrame, users: pl.DataFrame) -> None:
        """Write the rows of some users.

        Args:
            interactions: `user_id`, `item_id`, `split` and the profile, in the order that `Sequences` wants.
            users: `user_id` and `raw_id` of each of them.
        """
        user, item, split = (interactions[name].to_numpy() for name in ("user_id", "item_id", "split"))
        sequences = Sequences(user, item, split, self._rows.max_history, self._rows.ordered)
        trained = sequences.train(self._rows.min_history)
        self._train_count += np.bincount(item[trained], minlength=self._catalogue.items)
        for block in self._train(interactions, sequences, trained):
            self._write("train", block)
        for number, name in enumerate(SPLITS[1:], start=1):
            for block in self._queries(interactions, users, sequences, number):
                self._write(name, block)
        for block in self._everybody(interactions, users, sequences) if self._now else ():
            self._write("now", block)
        self._user_order.add(users["raw_id"])
        self._write("users", users.to_arrow().cast(arrow_schema(self._columns.users)))
        self._done += interactions.height
        self._progress(self._done, self._total)

    def finish(self, name: str, **facts: Any) -> dict[str, int]:
        """Write the catalogue and `dataset.json`, and say how many rows each part has.

        Raises:
            UserError: there is no training row.
        """
        if "train" not in self._open:
            raise UserError("no row is left to train on; hold out less, or lower --min-history")
        for block in self._items().iter_slices(max(1, row_group_rows(self._catalogue.items))):
            self._write("items", block.to_arrow().cast(arrow_schema(self._columns.items)))
        self._stack.close()
        counts = {part: self._open[part].rows for part in (*SPLITS, "items", "users", "now") if part in self._open}
        full = columns(self._catalogue, self._profile, counts["users"], self._raw_user)
        facts |= {
            "max_history": self._rows.max_history,
            "min_history": self._rows.min_history,
            "queries": self._prospects(counts),
            "numbering": {
                "user_id": self._user_order.hash(),
                "item_id": IdOrder().add(self._catalogue.frame["raw_id"]).hash(),
            },
        }
        facts |= {"query_columns": [entry(c) for c in full.queries], "item_columns": [entry(c) for c in full.items]}
        write_description(self._folder, name, "retrieval", full.train, counts, **facts)
        return counts

    def _prospects(self, counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """For each split of queries, the users that it leaves out, and what in it no training prepares for."""
        return {
            split: {
                "users_without_query": counts["users"] - counts[split],
                "without_history": self._without_history[split],
                "targets": int(self._targets[split].sum()),
                "targets_never_trained_on": int(self._targets[split][self._train_count == 0].sum()),
            }
            for split in SPLITS[1:]
            if split in counts
        }

    def _items(self) -> pl.DataFrame:
        counted = self._catalogue.frame.with_columns(train_count=self._train_count).with_row_index("item_id")
        return counted.select(column.name for column in self._columns.items)

    def _train(self, interactions: pl.DataFrame, sequences: Sequences, trained: Ints) -> Iterator[pa.Table]:
        """Training rows in random order, so that no batch holds one user alone."""
        rows = self._draw.permutation(trained)
        for block in _pieces(rows, row_group_rows(self._total), sequences.longest):
            frame = interactions[block]
            described = self._features.take(frame["item_id"].to_arrow())
            yield _table(self._columns.train, frame, described, history_item_id=sequences.train_histories(block))

    def _queries(self, interactions: pl.DataFrame, users: pl.DataFrame, sequences: Sequences, split: int) -> Iterator[pa.Table]:
        for block in self._blocks(sequences.queries(split), interactions):
            history = sequences.query_histories(block)
            lists = {"targets": sequences.targets(block), "seen": sequences.seen(block)}
            self._without_history[SPLITS[split]] += int((np.diff(history.offsets) == 0).sum())
            self._targets[SPLITS[split]] += np.bincount(lists["targets"].values, minlength=self._catalogue.items)
            yield self._asked(self._columns.queries, interactions[block], users, history_item_id=history, **lists)

    def _everybody(self, interactions: pl.DataFrame, users: pl.DataFrame, sequences: Sequences) -> Iterator[pa.Table]:
        for block in self._blocks(sequences.latest(), interactions):
            lists = {"history_item_id": sequences.histories_with(block), "seen": sequences.seen_with(block)}
            yield self._asked(self._columns.now, interactions[block], users, **lists)

    def _blocks(self, rows: Ints, interactions: pl.DataFrame) -> Iterator[Ints]:
        """Rows that are queries in row groups, whose lists are as long as these users' interactions."""
        in_all = len(rows) * self._total // max(1, interactions.height)  # if other users are like these
        return _pieces(rows, row_group_rows(in_all), interactions.height // max(1, len(rows)))

    def _asked(self, of: Sequence[Column], frame: pl.DataFrame, users: pl.DataFrame, **lists: pa.ListArray) -> pa.Table:
        """Queries, with the users' own ids."""
        named = frame.join(users.rename({"raw_id": RAW_USER}), "user_id", how="left", maintain_order="left")
        return _table(of, named, self._features[:0], **lists)

    def _write(self, part: str, block: pa.Table) -> None:
        if part not in self._open:
            self._open[part] = self._stack.enter_context(SplitWriter(self._folder / part, block.schema))
        self._open[part].write(block)


def _pieces(rows: Ints, most: int, values: int) -> Iterator[Ints]:
    """`rows` in row groups of `most`, fewer where a row has so many list values that the group would be too large."""
    size = max(1, min(most, LIST_VALUES // max(1, values)))
    yield from (rows[first : first + size] for first in range(0, len(rows), size))


def _table(of: Sequence[Column], frame: pl.DataFrame, described: pa.Table, **lists: pa.ListArray) -> pa.Table:
    """The columns `of` a file: lists as given, the items' features from `described`, all else from `frame`."""
    plain = frame.select(c.name for c in of if c.name in frame.columns).to_arrow()
    found = dict(zip(described.column_names, described.columns, strict=True)) | dict(
        zip(plain.column_names, plain.columns, strict=True)
    )
    arrays = [lists[c.name] if c.name in lists else found[c.name].cast(c.type) for c in of]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(of))
