"""Which of a user's interactions are trained on, and which are to be found."""

from __future__ import annotations

import polars as pl

from distrec.prepare.retrieval.sequences import TEST, TRAIN, VALID

FEWEST = 3  # interactions of a user from whom two are held out


def leave_one_out(user: str = "user_id") -> pl.Expr:
    """`split` of rows that stand by user, oldest first: the last is for test, the one before for valid.

    Users with fewer than three interactions are only trained on (Kang and McAuley, ICDM 2018).
    """
    from_end = pl.len().over(user) - 1 - pl.int_range(pl.len()).over(user)
    held_out = pl.when(from_end == 0).then(TEST).when(from_end == 1).then(VALID).otherwise(TRAIN)
    return pl.when(pl.len().over(user) < FEWEST).then(TRAIN).otherwise(held_out).cast(pl.Int8).alias("split")
