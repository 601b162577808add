"""Run an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class Prefetch(Iterator[Item], Generic[Item]):
    """The items of `source`, of which up to `depth` are made before they are asked for.

    An error in `source` is raised where its item would have stood, after every item before it. `close` stops the thread,
    closes `source`, and returns when both are done; it is called by itself at the end of the items, and at that of the
    program: a thread that comes back from C++ to an interpreter that is no more aborts the process.
    """

    def __init__(self, source: Generator[Item, None, None], depth: int, name: str):
        self._source = source
        self._items: SimpleQueue[Item | _End] = SimpleQueue()
        self._slots = threading.Semaphore(depth)  # taken before an item is made, so that no more than `depth` wait
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __next__(self) -> Item:
        if self._closed:
            raise StopIteration
        item = self._items.get()
        if not isinstance(item, _End):
            self._slots.release()
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop early. Waits for the item that is being made."""
        self._closed = True
        self._slots.release()
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        try:
            while self._slots.acquire() and not self._closed:
                self._items.put(next(self._source))
        except StopIteration:
            self._items.put(_End(None))
        except BaseException as error:
            self._items.put(_End(error))
        finally:
            self._source.close()
