"""Which of a user's interactions are trained on, and which are to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from distrec.errors import UserError
from distrec.prepare.retrieval.sequences import TEST, TRAIN, VALID

Split = Literal["leave-one-out", "temporal", "files"]
FEWEST = 3  # interactions of a user from whom two are held out


@dataclass(frozen=True)
class Splitting:
    """How interactions are divided.

    `leave-one-out`: each user's last interaction is for test, the one before for valid; users with fewer than three are only
    trained on. `temporal`: the latest `test` of all rows are for test, the latest `valid` before them for valid, at moments
    that are the same for all users; rows of one moment are not divided. `files`: as the files are named.
    """

    kind: Split = "leave-one-out"
    valid: float = 0.1  # of the rows, for `temporal`
    test: float = 0.1

    def __post_init__(self) -> None:
        if not (self.valid >= 0 and self.test > 0 and self.valid + self.test < 1):
            raise UserError(
                f"--valid-share {self.valid} and --test-share {self.test}: the first must be 0 or more, the second more, "
                "and both together less than 1"
            )


LEAVE_ONE_OUT = Splitting("leave-one-out")


def leave_one_out(user: str = "user_id") -> pl.Expr:
    """`split` of rows that stand by user, oldest first: the last is for test, the one before for valid.

    Users with fewer than three interactions are only trained on (Kang and McAuley, ICDM 2018).
    """
    from_end = pl.len().over(user) - 1 - pl.int_range(pl.len()).over(user)
    held_out = pl.when(from_end == 0).then(TEST).when(from_end == 1).then(VALID).otherwise(TRAIN)
    return pl.when(pl.len().over(user) < FEWEST).then(TRAIN).otherwise(held_out).cast(pl.Int8).alias("split")


def temporal(time: str, valid_from: int, test_from: int) -> pl.Expr:
    """`split` by moments that are the same for all users: before `valid_from` train, from `test_from` on test."""
    later = pl.when(pl.col(time) < test_from).then(VALID).otherwise(TEST)
    return pl.when(pl.col(time) < valid_from).then(TRAIN).otherwise(later).cast(pl.Int8).alias("split")


def older_than_history(user: str, time: str, split: str) -> pl.Expr:
    """Whether a row is older than one of its user's in an earlier split, which its history shows though it came after."""
    known = [pl.col(time).filter(pl.col(split) < later).max().over(user) for later in (VALID, TEST)]
    valid, test = (
        (pl.col(split) == later) & (pl.col(time) < latest) for later, latest in zip((VALID, TEST), known, strict=True)
    )
    return (valid | test).fill_null(False)
