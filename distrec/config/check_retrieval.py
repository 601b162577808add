"""Rules of a retriever's config that join sections."""

from __future__ import annotations

from collections.abc import Iterator

from distrec.config.load import nearest
from distrec.config.retrieval import Negatives, Retrieval
from distrec.config.schema import Config, Task

MEASURES = ("recall", "ndcg", "hit_rate", "mrr", "coverage")


def metric_names(retrieval: Retrieval) -> tuple[str, ...]:
    """What an evaluation reports: `recall@20` and so on."""
    measures = MEASURES if retrieval.train_count is None else (*MEASURES, "popularity")
    return tuple(f"{measure}@{k}" for measure in measures for k in sorted(retrieval.ks))


def monitored(retrieval: Retrieval) -> str:
    """What picks the best checkpoint where the config does not say: NDCG at the largest k up to 20, else at the smallest."""
    return f"ndcg@{max((k for k in retrieval.ks if k <= 20), default=min(retrieval.ks))}"


def retrieval_faults(config: Config, retrieval: Retrieval) -> Iterator[str]:
    """Every fault, as a sentence that names the thing and the fix."""
    yield from _feature_faults(config, retrieval)
    yield from _negative_faults(retrieval, retrieval.negatives)
    yield from _correction_faults(retrieval, retrieval.negatives)
    monitor = config.evaluate.monitor
    if monitor is not None and monitor not in metric_names(retrieval):
        yield f"evaluate.monitor = {monitor!r} is no metric of a retriever{_instead(monitor, retrieval)}"
    if config.tasks != (Task(),):
        yield "[[tasks]] are for rankers: a retriever's rows have no label; remove them, or remove [retrieval]"
    if config.data.group is not None:
        yield "data.group is for a ranker's GAUC; remove it"
    if retrieval.mask == retrieval.targets:
        yield f"retrieval.mask names {retrieval.targets!r}, the targets: nothing would be left to find"


def _instead(monitor: str, retrieval: Retrieval) -> str:
    """What to write for a metric that there is not: another k is not the fault of its spelling."""
    names = metric_names(retrieval)
    measure, _, k = monitor.partition("@")
    if k.isdecimal() and int(k) > 0 and measure in {name.partition("@")[0] for name in names}:
        return f": retrieval.ks has {', '.join(map(str, sorted(retrieval.ks)))}; add {k} to it, or take one of them"
    return nearest(monitor, names)


def _feature_faults(config: Config, retrieval: Retrieval) -> Iterator[str]:
    features = (*config.features.dense, *config.features.sparse, *config.features.sequence)
    names = [f.name for f in features]
    for name in retrieval.item_features:
        if name not in names:
            yield f"retrieval.item_features names {name!r}, which is no feature{nearest(name, names)}"
    for feature in features:
        if (feature.column or feature.name) == retrieval.item_id and feature.name not in retrieval.item_features:
            yield (
                f"feature {feature.name!r} reads column {retrieval.item_id!r}, the item that is to be found, and describes the "
                "query: the model would see it; add it to retrieval.item_features"
            )
    if names and not set(names) - set(retrieval.item_features):
        yield "retrieval.item_features names every feature: none is left to describe the query"


def _negative_faults(retrieval: Retrieval, negatives: Negatives) -> Iterator[str]:
    if not (negatives.in_batch or negatives.sampled or negatives.per_row or negatives.column):
        yield "retrieval.negatives: there are none; set in_batch, sampled, per_row or column"
    if negatives.shared_by is not None and not negatives.sampled:
        yield "retrieval.negatives.shared_by says how many rows share the sampled items, and there are none; set sampled"
    if negatives.distribution == "popularity" and retrieval.train_count is None:
        yield 'retrieval.negatives.distribution = "popularity" needs retrieval.train_count, a column of the catalogue'
    if negatives.distribution == "hard" and not negatives.per_row:
        yield 'retrieval.negatives.distribution = "hard" needs per_row: each row has its own'
    if negatives.distribution == "hard" and negatives.sampled:
        yield "retrieval.negatives.sampled are shared by all rows, and what is hard for one is not for another; set it to 0"


def _correction_faults(retrieval: Retrieval, negatives: Negatives) -> Iterator[str]:
    """Cases in which nobody knows how often an item comes up."""
    if retrieval.loss == "softmax" and retrieval.log_q:
        if negatives.column is not None:
            yield "retrieval.log_q cannot know how the negatives of a column were drawn; set log_q = false"
        if negatives.distribution == "hard":
            yield "retrieval.log_q cannot correct hard negatives; set log_q = false"
