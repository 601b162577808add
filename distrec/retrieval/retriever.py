"""What a retriever has beside what every run has: a catalogue, a sampler, two towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from distrec import models
from distrec.batch import Batch
from distrec.config.layout import Layout
from distrec.config.retrieval import Retrieval
from distrec.config.schema import Config
from distrec.data.catalogue import Catalogue, open_catalogue
from distrec.data.columns import Use, is_key
from distrec.data.complete import complete, no_items
from distrec.data.items import ItemUse
from distrec.data.negatives import COLUMN, Drawer, Joiner
from distrec.embeddings import tables
from distrec.errors import UserError
from distrec.retrieval.candidates import NOT_IN, Candidates
from distrec.retrieval.frequency import Frequency
from distrec.retrieval.task import RetrievalHead, RetrievalTask, Towers, query_names, retriever_spec

TARGETS, MASK = "targets", "mask"  # keys of Batch.lists when evaluating


@dataclass(frozen=True)
class Items:
    """The catalogue, and what is drawn from it."""

    catalogue: Catalogue
    drawer: Drawer
    world: int  # ranks


@dataclass(frozen=True)
class Reading:
    """How a split is read."""

    present: Layout  # the features that its files have
    items: tuple[ItemUse, ...]
    complete: Callable[[Batch], Batch]


def open_items(config: Config, retrieval: Retrieval, features: Layout, rank: int = 0, world: int = 1) -> Items:
    """Read the catalogue.

    Raises:
        UserError: see `distrec.data.catalogue.open_catalogue`.
    """
    catalogue = open_catalogue(retrieval, config.data, features)
    if catalogue.rows < (longest := max(retrieval.ks)):
        raise UserError(
            f"retrieval.ks asks for the best {longest} items, and retrieval.items has {catalogue.rows}; ask for fewer"
        )
    if catalogue.rows <= (among := retrieval.rank_among or 0):
        raise UserError(
            f"retrieval.rank_among = {among}: beside a target, retrieval.items has {catalogue.rows - 1}; sample fewer"
        )
    return Items(catalogue, Drawer(retrieval.negatives, catalogue.train_count, catalogue.rows, config.train.seed, rank), world)


def make_retrieval_task(
    config: Config, retrieval: Retrieval, features: Layout, device: torch.device, items: Items | None
) -> RetrievalTask:
    """The model with its tables on meta and its dense part on `device`. Without `items` it can be planned, but not trained."""
    spec = retriever_spec(features, retrieval.item_features)
    model = models.build_retriever(config.model.name, config.model.params, spec)
    autocast = torch.bfloat16 if config.train.precision == "bf16" and device.type == "cuda" else None
    towers = Towers(model, features, retrieval.item_features)
    head = RetrievalHead(towers, features, retrieval, make_candidates(config, retrieval, items), autocast)
    return RetrievalTask(tables.build(features, config.tables), head.to(device))


def make_candidates(config: Config, retrieval: Retrieval, items: Items | None) -> Candidates:
    """The scorer of training batches."""
    if items is None:
        return Candidates(retrieval, None, torch.ones(1))
    frequency = None
    if retrieval.loss == "softmax" and retrieval.log_q:
        frequency = Frequency(items.catalogue.rows, retrieval.log_q_buckets)
        counts = items.catalogue.train_count
        known = torch.zeros(items.catalogue.rows) if counts is None else torch.from_numpy(counts)
        frequency.expect(known, config.data.batch_size * items.world)
    return Candidates(retrieval, frequency, torch.from_numpy(items.drawer.probability).float())


def reading(retrieval: Retrieval, items: Items, features: Layout, split: str) -> Reading:
    """Of data.train: everything, and negatives. Of others: the query, and the items that it should find or leave out.

    Raises:
        UserError: there is no item to be a negative of another one, and `split` is for training.
    """
    catalogue, negatives = items.catalogue, retrieval.negatives
    if split == "train":
        _require_negatives(retrieval, items)
        uses = [ItemUse("items", retrieval.item_id, catalogue.index, single=True)]
        if negatives.column is not None:
            uses.append(ItemUse(COLUMN, negatives.column, catalogue.index, length=negatives.column_length))
        if negatives.not_in is not None:
            uses.append(ItemUse(NOT_IN, negatives.not_in, catalogue.index, drop_unknown=True))
        return Reading(features, tuple(uses), Joiner(negatives, catalogue, features, items.drawer))
    present = features.only(query_names(features, retrieval.item_features))
    uses = [ItemUse(TARGETS, retrieval.targets, catalogue.index)]
    if retrieval.mask is not None:
        uses.append(ItemUse(MASK, retrieval.mask, catalogue.index, drop_unknown=True))
    return Reading(present, tuple(uses), lambda batch: complete(batch, present, features, no_items()))


def query_use(retrieval: Retrieval) -> Use | None:
    """What the column that names a query must be like; None where there is none."""
    column = retrieval.query_id
    return None if column is None else Use(column, "retrieval.query_id", is_key, "an integer or string type")


def _require_negatives(retrieval: Retrieval, items: Items) -> None:
    """A row's own item is no negative of it, so that one item alone has none, however they are drawn."""
    rows, negatives = items.catalogue.rows, retrieval.negatives
    if rows < 2:
        raise UserError(
            f"retrieval.items, {', '.join(retrieval.items)}, has {rows} item: a retriever learns to tell items apart, and "
            "trains on 2 at least; name the whole catalogue"
        )
    likely = np.count_nonzero(items.drawer.probability)
    if likely < 2 and (negatives.sampled or negatives.per_row):
        raise UserError(
            f'retrieval.negatives.distribution = "popularity" would draw {likely} of the {rows} items of retrieval.items: '
            f"by column {retrieval.train_count!r} to the power of alpha = {negatives.alpha:g} all others are too rare; lower "
            'alpha, or set distribution = "uniform"'
        )
