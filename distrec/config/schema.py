"""The words of a config file: every section, every key, its unit and its default, in one place.

Sections are frozen pydantic models that forbid unknown keys. Rules that need only one section live here as
validators; rules that join sections live in `distrec.config.check`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distrec.config.retrieval import Retrieval
from distrec.config.words import (
    SIZE,
    Count,
    Fraction,
    Name,
    NonNegativeFloat,
    Number,
    Paths,
    PositiveFloat,
    PositiveInt,
    Section,
    ShardingTypes,
    Share,
)


class Data(Section):
    """Where the rows are and how they become batches."""

    train: Paths = Field(min_length=1, description="Parquet files, folders or fsspec URLs to train on")
    valid: Paths = Field(default=(), description="evaluated during training; empty: no evaluation")
    test: Paths = Field(default=(), description="evaluated once, after training, on the best checkpoint")
    batch_size: PositiveInt = Field(default=1024, description="rows a rank and step")
    eval_batch_size: PositiveInt | None = Field(default=None, description="rows a rank when evaluating; default: batch_size")
    weight: str | None = Field(default=None, description="column of non-negative row weights; default: 1 for every row")
    group: str | None = Field(default=None, description="column that groups rows (a user id, say) for GAUC")
    shuffle: bool = Field(default=True, description="shuffle row groups, and rows within windows, anew each epoch")
    shuffle_window: PositiveInt = Field(default=65536, description="rows a rank shuffles together; bounds its memory")
    queue: PositiveInt = Field(default=4, description="batches decoded ahead by the background thread")
    retries: Count = Field(
        default=3, description="times a failed read of a remote file is tried again, after 1, 2, 4, … seconds"
    )
    verify_checksums: bool = Field(default=True, description="verify Parquet page checksums where a file has them")


class Table(Section):
    """An embedding table. Features refer to it by name; several may share it."""

    rows: PositiveInt = Field(description="number of embedding rows: the cardinality, or the hash size")
    dim: PositiveInt = Field(description="embedding dimension; a multiple of 4, as FBGEMM's kernels need")
    init: Literal["uniform", "normal"] = Field(default="uniform", description="distribution of the initial weights")
    init_scale: PositiveFloat | None = Field(
        default=None, description="bound of `uniform` or standard deviation of `normal`; default: 1/sqrt(rows)"
    )
    precision: Literal["fp32", "fp16"] = Field(default="fp32", description="type of the weights: what FBGEMM's kernels train")
    sharding: ShardingTypes = Field(default=(), description="sharding types the planner may use; empty: any")
    optimizer: SparseOptimizer | None = Field(default=None, description="overrides [optimizer.sparse] for this table")
    cache: Share | None = Field(
        default=None, description="GPU only: keep the table in host memory and this share of its rows cached on the GPU"
    )
    column_shards: PositiveInt | None = Field(
        default=None, description="parts that column-wise sharding cuts the dim into; default: 32 columns each, or halves"
    )

    @model_validator(mode="after")
    def _column_shards_fit_the_kernels(self) -> Table:
        if self.column_shards and self.dim % (4 * self.column_shards):
            raise ValueError(f"column_shards = {self.column_shards} does not cut dim = {self.dim} into multiples of 4 columns")
        return self

    @field_validator("dim")
    @classmethod
    def _dim_fits_the_kernels(cls, dim: int) -> int:
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 (FBGEMM's kernels need it); the next one is {dim + 4 - dim % 4}")
        return dim


class DenseFeature(Section):
    """A numeric column that goes into the model as it is, after its transform."""

    name: Name = Field(description="what the feature is called everywhere else")
    column: str | None = Field(default=None, description="Parquet column; default: the name")
    null: Number | Literal["error"] = Field(default="error", description="value for nulls and NaN; `error` refuses them")
    transform: Literal["none", "log1p", "signed_log1p"] = Field(
        default="none",
        description="log1p: ln(1 + max(x, 0)); signed_log1p: sign(x) ln(1 + |x|); applied before shift and scale",
    )
    shift: Number = Field(default=0.0, description="subtracted after the transform")
    scale: PositiveFloat = Field(default=1.0, description="divided by after the shift")


class IdFeature(Section):
    """What pooled and sequence features have in common: ids that select rows of a table."""

    name: Name = Field(description="what the feature is called everywhere else")
    column: str | None = Field(default=None, description="Parquet column, an id or a list of ids a row; default: the name")
    table: Name = Field(description="the embedding table, one of [tables]")
    ids: Literal["index", "hash"] = Field(
        default="index", description="index: in [0, rows); hash: any integer or string, hashed into [0, rows)"
    )
    out_of_range: Literal["error", "null", "hash"] = Field(
        default="error", description="what an `index` outside [0, rows) becomes: a stop, no id, or its hash"
    )
    pooling_factor: PositiveFloat | None = Field(
        default=None, description="mean number of ids a row, which the planner reckons with; default: max_length, or 1"
    )


class SparseFeature(IdFeature):
    """Ids whose embeddings are pooled into one vector a row."""

    pooling: Literal["sum", "mean"] = Field(default="sum", description="how a row's embeddings become one; no id gives zeros")
    max_length: PositiveInt | None = Field(
        default=None, description="keep the newest (last) ids of a longer list; default: all"
    )


class SequenceFeature(IdFeature):
    """An ordered history, oldest id first, whose embeddings reach the model one by one."""

    max_length: PositiveInt = Field(description="keep the newest (last) ids of a longer list")


class Features(Section):
    """What the model sees of a row."""

    dense: tuple[DenseFeature, ...] = Field(default=(), description="numbers; a bare name is a feature with its defaults")
    sparse: tuple[SparseFeature, ...] = Field(default=(), description="ids, pooled into one vector a row")
    sequence: tuple[SequenceFeature, ...] = Field(default=(), description="histories, one vector an id")

    @field_validator("dense", mode="before", json_schema_input_type=tuple[str | DenseFeature, ...])
    @classmethod
    def _a_bare_name_is_a_feature(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value


class Task(Section):
    """One label to predict. A model has one logit a task."""

    name: Name = Field(default="label", description="how metrics call it")
    label: str = Field(default="label", description="Parquet column")
    kind: Literal["binary", "regression"] = Field(
        default="binary", description="binary: BCE on logits, label 0 or 1; regression: MSE"
    )
    weight: PositiveFloat = Field(default=1.0, description="factor of this task's loss in the sum")


class Model(Section):
    """Which model, and its own parameters (checked by the model's `Params`)."""

    name: str = Field(description="a name from distrec.models, or package.module:Class")
    params: dict[str, Any] = Field(default_factory=dict, description="the model's own keys; see its section below")


class DenseOptimizer(Section):
    """Optimizer of the data-parallel part."""

    name: Literal["adam", "adamw", "adagrad", "sgd"] = Field(default="adam", description="which optimizer")
    lr: PositiveFloat = Field(default=1e-3, description="learning rate, before the schedule's factor")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="adam, adamw")
    momentum: Fraction = Field(default=0.0, description="sgd")
    eps: PositiveFloat = Field(default=1e-8, description="adam, adamw, adagrad")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="L2 penalty in the gradient; adamw: decoupled from it")


