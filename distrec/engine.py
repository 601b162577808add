"""The model on its ranks: tables sharded, optimizers attached, ready for a pipeline. Training and evaluation share it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from distrec import data, models
from distrec.batch import Batch
from distrec.checkpoint import Checkpoints
from distrec.config import schema
from distrec.config.check import check, needs_a_gpu
from distrec.config.layout import Layout, layout
from distrec.config.schema import Config
from distrec.data import Dataset, Reader
from distrec.data.catalogue import CatalogueReader
from distrec.data.columns import Use
from distrec.data.neighbours import Neighbours
from distrec.data.numbering import Numbering
from distrec.dist import Ranks, from_first, together
from distrec.embeddings import plan as plans
from distrec.embeddings import plan_file, shard, tables
from distrec.embeddings.cluster import Replicas, share_out
from distrec.embeddings.sharders import sharders
from distrec.errors import UserError
from distrec.evaluate import Evaluation, evaluate
from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.steps import StepMeans
from distrec.metrics.suspicions import diverging, out_of_proportion
from distrec.models.inputs import InputSpec
from distrec.optim import Optimizers
from distrec.planner.footprint import Footprint, footprint
from distrec.retrieval.evaluate import collect_items, evaluate_retrieval
from distrec.retrieval.retriever import Items, Reading, make_retrieval_task, open_items, reading
from distrec.retrieval.task import RetrievalTask
from distrec.task import Outputs, RankingHead, RankingTask


@dataclass
class Engine:
    """What `build` made of a config."""

    config: Config
    ranks: Ranks
    layout: Layout
    plan: ShardingPlan
    model: DistributedModelParallel
    optimizers: Optimizers
    averaging: shard.Averaging  # of the copies of the tables, after each step and before they are saved or evaluated
    items: Items | None  # of a retriever
    numbering: Numbering  # of the ids in all that is read

    @classmethod
    def build(cls, config: Config, ranks: Ranks) -> Self:
        """Put the parts together, in the order that TorchRec needs.

        Raises:
            UserError: the config contradicts itself, the model refuses it, or the tables do not fit.
        """
        check(config)
        refuse_on(ranks.device.type, config)
        items = together(lambda: open_items_of(config, ranks.rank, ranks.world))
        torch.manual_seed(config.train.seed)  # the same dense weights on every rank
        task, features = make_task(config, ranks.device, items)
        shard.fuse(task, config.tables, config.optimizer.sparse)
        plan = from_first(lambda: make_plan(task, config, features, ranks))
        names = tables.table_names(task)
        model = _shard(task, plan, config, ranks)
        tables.initialize(shard.local_shards(model), config.tables, config.train.seed)
        counts = shard.Counts(model)
        optimizers = Optimizers(model, config.tables, names, counts.set, config.optimizer, config.train.clip_norm)
        torch.manual_seed(config.train.seed + ranks.rank)  # from here on, each rank drops out its own units
        averaging = shard.Averaging(model, config.embedding.sync_every)
        return cls(config, ranks, features, plan, model, optimizers, averaging, items, numbering_of(config, items))

    def training_metrics(self) -> RankingMetrics | StepMeans:
        """What is counted of the batches that are trained on."""
        if self.items is not None:
            return StepMeans(["accuracy"], self.ranks.device)
        return RankingMetrics(self.config.tasks, self.config.data.group is not None, self.ranks.device)

    def divergence(self, counted: RankingMetrics | StepMeans, numbers: Mapping[str, float]) -> list[str]:
        """Warnings about what was `counted` in training, and the `loss`, that no healthy run has. Every rank must call it."""
        if isinstance(counted, RankingMetrics):
            found = [(each.task.name, out_of_proportion(each, numbers)) for each in counted.evidence(dist.group.WORLD)]
            return [f'task "{name}": {warning}' for name, warning in found if warning]
        assert self.config.retrieval is not None
        largest = 1 / min(1.0, self.config.retrieval.temperature)  # a score of vectors of length one
        warning = diverging("the loss", numbers["loss"], largest * max(1.0, self.config.retrieval.negative_weight))
        return [warning] if warning else []

    def evaluate(self, reader: Reader, run: Callable[[Reader | CatalogueReader], Iterator[Outputs]]) -> Evaluation:
        """Metrics over a reader's rows on all ranks; `run` gives what the model says of a reader's batches."""
        if self.items is not None and self.config.retrieval is not None:
            catalogue, counts = self.items.catalogue, self.items.catalogue.train_count
            items = run(CatalogueReader(catalogue, self.ranks.rank, self.ranks.world, reader.batch_size))
            known = None if counts is None else torch.from_numpy(counts)
            return evaluate_retrieval(items, run(reader), self.config.retrieval, catalogue.rows, known, self.ranks)
        metrics = RankingMetrics(self.config.tasks, self.config.data.group is not None, self.ranks.device)
        return evaluate(run(reader), metrics, dist.group.WORLD)

    @property
    def neighbours(self) -> Neighbours | None:
        """What hard negatives are drawn from; None where they are not."""
        return None if self.items is None else self.items.drawer.neighbours

    @property
    def search_steps(self) -> int | None:
        """Steps between searches for hard negatives; None where there are none."""
        retrieval = self.config.retrieval
        return None if retrieval is None or self.neighbours is None else retrieval.negatives.refresh_steps

    def search_negatives(self, run: Callable[[CatalogueReader], Iterator[Outputs]]) -> None:
        """Find the hard negatives of the steps to come; `run` as in `evaluate`. Every rank must call it."""
        if self.items is not None and self.neighbours is not None:
            catalogue, ranks = self.items.catalogue, self.ranks
            reader = CatalogueReader(catalogue, ranks.rank, ranks.world, self.config.data.batch_size)
            self.neighbours.search(collect_items(run(reader), catalogue.rows, ranks))

    def query_vectors(self, batch: Batch) -> Tensor:
        """Vectors (B, D) of a batch's queries. Every rank must call it, and no pipeline may hold the model."""
        return self._vectors(batch)["query"]

    def item_vectors(self, batch: Batch) -> Tensor:
        """Vectors (N, D) of a batch's items (`Catalogue.batch`). Every rank must call it; no pipeline may hold the model."""
        return self._vectors(batch)["item"]

    @torch.no_grad()
    def _vectors(self, batch: Batch) -> Outputs:
        self.model.eval()
        return self.model(batch.to(self.ranks.device))[1]

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds: tensors and sharded tensors by name."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "random": {self._random_key(): _random_state(self.ranks.device)},
        } | ({} if self.neighbours is None else {"neighbours": self.neighbours.table})

    def load(self, checkpoints: Checkpoints, step: int, to_train: bool = True) -> None:
        """Take the state of a step, saved on any number of ranks with any plan.

        What is known of items by their places in the catalogue is only for training: other catalogues can be ranked too.
        """
        self.optimizers.prepare_to_load()
        state = self.state()
        places = {} if to_train else _take_places(state)
        same_rank = checkpoints.has(step, f"random.{self._random_key()}.{self.ranks.device.type}")
        if not same_rank:
            del state["random"]
        checkpoints.load(step, state)
        state["model"].update(places)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"], step)
        if same_rank:
            _set_random_state(state["random"][self._random_key()], self.ranks.device)
        else:
            torch.manual_seed(self.config.train.seed + step * self.ranks.world + self.ranks.rank)

    def ids(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Each id feature of a batch with its ids (N,)."""
        for jagged in (batch.sparse, batch.sequence):
            if jagged is not None:
                yield from ((name, jagged[name].values()) for name in jagged.keys())  # noqa: SIM118

    def features_of_tables(self) -> tuple[dict[str, str], dict[str, int]]:
        """Feature -> table, and table -> rows."""
        lookups = (*self.layout.bags, *self.layout.sequences)
        return {f.name: f.table for f in lookups}, {name: table.rows for name, table in self.config.tables.items()}

    def plan_markdown(self) -> str:
        """The plan as a table for TensorBoard."""
        rows = ["| " + " | ".join(row) + " |" for row in plans.describe(self.plan, self.config.tables)]
        return "\n".join(["| table | shape | sharding | kernel | ranks | weights |", "|---|---|---|---|---|---|", *rows])

    def _random_key(self) -> str:
        return f"world{self.ranks.world}_rank{self.ranks.rank}"


AnyTask = RankingTask | RetrievalTask


def open_items_of(config: Config, rank: int = 0, world: int = 1) -> Items | None:
    """A retriever's items; None for a ranker.

    Raises:
        UserError: the catalogue is not as the config says.
    """
    if config.retrieval is None:
        return None
    return open_items(config, config.retrieval, layout(config.features, config.tables), rank, world)


def numbering_of(config: Config, items: Items | None) -> Numbering:
    """What a retriever's catalogue says of ids."""
    numbering = Numbering()
    if items is not None and config.retrieval is not None:
        numbering.require(items.catalogue.numbering, f"retrieval.items ({', '.join(config.retrieval.items)})")
    return numbering


def make_task(config: Config, device: torch.device, items: Items | None = None) -> tuple[AnyTask, Layout]:
    """The model with its tables on meta and its dense part on `device`. A retriever needs `items` to train, not to plan."""
    features = layout(config.features, config.tables)
    if config.retrieval is not None:
        return make_retrieval_task(config, config.retrieval, features, device, items), features
    spec = InputSpec(len(features.dense), features.pooled_dims, features.sequence_dims, len(config.tasks))
    model = models.build(config.model.name, config.model.params, spec).to(device)
    autocast = torch.bfloat16 if config.train.precision == "bf16" and device.type == "cuda" else None
    return RankingTask(tables.build(features, config.tables), RankingHead(model, features, config.tasks, autocast)), features


def make_plan(task: AnyTask, config: Config, features: Layout, ranks: Ranks) -> ShardingPlan:
    """The plan for these ranks: the one that the config names, or a new one."""
    world, local_world, replicas = _share_out(config, ranks)
    memory = _memory(task, config, features, ranks)
    cluster = plans.Cluster(world, local_world, ranks.device.type, *memory, replicas=replicas)
    return plan_for(task, config, features, cluster)


def _share_out(config: Config, ranks: Ranks) -> tuple[int, int, Replicas]:
    return share_out(ranks.world, ranks.local_world, config.embedding.replicas, config.embedding.sync_every)


def _shard(task: AnyTask, plan: ShardingPlan, config: Config, ranks: Ranks) -> DistributedModelParallel:
    using = sharders_for(config, ranks.device.type)
    if config.embedding.replicas == 1:
        return shard.shard(task, plan, ranks.device, using)
    world, local_world, _ = _share_out(config, ranks)
    return shard.shard_copies(task, plan, ranks.device, using, world, local_world)


def sharders_for(config: Config, device: str) -> list[ModuleSharder]:
    """TorchRec's sharders with what the config says of the exchange and of the pipeline."""
    return sharders(config.embedding.comms, device, config.train.pipeline == "prefetch_sparse_dist")


def refuse_on(device: str, config: Config) -> None:
    """Raise a `UserError` that lists what a config asks for and ranks without a GPU cannot do."""
    faults = list(needs_a_gpu(config)) if device == "cpu" else []
    if faults:
        raise UserError("\n".join(["on CPU this config cannot be used:", *(f"  {fault}" for fault in faults)]))


def plan_for(task: AnyTask, config: Config, features: Layout, cluster: plans.Cluster) -> ShardingPlan:
    """The plan for a cluster, which may be another one than this process runs on.

    Raises:
        UserError: no plan fits, or the one that the config names goes with other tables or ranks.
    """
    default, pooling = config.embedding.sharding, plans.pooling_factors(features)
    using = sharders_for(config, cluster.device)
    types = plans.allowed_types(features, config.tables, default, config.optimizer.sparse, cluster.device)
    if config.embedding.plan is not None:
        homes = plan_file.collections_of(task, using)
        return plan_file.load(Path(config.embedding.plan), types, config.tables, cluster, homes)
    return plans.make_plan(task, types, config.tables, cluster, step_rows(config), pooling, using)


def _memory(task: AnyTask, config: Config, features: Layout, ranks: Ranks) -> tuple[int, int, int | None]:
    """Bytes a rank has, bytes of them for what is not a table, and bytes of host memory for cached tables.

    What the config grants to tables is for nothing else.
    """
    setting, host = config.embedding.memory, config.embedding.host_memory
    memory = plans.rank_memory(setting, ranks.device, ranks.local_world)
    beside = 0 if setting is not None else dense_footprint(task, features, config).reserved
    cached = any(table.cache is not None for table in config.tables.values())
    return memory, beside, plans.rank_memory(host, torch.device("cpu"), ranks.local_world) if cached else None


def dense_footprint(task: AnyTask, features: Layout, config: Config) -> Footprint:
    """What a rank needs beside its tables."""
    return footprint(task.head.model, features, config.optimizer.dense, step_rows(config), len(labels(config)))


def step_rows(config: Config) -> int:
    """Rows of a rank's training batch: those of the log, and a retriever's negatives."""
    if config.retrieval is None:
        return config.data.batch_size
    negatives = config.retrieval.negatives
    return config.data.batch_size * (1 + negatives.per_row + (negatives.column_length or 0)) + negatives.draws(
        config.data.batch_size
    )


def open_reader(engine: Engine, split: str, leave_out: Collection[str] = ()) -> Reader:
    """The reader of data.train, data.valid or data.test on this rank; all but train in file order.

    `leave_out` names lists of items (keys of `Batch.lists`) that are not read.

    Raises:
        UserError: a path, a file or a column is not as the config says.
    """
    config, ranks = engine.config, engine.ranks
    how = together(lambda: reading_of(config, engine.layout, engine.items, split))
    how = replace(how, items=tuple(use for use in how.items if use.name not in leave_out))
    dataset = together(lambda: open_split(config, how, split, engine.numbering))
    training = split == "train"
    return Reader(
        dataset,
        config.data,
        how.present,
        labels(config),
        rank=ranks.rank,
        world=ranks.world,
        seed=config.train.seed,
        batch_size=config.data.batch_size if training else config.data.eval_batch_size,
        shuffle=None if training else False,
        items=how.items,
        complete=None if config.retrieval is None else how.complete,
        pin_memory=ranks.device.type == "cuda",
    )


def labels(config: Config) -> tuple[schema.Task, ...]:
    """What rows have to say; those of a retriever say nothing but that they are there."""
    return config.tasks if config.retrieval is None else ()


def reading_of(config: Config, features: Layout, items: Items | None, split: str) -> Reading:
    """How a split is read; a ranker takes it as it is."""
    if config.retrieval is None or items is None:
        return Reading(features, (), lambda batch: batch)
    return reading(config.retrieval, items, features, split)


def open_split(config: Config, how: Reading, split: str, numbering: Numbering, more: Sequence[Use] = ()) -> Dataset:
    """The files of a split, checked against what the config and `more` read of them, and against how all else is numbered."""
    uses = (*more, *data.uses(config.data, how.present, labels(config)), *(use.use() for use in how.items))
    dataset = data.open_dataset(paths := getattr(config.data, split), uses, config.data.retries, key := f"data.{split}")
    numbering.require(dataset.numbering, f"{key} ({', '.join(paths)})")
    if split == "train" and dataset.rows < config.data.batch_size:
        raise UserError(
            f"data.batch_size = {config.data.batch_size}, but data.train has {dataset.rows} rows in all; make it smaller"
        )
    return dataset


def _take_places(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take out of a state what goes by places in the catalogue; returns what of it is the model's."""
    state.pop("neighbours", None)
    return {name: state["model"].pop(name) for name in [*state["model"]] if name.startswith("head.candidates.")}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
