"""What a retrieval dataset must hold, by loops over users, and what one on disk holds, in the users' own ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Event = tuple[Any, Any, int, int]  # user, item, time, split given by its file: 0 train, 1 valid, 2 test
Row = tuple[Any, ...]


@dataclass
class Expected:
    """Rows in any order: of train (user, history, item), of queries (user, history, targets, seen)."""

    train: list[Row]
    valid: list[Row]
    test: list[Row]


def leave_one_out(events: list[Event]) -> list[int]:
    """The split of each of a user's events, oldest first."""
    return [0] * len(events) if len(events) < 3 else [0] * (len(events) - 2) + [1, 2]


def given(events: list[Event]) -> list[int]:
    return [event[3] for event in events]


def temporal(log: Sequence[Event], valid: float, test: float) -> Callable[[list[Event]], list[int]]:
    """Splits at the times of the rows that stand at these shares, rounded down, when all are sorted by time."""
    times = sorted(event[2] for event in log)
    valid_from, test_from = (times[floor(share * len(times) + 1e-6)] for share in (1 - valid - test, 1 - test))
    return lambda events: [(t >= valid_from) + (t >= test_from) for _, _, t, _ in events]


def expected(
    log: Iterable[Event], split: Callable[[list[Event]], list[int]], longest: int = 50, least: int = 0, first_only: bool = True
) -> Expected:
    """The dataset of a log, whose rows of one user and one time stand in their order."""
    by_user = defaultdict(list)
    for event in log:
        by_user[event[0]].append(event)
    rows = Expected([], [], [])
    for user, events in by_user.items():
        events.sort(key=lambda event: (event[3], event[2]))
        _add_user(rows, user, _once(events) if first_only else events, split, longest, least)
    return rows


def _once(events: list[Event]) -> list[Event]:
    seen: set[Any] = set()
    return [event for event in events if not (event[1] in seen or seen.add(event[1]))]


def _add_user(
    rows: Expected, user: Any, events: list[Event], split: Callable[[list[Event]], list[int]], longest: int, least: int
) -> None:
    parts: list[list[Any]] = [[], [], []]
    for event, part in zip(events, split(events), strict=True):
        if part == 0 or event[1] not in parts[part]:
            parts[part].append(event[1])
    train, valid, test = parts
    rows.train += [(user, tuple(train[:i][-longest:]), item) for i, item in enumerate(train) if i >= least]
    if valid:
        rows.valid.append((user, tuple(train[-longest:]), tuple(valid), tuple(train)))
    if test:
        rows.test.append((user, tuple((train + valid)[-longest:]), tuple(test), tuple(train + valid)))


def on_disk(folder: Path) -> Expected:
    """The rows of a dataset, ids put back into those of the log."""
    users, items = read(folder, "users"), read(folder, "items")
    assert [row["item_id"] for row in items] == list(range(len(items)))
    assert sorted(row["user_id"] for row in users) == list(range(len(users)))
    user, item = {row["user_id"]: row["raw_id"] for row in users}, [row["raw_id"] for row in items]

    def named(ids: list[int]) -> tuple[Any, ...]:
        return tuple(item[i] for i in ids)

    train = [(user[row["user_id"]], named(row["history_item_id"]), item[row["item_id"]]) for row in read(folder, "train")]
    queries = [
        [
            (row["raw_user_id"], *(named(row[name]) for name in ("history_item_id", "targets", "seen")))
            for row in read(folder, split)
        ]
        for split in ("valid", "test")
    ]
    asked = [row for split in ("valid", "test") for row in read(folder, split)]
    assert [row["raw_user_id"] for row in asked] == [user[row["user_id"]] for row in asked]
    return Expected(train, *queries)


def read(folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows of a part of a dataset; none where it was left out."""
    return pq.read_table(folder / part).to_pylist() if (folder / part).exists() else []


def same(found: Expected, wanted: Expected) -> None:
    """Assert that two datasets hold the same rows, in whatever order."""
    for split in ("train", "valid", "test"):
        assert sorted(getattr(found, split), key=repr) == sorted(getattr(wanted, split), key=repr), split
