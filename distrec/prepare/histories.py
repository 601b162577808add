"""For each event, which earlier events of its user make up its history. No loop over rows or users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Rows of event numbers, oldest first, without storing them: event `i` sees `chosen[start[i]:stop[i]]`."""

    chosen: Ints  # eligible events, by user and then time
    start: Ints  # (N,)
    stop: Ints  # (N,)

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """(values, offsets) of the histories of the events `rows`: event numbers, and (n + 1,) where each row begins."""
        places, offsets = slices(self.start[rows], self.stop[rows])
        return self.chosen[places], offsets


def slices(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """(places, offsets): the places `start[i]` to `stop[i]` of all rows on end, and (n + 1,) where each row begins."""
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    return np.repeat(start - offsets[:-1], stop - start) + np.arange(offsets[-1]), offsets


def histories(user: Ints, timestamp: Ints, eligible: NDArray[np.bool_], longest: int) -> Histories:
    """The newest `longest` eligible events of the same user that are strictly older than each event.

    Events with an equal timestamp are in none of each other's histories: which of them came first is not known.

    Args:
        user: (N,) ids.
        timestamp: (N,) ascending; events of equal time keep their order in a history.
        eligible: (N,) whether an event may stand in histories.
        longest: events kept.
    """
    order = np.lexsort((timestamp, user))  # stable: ties stay in file order
    user_first = first_of_run(user[order])
    moment_first = first_of_run(user[order], timestamp[order])
    before = np.concatenate([[0], np.cumsum(eligible[order])])  # eligible events among the first k in this order
    start, stop = np.empty_like(order), np.empty_like(order)
    stop[order] = before[moment_first]
    start[order] = np.maximum(before[user_first], before[moment_first] - longest)
    return Histories(order[eligible[order]], start, stop)


def first_of_run(*keys: NDArray[np.integer]) -> Ints:
    """For each place, where its run of equal keys begins."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
