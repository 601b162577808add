"""The columns of a retrieval dataset's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from distrec.prepare.description import ID_LIST, RAW_USER, Column


@dataclass(frozen=True)
class Catalogue:
    """All items; row `i` is the item with id `i`."""

    frame: pl.DataFrame  # raw_id, title, category, and the features
    features: Sequence[Column] = ()

    @property
    def items(self) -> int:
        """How many there are."""
        return self.frame.height


@dataclass(frozen=True)
class Columns:
    """What each file holds."""

    train: tuple[Column, ...]
    queries: tuple[Column, ...]
    items: tuple[Column, ...]
    users: tuple[Column, ...]
    now: tuple[Column, ...]


def columns(catalogue: Catalogue, profile: Sequence[Column], users: int | None, raw_user: pa.DataType) -> Columns:
    """The columns of all files.

    Args:
        catalogue: the items.
        profile: what describes a user, or the moment, in training rows and queries.
        users: how many there are, where that is known.
        raw_user: type of the users' own ids.
    """
    user = Column("user_id", pa.int64(), "sparse", users)
    item = Column("item_id", pa.int64(), "sparse", catalogue.items)
    history = Column("history_item_id", ID_LIST, "sequence", catalogue.items, shares="item_id")
    targets = Column("targets", ID_LIST, "target", catalogue.items, shares="item_id")
    seen = Column("seen", ID_LIST, "mask", catalogue.items, shares="item_id")
    raw_item = pa.int64() if catalogue.frame["raw_id"].dtype.is_integer() else pa.string()
    texts = (Column("title", pa.string(), "text"), Column("category", pa.string(), "text"), Column("raw_id", raw_item, "text"))
    return Columns(
        train=(user, *profile, history, item, *catalogue.features),
        queries=(user, Column(RAW_USER, raw_user, "text"), *profile, history, targets, seen),
        items=(item, *catalogue.features, *texts, Column("train_count", pa.int64(), "count")),
        users=(user, Column("raw_id", raw_user, "text")),
        now=(user, Column(RAW_USER, raw_user, "text"), *profile, history, seen),
    )
