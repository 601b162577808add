"""Ids and items at which training would stop, as far as footers and a sample of rows tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from distrec.config.layout import Layout, Lookup
from distrec.data.ids import outside_table
from distrec.data.items import ItemUse, encode_items, not_in_catalogue
from distrec.data.parquet import Dataset
from distrec.data.window import Window
from distrec.errors import UserError
from distrec.profile.footers import Bound, Facts, Survey, facts_by_file
from distrec.profile.sample import take_sample

ITEM_ROWS = 10_000  # at most, of a split: those whose items are looked up in the catalogue
Ends = tuple[tuple[Bound, str], tuple[Bound, str]]  # smallest and largest value, each with its file


def id_faults(dataset: Dataset, features: Layout, items: Sequence[ItemUse], verify_checksums: bool) -> Iterator[str]:
    """What is wrong with the ids of `features` and with the `items` of a split, where it can be told without reading it all.

    Footers have the smallest and the largest value, if the writer left statistics; of text they do not tell. Where they show
    no item that the catalogue lacks, a sample of rows is read.
    """
    lookups = [f for f in (*features.bags, *features.sequences) if f.ids == "index" and f.out_of_range == "error"]
    ends = _ends(dataset, {*(f.column for f in lookups), *(use.column for use in items)})
    for lookup in lookups:
        yield from _outside(lookup, ends)
    for use in items:
        if not use.drop_unknown:
            yield from list(_lacking(use, ends)) or _met(dataset, use, verify_checksums)


def _ends(dataset: Dataset, columns: set[str]) -> dict[str, Ends]:
    """Of the columns of which some file says."""
    found: dict[str, list[tuple[Facts, str]]] = {}
    for file, facts in zip(dataset.files, facts_by_file(dataset.files, columns), strict=True):
        for name, one in facts.items():
            if one.low is not None and one.kind in ("integer", "integers"):
                found.setdefault(name, []).append((one, file.path))
    return {
        name: (min((one.low, path) for one, path in each), max((one.high, path) for one, path in each))  # type: ignore[type-var]
        for name, each in found.items()
    }


def _outside(feature: Lookup, ends: Mapping[str, Ends]) -> Iterator[str]:
    if feature.column not in ends:
        return
    (low, first), (high, last) = ends[feature.column]
    if low < 0:
        yield outside_table(feature, f"column {feature.column!r} of {first}", int(low))
    if high >= feature.rows:
        yield outside_table(feature, f"column {feature.column!r} of {last}", int(high))


def _lacking(use: ItemUse, ends: Mapping[str, Ends]) -> Iterator[str]:
    """The smallest and the largest id stand in the column; but perhaps behind the part of a list that is used."""
    if use.column not in ends or use.length is not None:
        return
    for value, path in dict.fromkeys(ends[use.column]):
        word = np.array([int(value) % 2**64], np.uint64).view(np.int64)
        if use.index.rows(word)[0] < 0:
            yield f"column {use.column!r} of {path}: {not_in_catalogue(int(value))}"


def _met(dataset: Dataset, use: ItemUse, verify_checksums: bool) -> Iterator[str]:
    """The first fault of a sample of rows."""
    pieces = take_sample(Survey(dataset.files, {}), rows=ITEM_ROWS).pieces
    schema = pa.schema([dataset.schema.field(use.column)])
    try:
        parts = list(Dataset(dataset.files, schema).read(pieces, verify_checksums))
        window = Window(pa.Table.from_batches(parts, schema), None, partial(dataset.where_in, pieces))
        encode_items(window.column(use.column), use)
    except UserError as error:
        yield str(error)
