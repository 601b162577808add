"""The loops that `benchmarks.train` compares, on the ranks of one run. Usage: RESULT FOLDER SIZE ROUNDS."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedTensor

from benchmarks import criteo_shape, interactions_shape
from benchmarks.harness import Run, Took, compare, scaled, timed
from benchmarks.launch import leave
from benchmarks.report import quiet
from distrec import dist
from distrec.batch import Batch, KeyedJaggedTensor
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.embeddings import tables
from distrec.engine import Engine, make_task
from distrec.trainer import Trainer, build

SIZES = {  # rows a table, embedding dim, rows a batch, steps a run, steps of the slow unsharded loop
    "tiny": (1_000, 8, 64, 4, 1),
    "short": (200_000, 64, 2048, 12, 1),
    "full": (200_000, 64, 2048, 64, 2),
}
WARMUP = 2  # rounds in which kernels are loaded and memory pools grow
BARE = "bare TorchRec loop"


def main(result: Path, folder: Path, size: str, rounds: int) -> None:
    """Measure; rank 0 writes the cases."""
    quiet()
    ranks = dist.start("cpu")
    table_rows, dim, batch_size, steps, slow_steps = SIZES[size]
    shape = {"rows": table_rows, "dim": dim, "batch_size": batch_size}
    configs = {
        "DLRM": criteo_shape.config_values(folder / "rows", folder / f"dlrm-{ranks.world}", lists=0, **shape),
        "two-tower": interactions_shape.config_values(folder / "log", folder / f"two-tower-{ranks.world}", **shape),
    }
    words = "1 rank" if ranks.world == 1 else f"{ranks.world} ranks"
    found = []
    for model, values in configs.items():
        values["data"]["shuffle_window"] = steps // 2 * batch_size  # so that a run reads as many rows as it trains on
        config = parse(values)
        loops = Loops(config, ranks, steps)
        runs = loops.of_any_model() | (loops.of_a_ranker(slow_steps) if model == "DLRM" else {})
        facts = {"ranks": ranks.world, "tables": len(config.tables), "table_rows": table_rows, "dim": dim}
        facts |= {"batch_size": batch_size, "steps": steps}
        rows = steps * batch_size * ranks.world
        found.append(compare(f"{model}, {words}", "rows/s", rows, runs, BARE, rounds, WARMUP, None, **facts))
    leave(found, result, ranks)


class Loops:
    """Each loop, with a model of its own."""

    def __init__(self, config: Config, ranks: dist.Ranks, steps: int):
        self.config, self.ranks, self.steps = config, ranks, steps
        self.trainer = build(config, ranks, None)
        self.bare, self.optimizer = bare_pipeline(config, ranks)
        with closing(self.trainer.readers["train"].batches()) as batches:
            self.made = list(itertools.islice(batches, steps))  # of fewer, the rows would stay in the caches

    def of_any_model(self) -> dict[str, Run]:
        """By name."""
        return {
            "distrec, from Parquet": partial(from_parquet, self.trainer, self.steps),
            "distrec, batches made before": lambda: self.trainer.train(self.batches(), self.steps),
            BARE: self._bare,
        }

    def of_a_ranker(self, slow_steps: int) -> dict[str, Run]:
        """What a step is made of, and what it would take without shards. The latter is not a thing of several ranks."""
        runs: dict[str, Run] = {
            "dense part alone": partial(dense_alone, *dense_part(self.config, self.ranks), self.made, self.config)
        }
        if self.ranks.world == 1:
            slow = partial(unsharded, *whole(self.config), self.made[:slow_steps])
            runs["unsharded, torch's Adagrad"] = scaled(slow, self.steps / slow_steps)
        return runs

    def batches(self) -> Iterator[Batch]:
        """The batches made before, without what a use of them has cached."""
        return map(fresh, self.made)

    def _bare(self) -> None:
        batches = self.batches()
        for _ in range(self.steps):
            self.bare.progress(batches)


def from_parquet(trainer: Trainer, steps: int) -> Took:
    """`steps` steps, from the arrival of the first batch."""
    with closing(trainer.readers["train"].batches()) as batches:
        first = next(batches)
        torch.distributed.barrier()
        return timed(lambda: trainer.train(itertools.chain([first], batches), steps))


def bare_pipeline(config: Config, ranks: dist.Ranks) -> tuple[TrainPipelineSparseDist, CombinedOptimizer]:
    """What TorchRec's documentation builds, around the same model and plan."""
    model = Engine.build(config, ranks).model
    model.train()
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=config.optimizer.dense.lr))
    optimizer = CombinedOptimizer([model.fused_optimizer, adam])
    return TrainPipelineSparseDist(model, optimizer, ranks.device, execute_all_batches=True), optimizer


def dense_part(config: Config, ranks: dist.Ranks) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model without its tables."""
    head: nn.Module = make_task(config, ranks.device)[0].head
    if ranks.world > 1:
        head = DistributedDataParallel(head)
    return head, torch.optim.Adam(head.parameters(), lr=config.optimizer.dense.lr)


def dense_alone(head: nn.Module, optimizer: torch.optim.Optimizer, made: list[Batch], config: Config) -> None:
    """Train on vectors that need a gradient, as looked-up rows do."""
    names = [feature.name for feature in config.features.sparse]
    dims = [config.tables[feature.table].dim for feature in config.features.sparse]
    vectors = torch.randn(config.data.batch_size, sum(dims), requires_grad=True)
    for batch in made:
        vectors.grad = None
        optimizer.zero_grad()
        learn(head, optimizer, batch, KeyedTensor(names, dims, vectors))


def whole(config: Config) -> tuple[nn.Module, nn.Module, list[torch.optim.Optimizer]]:
    """The collection as it is before sharding, with dense gradients; and the model on top."""
    task, features = make_task(config, torch.device("cpu"))
    collection: Any = tables.build(features, config.tables, device="cpu").bags
    for weight in collection.parameters():
        nn.init.uniform_(weight, -0.01, 0.01)
    sparse = torch.optim.Adagrad(collection.parameters(), lr=config.optimizer.sparse.lr)
    return task.head, collection, [sparse, torch.optim.Adam(task.head.parameters(), lr=config.optimizer.dense.lr)]


def unsharded(
    head: nn.Module,
    collection: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    made: list[Batch],
) -> None:
    """A step for each batch."""
    for batch in made:
        for optimizer in optimizers:
            optimizer.zero_grad()
        learn(head, optimizers[0], batch, collection(fresh(batch).sparse))
        optimizers[1].step()


def learn(head: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, pooled: KeyedTensor) -> None:
    """Loss, backward, update."""
    loss, _ = head(batch.dense, batch.sparse, pooled, None, batch.labels, batch.weights, batch.normalizer, batch.groups)
    loss.backward()
    optimizer.step()


def fresh(batch: Batch) -> Batch:
    """The same data in new `KeyedJaggedTensor`s: the old ones hold what was worked out from their lengths."""
    return replace(batch, sparse=_fresh(batch.sparse), sequence=_fresh(batch.sequence))


def _fresh(ids: KeyedJaggedTensor | None) -> KeyedJaggedTensor | None:
    if ids is None:
        return None
    return KeyedJaggedTensor(ids.keys(), ids.values(), lengths=ids.lengths(), stride=ids.stride())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
