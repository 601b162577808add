"""The reader: a rank's batches, epoch after epoch, from any position, decoded ahead in the background."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, repeat
from time import perf_counter

import numpy as np
import pyarrow as pa

from distrec.batch import Batch, Position
from distrec.config.layout import Layout
from distrec.config.schema import Data, Task
from distrec.data.collate import Encoder
from distrec.data.deal import Dealt, Order, Piece, cut, resume
from distrec.data.encoded import Encoded
from distrec.data.items import ItemUse
from distrec.data.parquet import RECORD_BATCH, Dataset
from distrec.data.prefetch import Prefetch
from distrec.data.window import Window


class Reader:
    """Batches of one rank. Every rank builds one on the same dataset; they need no communication to agree.

    Memory: the window that is cut into batches, decoded and encoded; the next one, which decodes meanwhile, with one record
    batch beyond it; and `data.queue` batches.
    For evaluation, pass `shuffle=False` and `data.eval_batch_size`, and ask `batches` for one epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: Data,
        layout: Layout,
        tasks: Sequence[Task],
        *,
        rank: int,
        world: int,
        seed: int = 0,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        items: Sequence[ItemUse] = (),
        complete: Callable[[Batch], Batch] | None = None,
        pin_memory: bool = False,
    ):
        """`batch_size` (rows a rank and step) and `shuffle` are those of `data` unless given.

        `items` are the columns of a retriever's log that hold items. `complete` is applied to each batch when it is asked
        for, not ahead of it. `pin_memory` copies each batch, once it is complete, into page-locked memory, for training on a
        GPU; in the background where nothing has to be completed.
        """
        self.dataset, self.data, self.layout, self.tasks = dataset, data, layout, tasks
        self.rank, self.world = rank, world
        self.batch_size = batch_size or data.batch_size
        self.pin_memory = pin_memory
        self.order = Order(seed, data.shuffle if shuffle is None else shuffle, data.shuffle_window)
        self.items, self.complete = items, complete
        self.wait_s = 0.0  # seconds the consumer has waited for batches

    @property
    def fingerprint(self) -> str:
        """Short hash of the files and of the order of reading: a `Position` holds only under the same one."""
        return hashlib.sha256(repr((self.dataset.fingerprint, self.order)).encode()).hexdigest()[:16]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return self.steps_left(Position())

    def steps_left(self, start: Position) -> int:
        """Steps from `start` to the end of the epoch that comes next, the same on every rank."""
        dealt = self._resume(start)
        return dealt.steps - dealt.step

    def pieces(self) -> list[Piece]:
        """The rows of the first epoch that are this rank's, in the order in which they are read where nothing is shuffled."""
        return self._resume(Position()).share(self.rank)

    def batches(self, start: Position | None = None, epochs: int | None = None) -> Generator[Batch, None, None]:
        """Batches from `start` until `epochs` epochs, counted from the beginning of training, are read; None: for ever.

        Close the generator, or drop it, to stop the background threads. Raises `UserError` for bad data, after the
        batches of the windows before it.
        """
        with closing(Prefetch(self._batches(start or Position(), epochs), self.data.queue, "distrec-collate")) as ahead:
            while True:
                began = perf_counter()
                batch = next(ahead, None)
                self.wait_s += perf_counter() - began
                if batch is None:
                    return
                yield batch if self.complete is None else self._ready(self.complete(batch))

    def _ready(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self.pin_memory else batch

    def _resume(self, start: Position) -> Dealt:
        return resume(self.dataset.row_groups, self.order, start, self.world, self.batch_size)

    def _batches(self, start: Position, epochs: int | None) -> Generator[Batch, None, None]:
        dealt = self._resume(start)
        while epochs is None or dealt.epoch < epochs:
            yield from self._deal(dealt)
            dealt = self._resume(Position(dealt.epoch + 1))

    def _deal(self, dealt: Dealt) -> Generator[Batch, None, None]:
        real = dealt.real_rows()
        with closing(Encoder(self.data, self.layout, self.tasks, self.batch_size, self.items)) as encoder:
            pad = (encoder.padding(), 0)
            with closing(self._encoded(dealt, encoder)) as rows:
                for step, (encoded, index) in zip(range(dealt.step, dealt.steps), chain(rows, repeat(pad)), strict=False):
                    batch = encoded.batch(index, dealt.size(step), real[step] / self.world, dealt.position(step + 1))
                    yield self._ready(batch) if self.complete is None else batch

    def _encoded(self, dealt: Dealt, encoder: Encoder) -> Generator[tuple[Encoded, int], None, None]:
        """For each step in which this rank has rows: the window, and the index of the step's batch in it."""
        first = dealt.step % (dealt.window(self.order) // self.batch_size)
        with closing(Prefetch(self._windows(dealt), 1, "distrec-decode")) as windows:
            for window in windows:
                encoded = encoder.encode(window)
                yield from ((encoded, index) for index in range(first, len(encoded)))
                first = 0

    def _windows(self, dealt: Dealt) -> Generator[Window, None, None]:
        """This rank's windows, from the one in which its next step lies."""
        share, size = dealt.share(self.rank), dealt.window(self.order)
        first = dealt.step * self.batch_size // size
        rest = cut(share, first * size, sum(map(len, share)))
        decoded = self.dataset.read(rest, self.data.verify_checksums, min(size, RECORD_BATCH))
        for index, table in enumerate(regroup(decoded, size), first):
            order = self.order.rows(dealt.epoch, len(dealt.before), self.rank, index, table.num_rows)
            pieces = cut(share, index * size, (index + 1) * size)
            narrow = order.astype(np.uint32) if self.order.shuffle else None  # half of a core's cache for every gather
            yield Window(table, narrow, partial(self.dataset.where_in, pieces))


def regroup(parts: Iterable[pa.RecordBatch], size: int) -> Generator[pa.Table, None, None]:
    """Tables of `size` rows, the last one of what is left."""
    held, rows = [], 0
    for part in parts:
        while part.num_rows:
            taken = part.slice(0, size - rows)
            part = part.slice(taken.num_rows)
            held.append(taken)
            rows += taken.num_rows
            if rows == size:
                yield pa.Table.from_batches(held)
                held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)
