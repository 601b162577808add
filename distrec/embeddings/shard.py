"""Fused optimizers on the tables, the tables on their ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torchrec.optim
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from distrec.config.schema import SparseOptimizer, Table
from distrec.embeddings.plan import sharders
from distrec.embeddings.tables import table_names

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
    return arguments


def shard(model: nn.Module, plan: ShardingPlan, device: torch.device) -> DistributedModelParallel:
    """Lay the tables over the ranks by the plan, and replicate the rest."""
    return DistributedModelParallel(module=model, device=device, plan=plan, sharders=sharders())


def local_shards(model: nn.Module) -> dict[str, list[tuple[Tensor, int, int]]]:
    """Table name -> this rank's parts of it, each (tensor, first row, first column); whole where replicated."""
    state = model.state_dict()
    return {table: list(_parts(state[key])) for key, table in table_names(model).items()}


def _parts(weight: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    if not isinstance(weight, ShardedTensor):
        yield weight, 0, 0
        return
    for part in weight.local_shards():
        row, column = part.metadata.shard_offsets
        yield part.tensor, row, column
