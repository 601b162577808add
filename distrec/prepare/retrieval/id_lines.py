"""Text files with a line a user: the user's id, then the items' ids."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from distrec.errors import UserError
from distrec.prepare.histories import Ints

LINE = re.compile(rb"\s*\d{1,18}(?:\s+\d{1,18})+\s*")


@dataclass(frozen=True)
class IdLines:
    """Interactions in the order of the file."""

    user: Ints  # (N,)
    item: Ints  # (N,)


def id_lines(name: str, raw: bytes) -> IdLines:
    """Parse such a file; blank lines and a carriage return before a line's end are passed over.

    Raises:
        UserError: a line of another form, by file and number; a user on two lines; no line at all.
    """
    lines = [line for line in raw.split(b"\n") if line.strip()]
    if not lines:
        raise UserError(f"{name} is empty")
    _refuse_other_forms(name, raw)
    fields = [line.split() for line in lines]
    lengths = np.array([len(line) - 1 for line in fields])
    users = np.array([line[0] for line in fields]).astype(np.int64)
    _refuse_repeated(name, users)
    items = np.array([item for line in fields for item in line[1:]]).astype(np.int64)
    return IdLines(np.repeat(users, lengths), items)


def _refuse_other_forms(name: str, raw: bytes) -> None:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip() and not LINE.fullmatch(line):
            raise UserError(f"{name}, line {number}: {line[:60]!r} is not a user's id and the ids of one item or more")


def _refuse_repeated(name: str, users: Ints) -> None:
    found, counts = np.unique(users, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{name} has {counts.max()} lines for user {found[counts.argmax()]}; one is needed")
