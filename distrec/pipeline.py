"""TorchRec's pipeline, which overlaps the exchange of a batch's ids with the step before it, around an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from distrec.batch import Batch
from distrec.data import Reader
from distrec.data.catalogue import CatalogueReader
from distrec.draw import Draw
from distrec.embeddings.shard import release_cached_rows
from distrec.engine import Engine
from distrec.task import Outputs


def make_pipeline(engine: Engine, forward: Callable[[Batch], tuple[Tensor, Outputs]] | None = None) -> TrainPipelineSparseDist:
    """The pipeline that `train.pipeline` names.

    Args:
        engine: its model and optimizers are driven.
        forward: what to call instead of the model.
    """
    options: Any = {"device": engine.ranks.device, "execute_all_batches": True, "custom_model_fwd": forward}
    optimizers: Any = engine.optimizers  # what the pipeline needs of an optimizer: zero_grad and step
    if engine.config.train.pipeline == "prefetch_sparse_dist":
        return PrefetchTrainPipelineSparseDist(engine.model, optimizers, **options)
    # Copies of the tables are averaged by `Engine.averaging`, which counts steps of the run and not of the process.
    return TrainPipelineSparseDist(engine.model, optimizers, **options, dmp_collection_sync_interval_batches=None)


def outputs(pipeline: TrainPipelineSparseDist, engine: Engine, reader: Reader | CatalogueReader) -> Iterator[Outputs]:
    """What the model says of a reader's rows, without training on them.

    Raises:
        UserError: on every rank, what a reader finds on any of them.
    """
    engine.model.eval()
    release_cached_rows(engine.model)
    with closing(reader.batches(epochs=1)) as batches:
        draw = Draw(batches, reader.steps_per_epoch)
        draw.begin()
        for _ in range(reader.steps_per_epoch):
            with torch.no_grad():
                result = pipeline.progress(draw)
            draw.check()
            yield result
