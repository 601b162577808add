"""TensorBoard's projector: a sample of vectors, with what people know them by."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter


def write_projector(folder: Path, vectors: Tensor, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Replace what `folder` holds by the files of TensorBoard's page PROJECTOR.

    Args:
        folder: becomes a run of its own in TensorBoard.
        vectors: (N, D), some thousands at most: the page computes in the browser.
        header: names of the columns of `rows`.
        rows: N, one text a column.
    """
    shutil.rmtree(folder, ignore_errors=True)
    plain = [[" ".join(text.split()) or "-" for text in row] for row in rows]  # the file is separated by tabs and lines
    metadata, names = ([row[0] for row in plain], None) if len(header) == 1 else (plain, list(header))
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(vectors.cpu(), metadata=metadata, metadata_header=names, tag="items")