class SparseOptimizer(Section):
    """Optimizer of the embedding tables, fused into backward: only the rows of the batch are touched, but for `every_row`."""

    name: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = Field(
        default="rowwise_adagrad", description="which optimizer; rowwise_adagrad keeps one number a row, adagrad one a weight"
    )
    lr: PositiveFloat = Field(default=1e-2, description="learning rate, before the schedule's factor")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="adam")
    eps: PositiveFloat = Field(default=1e-8, description="rowwise_adagrad, adagrad, adam")
    weight_decay: NonNegativeFloat = Field(
        default=0.0,
        description="rowwise_adagrad: L2 penalty in the gradient of each row that a step looks up; "
        "on CPU the table is replicated, for want of such a kernel; adam with every_row: in the gradient of all rows",
    )
    every_row: bool = Field(
        default=False,
        description="adam: each step moves every row, as torch.optim.Adam does: a row's momentum carries it on through steps "
        "that do not look it up. As papers' code often has it; the table is replicated, and each step goes over all of it",
    )

    @model_validator(mode="after")
    def _only_adam_moves_every_row(self) -> SparseOptimizer:
        if self.every_row and self.name != "adam":
            raise ValueError(
                f'{self.name} has no momentum to move a row by that no one looks up; remove every_row, or use "adam"'
            )
        return self

    @model_validator(mode="after")
    def _fused_kernels_decay_by_rowwise_adagrad_only(self) -> SparseOptimizer:
        if self.weight_decay and self.name != "rowwise_adagrad" and not self.every_row:
            raise ValueError(f'FBGEMM has no L2 penalty for {self.name}; set weight_decay to 0, or name to "rowwise_adagrad"')
        return self


class Schedule(Section):
    """Factor on every learning rate as a function of the step."""

    warmup_steps: Count = Field(default=0, description="linear from 0 to 1 over these steps")
    hold_steps: Count = Field(default=0, description="steps at 1 between warm-up and decay")
    decay: Literal["none", "linear", "cosine"] = Field(default="none", description="shape of the way down, after hold_steps")
    decay_steps: PositiveInt | None = Field(default=None, description="steps that the way down to final_factor takes")
    final_factor: Fraction = Field(default=0.0, description="factor at the end of the decay, and after it")

    @model_validator(mode="after")
    def _decay_has_a_length(self) -> Schedule:
        if self.decay != "none" and self.decay_steps is None:
            raise ValueError(f'decay = "{self.decay}" needs decay_steps')
        return self


class Optimizer(Section):
    """How parameters move."""

    dense: DenseOptimizer = DenseOptimizer()
    sparse: SparseOptimizer = SparseOptimizer()
    schedule: Schedule = Schedule()


