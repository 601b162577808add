"""Threads that share out jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


class Crew:
    """So many threads, the caller's among them; each takes the next job when it is done with one."""

    def __init__(self, threads: int, name: str):
        self._others = threads - 1
        self._pool = ThreadPoolExecutor(max(self._others, 1), name)  # starts no thread before it has something to do

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def do(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Do all jobs. Raises what the first of those that failed raised, whichever failed first in time."""
        left, failed = deque(enumerate(jobs)), {}
        others = [self._pool.submit(_work, left, failed) for _ in range(min(self._others, len(jobs) - 1))]
        _work(left, failed)
        for other in others:
            other.result()
        if failed:
            raise failed[min(failed)]


def _work(left: deque[tuple[int, Callable[[], None]]], failed: dict[int, Exception]) -> None:
    while left:
        try:
            index, job = left.popleft()
        except IndexError:  # another thread has taken it since
            return
        try:
            job()
        except Exception as error:
            failed[index] = error
