"""What became of the rows of a log: how many were dropped and why, and which are older than their files let one think."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from distrec.prepare.retrieval.log import GIVEN, TIME, USER
from distrec.prepare.retrieval.sequences import SPLITS, TRAIN
from distrec.prepare.retrieval.splits import older_than_history


class Tally:
    """Counts rows as they go through."""

    def __init__(self, repeats: str) -> None:
        """Take the option that says what becomes of repeats: `first` or `all`."""
        self._repeats = repeats
        self._known, self._kept, self._trained, self._unknown, self._users_lost = 0, 0, 0, 0, 0
        self._given, self._older = np.zeros((2, len(SPLITS)), np.int64)  # by the files that rows came from

    def read(self, rows: pl.DataFrame, known: pl.DataFrame) -> None:
        """All rows of some users, and those of them with items of the catalogue."""
        self._known, self._unknown = self._known + known.height, self._unknown + rows.height - known.height
        if known.height < rows.height:
            self._users_lost += rows[USER].n_unique() - known[USER].n_unique()
        self._given += np.bincount(known[GIVEN], minlength=len(SPLITS))
        if self._given[TRAIN + 1 :].any():
            older = known.filter(older_than_history(USER, TIME, GIVEN))
            self._older += np.bincount(older[GIVEN], minlength=len(SPLITS))

    def kept(self, rows: pl.DataFrame) -> None:
        """Those of the known that are no repeats, with their `split`."""
        self._kept += rows.height
        self._trained += int((rows["split"] == TRAIN).sum())

    def facts(self) -> dict[str, Any]:
        """For `dataset.json`."""
        told: dict[str, Any] = {
            "repeats": self._repeats,
            "interactions": self._kept,
            "repeats_dropped": self._known - self._kept,
        }
        told |= {"interactions_of_unknown_items": self._unknown, "users_of_unknown_items_alone": self._users_lost}
        older = {name: int(self._older[split]) for split, name in enumerate(SPLITS) if split != TRAIN and self._given[split]}
        return told | ({"older_than_history": older} if older else {})

    def dropped(self, no_interaction: int, label: str | None, unknown_items: int, train_rows: int) -> Iterator[str]:
        """What a person should hear of it, a line each.

        Args:
            no_interaction: rows that are none, by the label of that name.
            label: its name.
            unknown_items: how many items the catalogue lacks.
            train_rows: training rows that were written.
        """
        if no_interaction:
            yield f"dropped: {no_interaction:,} rows where {label!r} is not over 0"
        if self._unknown:
            users = f", and so {self._users_lost:,} users with no others" if self._users_lost else ""
            yield f"dropped: {self._unknown:,} interactions with {unknown_items:,} items that --items lacks{users}"
        if self._known > self._kept:
            repeats = "repeats of a user and an item; --repeats all keeps them"
            if self._repeats == "all":
                repeats = "repeats in valid or test: a query names an item once"
            yield f"dropped: {self._known - self._kept:,} {repeats}"
        if self._trained > train_rows:
            yield f"dropped: {self._trained - train_rows:,} training rows with fewer items before them than --min-history"

    def warnings(self) -> Iterator[str]:
        """What is wrong with files that are named as a split."""
        for split, name in enumerate(SPLITS):
            if self._older[split]:
                yield (
                    f"--{name}: {self._older[split]:,} of {self._given[split]:,} rows are older than rows of the same user in "
                    "earlier splits. Their histories show what came after them, which flatters every metric; divide the log by "
                    "time, as --split temporal does"
                )
