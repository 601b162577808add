"""How an epoch's rows are dealt to ranks, and what a deal that was broken off leaves over.

An epoch is one sequence of N rows, made of pieces of row groups. Rank r of W owns rows `[r N // W, (r + 1) N // W)` of it:
ranks differ by at most one row, and each has at most two partial row groups. All of it follows from the row counts in
the footers, so every rank knows every rank's rows without a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from distrec.batch import Deal, Position


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of one row group, ascending."""

    file: int
    group: int
    rows: range | np.ndarray  # within the row group; int64 when an array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Order:
    """The order in which rows are read: a pure function of its fields, the epoch and the deals so far."""

    seed: int
    shuffle: bool
    window: int  # rows a rank shuffles together, before rounding to whole batches

    def epoch(self, pieces: Sequence[Piece], epoch: int) -> list[Piece]:
        """The epoch's sequence: the row groups in file order, or permuted."""
        if not self.shuffle:
            return list(pieces)
        return [pieces[i] for i in np.random.default_rng((self.seed, epoch)).permutation(len(pieces))]

    def rows(self, epoch: int, deals: int, rank: int, window: int, size: int) -> np.ndarray:
        """`(size,) int64`: the order of a window's rows. `deals` counts the deals of this epoch before this one."""
        if not self.shuffle:
            return np.arange(size)
        return np.random.default_rng((self.seed, epoch, deals + 1, rank, window)).permutation(size)


@dataclass(frozen=True)
class Dealt:
    """A sequence of rows dealt to `world` ranks, and the step at which reading begins."""

    epoch: int
    before: tuple[Deal, ...]  # the epoch's earlier deals
    pieces: Sequence[Piece]
    world: int
    batch_size: int
    step: int = 0

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(map(len, self.pieces))

    @property
    def steps(self) -> int:
        """Steps of this deal, the same on every rank: what the largest share needs."""
        return -(-self.total // (self.world * self.batch_size))

    def window(self, order: Order) -> int:
        """Rows of a window: whole batches, so that no batch crosses its end."""
        return -(-order.window // self.batch_size) * self.batch_size

    def bounds(self, rank: int) -> tuple[int, int]:
        """Where the rank's share starts and stops in the sequence."""
        total = self.total
        return rank * total // self.world, (rank + 1) * total // self.world

    def share(self, rank: int) -> list[Piece]:
        """The rank's rows."""
        return cut(self.pieces, *self.bounds(rank))

    def real_rows(self) -> np.ndarray:
        """`(steps,) int64`: rows that are read in each step, over all ranks."""
        edges = np.arange(self.world + 1, dtype=object) * self.total // self.world
        shares, counts = np.unique(np.diff(edges).astype(np.int64), return_counts=True)
        left = shares - np.arange(self.steps)[:, None] * self.batch_size
        return (np.clip(left, 0, self.batch_size) * counts).sum(axis=1)

    def size(self, step: int) -> int:
        """Rows of each rank's batch in a step, padding included: those of the largest share."""
        return min(self.batch_size, -(-self.total // self.world) - step * self.batch_size)

    def position(self, step: int) -> Position:
        """Where a reader stands that has done `step` steps of this deal."""
        if step == self.steps:
            return Position(self.epoch + 1)
        return Position(self.epoch, (*self.before, Deal(self.world, self.batch_size, step)))

    def rest(self, order: Order) -> list[Piece]:
        """What the first `step` steps leave over, rank by rank."""
        return [piece for rank in range(self.world) for piece in self._rest_of(rank, order)]

    def _rest_of(self, rank: int, order: Order) -> list[Piece]:
        share, window = self.share(rank), self.window(order)
        size = sum(map(len, share))
        done = min(self.step * self.batch_size, size)
        index, taken = divmod(done, window)
        start, stop = index * window, min((index + 1) * window, size)
        kept = np.sort(order.rows(self.epoch, len(self.before), rank, index, stop - start)[taken:])
        return [*pick(cut(share, start, stop), kept), *cut(share, stop, size)]


def resume(groups: Sequence[Piece], order: Order, position: Position, world: int, batch_size: int) -> Dealt:
    """The deal that a reader at `position` goes on with, on `world` ranks.

    The last deal goes on if it had as many ranks and the same batch size; otherwise what it left over is dealt anew.
    A deal with nothing left leads to the next epoch.
    """
    before, step = position.deals, 0
    if before and (before[-1].world, before[-1].batch_size) == (world, batch_size):
        before, step = before[:-1], before[-1].steps
    pieces = order.epoch(groups, position.epoch)
    for i, past in enumerate(before):
        pieces = Dealt(position.epoch, before[:i], pieces, past.world, past.batch_size, past.steps).rest(order)
    dealt = Dealt(position.epoch, before, pieces, world, batch_size, step)
    return dealt if step < dealt.steps else resume(groups, order, Position(position.epoch + 1), world, batch_size)


def cut(pieces: Iterable[Piece], start: int, stop: int) -> list[Piece]:
    """Rows `[start, stop)` of the sequence."""
    found, at = [], 0
    for piece in pieces:
        low, high = max(start - at, 0), min(stop - at, len(piece))
        if low < high:
            found.append(Piece(piece.file, piece.group, piece.rows[low:high]))
        at += len(piece)
    return found


def pick(pieces: Sequence[Piece], positions: np.ndarray) -> list[Piece]:
    """The rows at ascending `positions` of the sequence."""
    ends = list(accumulate(map(len, pieces)))
    cuts = np.searchsorted(positions, ends)
    found, low = [], 0
    for piece, end, high in zip(pieces, ends, cuts, strict=True):
        if low < high:
            inside = positions[low:high] - (end - len(piece))
            rows = inside + piece.rows.start if isinstance(piece.rows, range) else piece.rows[inside]
            found.append(Piece(piece.file, piece.group, rows))
        low = int(high)
    return found
