"""A retriever's config for what `distrec prepare` wrote, decided: its description says what columns are for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distrec.errors import UserError
from distrec.prepare.description import FILE
from distrec.profile.columns import Column, describe
from distrec.profile.draft import batch_size, name_of
from distrec.profile.footers import survey
from distrec.profile.numeric import DenseDraft, draft_dense
from distrec.profile.roles import quantity, why_unlearnable
from distrec.profile.sample import take_sample
from distrec.profile.tables import TableDraft, hashed_rows, unique_names

OWN_TABLES = ("user", "item")
LAST = "last_items"  # a feature of its own for the newest of the history


@dataclass(frozen=True)
class SparseDraft:
    """A feature of ids with a table of its own."""

    column: Column
    table: TableDraft


@dataclass(frozen=True)
class Side:
    """What describes the query, or the item, beside its id and its history."""

    dense: tuple[DenseDraft, ...]
    sparse: tuple[SparseDraft, ...]


@dataclass(frozen=True)
class RetrieverDraft:
    """A config before it is text."""

    name: str
    folder: str
    told: Mapping[str, Any]  # dataset.json
    query: Side
    item: Side
    left_out: Mapping[str, str]  # columns of which nothing can be learned, with the reason
    has_categories: bool
    batch_size: int

    def cardinality(self, column: str) -> int:
        """Ids that a column may hold."""
        return next(entry["cardinality"] for entry in self.told["columns"] if entry["name"] == column)

    def feature_names(self) -> dict[str, str]:
        """Column -> the name of its feature."""
        columns = [entry["name"] for entry in self.told["columns"]]
        return unique_names(columns, reserved=[LAST])


def description_of(paths: Sequence[str]) -> dict[str, Any] | None:
    """`dataset.json` of the one folder that is given, if it holds what a retriever trains on.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(paths[0]) / FILE
    if len(paths) > 1 or not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; prepare the dataset again") from None
    return told if isinstance(told, dict) and told.get("task") == "retrieval" else None


def draft_retriever(folder: str, told: Mapping[str, Any]) -> RetrieverDraft:
    """From the folder that a preparation wrote, and what its `dataset.json` tells.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = folder.rstrip("/") or "/"
    features = [entry for entry in told["columns"] if entry["role"] in ("dense", "sparse") and not _is_id(entry)]
    of_item = {entry["name"] for entry in told["item_columns"]}
    tables = unique_names((entry["name"] for entry in features), reserved=[*dir(nn.ModuleDict()), *OWN_TABLES])
    query = [entry for entry in features if entry["name"] not in of_item]
    item = [entry for entry in features if entry["name"] in of_item]
    looked = _look(f"{folder}/train", [entry["name"] for entry in query])
    looked |= _look(f"{folder}/items", [*(entry["name"] for entry in item), "category"])
    left_out = {entry["name"]: why for entry in features if (why := why_unlearnable(looked[entry["name"]]))}
    query, item = ([entry for entry in side if entry["name"] not in left_out] for side in (query, item))
    return RetrieverDraft(
        name=f"{name_of(str(Path(folder).absolute().parent))}-retriever",
        folder=folder,
        told=told,
        query=_side(query, looked, tables, may_lack=True),  # `distrec recall --history` knows none of its numbers
        item=_side(item, looked, tables, may_lack=False),
        left_out=left_out,
        has_categories="category" in looked and looked["category"].nulls < 1,
        batch_size=batch_size(told["rows"]["train"]),
    )


def _is_id(entry: Mapping[str, Any]) -> bool:
    return entry["name"] in ("user_id", "item_id")


def _look(path: str, names: Sequence[str]) -> dict[str, Column]:
    """What a sample of some columns says."""
    if not names:
        return {}
    sample = take_sample(survey([path]))
    wanted = [facts for facts in sample.survey.readable() if facts.name in names]
    return {facts.name: describe(facts, values, sample) for facts, values in sample.columns(wanted)}


def _side(
    entries: Sequence[Mapping[str, Any]], looked: Mapping[str, Column], tables: Mapping[str, str], may_lack: bool
) -> Side:
    numbers = [(looked[entry["name"]], reason) for entry in entries if (reason := _number(entry, looked)) is not None]
    dense = [draft_dense(column, reason, may_lack) for column, reason in numbers]
    sparse = [
        SparseDraft(looked[entry["name"]], _table(entry, looked[entry["name"]], tables[entry["name"]]))
        for entry in entries
        if _number(entry, looked) is None
    ]
    return Side(tuple(dense), tuple(sparse))


def _number(entry: Mapping[str, Any], looked: Mapping[str, Column]) -> str | None:
    """Why a column is a number, and no id; None where it is an id. CSV writes whole prices as integers."""
    column = looked[entry["name"]]
    if entry["role"] == "dense":
        return ""
    return quantity(column) or None if column.kind == "integer" and "cardinality" not in entry else None


def _table(entry: Mapping[str, Any], column: Column, name: str) -> TableDraft:
    """As large as the description says; where it does not say, ids are of any kind and are hashed."""
    text = column.kind in ("text", "texts")
    if "cardinality" in entry and not text:
        rows = entry["cardinality"]
        return TableDraft(name, (column.name,), "index", rows, f"ids up to {rows - 1:,}")
    about = "" if column.distinct.exact else "about "
    reason = f"{about}{column.distinct.estimate:,} {'texts' if text else 'ids'}"
    return TableDraft(name, (column.name,), "hash", hashed_rows(column.distinct.estimate), reason)
