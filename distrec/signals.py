"""Being asked to stop: Ctrl-C and SIGTERM become a request that the loop answers at the end of a step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

PATIENCE_S = 5.0  # one Ctrl-C may arrive twice, from the terminal and from the agent; a later one means it


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM ends the process as an error does, so that what is half done is removed; another one waits."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Within it, SIGINT and SIGTERM set `signal`; a second SIGINT after some seconds interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > PATIENCE_S:
            raise KeyboardInterrupt
