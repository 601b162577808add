"""Copies of the tables (2D parallel) on 4 gloo ranks, 2 x 2: what they learn, that they stay equal, and what is saved of them.

replicas.py FOLDER   to be run with PYTHONOPTIMIZE=1: TorchRec's `DMPCollection` asserts that it is on GPUs. What else keeps it
                     from CPU is put right in `on_cpu`; sharding, exchange, averaging and checkpoints are TorchRec's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import resume
import torch
import torch.distributed
from sharding import Reference, batch, config, whole_tables
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor
from torchrec.distributed.model_parallel import DMPCollection
from torchrec.distributed.types import ShardingPlan

from distrec import dist, engine, log
from distrec.config.load import parse
from distrec.embeddings import shard
from distrec.engine import Engine
from distrec.models import build
from distrec.models.inputs import InputSpec

KINDS = ("data_parallel", "table_wise", "row_wise", "table_row_wise", "grid_shard")
COPIES = ["embedding.replicas=2", "train.device=auto"]
STEPS = 4
SYNCS: list[DMPCollection] = []  # whose copies were averaged, in turn


def on_cpu() -> None:
    """Let distrec and TorchRec do on CPU what they refuse there."""
    remap, sync, make = DMPCollection._remap_sharding_plan, DMPCollection.sync, shard.shard_copies

    def remap_to_cpu(self: DMPCollection, plan: ShardingPlan, *rest: Any, **named: Any) -> None:
        remap(self, plan, *rest, **named)
        for sharding in (sharding for part in plan.plan.values() for sharding in part.values()):  # type: ignore[attr-defined]
            for part in sharding.sharding_spec.shards if sharding.sharding_spec else ():
                part.placement = _remote_device(f"rank:{part.placement.rank()}/cpu")  # it says cpu:0

    def make_with_gloo(*rest: Any, **named: Any) -> DMPCollection:
        model = make(*rest, **named)
        model.set_all_reduce_hook(lambda tensors: average(tensors, model._default_ctx.replica_pg))
        return model

    def count_and_sync(self: DMPCollection, *rest: Any, **named: Any) -> None:
        SYNCS.append(self)
        sync(self, *rest, **named)

    engine.needs_a_gpu = lambda _: []  # type: ignore[assignment,misc]
    DMPCollection._remap_sharding_plan = remap_to_cpu  # type: ignore[method-assign]
    DMPCollection.sync = count_and_sync  # type: ignore[method-assign]
    shard.shard_copies = make_with_gloo


def average(tensors: list[Tensor], group: Any) -> None:
    """gloo has no mean."""
    for tensor in tensors:
        torch.distributed.all_reduce(tensor, group=group)
        tensor.div_(torch.distributed.get_world_size(group))


def compare(kind: str, ranks: dist.Ranks) -> dict[str, float]:
    """Largest differences from one process that sees all rows; SGD's mean over copies is SGD on the mean."""
    run = parse(config(kind, "sgd").model_dump(mode="json"), COPIES)
    built, off = Engine.build(run, ranks), 0.0
    torch.manual_seed(0)
    model = build("din", run.model.params, InputSpec(1, built.layout.pooled_dims, built.layout.sequence_dims, 1))
    reference = Reference("table_wise", "sgd", whole_tables(built), model, ranks.world, 0.0)
    for step in range(STEPS):
        expected = reference.step(step)[ranks.rank]
        off = max(off, (update(built, ranks, step) - expected).abs().max().item())
        built.averaging.after(built.optimizers.steps)
    found = [
        (part, name, row, column) for name, parts in shard.local_shards(built.model).items() for part, row, column in parts
    ]
    rows = [
        (part - reference.tables[name][row : row + part.shape[0], column : column + part.shape[1]]).abs().max().item()
        for part, name, row, column in found
        if part.numel()
    ]
    worst = -dist.lowest(-torch.tensor([off, max(rows, default=0.0)]))
    return {"logits": worst[0].item(), "rows": worst[1].item()}


def update(built: Engine, ranks: dist.Ranks, step: int) -> Tensor:
    built.optimizers.zero_grad()
    loss, outputs = built.model(batch(ranks.rank, ranks.world, step))
    loss.backward()
    built.optimizers.step()
    return outputs["logits"]


def drift(ranks: dist.Ranks) -> list[list[dict[str, list]]]:
    """By step and rank, its rows and their state: averaged after every second step only."""
    run = parse(config("row_wise", "rowwise_adagrad").model_dump(mode="json"), [*COPIES, "embedding.sync_every=2"])
    built, seen = Engine.build(run, ranks), []
    for step in range(STEPS):
        update(built, ranks, step)
        before = held(built)
        built.averaging.after(built.optimizers.steps)
        seen.append(resume.gather({"before": before, "after": held(built)}))
    return seen


def held(built: Engine) -> list[list]:
    state = resume.flat({"model": shard_of(built), "state": built.optimizers.state_dict()["tables"]})
    return [[key, local(value).tolist()] for key, value in sorted(state.items())]


def shard_of(built: Engine) -> dict[str, Any]:
    return {name: parts[0][0].detach().clone() for name, parts in shard.local_shards(built.model).items() if parts}


def local(value: Any) -> Tensor:
    """The one local part of a tensor."""
    if isinstance(value, DTensor):
        return value.to_local().local_shards()[0].detach()
    return value.local_shards()[0].tensor.detach() if isinstance(value, ShardedTensor) else value


def trained(ranks: dist.Ranks, folder: Path) -> dict[str, Any]:
    """A run that is saved at step 7 and goes on, the same resumed there, and its checkpoint on ranks without copies."""
    train = {"device": "auto", "log_every": 5}
    copies = {"replicas": 2, "sync_every": 3, "sharding": "row_wise"}
    options = {"embedding": copies, "checkpoint": {"every_steps": 7, "keep": 9}}
    whole = resume.Spied(ranks, folder, folder / "whole", None, train=train | {"steps": 12}, **options)
    whole.run(12)
    resume.Spied(ranks, folder, folder / "parts", None, train=train | {"steps": 7}, **options).run(7)
    rest = resume.Spied(ranks, folder, folder / "parts", "newest", train=train | {"steps": 12}, **options)
    rest.run(5)
    alone = resume.Spied(
        ranks,
        folder,
        folder / "parts",
        "newest",
        train=train | {"steps": 12},
        **options | {"embedding": {"sharding": "row_wise"}},
    )
    return {
        "syncs": [sum(model is spied.trainer.engine.model for model in SYNCS) for spied in (whole, rest, alone)],
        "whole": resume.gather(held(whole.trainer.engine)),
        "parts": resume.gather(held(rest.trainer.engine)),
        "probes": [resume.probe(spied.trainer, 7) for spied in (rest, alone)],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    log.quiet_dependencies()
    on_cpu()
    ranks = dist.start("cpu", 120)
    results = {kind: compare(kind, ranks) for kind in KINDS} | {"drift": drift(ranks), "trained": trained(ranks, folder)}
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
