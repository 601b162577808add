"""Gowalla check-ins in the split of NGCF and LightGCN, as BARS ranks them: 29,858 users, 40,981 places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from distrec.errors import UserError
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.published import Published, PublishedFile, published_files
from distrec.prepare.retrieval.columns import Catalogue
from distrec.prepare.retrieval.dataset import HISTORY, RetrievalWriter, Rows
from distrec.prepare.retrieval.id_lines import IdLines, id_lines
from distrec.prepare.retrieval.sequences import TEST, TRAIN, VALID

GOWALLA = Published(
    title="Gowalla_m1",
    url="https://huggingface.co/datasets/reczoo/Gowalla_m1/resolve/main",
    files={
        "train.txt": PublishedFile("0f086326b28a56c2e6dcb81d86ee72d4ccb7eed3a8d26788392356d8f51111cc", unordered=True),
        "test.txt": PublishedFile("95a7e4ee029370c4ccac0d6a0c8cc0615b574ac89642081cdf946090e0dd5bda", unordered=True),
        "user_list.txt": PublishedFile("5344c4d0deef610e1f148f23ad216a0db03b36f88834cd39a06786a672c5f5a1"),
        "item_list.txt": PublishedFile("6b186f92890cc3f0c15a6dae5d6285f125a302bb8c5ea0cd9a16cf9c16347139"),
    },
)


def gowalla(
    out: str | Path,
    *,
    valid_share: float = 0.0,
    max_history: int = HISTORY,
    min_history: int = 0,
    seed: int = 0,
    source: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    download_progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/retrieval/{train,test,items,users}, and valid if `valid_share` says so.

    A check-in's history is a sample of the user's other training places, for their order is not published. `test`: all of
    a user's test places, with the training places as `seen`.

    The published protocol trains on all of train and takes the epoch that is best on test, which flatters every figure a
    little. With `valid_share` one training place of each of so many users is held out to choose by, and test stays unseen;
    training then has so many places less than the published figures had.

    Args:
        out: folder for the dataset; a download is kept in OUT/source.
        valid_share: of the users, from whom one training place goes to valid; 0 to 1.
        max_history: places kept in a history.
        min_history: check-ins of users with fewer other training places give no row.
        seed: of the samples, the order of rows, and what is held out.
        source: a zip or folder with the publisher's four files; without it they are downloaded.
        overwrite: replace what OUT/retrieval holds.
        progress: called with (check-ins written, check-ins in all).
        download_progress: called with (bytes, bytes in all; 0: not known).

    Raises:
        UserError: an option out of its range, a source that is missing or not the published one, a failed download, or a
            folder that is not empty or cannot be written.
    """
    if not 0 <= valid_share <= 1:
        raise UserError(f"--valid-share {valid_share}: must lie between 0 and 1")
    rows = Rows(max_history, min_history, ordered=False, seed=seed)
    folder = Path(out) / "retrieval"
    with new_folder(folder, overwrite) as partial:
        files = published_files(GOWALLA, Path(source) if source else None, Path(out), download_progress)
        train, test = (id_lines(name, files[name]) for name in ("train.txt", "test.txt"))
        interactions = _in_sequence(train, test, valid_share, seed)
        users, items = _names(files["user_list.txt"]), _names(files["item_list.txt"])
        catalogue = Catalogue(items.select("raw_id", title=pl.col("raw_id").cast(pl.String), category=pl.lit(None, pl.String)))
        with RetrievalWriter(partial, catalogue, rows, interactions.height, progress=progress) as writer:
            writer.add(interactions, users)
            counts = writer.finish("gowalla", **_facts(train, test, valid_share, seed))
    return Prepared(folder, counts)


def _in_sequence(train: IdLines, test: IdLines, valid_share: float, seed: int) -> pl.DataFrame:
    """Each user's training places in random order, then the one that is held out, then the test places."""
    draw = np.random.default_rng([seed, 1])
    user = np.concatenate([train.user, test.user])
    split = np.repeat(np.array([TRAIN, TEST], np.int8), [len(train.user), len(test.user)])
    frame = pl.DataFrame({"user_id": user, "item_id": np.concatenate([train.item, test.item]), "split": split})
    frame = frame[draw.permutation(frame.height)].sort("user_id", "split", maintain_order=True)
    return _hold_out(frame, valid_share, draw)


def _hold_out(frame: pl.DataFrame, share: float, draw: np.random.Generator) -> pl.DataFrame:
    """The last of the training places of some users, who have two or more, becomes a validation place."""
    size = pl.when(pl.col("split") == TRAIN).then(1).sum().over("user_id")
    last = frame.select(
        ((pl.col("split") == TRAIN) & (pl.int_range(pl.len()).over("user_id") == size - 1)) & (size > 1)
    ).to_series()
    places = np.flatnonzero(last.to_numpy())
    split = frame["split"].to_numpy().copy()
    split[draw.choice(places, round(share * len(places)), replace=False)] = VALID
    return frame.with_columns(split=split)


def _names(raw: bytes) -> pl.DataFrame:
    """The publisher's table of ids: `user_id` as in the other files, `raw_id` as in the check-ins."""
    frame = pl.read_csv(raw, separator=" ", schema={"org_id": pl.Int64, "remap_id": pl.Int64})
    return frame.sort("remap_id").select(user_id="remap_id", raw_id="org_id")


def _facts(train: IdLines, test: IdLines, valid_share: float, seed: int) -> dict:
    source = {"url": GOWALLA.url, "sha256": {name: file.sha256 for name, file in GOWALLA.files.items()}}
    how = {"split": "given", "valid_share": valid_share, "seed": seed}
    return how | {"interactions": {"train": len(train.user), "test": len(test.user)}, "source": source}
