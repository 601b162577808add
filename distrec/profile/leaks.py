"""Signs that a label has leaked: a feature that alone tells it, and rows that stand in train and in valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.data.hashing import splitmix64
from distrec.profile.columns import flatten, floats, keys_of
from distrec.profile.footers import Facts
from distrec.profile.kinds import NUMBERS
from distrec.profile.roles import Roles
from distrec.profile.sample import Sample

TOO_GOOD = 0.99  # AUC of a single feature; an honest one is far below
ENOUGH = 50  # sampled rows of each label before an AUC is believed
PRIOR = 1.0  # rows of the mean label that an id's own rows are averaged with
UNSEEN = 3.0  # expected matches at which a share would have shown with 95 % probability (rule of three)
NULL = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class SharedRows:
    """Rows of one split that stand in another, too; both were sampled."""

    share: float  # of the rows of valid, estimated
    pairs: int  # equal rows that the samples have in common
    by_chance: float  # of them expected, because rows of train are equal among themselves as often
    smallest: float  # share that would probably have shown

    @property
    def leaks(self) -> bool:
        """Whether that is more than equal rows by chance."""
        return self.pairs > 2 * self.by_chance + UNSEEN


def feature_aucs(sample: Sample, roles: Roles) -> dict[str, float]:
    """AUC of each feature on its own, in [0.5, 1]; empty when too few sampled rows have one of the labels.

    Numbers rank the rows as they are, in the better of both directions, nulls first or last. Ids rank by the mean label
    that they have in the other half of the sample, lists by the mean of their ids. A regression label counts as positive
    over its median.
    """
    positive = _positives(sample, roles)
    if min(positive.sum(), (~positive).sum()) < ENOUGH:
        return {}
    half = np.random.default_rng(1).permutation(len(positive)) % 2 == 0
    wanted = [sample.survey.columns[role.column] for role in roles.features()]
    return {facts.name: _single(facts, values, positive, half) for facts, values in sample.columns(wanted)}


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive row scores above a negative one, ties counting half; NaN for one class."""
    order, tie = np.unique(scores, return_inverse=True)
    ups, downs = (np.bincount(tie[chosen], minlength=len(order)) for chosen in (positive, ~positive))
    below = np.cumsum(downs) - downs
    pairs = float(ups.sum()) * float(downs.sum())
    return float((ups * (below + downs / 2)).sum() / pairs) if pairs else float("nan")


def row_hashes(sample: Sample, columns: Sequence[str]) -> np.ndarray:
    """`(rows,) uint64`: equal for rows that are equal in all of `columns`, and almost surely only for those."""
    hashed = np.zeros(sample.rows, np.uint64)
    for facts, values in sample.columns([sample.survey.columns[name] for name in columns]):
        hashed = splitmix64(hashed) ^ _cells(facts, values)
    return hashed


def shared_rows(train: Sample, valid: Sample, columns: Sequence[str]) -> SharedRows:
    """How many rows of `valid` stand in `train`, equal in all of `columns`."""
    here, counts = np.unique(row_hashes(train, columns), return_counts=True)
    there, others = np.unique(row_hashes(valid, columns), return_counts=True)
    _, left, right = np.intersect1d(here, there, assume_unique=True, return_indices=True)
    pairs = int((counts[left] * others[right]).sum())
    same = float((counts * (counts - 1)).sum()) / max(train.rows * (train.rows - 1), 1)
    chance = same * train.rows * valid.rows
    power = valid.rows * train.rows / max(train.total, 1)
    return SharedRows(min(max(pairs - chance, 0.0) / power, 1.0), pairs, chance, min(UNSEEN / power, 1.0))


def too_good(aucs: Mapping[str, float]) -> dict[str, str]:
    """The features that alone tell the label, each with what is to be said about it."""
    return {
        name: f"alone it tells the label (AUC {value:.4f}): a feature only if it is known before the event"
        for name, value in aucs.items()
        if value > TOO_GOOD
    }


def _positives(sample: Sample, roles: Roles) -> np.ndarray:
    [(_, values)] = sample.columns([sample.survey.columns[roles.label]])
    labels = floats(values)
    return labels > (0 if roles.kind == "binary" else np.median(labels))


def _single(facts: Facts, values: pa.Array, positive: np.ndarray, half: np.ndarray) -> float:
    by_value = _by_key(facts, values, positive, half)
    if facts.kind not in NUMBERS:
        return by_value
    numbers = floats(values)
    ends = [np.where(np.isnan(numbers), end, numbers) for end in (-np.inf, np.inf)]
    return max(by_value, *(max(a, 1 - a) for a in (auc(scores, positive) for scores in ends)))


def _by_key(facts: Facts, values: pa.Array, positive: np.ndarray, half: np.ndarray) -> float:
    flat, lengths = flatten(values, facts.kind)
    row = np.repeat(np.arange(len(lengths)), lengths)
    valid = flat.is_valid().to_numpy(zero_copy_only=False)
    keys, row = keys_of(flat.drop_null(), facts), row[valid]
    _, key = np.unique(keys, return_inverse=True)
    learned = half[row]
    base = positive[half].mean()
    seen = np.bincount(key[learned], minlength=key.max(initial=-1) + 1)
    hits = np.bincount(key[learned], positive[row[learned]], minlength=len(seen))
    rates = ((hits + PRIOR * base) / (seen + PRIOR))[key]
    count = np.bincount(row, minlength=len(half))
    mean = np.bincount(row, rates, minlength=len(half)) / np.maximum(count, 1)
    scores = np.where(count > 0, mean, _rate_without(count, positive, half, float(base)))
    return auc(scores[~half], positive[~half])


def _rate_without(count: np.ndarray, positive: np.ndarray, half: np.ndarray, base: float) -> float:
    """The mean label of rows that have no id."""
    without = positive[half & (count == 0)]
    return float((without.sum() + PRIOR * base) / (len(without) + PRIOR))


def _cells(facts: Facts, values: pa.Array) -> np.ndarray:
    """`(rows,) uint64`: a hash of each row's value; lists by their ids in order."""
    flat, lengths = flatten(values, facts.kind)
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    valid = flat.is_valid().to_numpy(zero_copy_only=False)
    hashed = np.full(len(flat), NULL)
    hashed[valid] = splitmix64(keys_of(flat.drop_null(), facts).view(np.uint64) + np.uint64(1))
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    mixed = splitmix64(hashed + place.astype(np.uint64) * NULL)
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    ends = np.cumsum(lengths)
    return total[ends] - total[ends - lengths] + lengths.astype(np.uint64)
