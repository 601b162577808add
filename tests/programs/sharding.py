"""Every sharding type with every optimizer, and beside every other, against one process that holds every table whole and sees
every rank's rows.

The reference looks rows up by indexing, pools in Python, and applies the optimizers' formulas to dense gradients: it
shares the model with distrec, and nothing else. It stays on CPU.

sharding.py FOLDER [DEVICE]
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from distrec import dist, log
from distrec.batch import Batch, Position
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.embeddings import shard
from distrec.engine import Engine
from distrec.errors import UserError
from distrec.losses import ranking_loss
from distrec.models import build
from distrec.models.inputs import Embedded, InputSpec, Jagged

KINDS = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "adam_every_row")
MIXED = "adagrad"  # the optimizer of two tables that lie differently
UNPOOLED_KINDS = KINDS[:4]
STEPS = 3
LR = 0.1


def config(kind: str, optimizer: str, device: str = "cpu") -> Config:
    """Two pooled tables sharded `kind`, or as `one+other` says; one with a history and its target, sharded as the first
    is where that can be.
    """
    kind, _, other = kind.partition("+")
    unpooled = kind if kind in UNPOOLED_KINDS and (kind, optimizer) != ("column_wise", "rowwise_adagrad") else "row_wise"
    return parse(
        {
            "name": "sharding",
            "data": {"train": "none", "batch_size": 8},
            "tables": {
                "a": {"rows": 37, "dim": 8, "sharding": kind},
                "b": {
                    "rows": 11,
                    "dim": 12,
                    "sharding": other or kind,
                    "optimizer": update(optimizer) | {"weight_decay": decay_of_b(kind, optimizer, device)},
                },
                "movie": {
                    "rows": 23,
                    "dim": 8,
                    "sharding": unpooled,
                    "optimizer": update(optimizer_of_movie(kind, optimizer)),
                },
            },
            "features": {
                "dense": ["x"],
                "sparse": [
                    {"name": "a1", "table": "a"},
                    {"name": "a2", "table": "a"},
                    {"name": "b1", "table": "b", "pooling": "mean"},
                    {"name": "target", "table": "movie"},
                ],
                "sequence": [{"name": "history", "table": "movie", "max_length": 5}],
            },
            "model": {
                "name": "din",
                "params": {
                    "targets": ["target"],
                    "histories": ["history"],
                    "attention_mlp": [4],
                    "attention_activation": "prelu",
                }
                | {"top_mlp": [6], "top_activation": "prelu"},
            },
            "optimizer": {"dense": {"name": "sgd", "lr": LR}, "sparse": update(optimizer)},
            "train": {"device": device},
        }
    )


def update(optimizer: str) -> dict:
    """The config's section for one of OPTIMIZERS."""
    return {"name": optimizer.removesuffix("_every_row"), "lr": LR, "every_row": optimizer.endswith("_every_row")}


def optimizer_of_movie(kind: str, optimizer: str) -> str:
    """Adam has no kernel on CPU for a table that is not replicated."""
    return "adagrad" if optimizer.startswith("adam") and kind != "data_parallel" else optimizer


def decay_of_b(kind: str, optimizer: str, device: str) -> float:
    """Where there is a kernel for it."""
    decays = optimizer == "adam_every_row" or (optimizer == "rowwise_adagrad" and (kind == "data_parallel" or device != "cpu"))
    return 0.3 if decays else 0.0


def jagged(names: list[str], rows: dict[str, int], size: int, generator: torch.Generator) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (len(names), size), generator=generator, dtype=torch.int32)
    values = [torch.randint(0, rows[n], (int(lengths[i].sum()),), generator=generator) for i, n in enumerate(names)]
    return KeyedJaggedTensor(names, torch.cat(values), lengths=lengths.flatten())


