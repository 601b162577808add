"""How many lookups a second does the sharded embedding layer do, forward and with the fused update, beside its parts?

Beside FBGEMM's kernel called by itself, torch's `EmbeddingBag(sparse=True)` with torch's Adagrad, and the floor: each row
that a batch uses, moved once (forward: read; with the update: read and written), which is held against a plain copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from benchmarks.harness import Case, Run, compare
from benchmarks.report import options, publish, quiet
from distrec import dist
from distrec.batch import KeyedJaggedTensor
from distrec.config.layout import layout
from distrec.config.schema import Features, SparseFeature, SparseOptimizer, Table
from distrec.embeddings import shard, tables
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.plan import allowed_types, make_plan, rank_memory

QUESTION = "Embedding lookups a second"
OPTIMIZER = SparseOptimizer(lr=0.01)
LAYER, KERNEL = "distrec's layer", "FBGEMM's kernel"
COPY = "copy of the floor's bytes"
COPIED = 2**26  # floats
BATCHES = 4  # different ones, by turns


@dataclass(frozen=True)
class Shape:
    """What is looked up."""

    rows: int = 1_000_000
    dim: int = 64
    pooling: int = 10  # ids a bag
    exponent: float = 1.05  # of the ids' Zipf distribution; 0: uniform
    tables: int = 2
    batch: int = 2048

    @property
    def name(self) -> str:
        """For titles."""
        skew = f"Zipf {self.exponent}" if self.exponent else "uniform"
        return f"{self.tables} x {self.rows:,} x {self.dim}, {self.pooling} ids a bag, {skew}"

    @property
    def lookups(self) -> int:
        """Of one batch."""
        return self.tables * self.batch * self.pooling


USUAL = Shape()
SHAPES = {
    "tiny": [Shape(rows=1_000, dim=8, batch=64)],
    "short": [USUAL, replace(USUAL, rows=100_000)],
    "full": [
        USUAL,
        replace(USUAL, rows=100_000),
        replace(USUAL, rows=10_000_000, tables=1),
        replace(USUAL, dim=16),
        replace(USUAL, dim=256, rows=250_000),
        replace(USUAL, pooling=1),
        replace(USUAL, pooling=50),
        replace(USUAL, exponent=0.0),
        replace(USUAL, exponent=1.5),
    ],
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    torch.sparse.check_sparse_tensor_invariants.disable()  # else torch's Adagrad warns that they are off
    ranks = dist.start()
    cases = [case for shape in SHAPES[chosen.size] for case in measure(shape, ranks, chosen.rounds, chosen.size == "tiny")]
    dist.stop()
    return publish("embedding", QUESTION, cases, chosen, ranks.device.type)


def measure(shape: Shape, ranks: dist.Ranks, rounds: int, once: bool) -> list[Case]:
    """Forward alone, and with backward and update."""
    batches = [draw(shape, seed, ranks.device) for seed in range(BATCHES)]
    lookups: dict[str, Callable[[KeyedJaggedTensor], Tensor]] = {
        LAYER: layer(shape, ranks),
        KERNEL: kernel(shape, ranks.device),
    }
    source, target = torch.ones(COPIED, device=ranks.device), torch.ones(COPIED, device=ranks.device)
    plain, adagrad = bags(shape, ranks.device)
    moved = sum(unique_rows(batch) for batch in batches) / len(batches) * shape.dim * 4  # bytes, a batch
    repeats = 1 if once else max(1, round(2_000_000 / shape.lookups))
    found = []
    for backward, name in ((False, "forward"), (True, "forward, backward, update")):
        runs: dict[str, Run] = {key: partial(work, lookup, batches, repeats, backward) for key, lookup in lookups.items()}
        runs["torch, sparse gradients"] = partial(work, plain, batches, repeats, backward, adagrad)
        floor = moved * (2 if backward else 1)
        runs[COPY] = partial(copy, floor, repeats, source, target)
        facts = vars(shape) | {"lookups": shape.lookups, "floor_bytes": floor, "repeats": repeats}
        also = ("floor GB/s", floor / shape.lookups / 1e9)
        amount = shape.lookups * repeats
        found.append(compare(f"{shape.name}; {name}", "lookups/s", amount, runs, KERNEL, rounds, also=also, **facts))
    return found


def draw(shape: Shape, seed: int, device: torch.device) -> KeyedJaggedTensor:
    """A batch of bags of one length."""
    generator = torch.Generator().manual_seed(seed)
    count = shape.lookups
    if shape.exponent:
        weights = torch.arange(1, shape.rows + 1, dtype=torch.float64).pow(-shape.exponent).cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * weights[-1]
        ranks = torch.searchsorted(weights, uniform).clamp_(max=shape.rows - 1)
        ids = ranks * 2_654_435_761 % shape.rows  # ranks lie side by side, ids must not
    else:
        ids = torch.randint(shape.rows, (count,), generator=generator)
    lengths = torch.full((shape.tables * shape.batch,), shape.pooling, dtype=torch.int32)
    return KeyedJaggedTensor(names(shape), ids, lengths=lengths).to(device)


def names(shape: Shape) -> list[str]:
    """Of the features and their tables."""
    return [f"t{i}" for i in range(shape.tables)]


def layer(shape: Shape, ranks: dist.Ranks) -> Callable[[KeyedJaggedTensor], Tensor]:
    """The tables as a run has them: planned, sharded, their optimizer fused."""
    wanted = {name: Table(rows=shape.rows, dim=shape.dim) for name in names(shape)}
    features = layout(Features(sparse=tuple(SparseFeature(name=name, table=name) for name in wanted)), wanted)
    module = tables.build(features, wanted)
    shard.fuse(module, wanted, OPTIMIZER)
    memory = rank_memory(None, ranks.device, ranks.local_world)
    types = allowed_types(features, wanted, ("table_wise",), OPTIMIZER, ranks.device.type)
    cluster = Cluster(ranks.world, ranks.local_world, ranks.device.type, memory)
    model = shard.shard(module, make_plan(module, types, wanted, cluster, shape.batch), ranks.device)
    tables.initialize(shard.local_shards(model), wanted, seed=0)
    sharded: Any = model.module.bags
    return lambda batch: sharded(batch).wait().values()


def kernel(shape: Shape, device: torch.device) -> Callable[[KeyedJaggedTensor], Tensor]:
    """The kernel that TorchRec calls, without TorchRec."""
    cuda = device.type == "cuda"
    place, computes = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(shape.rows, shape.dim, place, computes)] * shape.tables,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=OPTIMIZER.lr,
        eps=OPTIMIZER.eps,
        device=device,
    )
    module.init_embedding_weights_uniform(-0.01, 0.01)
    return lambda batch: module(batch.values(), batch.offsets())


def bags(shape: Shape, device: torch.device) -> tuple[Callable[[KeyedJaggedTensor], Tensor], torch.optim.Optimizer]:
    """One `EmbeddingBag` a table."""
    modules = nn.ModuleDict(
        {name: nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", sparse=True, device=device) for name in names(shape)}
    )

    def look_up(batch: KeyedJaggedTensor) -> Tensor:
        parts = batch.to_dict()
        return torch.cat([bag(parts[name].values(), parts[name].offsets()[:-1]) for name, bag in modules.items()], dim=1)

    return look_up, torch.optim.Adagrad(modules.parameters(), lr=OPTIMIZER.lr)


def work(
    lookup: Callable[[KeyedJaggedTensor], Tensor],
    batches: Sequence[KeyedJaggedTensor],
    repeats: int,
    backward: bool,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Look `repeats` batches up; with `backward`, move their rows: the kernels do it on their own, torch by its optimizer."""
    for index in range(repeats):
        batch = batches[index % len(batches)]
        with torch.set_grad_enabled(backward):
            pooled = lookup(batch)
        if backward:
            pooled.backward(torch.ones_like(pooled))
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
    _finish(batches[0].values())


def copy(moved: float, repeats: int, source: Tensor, target: Tensor) -> None:
    """Move as many bytes from `source` to `target`, which are too large for a cache: half of them read, half written."""
    length = max(int(moved / 8), 1)
    parts = len(source) // length
    for index in range(repeats):
        part = slice(index % parts * length, (index % parts + 1) * length)
        target[part].copy_(source[part])
    _finish(target)


def unique_rows(batch: KeyedJaggedTensor) -> int:
    """Rows that a batch uses, over all tables."""
    return sum(len(part.values().unique()) for part in batch.to_dict().values())


def _finish(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
