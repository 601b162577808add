"""The rows of Criteo's files in their order: decoded by several threads, cut into row groups."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from distrec.errors import UserError
from distrec.prepare.criteo_lines import Block, blocks
from distrec.prepare.criteo_rows import decode
from distrec.prepare.output import Progress
from distrec.prepare.parquet_out import row_group_rows

WORKERS = max(1, min(4, len(os.sched_getaffinity(0))))
AHEAD = WORKERS + 1  # blocks in hand: what bounds memory


class Reading:
    """How far files were read, over all passes."""

    def __init__(self, files: Sequence[Path], total: int, progress: Progress) -> None:
        self._files, self._total, self._progress, self._done = files, total, progress, 0

    def tables(self, convert: Callable[[pa.Table], pa.Table] = lambda table: table) -> Iterator[pa.Table]:
        """The rows from the first one on, some ten thousand at a time; `convert` runs in the threads too.

        Raises:
            UserError: a file that cannot be read, or the first line that is not in Criteo's form.
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            waiting: deque[Future[pa.Table]] = deque()
            for block in _ahead(block for file in self._files for block in blocks(file)):
                waiting.append(pool.submit(_convert, block, convert))
                if len(waiting) > AHEAD:
                    yield self._said(waiting.popleft().result())
            while waiting:
                yield self._said(waiting.popleft().result())

    def _said(self, table: pa.Table) -> pa.Table:
        self._done += table.num_rows
        self._progress(min(self._done, self._total), self._total)
        return table


class Cut:
    """A stream of tables that is taken in other portions."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: pa.Table | None = None

    def row_groups(self, rows: int) -> Iterator[pa.Table]:
        """The next `rows` rows, a row group at a time."""
        size = row_group_rows(rows)
        for start in range(0, rows, size):
            yield pa.concat_tables(self.parts(min(size, rows - start))).combine_chunks()

    def parts(self, rows: int) -> Iterator[pa.Table]:
        """The next `rows` rows, in portions as they come."""
        while rows:
            held = self._held if self._held is not None and self._held.num_rows else next(self._tables, None)
            if held is None:
                raise UserError("the files became shorter while they were read; run again when nothing writes to them")
            part, self._held = held.slice(0, rows), held.slice(rows)
            rows -= part.num_rows
            yield part


def _ahead(source: Iterator[Block]) -> Iterator[Block]:
    """One block ahead, in a thread of its own: unpacking gzip takes about as long as writing Parquet."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, source, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, source, None)
            yield block


def _convert(block: Block, convert: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return convert(decode(block))
