"""Rows of a log, items of the catalogue, or both -> a batch with every feature, which is what lookups are sharded for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distrec.batch import Batch, KeyedJaggedTensor, Position
from distrec.config.layout import Layout, Lookup
from distrec.data.ids import Ids


@dataclass(frozen=True)
class ItemRows:
    """Some items of a catalogue, with their features."""

    keys: np.ndarray  # (n,) int64: rows of the catalogue, -1 for no item
    ids: Mapping[str, Ids]  # by feature
    dense: Mapping[str, np.ndarray]  # by feature, (n,) float32

    def __len__(self) -> int:
        return len(self.keys)


def complete(batch: Batch, present: Layout, layout: Layout, extra: ItemRows) -> Batch:
    """`batch`, whose features are those of `present`, with every feature of `layout`, and the `extra` items after its rows.

    Features that a row does not have are without ids, or 0. Extra rows have weight 0; so do they where the log has padding,
    which is no item.
    """
    count = len(batch.weights)
    items = None
    if batch.items is not None or len(extra):
        own = torch.zeros(count, dtype=torch.int64) if batch.items is None else batch.items
        items = torch.cat([torch.where(batch.weights > 0, own, -1), torch.from_numpy(extra.keys)])
    return replace(
        batch,
        dense=_dense(batch.dense, present, layout, extra),
        sparse=_ids(batch.sparse, layout.bags, count, extra),
        sequence=_ids(batch.sequence, layout.sequences, count, extra),
        weights=torch.cat([batch.weights, torch.zeros(len(extra))]),
        queries=count,
        items=items,
    )


def no_items() -> ItemRows:
    """For a batch that no item joins."""
    return ItemRows(np.zeros(0, np.int64), {}, {})


def no_rows(layout: Layout) -> Batch:
    """A batch of nothing, for items to join."""
    return Batch(
        dense=torch.zeros(0, len(layout.dense)),
        sparse=None,
        sequence=None,
        labels=torch.zeros(0, 0),
        weights=torch.zeros(0),
        normalizer=torch.tensor(1.0),
        groups=None,
        position=Position(),
    )


def _dense(rows: Tensor, present: Layout, layout: Layout, extra: ItemRows) -> Tensor:
    found = torch.zeros(len(rows) + len(extra), len(layout.dense))
    places = {feature.name: place for place, feature in enumerate(present.dense)}
    for column, feature in enumerate(layout.dense):
        if feature.name in places:
            found[: len(rows), column] = rows[:, places[feature.name]]
        if feature.name in extra.dense:
            found[len(rows) :, column] = torch.from_numpy(extra.dense[feature.name])
    return found


def _ids(rows: KeyedJaggedTensor | None, features: Sequence[Lookup], count: int, extra: ItemRows) -> KeyedJaggedTensor | None:
    if not features:
        return None
    present = set() if rows is None else set(rows.keys())
    values, lengths = [], []
    for feature in features:
        if rows is not None and feature.name in present:
            part = rows[feature.name]
            values.append(part.values())
            lengths.append(part.lengths())
        else:
            lengths.append(torch.zeros(count, dtype=torch.int32))
        if feature.name in extra.ids:
            values.append(torch.from_numpy(extra.ids[feature.name].values))
            lengths.append(torch.from_numpy(extra.ids[feature.name].lengths))
        else:
            lengths.append(torch.zeros(len(extra), dtype=torch.int32))
    return KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.cat(values) if values else torch.zeros(0, dtype=torch.int64),
        lengths=torch.cat(lengths),
        stride=count + len(extra),
    )
