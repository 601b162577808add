"""A dataset in the shape of Criteo's with a planted signal, whose Bayes-optimal AUC stands in `dataset.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from distrec.errors import UserError
from distrec.prepare.auc import expected_auc
from distrec.prepare.description import ID_LIST, Column, arrow_schema, write_description
from distrec.prepare.output import Prepared, Progress, new_folder, no_progress
from distrec.prepare.parquet_out import id_lists, row_group_rows, write_split
from distrec.prepare.planted import CARDINALITIES, DENSE, ITEMS, TAGS, USERS, Block, Planted
from distrec.prepare.synthetic_rows import Rows

LABELS = {"label": 3, "liked": 4}  # each with the number of its random stream
START = 1_700_000_000  # seconds since 1970 of the first row; one row a second
COLUMNS = (
    Column("label", pa.int8(), "label"),
    *(Column(f"i{i + 1}", pa.float32(), "dense") for i in range(DENSE)),
    *(Column(f"c{i + 1}", pa.int64(), "sparse", rows) for i, rows in enumerate(CARDINALITIES)),
    *(Column(name, ID_LIST, "sparse", rows) for name, rows in TAGS.items()),
    Column("item", pa.int64(), "sparse", ITEMS),
    Column("history_item", ID_LIST, "sequence", ITEMS, shares="item"),
    Column("user", pa.int64(), "group", USERS),
    Column("timestamp", pa.int64(), "time"),
    Column("liked", pa.int8(), "label"),
)


def synthetic(
    out: str | Path,
    *,
    rows: int = 400_000,
    valid_rows: int = 100_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Write OUT/ctr/train and OUT/ctr/valid; the validation rows come later in time.

    The labels `label` and `liked` are drawn from sigmoid(logit), each with its logit of `distrec.prepare.planted`.
    `dataset.json` gives, for the validation rows, `bayes_auc`: the expected AUC of the logit of `label`, and
    `realised_auc`: its AUC on the labels as drawn; `bayes_auc_liked` and `realised_auc_liked` are those of `liked`.
    Memory holds one row group, and 34 bytes a validation row.

    Args:
        out: folder for the dataset.
        rows: of the training split.
        valid_rows: of the validation split.
        seed: of the signal and the rows; the same seed gives the same files.
        overwrite: replace what OUT/ctr holds.
        progress: called with (rows written, rows in all).

    Raises:
        UserError: a count that is not positive, a negative seed, or a folder that is not empty or cannot be written.
    """
    _check(rows, valid_rows, seed)
    folder = Path(out) / "ctr"
    draw = _Draw(seed, rows + valid_rows, progress)
    with new_folder(folder, overwrite) as partial:
        counts = {name: write_split(partial / name, draw.schema, draw.blocks(n)) for name, n in _splits(rows, valid_rows)}
        write_description(partial, "synthetic", "ctr", COLUMNS, counts, seed=seed, split="time", **draw.aucs())
    return Prepared(folder, counts)


def _splits(rows: int, valid_rows: int) -> tuple[tuple[str, int], ...]:
    return ("train", rows), ("valid", valid_rows)


def _check(rows: int, valid_rows: int, seed: int) -> None:
    for name, value, least in (("rows", rows, 1), ("valid_rows", valid_rows, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} = {value}: must be at least {least}")


class _Draw:
    """The stream of rows, with what the description needs of the split that was drawn last."""

    def __init__(self, seed: int, total: int, progress: Progress) -> None:
        self.schema = arrow_schema(COLUMNS)
        self._planted = Planted(seed)
        self._rows = Rows(self._planted, seed)
        self._labels = {name: np.random.default_rng([seed, stream]) for name, stream in LABELS.items()}
        self._total, self._done, self._index, self._progress = total, 0, 0, progress
        self._scored: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def blocks(self, rows: int) -> Iterator[pa.Table]:
        """The next `rows` rows, a row group at a time."""
        size = row_group_rows(rows)
        self._scored = {name: [] for name in LABELS}
        for start in range(0, rows, size):
            yield self._block(min(size, rows - start))

    def aucs(self) -> dict[str, float]:
        """Bayes-optimal and realised AUC of the last split, of each label."""
        aucs = {}
        for name, blocks in self._scored.items():
            logit, label = (np.concatenate(part) for part in zip(*blocks, strict=True))
            of = "" if name == "label" else f"_{name}"
            aucs[f"bayes_auc{of}"] = expected_auc(logit, _sigmoid(logit))
            aucs[f"realised_auc{of}"] = expected_auc(logit, label.astype(np.float64))
        return aucs

    def _block(self, rows: int) -> pa.Table:
        block = self._rows.draw(self._index, rows)
        terms = self._planted.terms(block)
        labels = {}
        for name, logit in (("label", terms.logit), ("liked", terms.liked_logit)):
            labels[name] = self._labels[name].random(rows) < _sigmoid(logit)
            self._scored[name].append((logit, labels[name]))
        table = _table(block, labels, START + self._done, self.schema)
        self._index, self._done = self._index + 1, self._done + rows
        self._progress(self._done, self._total)
        return table


def _table(block: Block, labels: Mapping[str, np.ndarray], start: int, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.array(labels["label"].astype(np.int8)),
        *(pa.array(column.astype(np.float32), from_pandas=True) for column in block.dense.T),
        *(pa.array(column, mask=column < 0) for column in block.ids.T),
        *(id_lists(lists.values, lists.offsets) for lists in block.tags.values()),
        pa.array(block.item),
        id_lists(block.history.values, block.history.offsets),
        pa.array(block.user),
        pa.array(start + np.arange(len(block.user), dtype=np.int64)),
        pa.array(labels["liked"].astype(np.int8)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))
