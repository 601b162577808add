"""The words of `[retrieval]`: what makes a run a retriever."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distrec.config.words import Count, Name, NonNegativeFloat, Paths, PositiveFloat, PositiveInt, Section


class Negatives(Section):
    """Which items a query is trained to score below its own."""

    in_batch: bool = Field(default=True, description="the items of the step's other rows")
    cross_rank: bool = Field(default=True, description="share items among ranks: those of rows, and those of `sampled`")
    sampled: Count = Field(default=0, description="catalogue items drawn a step and rank, shared by all its rows")
    shared_by: PositiveInt | None = Field(
        default=None,
        description="draw `sampled` items anew for every so many rows, which alone share them: as little is reckoned, and more "
        "items learn at a step, each with less noise; they stay on their rank",
    )
    per_row: Count = Field(default=0, description="catalogue items drawn for each row alone")
    distribution: Literal["uniform", "popularity", "hard"] = Field(
        default="uniform",
        description="what items are drawn by; popularity: train_count^alpha; hard (per_row only): from the pool nearest to the "
        "row's own item",
    )
    alpha: NonNegativeFloat = Field(default=0.75, description="exponent of popularity")
    column: str | None = Field(default=None, description="list column of data.train: the row's own negatives, item ids")
    column_length: PositiveInt | None = Field(default=None, description="the first so many of `column` are used")
    not_in: str | None = Field(
        default=None, description="list column of data.train: other items of the row's user, which are no negatives of the row"
    )
    pool: PositiveInt = Field(
        default=50, description="hard: the nearest items that are drawn from; 4 bytes an item each, on every rank"
    )
    refresh_steps: PositiveInt = Field(
        default=500,
        description="hard: steps between searches for the nearest items, each of which scores every item against every other, "
        "the ranks sharing them: on a large catalogue, seldom",
    )

    @model_validator(mode="after")
    def _column_has_a_length(self) -> Negatives:
        if (self.column is None) != (self.column_length is None):
            raise ValueError("column and column_length go together: which list, and how many of its items a row")
        return self

    def groups(self, rows: int) -> int:
        """In how many groups a batch's rows stand, each with draws of its own."""
        return -(-rows // (self.shared_by or 1))

    def draws(self, rows: int) -> int:
        """Items drawn for a batch of so many rows that several rows share."""
        return self.sampled * (1 if self.shared_by is None else self.groups(rows))


class Retrieval(Section):
    """Makes a run a retriever: a query vector, an item vector, and a catalogue to search."""

    items: Paths = Field(min_length=1, description="the catalogue, one row an item: Parquet files, folders or fsspec URLs")
    item_id: str = Field(default="item_id", description="id column in the catalogue and in data.train; integers or strings")
    item_features: tuple[Name, ...] = Field(
        min_length=1, description="features that describe the item, in data.train and the catalogue; others describe the query"
    )
    loss: Literal["softmax", "bpr", "bce", "ccl"] = Field(
        default="softmax",
        description="softmax: list-wise; bpr: pair-wise; bce: point-wise; ccl: SimpleX's cosine contrastive loss",
    )
    temperature: PositiveFloat = Field(
        default=0.07, description="scores are divided by it, but for ccl; 1 for dot products of vectors of free length"
    )
    log_q: bool = Field(default=True, description="softmax: correct candidates for how often they come up")
    log_q_buckets: PositiveInt = Field(
        default=2**20, description="bounds the memory of the frequency estimate; a smaller catalogue takes one bucket an item"
    )
    margin: Annotated[float, Field(ge=-1, lt=1)] = Field(
        default=0.8, description="ccl: cosine under which a negative is at rest"
    )
    negative_weight: PositiveFloat = Field(default=1.0, description="bce, ccl: weight of the mean over negatives")
    targets: str = Field(
        default="targets", description="list column of data.valid and data.test: items that a query should find"
    )
    mask: str | None = Field(
        default=None, description="list column there: items left out of the query's ranking; default: none is"
    )
    ks: tuple[PositiveInt, ...] = Field(default=(10, 20, 50), min_length=1, description="lengths of the lists that are scored")
    rank_among: PositiveInt | None = Field(
        default=None, description="also rank each target among so many sampled items, for papers that do; no full ranking"
    )
    own_id: str | None = Field(
        default=None, description="catalogue column of the ids that exports and indexes answer with; default: item_id"
    )
    query_id: str | None = Field(
        default=None,
        description="column of data.valid and data.test that names a query, for `distrec recall --query`: raw_user_id, say",
    )
    title: str | None = Field(default=None, description="catalogue column that people know an item by")
    category: str | None = Field(default=None, description="catalogue column that groups items")
    train_count: str | None = Field(
        default=None, description="catalogue column: how often an item comes up in data.train; needed by `popularity`"
    )
    negatives: Negatives = Negatives()
