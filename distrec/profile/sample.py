"""Which rows are looked at, and reading them a few columns at a time: memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.data.deal import Piece
from distrec.data.parquet import RECORD_BATCH, Dataset
from distrec.profile.footers import Facts, Survey

SAMPLE_ROWS = 100_000  # at most
SAMPLE_BYTES = 256 << 20  # of all columns together; wide rows make the sample smaller
BLOCK_BYTES = 64 << 20  # of the columns that are held at once
FEWEST_ROWS = 100
DECODED_ROWS = 4_000_000  # about as many are decoded to pick the sample from
FEWEST_GROUPS = 16  # however large they are


@dataclass(frozen=True)
class Sample:
    """Rows of some files, in file order."""

    survey: Survey
    pieces: tuple[Piece, ...]
    total: int  # rows that it stands for

    @property
    def rows(self) -> int:
        """Rows in the sample."""
        return sum(map(len, self.pieces))

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.rows == self.total

    def columns(self, wanted: Sequence[Facts]) -> Iterator[tuple[Facts, pa.Array]]:
        """Each of the wanted columns with its values, `BLOCK_BYTES` of them read at a time."""
        for block in _blocks(wanted, self.rows):
            schema = pa.schema([pa.field(facts.name, facts.type) for facts in block])
            batch = int(np.clip(BLOCK_BYTES // max(sum(f.width for f in block), 1), 256, RECORD_BATCH))
            parts = list(Dataset(self.survey.files, schema).read(self.pieces, verify_checksums=False, batch=batch))
            for index, facts in enumerate(block):
                yield facts, pa.concat_arrays([part.column(index) for part in parts])

    def row_numbers(self) -> np.ndarray:
        """`(rows,) float64` in [0, 1): how far through its files each row stands."""
        groups = _groups(self.survey, range(len(self.survey.files)))
        starts = dict(zip(((g.file, g.group) for g in groups), np.cumsum([0, *map(len, groups)]), strict=False))
        at = [starts[p.file, p.group] + np.asarray(p.rows) for p in self.pieces]
        return np.concatenate(at) / max(sum(map(len, groups)), 1)


def take_sample(survey: Survey, files: Sequence[int] | None = None, rows: int = SAMPLE_ROWS) -> Sample:
    """At most `rows` rows of `files` (indices; default: all), spread over row groups and within each of them.

    All groups are used until `DECODED_ROWS` would be decoded, then evenly spaced ones. Within a group, one row is drawn
    from each of as many equal stretches as it gives rows, with a fixed seed.
    """
    groups = _groups(survey, range(len(survey.files)) if files is None else files)
    total = sum(map(len, groups))
    wanted = min(rows, max(FEWEST_ROWS, int(SAMPLE_BYTES / max(sum(f.width for f in survey.readable()), 1))))
    if total <= wanted:
        return Sample(survey, tuple(groups), total)
    chosen = _evenly(groups, wanted)
    ends = np.round(np.cumsum([0, *map(len, chosen)]) * (wanted / sum(map(len, chosen)))).astype(np.int64)
    draw = np.random.default_rng(0)
    pieces = (Piece(g.file, g.group, _stretches(len(g), n, draw)) for g, n in zip(chosen, np.diff(ends), strict=True) if n)
    return Sample(survey, tuple(pieces), total)


def _groups(survey: Survey, files: Sequence[int]) -> list[Piece]:
    return [Piece(f, g, range(n)) for f in files for g, n in enumerate(survey.files[f].rows) if n]


def _evenly(groups: Sequence[Piece], wanted: int) -> list[Piece]:
    mean = sum(map(len, groups)) / len(groups)
    count = int(max(FEWEST_GROUPS, DECODED_ROWS / mean, 2 * wanted / mean))
    if count >= len(groups):
        return list(groups)
    return [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, count).round().astype(int))]


def _stretches(rows: int, wanted: int, draw: np.random.Generator) -> np.ndarray:
    """`(min(wanted, rows),) int64`, ascending and different."""
    edges = np.linspace(0, rows, min(wanted, rows) + 1).astype(np.int64)
    return edges[:-1] + (draw.random(len(edges) - 1) * np.diff(edges)).astype(np.int64)


def _blocks(wanted: Sequence[Facts], rows: int) -> Iterator[list[Facts]]:
    block: list[Facts] = []
    held = 0.0
    for facts in wanted:
        size = facts.width * rows
        if block and held + size > BLOCK_BYTES:
            yield block
            block, held = [], 0.0
        block.append(facts)
        held += size
    if block:
        yield block
