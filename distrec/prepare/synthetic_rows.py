"""Draws the rows of the synthetic dataset, block by block, each block from its own random stream."""

from __future__ import annotations

import numpy as np

from distrec.prepare.planted import CLUSTERS, DENSE, EXPONENT, ITEMS, USERS, Block, Lists, Planted
from distrec.prepare.zipf import Floats, Ints, Zipf

HISTORY = 50  # newest items kept
LONGEST_START = 20  # items that a user may have seen before the first row
NULL_SHARE = 0.03
NULL_DENSE = (3, 11)  # i4 and i12
NULL_IDS = (8, 15)  # c9 and c16
MAIN_TASTE, SECOND_TASTE = 0.5, 0.25  # shares of a history; the rest comes from any cluster
TARGET_FROM_TASTE = 0.3


class Rows:
    """A stream of rows in time order.

    A user's history is a fixed sequence of items, of which each row shows the newest that lie before it; every row
    of a user moves the user on by one item. Only a counter a user is kept between blocks.
    """

    def __init__(self, planted: Planted, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self._planted, self._seed = planted, seed
        self._user_zipf = Zipf(USERS, 0.6)
        self._in_cluster = Zipf(ITEMS // CLUSTERS, EXPONENT)
        self._tastes = rng.integers(CLUSTERS, size=(USERS, 2))
        self._seen = rng.integers(LONGEST_START + 1, size=USERS)
        self._salt = np.uint64(rng.integers(2**63))

    def draw(self, index: int, rows: int) -> Block:
        """Block number `index` of the stream; blocks must be drawn in order, for users move on."""
        rng = np.random.default_rng([self._seed, 2, index])
        user = self._user_zipf.rank(rng.random(rows))
        return Block(
            dense=_dense(rng, rows),
            ids=self._ids(rng, rows),
            tags={"tags": self._tags(rng, rows, "tags", 1, 5), "topics": self._tags(rng, rows, "topics", 0, 3)},
            item=self._target(rng, user),
            history=self._history(user),
            user=user,
        )

    def _ids(self, rng: np.random.Generator, rows: int) -> Ints:
        planted = self._planted
        columns = [of[z.rank(rng.random(rows))] for z, of in zip(planted.zipfs, planted.id_of_rank, strict=True)]
        for f in NULL_IDS:
            columns[f][rng.random(rows) < NULL_SHARE] = -1
        return np.stack(columns, axis=1)

    def _tags(self, rng: np.random.Generator, rows: int, name: str, fewest: int, most: int) -> Lists:
        offsets = _offsets(rng.integers(fewest, most + 1, size=rows))
        return Lists(self._planted.tag_zipfs[name].rank(rng.random(offsets[-1])), offsets)

    def _target(self, rng: np.random.Generator, user: Ints) -> Ints:
        taste = np.where(
            rng.random(len(user)) < TARGET_FROM_TASTE, self._tastes[user, 0], rng.integers(CLUSTERS, size=len(user))
        )
        return self._item(taste, rng.random(len(user)))

    def _history(self, user: Ints) -> Lists:
        before = self._seen[user] + _earlier_in_block(user)
        self._seen += np.bincount(user, minlength=USERS)
        offsets = _offsets(np.minimum(before, HISTORY))
        lengths = np.diff(offsets)
        place = np.repeat(before - lengths - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Lists(self._item_at(np.repeat(user, lengths), place), offsets)

    def _item_at(self, user: Ints, place: Ints) -> Ints:
        """The item at each place of each user's sequence: a hash, so that no sequence is stored."""
        bits = _mix(self._salt + (user.astype(np.uint64) << np.uint64(32)) + place.astype(np.uint64))
        choice = (bits & np.uint64(0xFFFF)).astype(np.float64) / 2**16
        anywhere = ((bits >> np.uint64(16)) % np.uint64(CLUSTERS)).astype(np.int64)
        main, second = self._tastes[user].T
        cluster = np.where(choice < MAIN_TASTE, main, np.where(choice < MAIN_TASTE + SECOND_TASTE, second, anywhere))
        return self._item(cluster, (bits >> np.uint64(32)).astype(np.float64) / 2**32)

    def _item(self, cluster: Ints, uniform: Floats) -> Ints:
        return self._planted.item_of_rank[self._in_cluster.rank(uniform) * CLUSTERS + cluster]


def _dense(rng: np.random.Generator, rows: int) -> Floats:
    """Counts with a long tail: floor(exp(normal)), whose log1p is well spread."""
    dense = np.floor(np.exp(rng.normal(0.5, 1.2, size=(rows, DENSE))))
    for d in NULL_DENSE:
        dense[rng.random(rows) < NULL_SHARE, d] = np.nan
    return dense


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])


def _earlier_in_block(user: Ints) -> Ints:
    """For each row, how many rows of the block before it have its user."""
    order = np.argsort(user, kind="stable")
    first = np.searchsorted(user[order], user[order], side="left")
    earlier = np.empty(len(user), dtype=np.int64)
    earlier[order] = np.arange(len(user)) - first
    return earlier


def _mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014): neighbours become independent."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
