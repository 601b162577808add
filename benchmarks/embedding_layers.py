"""The lookups that the embedding benchmarks compare: distrec's layer, the kernel below it, torch's own; and their batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from distrec import dist
from distrec.batch import KeyedJaggedTensor
from distrec.config.layout import layout
from distrec.config.schema import Features, SparseFeature, SparseOptimizer, Table
from distrec.embeddings import shard, tables
from distrec.embeddings.cluster import Cluster
from distrec.embeddings.plan import allowed_types, make_plan, rank_memory

OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}
PRECISIONS = {"fp32": SparseType.FP32, "fp16": SparseType.FP16}
LookUp = Callable[[KeyedJaggedTensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """What is looked up, and in what."""

    rows: int = 1_000_000
    dim: int = 64
    pooling: int = 10  # ids a bag
    exponent: float = 1.05  # of the ids' Zipf distribution; 0: uniform
    tables: int = 2
    batch: int = 16_384
    precision: str = "fp32"
    optimizer: str = "rowwise_adagrad"

    @property
    def name(self) -> str:
        """For titles."""
        skew = f"Zipf {self.exponent}" if self.exponent else "uniform"
        work = f"{self.tables} x {self.rows:,} x {self.dim}, {self.pooling} ids a bag, {skew}, batch {self.batch:,}"
        return f"{work}, {self.precision}, {self.optimizer}"

    @property
    def lookups(self) -> int:
        """Of one batch."""
        return self.tables * self.batch * self.pooling

    @property
    def row_bytes(self) -> int:
        """Of a table's row."""
        return self.dim * (2 if self.precision == "fp16" else 4)

    @property
    def table(self) -> Table:
        """As a config has it."""
        return Table.model_validate({"rows": self.rows, "dim": self.dim, "precision": self.precision})

    @property
    def fused(self) -> SparseOptimizer:
        """The optimizer, as a config has it."""
        return SparseOptimizer.model_validate({"name": self.optimizer, "lr": 0.01})


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


def layer(shape: Shape, ranks: dist.Ranks, sharding: str = "table_wise") -> LookUp:
    """The tables as a run has them: planned with one sharding type, sharded, their optimizer fused."""
    wanted = dict.fromkeys(names(shape), shape.table)
    features = layout(Features(sparse=tuple(SparseFeature(name=name, table=name) for name in wanted)), wanted)
    module = tables.build(features, wanted)
    shard.fuse(module, wanted, shape.fused)
    memory = rank_memory(None, ranks.device, ranks.local_world)
    types = allowed_types(features, wanted, (sharding,), shape.fused, ranks.device.type)
    cluster = Cluster(ranks.world, ranks.local_world, ranks.device.type, memory)
    model = shard.shard(module, make_plan(module, types, wanted, cluster, shape.batch), ranks.device)
    tables.initialize(shard.local_shards(model), wanted, seed=0)
    sharded: Any = model.module.bags
    return lambda batch: sharded(batch).wait().values()


def kernel(shape: Shape, device: torch.device, check: bool = True) -> LookUp:
    """The kernel that TorchRec calls, without TorchRec; with `check` it looks first whether ids are in range, its default."""
    cuda = device.type == "cuda"
    place, computes = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(shape.rows, shape.dim, place, computes)] * shape.tables,
        optimizer=OPTIMIZERS[shape.optimizer],
        weights_precision=PRECISIONS[shape.precision],
        learning_rate=shape.fused.lr,
        eps=shape.fused.eps,
        bounds_check_mode=BoundsCheckMode.WARNING if check else BoundsCheckMode.NONE,
        device=device,
    )
    module.init_embedding_weights_uniform(-0.01, 0.01)
    return lambda batch: module(batch.values(), batch.offsets())


def bags(shape: Shape, device: torch.device) -> tuple[LookUp, torch.optim.Optimizer]:
    """One `EmbeddingBag` a table."""
    modules = nn.ModuleDict(
        {name: nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", sparse=True, device=device) for name in names(shape)}
    )

    def look_up(batch: KeyedJaggedTensor) -> Tensor:
        parts = batch.to_dict()
        return torch.cat([bag(parts[name].values(), parts[name].offsets()[:-1]) for name, bag in modules.items()], dim=1)

    return look_up, torch.optim.Adagrad(modules.parameters(), lr=shape.fused.lr)
