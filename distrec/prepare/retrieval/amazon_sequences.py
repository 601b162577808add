"""Amazon reviews as the sequences that S3-Rec (Zhou et al., CIKM 2020) publishes: 5-core, by user, oldest first."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from distrec.errors import UserError
from distrec.prepare.description import ID_LIST, Column
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.published import Published, PublishedFile, checksum, published_files
from distrec.prepare.retrieval.columns import Catalogue
from distrec.prepare.retrieval.dataset import HISTORY, RetrievalWriter, Rows
from distrec.prepare.retrieval.id_lines import IdLines, id_lines
from distrec.prepare.retrieval.numbering import numbered
from distrec.prepare.retrieval.splits import leave_one_out

URL = "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data"
CHECKSUMS = {
    "Beauty.txt": "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
    "Beauty_item2attributes.json": "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
}


def amazon_sequences(
    out: str | Path,
    *,
    category: str = "Beauty",
    max_history: int = HISTORY,
    min_history: int = 0,
    seed: int = 0,
    source: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    download_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/retrieval/{train,valid,test,items,users}, leave-one-out.

    Ids count from 0 and `raw_id` is the publisher's number; the publisher gives neither names nor product codes, so `title`
    is that number and `category` is null. `item_attributes` are the publisher's (categories and brand, as numbers).

    Args:
        out: folder for the dataset; a download is kept in OUT/source.
        category: the publisher's name: files are CATEGORY.txt and CATEGORY_item2attributes.json. The content of Beauty is
            verified; of others only the checksum is noted in `dataset.json`.
        max_history: newest items kept in a history.
        min_history: training reviews with fewer items before them give no row.
        seed: of the order of training rows.
        source: a zip or folder with the publisher's files; without it they are downloaded.
        overwrite: replace what OUT/retrieval holds.
        progress: called with (reviews written, reviews in all).
        download_progress: called with (bytes, bytes in all; 0: not known).

    Raises:
        UserError: an option out of its range, a source that is missing, damaged or not the published one, a failed
            download, or a folder that is not empty or cannot be written.
    """
    lines, attributes = f"{category}.txt", f"{category}_item2attributes.json"
    published = Published(f"S3-Rec {category}", URL, {name: PublishedFile(CHECKSUMS.get(name)) for name in (lines, attributes)})
    rows, folder = Rows(max_history, min_history, seed=seed), Path(out) / "retrieval"
    with new_folder(folder, overwrite) as partial:
        files = published_files(published, Path(source) if source else None, Path(out), download_progress)
        reviews = id_lines(lines, files[lines])
        catalogue = _catalogue(reviews, attributes, files[attributes])
        interactions, users = _in_sequence(reviews)
        source_facts = {"url": URL, "sha256": {name: checksum(raw) for name, raw in files.items()}}
        with RetrievalWriter(partial, catalogue, rows, interactions.height, progress=progress) as writer:
            writer.add(interactions, users)
            counts = writer.finish("amazon-sequences", category=category, split="leave-one-out", seed=seed, source=source_facts)
    return Prepared(folder, counts)


def _catalogue(reviews: IdLines, name: str, raw: bytes) -> Catalogue:
    """The items that were reviewed, with their attributes; none where the publisher lists none."""
    attributes = _attributes(name, raw)
    items = (
        pl.DataFrame({"raw_id": reviews.item})
        .unique()
        .sort("raw_id")
        .join(attributes, "raw_id", how="left", maintain_order="left")
    )
    frame = items.select(
        "raw_id",
        pl.col("item_attributes").fill_null([]),
        title=pl.col("raw_id").cast(pl.String),
        category=pl.lit(None, pl.String),
    )
    largest = max((max(listed, default=0) for listed in frame["item_attributes"].to_list()), default=0)
    return Catalogue(frame, (Column("item_attributes", ID_LIST, "sparse", largest + 1),))


def _attributes(name: str, raw: bytes) -> pl.DataFrame:
    try:
        found = {int(item): [int(attribute) for attribute in listed] for item, listed in json.loads(raw).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{name} is not in the form {{"item": [attribute, …], …}}: {error}') from error
    schema = {"raw_id": pl.Int64, "item_attributes": pl.List(pl.Int64)}
    return pl.DataFrame({"raw_id": list(found), "item_attributes": list(found.values())}, schema=schema)


def _in_sequence(reviews: IdLines) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Reviews by user, oldest first, and the users; ids count from 0."""
    item, _ = numbered(pl.Series(reviews.item))
    user, users = numbered(pl.Series(reviews.user))
    frame = pl.DataFrame({"user_id": user, "item_id": item}).sort("user_id", maintain_order=True)
    return frame.with_columns(leave_one_out()), pl.DataFrame({"raw_id": users}).with_row_index("user_id")
