"""Items that join a batch as negatives: drawn from the catalogue, or read from a column of the log."""

from __future__ import annotations

import numpy as np

from distrec.batch import Batch, Position
from distrec.config.layout import Layout
from distrec.config.retrieval import Negatives
from distrec.data.catalogue import Catalogue
from distrec.data.complete import complete
from distrec.data.neighbours import Neighbours

COLUMN = "negatives"  # key of Batch.lists: what the log gives
STREAM = 0x5A3D  # sets these draws apart from other draws of the run's seed


class Drawer:
    """Draws rows of the catalogue, with replacement.

    A draw depends on the seed, the rank and the reader's position alone, and with hard ones on the last search.
    """

    def __init__(self, negatives: Negatives, train_count: np.ndarray | None, items: int, seed: int, rank: int):
        """`train_count` (items,) is for `popularity`."""
        self._seed, self._rank, self._items = seed, rank, items
        self.probability = np.full(items, 1 / items)  # (items,) of each item in one draw
        if negatives.distribution == "popularity":
            assert train_count is not None, "distrec.config.check asks for the column"
            weights = (train_count / train_count.max()) ** negatives.alpha  # 0 to the power 0 is 1: alpha = 0 is uniform
            self.probability = weights / weights.sum()
        self._ends = np.cumsum(self.probability) if negatives.distribution == "popularity" else None
        self.neighbours = Neighbours(items, negatives.pool) if negatives.distribution == "hard" else None

    def draw(self, batch: Batch, shared: int, per_row: int) -> np.ndarray:
        """`(shared + B x per_row,) int64` for a batch: what several rows share, then what each has alone."""
        generator = self._generator(batch.position)
        if self.neighbours is None or batch.items is None:
            return self._any(generator, shared + len(batch.weights) * per_row)
        return np.concatenate([self._any(generator, shared), self.neighbours.draw(batch.items, per_row, generator).ravel()])

    def _generator(self, position: Position) -> np.random.Generator:
        place = [number for deal in position.deals for number in (deal.world, deal.batch_size, deal.steps)]
        return np.random.default_rng((self._seed, STREAM, self._rank, position.epoch, *place))

    def _any(self, generator: np.random.Generator, count: int) -> np.ndarray:
        if self._ends is None:
            return generator.integers(0, self._items, count)
        found = np.searchsorted(self._ends, generator.random(count) * self._ends[-1], side="right")
        return np.minimum(found, self._items - 1)


class Joiner:
    """Completes a training batch: its rows, then the shared draws, each row's own draws, and each row's column."""

    def __init__(self, negatives: Negatives, catalogue: Catalogue, layout: Layout, drawer: Drawer):
        self._negatives, self._catalogue, self._layout, self._drawer = negatives, catalogue, layout, drawer

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its negatives."""
        shared = self._negatives.draws(len(batch.weights))
        drawn = self._drawer.draw(batch, shared, self._negatives.per_row)
        keys = np.concatenate([drawn, self._listed(batch)])
        return complete(batch, self._layout, self._layout, self._catalogue.take(keys))

    def _listed(self, batch: Batch) -> np.ndarray:
        """Each row's column, -1 where it is shorter than `column_length`."""
        length = self._negatives.column_length
        if length is None or batch.lists is None:
            return np.zeros(0, np.int64)
        lists = batch.lists[COLUMN]
        filled = np.arange(length) < lists.lengths().numpy()[:, None]
        keys = np.full(filled.shape, -1, np.int64)
        keys[filled] = lists.values().numpy()
        return keys.ravel()
