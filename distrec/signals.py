"""Being asked to stop: Ctrl-C and SIGTERM become a request that the loop answers at the end of a step."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Self

PATIENCE_S = 5.0  # one Ctrl-C may arrive twice, from the terminal and from the agent; a later one means it


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