class Profile(Section):
    """Steps to record for Perfetto, into the run folder: `profile/rank-N.json.gz`."""

    start: PositiveInt = Field(
        default=10, description="steps, since the run was started or resumed, before the first one that is recorded"
    )
    steps: PositiveInt = Field(default=5, description="how many are recorded; each is some MB")
    ranks: tuple[Count, ...] = Field(default=(0,), min_length=1, description="which ranks record")


class Train(Section):
    """The loop."""

    epochs: PositiveInt | None = Field(default=None, description="passes over data.train; default 1 when steps is not given")
    steps: PositiveInt | None = Field(default=None, description="stop after this many steps, whatever the epoch")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the initial weights and the order of rows")
    start_from: str | None = Field(
        default=None,
        description="folder of another run of the same model and tables: begin with the weights and the optimizer state of its "
        "best checkpoint, else its newest; to go on with new data, say, whose ids mean the same",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda when there is one")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="autocast type of the dense part; bf16 on GPU only")
    clip_norm: PositiveFloat | None = Field(
        default=None, description="largest norm of the gradient: of the dense part and of tables with every_row, taken together"
    )
    non_finite: Literal["stop", "skip"] = Field(default="stop", description="a NaN or infinite loss: stop, or skip that batch")
    log_every: PositiveInt = Field(default=50, description="steps between scalars")
    profile: Profile | None = Field(
        default=None,
        description="record `steps` steps after `start` ones, on `ranks`, for Perfetto: { start = 10, steps = 5, ranks = [0] }",
    )
    timeout_s: PositiveInt = Field(default=600, description="seconds after which a collective that a rank does not join fails")
    pipeline: Literal["sparse_dist", "prefetch_sparse_dist"] = Field(
        default="sparse_dist",
        description="TorchRec's; prefetch_sparse_dist (GPU only) also fetches the next batch's rows into the caches",
    )


class Evaluate(Section):
    """Evaluation on data.valid during training."""

    every_steps: PositiveInt | None = Field(default=None, description="default: at the end of each epoch")
    monitor: str | None = Field(
        default=None, description="metric of the first task that picks the best checkpoint; default auc or rmse"
    )
    patience: PositiveInt | None = Field(default=None, description="stop after this many evaluations without a better one")


class Checkpoint(Section):
    """What is kept to resume from."""

    every_steps: PositiveInt | None = Field(default=None, description="default: at each evaluation")
    keep: PositiveInt = Field(default=2, description="newest checkpoints kept, beside the best one")


class Comms(Section):
    """Types that looked-up vectors and their gradients have on the way between ranks; tables and models keep theirs."""

    forward: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of vectors; bf16 on GPU only")
    backward: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of their gradients; bf16 on GPU only, and there better: fp16 rounds small ones to 0"
    )


class Embedding(Section):
    """How tables are laid over ranks."""

    memory: str | None = Field(default=None, description='bytes a rank may use for tables, "12GB" say; default: measured')
    host_memory: str | None = Field(
        default=None, description='bytes of host memory a rank may use beside its GPU, for tables with a `cache`, "200GB" say'
    )
    sharding: ShardingTypes = Field(
        default=(), description="sharding types the planner may use for tables that name none; empty: any"
    )
    plan: str | None = Field(
        default=None, description="a plan that `distrec plan --save` wrote; default: one made at the start"
    )
    comms: Comms = Comms()
    replicas: PositiveInt = Field(
        default=1,
        description="GPU only: copies of the sharded tables, each on its own ranks, neighbours in number (2D parallel); "
        "each updates itself with its own ranks' rows until they are averaged, so only sgd learns what one copy would",
    )
    sync_every: PositiveInt = Field(
        default=1, description="steps between averagings of the replicas; also before each evaluation and checkpoint"
    )

    @field_validator("memory", "host_memory", mode="before")
    @classmethod
    def _memory_is_a_size(cls, memory: Any) -> Any:
        if memory is not None and not SIZE.fullmatch(str(memory).strip()):
            raise ValueError(f"{memory!r} is no size; write it as '12GB', with one of KB, MB, GB, TB")
        return memory


class Config(Section):
    """A run."""

    name: Name = Field(description="of the run, and of its folder under runs/")
    data: Data
    tables: dict[Name, Table] = Field(default_factory=dict, description="embedding tables by name")
    features: Features
    tasks: tuple[Task, ...] = Field(default=(Task(),), min_length=1, description="labels to predict, a logit each")
    retrieval: Retrieval | None = Field(default=None, description="set for a retriever; without it the model is a ranker")
    model: Model
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    embedding: Embedding = Embedding()
    folder: str | None = Field(default=None, description="run folder; default: runs/<name>")

    @property
    def run_folder(self) -> str:
        """Where the run writes."""
        return self.folder or f"runs/{self.name}"


Table.model_rebuild()
