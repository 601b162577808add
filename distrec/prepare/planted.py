"""The signal that the synthetic dataset plants: logits in closed form, so that the best possible AUC is known."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from distrec.prepare.zipf import Floats, Ints, Zipf, standardised

DENSE = 13
CARDINALITIES = (100, 100, 10, 20, 50, 100, 100, 200, 1_000, 2_000, 5_000, 5_000, 10_000, 20_000, 50_000, 100_000)
TAGS = {"tags": 200, "topics": 30}
USERS, ITEMS, CLUSTERS = 5_000, 2_000, 8
RANK, ITEM_DIM = 2, 8
EXPONENT = 1.3

BIAS = -2.4
ID_STRENGTH, TAG_STRENGTH, DENSE_STRENGTH = 0.45, 0.3, 0.5  # standard deviations of the terms, in logits
INTERACTION_STRENGTH, HISTORY_STRENGTH = 1.1, 4.0


@dataclass(frozen=True)
class Lists:
    """Rows of ids: row `i` owns `values[offsets[i]:offsets[i + 1]]`."""

    values: Ints
    offsets: Ints  # (n + 1,)

    @property
    def lengths(self) -> Ints:
        """(n,) ids a row."""
        return np.diff(self.offsets)

    def mean(self, per_value: Floats) -> Floats:
        """(n,) mean over each row of a number or (n, k) of k numbers a value; 0 for an empty row."""
        padded = np.concatenate([np.zeros((1, *per_value.shape[1:])), np.cumsum(per_value, axis=0)])
        sums = padded[self.offsets[1:]] - padded[self.offsets[:-1]]
        counts = np.maximum(self.lengths, 1).astype(np.float64)
        return sums / counts.reshape(-1, *[1] * (per_value.ndim - 1))


@dataclass(frozen=True)
class Block:
    """Some consecutive rows, as drawn."""

    dense: Floats  # (n, DENSE), NaN: null
    ids: Ints  # (n, len(CARDINALITIES)), -1: null
    tags: dict[str, Lists]
    item: Ints  # (n,)
    history: Lists  # of items
    user: Ints  # (n,)


@dataclass(frozen=True)
class Terms:
    """What each part of the signal adds to the logit, (n,) each."""

    ids: Floats
    tags: Floats
    dense: Floats
    interaction: Floats
    history: Floats

    @property
    def logit(self) -> Floats:
        """(n,) the logit that `label` is drawn from."""
        return BIAS + np.sum([getattr(self, f.name) for f in fields(self)], axis=0)

    @property
    def liked_logit(self) -> Floats:
        """(n,) the logit that `liked` is drawn from: what numbers and the interaction add has the other sign."""
        return self.logit - 2 * (self.dense + self.interaction)


class Planted:
    """Latent parameters, drawn once a seed.

    logit = BIAS + sum_f a_f[c_f] + sum_m mean over tags t of b_m[t] + sum_d w_d log1p(x_d)
            + <u[c1], v[c2]> + HISTORY_STRENGTH * mean over history items h of <z[item], z[h]>

    The logit of `liked` is the same with the sum over d and <u, v> subtracted, so that the two tasks agree in part.

    A null adds 0 and a null number counts as 0. `u` and `v` have mean 0 under their ids' distribution and ids are
    independent, so no sum of functions of single features contains any part of the interaction.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.zipfs = [Zipf(c, EXPONENT) for c in CARDINALITIES]
        self.tag_zipfs = {name: Zipf(c, EXPONENT) for name, c in TAGS.items()}
        self.id_of_rank = [rng.permutation(c) for c in CARDINALITIES]  # else the hot ids of every table would share a shard
        self.id_effects = [self._by_id(rng, f, 1)[:, 0] * s for f, s in enumerate(_id_strengths())]
        self.tag_effects = {
            n: standardised(rng.normal(size=TAGS[n]), z.probabilities) * TAG_STRENGTH for n, z in self.tag_zipfs.items()
        }
        self.left, self.right = (self._by_id(rng, f, RANK) for f in (0, 1))
        self.dense_weights = DENSE_STRENGTH * _unit(rng.normal(size=DENSE))
        self.item_of_rank = rng.permutation(ITEMS)
        self.items = self._item_vectors(rng)

    def terms(self, block: Block) -> Terms:
        """The parts of the logit for each row of `block`."""
        return Terms(
            ids=np.sum([_take(effects, block.ids[:, f]) for f, effects in enumerate(self.id_effects)], axis=0),
            tags=np.sum([lists.mean(self.tag_effects[name][lists.values]) for name, lists in block.tags.items()], axis=0),
            dense=(np.log1p(np.nan_to_num(block.dense)) - DENSE_CENTRE) @ self.dense_weights,
            interaction=INTERACTION_STRENGTH / np.sqrt(RANK) * self._inner(block.ids[:, 0], block.ids[:, 1]),
            history=HISTORY_STRENGTH * self._similarity(block),
        )

    def _inner(self, left: Ints, right: Ints) -> Floats:
        return np.einsum("nr,nr->n", _take(self.left, left), _take(self.right, right))

    def _similarity(self, block: Block) -> Floats:
        target = self.items[block.item]
        return np.einsum("nd,nd->n", target, block.history.mean(self.items[block.history.values]))

    def _by_id(self, rng: np.random.Generator, feature: int, width: int) -> Floats:
        """(cardinality, width) values by id, standardised under the distribution of the feature's ids."""
        by_rank = standardised(rng.normal(size=(CARDINALITIES[feature], width)), self.zipfs[feature].probabilities)
        by_id = np.empty_like(by_rank)
        by_id[self.id_of_rank[feature]] = by_rank
        return by_id

    def _item_vectors(self, rng: np.random.Generator) -> Floats:
        """(ITEMS, ITEM_DIM) unit vectors, each near the centre of its cluster, `rank % CLUSTERS`."""
        centres = np.linalg.qr(rng.normal(size=(ITEM_DIM, ITEM_DIM)))[0][:CLUSTERS]
        by_rank = centres[np.arange(ITEMS) % CLUSTERS] + 0.2 * rng.normal(size=(ITEMS, ITEM_DIM))
        by_id = np.empty_like(by_rank)
        by_id[self.item_of_rank] = by_rank
        return by_id / np.linalg.norm(by_id, axis=1, keepdims=True)


DENSE_CENTRE = 1.0  # of log1p of the dense columns, so that the dense term has mean near 0


def _id_strengths() -> Floats:
    """Small tables carry most: effects of ids that are seen twice cannot be learnt and would only add noise."""
    shares = 1 / np.sqrt(np.array(CARDINALITIES, dtype=np.float64))
    return ID_STRENGTH * np.sqrt(shares / shares.sum())


def _take(values: Floats, ids: Ints) -> Floats:
    """`values[ids]`, and 0 where the id is -1."""
    return np.where((ids >= 0).reshape(-1, *[1] * (values.ndim - 1)), values[ids], 0.0)


def _unit(vector: NDArray[np.float64]) -> Floats:
    return vector / np.linalg.norm(vector)
