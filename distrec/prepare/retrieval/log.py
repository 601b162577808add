"""Anybody's log of interactions in one form: who, what, when, and what described them then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import polars as pl

from distrec.errors import UserError
from distrec.prepare.description import Column
from distrec.prepare.retrieval.tabular import Block, blocks
from distrec.prepare.retrieval.values import FEATURES, features, ids, taken, times, warn_of_text

USER, ITEM, TIME = "@user", "@item", "@time"  # names that no column of a log is likely to have
GIVEN = "@given"  # which files a row came from: 0 train, 1 valid, 2 test


@dataclass(frozen=True)
class LogColumns:
    """What a log calls them."""

    user: str
    item: str
    time: str
    features: Sequence[str] = ()  # of the user or the moment
    label: str | None = None  # only rows where it is over 0 are interactions; None: all are
    literal_ids: bool = False  # whether ids such as NULL are ids like any other


@dataclass
class Log:
    """Reads the files of a log into frames of USER, ITEM (Int64 or String), TIME (Int64) and the features."""

    columns: LogColumns
    kinds: dict[str, tuple[str, Path]] = field(default_factory=dict)  # what each column holds, and the file that said so
    no_interaction: int = 0  # rows that the label left out so far

    def blocks(self, file: Path) -> Iterator[pl.DataFrame]:
        """The rows of a file, in its order.

        Raises:
            UserError: a file, a line or a value that cannot be read, or a column that holds another kind of value than in
                an earlier file.
        """
        names = self.columns
        read = dict.fromkeys((names.user, names.item, names.time, *names.features, *filter(None, [names.label])))
        for block in blocks(file, tuple(read), text=(names.user, names.item)):
            own = partial(ids, literal=names.literal_ids)
            plain = ((USER, names.user, own), (ITEM, names.item, own), (TIME, names.time, times))
            columns = [*plain, *((name, name, features) for name in names.features)]
            frame = pl.DataFrame([self._column(block, name, convert).alias(called) for called, name, convert in columns])
            counting = frame if names.label is None else frame.filter(taken(block, names.label))
            self.no_interaction += frame.height - counting.height
            yield counting

    def kind(self, column: str) -> str:
        """What a column of the files read so far holds: `integers` or `text`, or a key of `FEATURES`."""
        return self.kinds[column][0]

    def profile(self) -> tuple[Column, ...]:
        """The features as columns of a dataset."""
        return tuple(replace(FEATURES[self.kind(name)], name=name) for name in self.columns.features)

    def _column(self, block: Block, name: str, convert: Callable[[Block, str], tuple[str, pl.Series]]) -> pl.Series:
        kind, values = convert(block, name)
        if convert is features and name not in self.kinds:
            warn_of_text(block, name, values)
        before, file = self.kinds.setdefault(name, (kind, block.file))
        if kind != before:
            raise UserError(
                f"column {name!r} holds {kind} in {block.file}, but {before} in {file}; give it one type in all files "
                "(ids in CSV are text)"
            )
        return values