def batch(rank: int, world: int, step: int) -> Batch:
    """Rows of a rank; rank 1 has padding, and lists may be empty."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    size = 6
    real = torch.arange(size) < (4 if rank == 1 else size)
    total = size * world - 2
    return Batch(
        dense=torch.randn(size, 1, generator=generator),
        sparse=jagged(["a1", "a2", "b1"], {"a1": 37, "a2": 37, "b1": 11}, size, generator),
        sequence=jagged(["history", "target"], {"history": 23, "target": 23}, size, generator),
        labels=torch.randint(0, 2, (size, 1), generator=generator).float(),
        weights=torch.rand(size, generator=generator) * real,
        normalizer=torch.tensor(total / world),
        groups=None,
        position=Position(),
    )


class Reference:
    """All tables whole, all ranks' rows in one batch."""

    def __init__(self, kind: str, optimizer: str, tables: dict[str, Tensor], model: nn.Module, world: int, decay: float):
        self.decay = {"a": 0.0, "b": decay, "movie": 0.0}
        self.tables = {name: weight.clone().requires_grad_() for name, weight in tables.items()}
        self.model, self.world = model, world
        self.optimizer = {"a": optimizer, "b": optimizer, "movie": optimizer_of_movie(kind, optimizer)}
        self.first = {name: torch.zeros_like(w) for name, w in self.tables.items()}
        self.second = {name: torch.zeros_like(w) for name, w in self.tables.items()}

    def step(self, number: int) -> list[Tensor]:
        """One update; returns each rank's logits."""
        batches = [batch(rank, self.world, number) for rank in range(self.world)]
        logits = [self.model(self.embed(b)) for b in batches]
        losses = [
            ranking_loss(o, b.labels, b.weights, b.normalizer, ["binary"], [1.0])[0]
            for o, b in zip(logits, batches, strict=True)
        ]
        (sum(losses) / self.world).backward()
        with torch.no_grad():
            for name, weight in self.tables.items():
                weight -= self.change(name, weight.grad, number + 1)
                weight.grad = None
            for weight in self.model.parameters():
                weight -= LR * weight.grad
                weight.grad = None
        return [o.detach() for o in logits]

    def change(self, name: str, grad: Tensor, count: int) -> Tensor:
        optimizer = self.optimizer[name]
        if optimizer == "sgd":
            return LR * grad
        if optimizer == "adagrad":
            self.first[name] += grad**2
            return LR * grad / (self.first[name].sqrt() + 1e-8)
        if optimizer == "rowwise_adagrad":
            grad = grad + self.decay[name] * self.tables[name] * grad.ne(0).any(1, keepdim=True)
            self.first[name] += (grad**2).mean(1, keepdim=True)
            return LR * grad / (self.first[name].sqrt() + 1e-8)
        touched = grad.ne(0).any(1, keepdim=True) | torch.tensor(optimizer == "adam_every_row")
        grad = grad + self.decay[name] * self.tables[name] * touched
        self.first[name] = torch.where(touched, 0.9 * self.first[name] + 0.1 * grad, self.first[name])
        self.second[name] = torch.where(touched, 0.999 * self.second[name] + 0.001 * grad**2, self.second[name])
        mean, square = self.first[name] / (1 - 0.9**count), self.second[name] / (1 - 0.999**count)
        return torch.where(touched, LR * mean / (square.sqrt() + 1e-8), 0.0)

    def embed(self, b: Batch) -> Embedded:
        pooled = {
            "a1": self.pool(b.sparse, "a1", "a", "sum"),
            "a2": self.pool(b.sparse, "a2", "a", "sum"),
            "b1": self.pool(b.sparse, "b1", "b", "mean"),
            "target": self.pool(b.sequence, "target", "movie", "sum"),
        }
        history = b.sequence["history"]
        return Embedded(b.dense, pooled, {"history": Jagged(self.tables["movie"][history.values()], history.offsets().long())})

    def pool(self, source: KeyedJaggedTensor, feature: str, table: str, mode: str) -> Tensor:
        rows = source[feature].to_dense()
        vectors = [self.tables[table][ids].sum(0) / (max(1, len(ids)) if mode == "mean" else 1) for ids in rows]
        return torch.stack(vectors)


def compare(kind: str, optimizer: str, ranks: dist.Ranks) -> dict[str, float | str]:
    """Largest differences in logits and in table rows over some steps; or why the pair is refused."""
    try:
        engine = Engine.build(config(kind, optimizer, ranks.device.type), ranks)
    except UserError as error:
        return {"refused": str(error)}
    torch.manual_seed(0)
    spec = InputSpec(1, engine.layout.pooled_dims, engine.layout.sequence_dims, 1)
    model = build("din", engine.config.model.params, spec)
    decay = decay_of_b(kind, optimizer, ranks.device.type)
    reference = Reference(kind.partition("+")[0], optimizer, whole_tables(engine), model, ranks.world, decay)
    off = 0.0
    for step in range(STEPS):
        expected = reference.step(step)[ranks.rank]
        engine.optimizers.zero_grad()
        loss, outputs = engine.model(batch(ranks.rank, ranks.world, step).to(ranks.device))
        loss.backward()
        engine.optimizers.step()
        off = max(off, (outputs["logits"].cpu() - expected).abs().max().item())
    rows_off = max(
        (
            (
                (tensor.cpu() - reference.tables[name][r : r + tensor.shape[0], c : c + tensor.shape[1]]).abs().max().item()
                if tensor.numel()
                else 0.0
            )
            for name, parts in shard.local_shards(engine.model).items()
            for tensor, r, c in parts
        ),
        default=0.0,
    )
    worst = -dist.lowest(-torch.tensor([off, rows_off]))
    used = sorted({s.sharding_type for part in engine.plan.plan.values() for s in part.values()})
    return {"logits": worst[0].item(), "rows": worst[1].item(), "used": ",".join(used)}


def whole_tables(engine: Engine) -> dict[str, Tensor]:
    """The initial tables, put together from all ranks' shards."""
    whole = {}
    for name, table in engine.config.tables.items():
        weight = torch.full((table.rows, table.dim), torch.inf)
        for tensor, row, column in shard.local_shards(engine.model).get(name, []):
            weight[row : row + tensor.shape[0], column : column + tensor.shape[1]] = tensor.cpu()
        whole[name] = dist.lowest(weight)
    return whole


def main() -> None:
    folder, device = Path(sys.argv[1]), (*sys.argv[2:], "cpu")[0]
    log.quiet_dependencies()
    ranks = dist.start(device, 120)
    cases = [*itertools.product(KINDS, OPTIMIZERS), *((f"{a}+{b}", MIXED) for a, b in itertools.permutations(KINDS, 2))]
    results = {f"{kind}/{optimizer}": compare(kind, optimizer, ranks) for kind, optimizer in cases}
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
