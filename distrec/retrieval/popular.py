"""What a model is worth has to be more than what everybody likes: the items that most rows have, given to everyone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from distrec.data import Reader
from distrec.data.catalogue import CatalogueReader
from distrec.retrieval.task import lists_of
from distrec.task import Outputs


def by_popularity(counts: Tensor) -> Callable[[Reader | CatalogueReader], Iterator[Outputs]]:
    """Outputs as a model's, with vectors of one number: the score of an item is its `counts` (items,), whoever asks."""

    def outputs(reader: Reader | CatalogueReader) -> Iterator[Outputs]:
        for given in reader.batches(epochs=1):
            batch = given.to(counts.device)
            if batch.items is not None:
                yield {"item": counts[batch.items.clamp(min=0), None], "items": batch.items}
            else:
                yield {"query": torch.ones_like(batch.weights)[:, None], "weights": batch.weights} | lists_of(batch)

    return outputs
