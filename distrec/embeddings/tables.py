"""Tables of the config -> TorchRec collections on the meta device, and weights that do not depend on the plan."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from distrec.config.layout import Layout, Lookup
from distrec.config.schema import Table

DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
BLOCK_ROWS = 65536  # rows drawn from one generator; the unit in which initial weights are reproducible


class Embeddings(nn.Module):
    """The two collections; either is None when no feature needs it."""

    def __init__(self, bags: EmbeddingBagCollection | None, sequences: EmbeddingCollection | None):
        super().__init__()
        self.bags = bags
        self.sequences = sequences


def build(layout: Layout, tables: Mapping[str, Table], device: str = "meta") -> Embeddings:
    """Collections for the layout's lookups; weights are left for `initialize` (or a checkpoint) to fill.

    Bags are pooled by their sum, and `distrec.task.Inputs` divides: TorchRec 1.8 divides by itself where a table is sharded
    row-wise, and then all features of the collection, so that the mean of one that lies otherwise is divided twice.
    """
    bags = [_bag_config(name, tables[name], features) for name, features in _by_table(layout.bags).items()]
    sequences = [_sequence_config(name, tables[name], features) for name, features in _by_table(layout.sequences).items()]
    return Embeddings(
        EmbeddingBagCollection(tables=bags, device=torch.device(device)) if bags else None,
        EmbeddingCollection(tables=sequences, device=torch.device(device)) if sequences else None,
    )


def table_names(module: nn.Module) -> dict[str, str]:
    """Fully qualified parameter name -> table name, for every table under `module`, sharded or not."""
    marks = (".embedding_bags.", ".embeddings.")
    names = {}
    for key in module.state_dict():
        if key.endswith(".weight") and any(mark in f".{key}" for mark in marks):
            names[key] = key.removesuffix(".weight").rsplit(".", 1)[-1]
    return names


def initialize(weights: Mapping[str, Sequence[tuple[Tensor, int, int]]], tables: Mapping[str, Table], seed: int) -> None:
    """Fill tables in place. The value of a row depends on the seed, the table's name and the row, never on the plan.

    Args:
        weights: table name -> its local shards, each (tensor, first row, first column) within the table.
        tables: the config's tables, for distribution and scale.
        seed: the run's seed.
    """
    for name, shards in weights.items():
        for shard, row, column in shards:
            _fill(shard, row, column, tables[name], zlib.crc32(name.encode()) ^ seed)


@torch.no_grad()
def _fill(shard: Tensor, first_row: int, first_column: int, table: Table, seed: int) -> None:
    rows, columns = shard.shape
    for block in range(first_row // BLOCK_ROWS, -(-(first_row + rows) // BLOCK_ROWS)):
        start, stop = max(first_row, block * BLOCK_ROWS), min(first_row + rows, (block + 1) * BLOCK_ROWS)
        if start < stop:
            values = _draw(table, block, seed, shard.device)[start - block * BLOCK_ROWS : stop - block * BLOCK_ROWS]
            shard[start - first_row : stop - first_row].copy_(values[:, first_column : first_column + columns])


def _draw(table: Table, block: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed((seed << 24) + block)
    values = torch.empty(min(BLOCK_ROWS, table.rows - block * BLOCK_ROWS), table.dim, device=device)
    scale = table.init_scale or table.rows**-0.5
    if table.init == "uniform":
        return values.uniform_(-scale, scale, generator=generator)
    return values.normal_(0.0, scale, generator=generator)


def _by_table(lookups: Sequence[Lookup]) -> dict[str, list[Lookup]]:
    grouped: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        grouped.setdefault(lookup.table, []).append(lookup)
    return grouped


def _bag_config(name: str, table: Table, features: Sequence[Lookup]) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=table.rows,
        embedding_dim=table.dim,
        feature_names=[f.name for f in features],
        data_type=DATA_TYPES[table.precision],
        pooling=PoolingType.SUM,
        init_fn=_leave,
    )


def _sequence_config(name: str, table: Table, features: Sequence[Lookup]) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=name,
        num_embeddings=table.rows,
        embedding_dim=table.dim,
        feature_names=[f.name for f in features],
        data_type=DATA_TYPES[table.precision],
        init_fn=_leave,
    )


def _leave(weights: Tensor) -> Tensor:
    """An init function that does nothing: `initialize` fills the shards afterwards."""
    return weights
