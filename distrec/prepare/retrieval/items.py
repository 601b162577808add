"""The catalogue of anybody's log: from a file of items, or from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from distrec.errors import UserError
from distrec.prepare.retrieval.columns import Catalogue
from distrec.prepare.retrieval.tabular import Block, blocks, tabular_files
from distrec.prepare.retrieval.values import FEATURES, features, ids, warn_of_text


@dataclass(frozen=True)
class ItemFile:
    """A file with a row an item, and what it calls them."""

    path: str | Path  # Parquet or CSV
    item: str
    title: str | None = None
    category: str | None = None
    features: Sequence[str] = ()
    literal_ids: bool = False  # whether ids such as NULL are ids like any other


def items_of_log(raw: pl.Series) -> Catalogue:
    """A catalogue of ids alone, their title being the id."""
    return Catalogue(_described(pl.DataFrame({"raw_id": raw}), None, None))


def items_of_file(source: ItemFile) -> tuple[str, Catalogue]:
    """(`integers` or `text`: what its ids are, the catalogue), in the order of the file.

    Raises:
        UserError: a file that cannot be read, a missing column, no row, a null id, an id on two rows, or a column that holds
            what a feature may not.
    """
    [path, *others] = tabular_files([source.path])
    if others:
        raise UserError(f"{source.path} names several files; the items stand in one")
    names = dict.fromkeys(name for name in (source.item, source.title, source.category, *source.features) if name)
    parts = [_part(block, source) for block in blocks(path, list(names), text=[source.item])]
    if not sum(part.height for _, part in parts):
        raise UserError(f"{path} holds no item")
    kinds, frame = parts[0][0], pl.concat([part for _, part in parts])
    _refuse_repeated(path, frame)
    return kinds[source.item], Catalogue(
        _described(frame, source.title, source.category),
        tuple(replace(FEATURES[kinds[name]], name=name) for name in source.features),
    )


def _part(block: Block, source: ItemFile) -> tuple[dict[str, str], pl.DataFrame]:
    """What the columns of a block hold, and the block."""
    found = {source.item: ids(block, source.item, source.literal_ids)} | {
        name: features(block, name) for name in source.features
    }
    for name in source.features if block.first == 0 else ():
        warn_of_text(block, name, found[name][1])
    texts = dict.fromkeys(name for name in (source.title, source.category) if name)
    columns = [found[source.item][1].alias("raw_id"), *(found[name][1] for name in source.features)]
    columns += [_text(block, name).alias(f"@{name}") for name in texts]
    return {name: kind for name, (kind, _) in found.items()}, pl.DataFrame(columns)


def _text(block: Block, name: str) -> pl.Series:
    kind, values = features(block, name)
    if kind.startswith("lists"):
        raise UserError(f"{block.file}: column {name!r} holds {kind}; a title or a category is one value")
    return values.cast(pl.String)


def _described(frame: pl.DataFrame, title: str | None, category: str | None) -> pl.DataFrame:
    """With `title`, which is the id where there is none, and `category`."""
    named = pl.col(f"@{title}") if title else pl.lit(None, pl.String)
    kind = pl.col(f"@{category}") if category else pl.lit(None, pl.String)
    described = frame.with_columns(title=pl.coalesce(named, pl.col("raw_id").cast(pl.String)), category=kind)
    return described.select(pl.exclude(f"@{title}", f"@{category}"))


def _refuse_repeated(path: Path, frame: pl.DataFrame) -> None:
    again = frame["raw_id"].is_first_distinct().not_().arg_true()
    if len(again):
        value = frame["raw_id"][int(again[0])]
        first = int((frame["raw_id"] == value).arg_true()[0])
        raise UserError(f"{path}: item {value!r} stands on rows {first} and {again[0]}, counted from 0; an item has one row")
