"""Queries that are asked by hand: a user of the run's data, or a history without a user."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from distrec.batch import Batch
from distrec.config.layout import Layout, Lookup
from distrec.config.retrieval import Retrieval
from distrec.config.schema import Config
from distrec.data import open_dataset
from distrec.data.catalogue import Catalogue
from distrec.data.columns import Use
from distrec.data.single import Row, encode_row, find_rows, no_row, places_of
from distrec.engine import Engine, open_split, reading_of
from distrec.errors import UserError
from distrec.prepare.description import RAW_USER
from distrec.retrieval.retriever import MASK, TARGETS, Reading, query_use

SPLITS = ("test", "valid")  # where a user is looked for: the later the split, the more is known of a user


@dataclass(frozen=True)
class Question:
    """A query, and what it has seen."""

    said: str  # for people
    batch: Batch
    seen: np.ndarray  # (N,) rows of the catalogue that are not recommended again

    @property
    def left_out(self) -> int:
        """How many items that is."""
        return len(np.unique(self.seen))

    @property
    def hidden(self) -> tuple[np.ndarray, np.ndarray]:
        """`seen` as the lists of one query: rows, and offsets (2,)."""
        return self.seen, np.array([0, len(self.seen)])


def ask_users(engine: Engine, users: Sequence[str]) -> list[Question]:
    """The queries of some users of data.test or data.valid, in their order; each split is read once for them all.

    Raises:
        UserError: the config names no column of users, or none of them has one of these ids.
    """
    config, retrieval = engine.config, retrieval_of(engine.config)
    use = query_use(retrieval)
    if not users:
        return []
    if use is None:
        raise UserError(
            '--query needs the column that names a query: set retrieval.query_id = "raw_user_id", say; or use --history'
        )
    found: dict[str, Question] = {}
    for split in SPLITS:
        if missing := [user for user in users if user not in found]:
            found |= _look_up(engine, use, missing, split)
    if missing := [user for user in users if user not in found]:
        named = [f"data.{split}" for split in SPLITS if getattr(config.data, split)]
        where = " and ".join(named) or "data.test and data.valid, which are empty"
        raise UserError(f"no query {missing[0]!r} in column {use.column!r} of {where}; {_instead(config, use, missing[0])}")
    return [found[user] for user in users]


def ask_history(engine: Engine, ids: Sequence[str]) -> Question:
    """A query that is known by these items alone, oldest first, in ids of the catalogue.

    Raises:
        UserError: no item, one that the catalogue lacks, or a model without a history.
    """
    retrieval, catalogue = retrieval_of(engine.config), _catalogue(engine)
    if not ids:
        raise UserError("--history is empty: name items of the catalogue, oldest first, or a user with --query")
    rows = find_items(catalogue, ids)
    how = reading_of(engine.config, engine.layout, engine.items, "valid")
    batch = encode_row(
        no_row(how.present, "the query of --history, of which nothing else is known"), engine.config.data, how.present
    )
    shared = {f.table: f.name for f in _lookups(engine.layout) if f.name in retrieval.item_features}
    histories = [f for f in _lookups(how.present) if f.table in shared and (f.pooling is None or f.max_length is not None)]
    if not histories:
        raise UserError(
            "--history needs a model that reads one: a [[features.sequence]], or a [[features.sparse]] with max_length, on a "
            "table of the item's features"
        )
    known = catalogue.take(rows).ids
    newest = {f.name: known[shared[f.table]].values[-(f.max_length or 0) :] for f in histories}
    asked = replace(batch, sparse=_with_ids(batch.sparse, newest), sequence=_with_ids(batch.sequence, newest))
    return Question(", ".join(ids), how.complete(asked), rows)


def find_items(catalogue: Catalogue, ids: Sequence[str]) -> np.ndarray:
    """Rows of the catalogue by the ids that it answers with.

    Raises:
        UserError: it lacks one.
    """
    places = places_of(catalogue.own_ids.cast(pa.large_string()), ids)
    if missing := [text for text in ids if text not in places]:
        more = f" and {len(missing) - 1:,} more are" if len(missing) > 1 else " is"
        where = f"column {catalogue.own_column!r} of retrieval.items has no such id"
        raise UserError(f"item {missing[0]!r}{more} not in the catalogue: {where}; leave {'them' if missing[1:] else 'it'} out")
    return np.array([places[text] for text in ids], np.int64)


def _look_up(engine: Engine, use: Use, users: Sequence[str], split: str) -> dict[str, Question]:
    """The queries of those users that a split has."""
    config = engine.config
    if not getattr(config.data, split):
        return {}
    how = reading_of(config, engine.layout, engine.items, split)
    how = replace(how, items=tuple(items for items in how.items if items.name != TARGETS))
    rows = find_rows(open_split(config, how, split, engine.numbering, [use]), use.column, users)
    return {user: _question(f"{user} (data.{split})", row, config, how) for user, row in rows.items()}


def _instead(config: Config, use: Use, user: str) -> str:
    """How else to ask for a user whom the column of `use` does not name."""
    own = replace(use, column=RAW_USER)
    for split in SPLITS:
        with suppress(UserError):  # data that distrec has not prepared have no such column
            if find_rows(open_dataset(getattr(config.data, split), [own]), RAW_USER, [user]):
                return f"column {RAW_USER!r} has it: add retrieval.query_id={RAW_USER}"
    return (
        "for a user that the model has never seen, or who had too little to hold out, ask by what is known: "
        "--history ITEM,ITEM,…; or with data.test=FOLDER/now, where `distrec prepare interactions` has put all users of its log"
    )


def _question(said: str, row: Row, config: Config, how: Reading) -> Question:
    batch = how.complete(encode_row(row, config.data, how.present, how.items))
    lists = {} if batch.lists is None else batch.lists.to_dict()
    return Question(said, batch, lists[MASK].values().numpy() if MASK in lists else np.zeros(0, np.int64))


def _with_ids(rows: KeyedJaggedTensor | None, ids: dict[str, np.ndarray]) -> KeyedJaggedTensor | None:
    """One row, whose features in `ids` have these ids and whose others have none."""
    if rows is None:
        return None
    parts = [torch.from_numpy(ids.get(name, np.zeros(0, np.int64))) for name in rows.keys()]  # noqa: SIM118
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    return KeyedJaggedTensor(keys=rows.keys(), values=torch.cat(parts), lengths=lengths, stride=1)


def _lookups(layout: Layout) -> list[Lookup]:
    return [*layout.bags, *layout.sequences]


def _catalogue(engine: Engine) -> Catalogue:
    assert engine.items is not None, "a retriever has items"
    return engine.items.catalogue


def retrieval_of(config: Config) -> Retrieval:
    """The section of a retriever.

    Raises:
        UserError: the run is a ranker.
    """
    if config.retrieval is None:
        raise UserError("this run is a ranker: it has no section [retrieval], and scores pairs instead of finding items")
    return config.retrieval
