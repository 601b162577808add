"""Which retrievers are measured on which data, and what others published for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BARS = "[BARS, Gowalla_m1](https://openbenchmark.github.io/BARS/)"
ZHAI = "[Zhai et al., ICML 2024](https://arxiv.org/abs/2402.17152), by the [authors' code]"
ZHAI += "(https://github.com/facebookresearch/generative-recommenders)"


@dataclass(frozen=True)
class Row:
    """A model: `configs/<config>.toml`."""

    config: str
    model: str
    published: Mapping[str, float] = field(default_factory=dict, hash=False)  # by metric, for the same model


@dataclass(frozen=True)
class Dataset:
    """Rows that compare."""

    title: str
    prepare: str  # command
    queries: int  # of data.test
    metrics: tuple[str, ...]  # as `distrec train` calls them, on data.test
    protocol: str  # Markdown: what is asked, what is hidden, and what chose the hyper-parameters
    rows: tuple[Row, ...]
    source: str  # Markdown: where the published figures are from
    other: Row | None = None  # a published model that distrec does not have; its config is empty


DATASETS = (
    Dataset(
        "Gowalla",
        "distrec prepare gowalla --out data/gowalla --source gowalla.zip",
        29_858,
        ("recall@20", "ndcg@20"),
        "Check-ins of 29,858 users at 40,981 places, in LightGCN's split: the held-out places of each user are to be found, "
        "7 of them on average, and places of the user's training rows are masked. All vectors have 64 dims. "
        "The split has no validation part, and **hyper-parameters and the number of epochs were chosen by looking at "
        "test**, as the published ones were, which are of the epoch that was best on test: both sides are a little too "
        "good, and beside each other they are comparable. For an honest choice of your own, "
        "`prepare gowalla --valid-share 0.1` holds out one training place of a tenth of the users.\n\n"
        "MF, YoutubeDNN and the two-tower of ids alone learn by the softmax over in-batch places with logQ correction. "
        "SimpleX is a two-tower as well, whose query has the user's history beside the user.",
        (
            Row("mf_gowalla", "MF", {"recall@20": 0.1627, "ndcg@20": 0.1378}),
            Row("youtube_dnn_gowalla", "YoutubeDNN", {"recall@20": 0.1754, "ndcg@20": 0.1473}),
            Row("simplex_gowalla", "SimpleX", {"recall@20": 0.1872, "ndcg@20": 0.1557}),
            Row("two_tower_gowalla", "two-tower, ids alone"),
        ),
        f"{BARS}; its MF is trained with BPR, ours is not",
    ),
    Dataset(
        "MovieLens-1M",
        "distrec prepare movielens-1m --task retrieval --out data/ml-1m --source ml-1m.zip",
        6_040,
        ("hit_rate@10", "ndcg@10", "hit_rate@50"),
        "Ratings of 6,040 users for 3,706 movies, leave-one-out: each user's last movie is to be found, the one before is that "
        "of the validation split, and all others are trained on, each with the movies that the user had rated before it. "
        "Movies that the user rated before the one asked for are masked. Hyper-parameters were chosen on the validation split, "
        "and so is the checkpoint of each run that is scored on test.\n\n"
        "All models but MF, which knows a user by id alone, read the last 50 movies, pooled over the last 1, 3, 10 and 50: the "
        "last few say most. Two things to know before reading small differences. Many ratings of a user carry the same second; "
        "here they stand in the order of the publisher's file, and papers differ in that. And leave-one-out trains on what "
        "other users did later, here as in papers.",
        (
            Row("mf_movielens", "MF"),
            Row("dssm_movielens", "DSSM"),
            Row("youtube_dnn_movielens", "YoutubeDNN"),
            Row("two_tower_movielens", "two-tower"),
        ),
        ZHAI,
        Row("", "SASRec", {"hit_rate@10": 0.2853, "ndcg@10": 0.1603, "hit_rate@50": 0.5474}),
    ),
)
