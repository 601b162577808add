"""A reader's batches on their way into the pipeline: what is wrong on one rank is heard by all, at the same step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import torch

from distrec.batch import Batch
from distrec.dist import lowest, together
from distrec.errors import UserError

AHEAD = 2  # batches that TorchRec's pipeline draws before it trains on the first


class Draw(Iterator[Batch]):
    """The next `count` batches.

    A `UserError` of the reader ends them and is kept in `failure`. The pipeline draws a batch two steps before its turn,
    so the other ranks still have time to hear of it: a rank that ran on would wait for this one in a collective.
    """

    def __init__(self, batches: Iterator[Batch], count: int, waiting: Callable[[], AbstractContextManager[None]] = nullcontext):
        """`waiting` is entered while the reader is waited for."""
        self.failure: UserError | None = None
        self._batches, self._left, self._waiting = batches, count, waiting
        self._drawn: deque[Batch] = deque()

    def begin(self) -> None:
        """Draw what fills the pipeline. Every rank must call it.

        Raises:
            UserError: on every rank, when any of them cannot read.
        """
        together(self._fill)

    def check(self) -> None:
        """Raise on every rank, at the same step, what a reader raised on any. Every rank must call it."""
        if not lowest(torch.tensor(float(self.failure is None))):
            self.raise_failure()

    def raise_failure(self) -> None:
        """The same for ranks that know already that one of them may have failed."""
        together(self._raise_own)

    def __next__(self) -> Batch:
        return self._drawn.popleft() if self._drawn else self._read()

    def _read(self) -> Batch:
        if not self._left or self.failure is not None:
            raise StopIteration
        self._left -= 1
        try:
            with self._waiting():
                return next(self._batches)
        except UserError as error:
            self.failure = error
            raise StopIteration from None

    def _fill(self) -> None:
        with suppress(StopIteration):
            for _ in range(AHEAD):
                self._drawn.append(self._read())
        self._raise_own()

    def _raise_own(self) -> None:
        if self.failure is not None:
            raise self.failure
