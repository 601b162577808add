"""Fused optimizers on the tables, the tables on their ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torchrec.optim
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen, WeightDecayMode
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
from torch.distributed.tensor import DTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DMPCollection
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from distrec.config.schema import SparseOptimizer, Table
from distrec.embeddings.sharders import sharders
from distrec.embeddings.tables import table_names
from distrec.embeddings.unpooled import look_up_unpooled

FUSED: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torchrec.optim.Adagrad,
    "adam": torchrec.optim.Adam,
    "sgd": torchrec.optim.SGD,
}


def fuse(model: nn.Module, tables: Mapping[str, Table], default: SparseOptimizer) -> None:
    """Attach each table's optimizer, so that FBGEMM applies it inside backward and the planner counts its state."""
    names = table_names(model)
    for key, parameter in model.named_parameters():
        if key in names:
            chosen = tables[names[key]].optimizer or default
            _apply_optimizer_in_backward(FUSED[chosen.name], [parameter], fused_arguments(chosen))


def fused_arguments(optimizer: SparseOptimizer) -> dict[str, Any]:
    """The arguments that FBGEMM's kernels take."""
    arguments: dict[str, Any] = {"lr": optimizer.lr}
    if optimizer.name != "sgd":
        arguments["eps"] = optimizer.eps
    if optimizer.name == "adam":
        arguments |= {"beta1": optimizer.betas[0], "beta2": optimizer.betas[1]}
    if optimizer.weight_decay:
        arguments |= {"weight_decay": optimizer.weight_decay, "weight_decay_mode": WeightDecayMode.L2}
    return arguments


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    device: torch.device,
    using: list[ModuleSharder] | None = None,
) -> DistributedModelParallel:
    """Lay the tables over the ranks by the plan, and replicate the rest.

    Args:
        model: contains the collections, with their optimizers attached.
        plan: for all ranks.
        device: of this rank.
        using: the sharders that the plan is for; default: those that convert nothing between ranks.
    """
    sharded = DistributedModelParallel(module=model, device=device, plan=plan, sharders=using or sharders())
    look_up_unpooled(_lookups(sharded))
    return sharded


def shard_copies(
    model: nn.Module, plan: ShardingPlan, device: torch.device, using: list[ModuleSharder], world: int, local_world: int
) -> DMPCollection:
    """Lay several copies of the tables over the ranks, each over `world` neighbours by the same plan (2D parallel).

    Neighbours, so that what the plan puts within a machine stays within it; TorchRec's default would rather have the ranks
    that average with each other there.

    Args:
        model: contains the collections, with their optimizers attached.
        plan: for the ranks of one copy.
        device: of this rank, a GPU.
        using: the sharders that the plan is for.
        world: ranks of one copy.
        local_world: of these, ranks on one machine.
    """
    everyone = dist.group.WORLD
    assert everyone is not None, "ranks have been started"
    sharded = DMPCollection(
        module=model,
        device=device,
        plan=plan,
        world_size=dist.get_world_size(),
        sharding_group_size=world,
        global_pg=everyone,
        node_group_size=local_world,
        sharders=using,
        use_inter_host_allreduce=True,
    )
    look_up_unpooled(_lookups(sharded))
    return sharded


class Averaging:
    """Keeps the copies of the tables equal, where there are several."""

    def __init__(self, model: DistributedModelParallel, every: int):
        """Average every so many steps."""
        self._sync: Callable[[], None] = model.sync if isinstance(model, DMPCollection) else lambda: None
        self._every, self._averaged = every, 0

    def after(self, step: int) -> None:
        """Average if it is this step's turn. Every rank must call it."""
        if step % self._every == 0:
            self.now(step)

    def now(self, step: int) -> None:
        """Average weights and optimizer state, unless that is done: the last thing before they are saved or evaluated."""
        if step != self._averaged:
            self._sync()
            self._averaged = step


class Counts:
    """The fused kernels' own counts of steps, by which Adam's correct its bias.

    They count every forward: those of evaluations too, and of batches that were skipped.
    """

    def __init__(self, model: nn.Module):
        """The counts of the kernels on this rank; only Adam's matter."""
        self._kernels: list[Any] = [kernel for kernel in fused_kernels(model) if kernel.optimizer is EmbOptimType.ADAM]

    def set(self, steps: int) -> None:
        """Before a forward that trains: how many updates there were before this one."""
        for kernel in self._kernels:
            kernel.iter.fill_(steps)
            kernel.iter_cpu.fill_(steps)


def local_shards(model: nn.Module) -> dict[str, list[tuple[Tensor, int, int]]]:
    """Table name -> this rank's parts of it, each (tensor, first row, first column); whole where replicated."""
    state = model.state_dict()
    return {table: list(_parts(state[key])) for key, table in table_names(model).items()}


def fused_kernels(model: nn.Module) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    """FBGEMM's kernels on this rank that look up sharded tables and update them."""
    return [module for module in _lookups(model) if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]


def release_cached_rows(model: nn.Module) -> None:
    """Before a pipeline that fetches rows ahead is filled: let go of the rows of batches that have gone through it.

    A fetched row stays in the cache until the backward of its batch, which evaluations and skipped batches do not have, so
    that the cache would be full of their rows for good. And rows are fetched on a stream that does not wait for what was
    written to tables between batches: the host waits for that here.
    """
    for kernel in fused_kernels(model):
        if kernel.prefetch_pipeline:
            counter: Any = kernel.lxu_cache_locking_counter  # of the batches that each row is locked for
            counter.zero_()
            if counter.is_cuda:
                torch.cuda.current_stream().synchronize()


def forget_cached_rows(model: nn.Module) -> None:
    """After writing to what `local_shards` gives: it has cached rows written back, and leaves them where lookups find them."""
    for kernel in fused_kernels(model):
        kernel.reset_cache_states()


def replicated_tables(model: nn.Module) -> set[str]:
    """Names of the tables that every rank holds whole."""
    state = model.state_dict()
    return {table for key, table in table_names(model).items() if not isinstance(state[key], ShardedTensor | DTensor)}


def _lookups(model: nn.Module) -> list[nn.Module]:
    """All modules of the lookups on this rank, which TorchRec hides from `modules`."""
    lookups = [lookup for module in model.modules() for lookup in getattr(module, "_lookups", ())]
    return [module for lookup in lookups for module in lookup.modules()]


def _parts(weight: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    if isinstance(weight, DTensor):  # how TorchRec gives the shards of one of several copies
        held: Any = weight.to_local()
        for part, (row, column) in zip(held.local_shards(), held.local_offsets(), strict=False):  # none has one offset, ()
            yield part, row, column
        return
    if not isinstance(weight, ShardedTensor):
        yield weight, 0, 0
        return
    for part in weight.local_shards():
        row, column = part.metadata.shard_offsets
        yield part.tensor, row, column
