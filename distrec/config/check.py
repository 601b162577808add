"""Rules that join sections of a config. All faults are reported at once, each with its fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from distrec.config.check_retrieval import monitored, retrieval_faults
from distrec.config.load import nearest
from distrec.config.schema import Config, IdFeature
from distrec.errors import UserError


def check(config: Config) -> None:
    """Raise a `UserError` that lists every fault, if there is one."""
    if faults := list(find_faults(config)):
        raise UserError("\n".join(["the config contradicts itself:", *(f"  {fault}" for fault in faults)]))


def find_faults(config: Config) -> Iterator[str]:
    """Every fault between sections, as a sentence that names the thing and the fix."""
    yield from _duplicates("feature", (f.name for f in _all_features(config)))
    yield from _duplicates("task", (t.name for t in config.tasks))
    yield from _missing_tables(config)
    yield from _unused_tables(config)
    yield from _huge_tables(config)
    yield from _half_precision_faults(config)
    if config.retrieval is None:
        yield from _label_leaks(config)
        yield from _metric_faults(config)
    else:
        yield from retrieval_faults(config, config.retrieval)
    yield from _evaluation_faults(config)
    yield from _device_faults(config)
    yield from _pipeline_faults(config)
    yield from _replica_faults(config)
    if not list(_all_features(config)):
        yield "features: there is none; name at least one dense, sparse or sequence feature"


def _all_features(config: Config) -> list:
    return [*config.features.dense, *config.features.sparse, *config.features.sequence]


def _id_features(config: Config) -> list[IdFeature]:
    return [*config.features.sparse, *config.features.sequence]


def _duplicates(kind: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} {name!r} is declared {count} times; names must be unique"


def _missing_tables(config: Config) -> Iterator[str]:
    for feature in _id_features(config):
        if feature.table not in config.tables:
            hint = nearest(feature.table, list(config.tables))
            yield f"feature {feature.name!r} names table {feature.table!r}, which is not declared{hint}"


def _unused_tables(config: Config) -> Iterator[str]:
    used = {feature.table for feature in _id_features(config)}
    for name in config.tables:
        if name not in used:
            yield f"table {name!r} is used by no feature; remove [tables.{name}] or name it in a feature"


def _huge_tables(config: Config) -> Iterator[str]:
    for name, table in config.tables.items():
        if table.rows > MAX_ROWS:
            yield f"table {name!r} has {table.rows} rows; ids address at most {MAX_ROWS}: split the table"


def _half_precision_faults(config: Config) -> Iterator[str]:
    for name, table in config.tables.items():
        if (table.optimizer or config.optimizer.sparse).every_row and table.precision != "fp32":
            yield f"table {name!r}: every_row needs weights in fp32; set tables.{name}.precision to it, or remove every_row"


def _label_leaks(config: Config) -> Iterator[str]:
    labels = {task.label: task.name for task in config.tasks}
    for feature in _all_features(config):
        column = feature.column or feature.name
        if column in labels:
            task = labels[column]
            yield f"feature {feature.name!r} reads column {column!r}, the label of task {task!r}: the model would see it"


def _metric_faults(config: Config) -> Iterator[str]:
    first, monitor = config.tasks[0], config.evaluate.monitor
    known = METRICS[first.kind] + (("gauc",) if config.data.group and first.kind == "binary" else ())
    if monitor is not None and monitor not in known:
        hint = "; data.group names no column" if monitor == "gauc" and not config.data.group else nearest(monitor, known)
        yield f"evaluate.monitor = {monitor!r} is no metric of task {first.name!r}{hint}"


def _evaluation_faults(config: Config) -> Iterator[str]:
    if (config.evaluate.every_steps or config.evaluate.patience) and not config.data.valid:
        yield "evaluate needs rows to evaluate on; name them in data.valid"


def _device_faults(config: Config) -> Iterator[str]:
    if config.train.device == "cpu":
        if config.train.precision == "bf16":
            yield 'train.precision = "bf16" needs a GPU; use "fp32" with train.device = "cpu"'
        yield from needs_a_gpu(config)


def needs_a_gpu(config: Config) -> Iterator[str]:
    """What a config asks for that cannot be had on CPU."""
    for way, kind in config.embedding.comms:
        if kind == "bf16":
            yield f'embedding.comms.{way} = "bf16" needs a GPU; TorchRec sends fp32 and fp16 between CPU ranks'
    if config.train.pipeline == "prefetch_sparse_dist":
        yield 'train.pipeline = "prefetch_sparse_dist" needs a GPU, to fetch rows into; use "sparse_dist"'
    if config.embedding.replicas > 1:
        yield f"embedding.replicas = {config.embedding.replicas} needs GPUs; TorchRec has no 2D parallelism on CPU"


def _pipeline_faults(config: Config) -> Iterator[str]:
    if config.train.pipeline == "prefetch_sparse_dist" and all(table.cache is None for table in config.tables.values()):
        yield 'train.pipeline = "prefetch_sparse_dist" has nothing to fetch: no table has a `cache`; use "sparse_dist"'


def _replica_faults(config: Config) -> Iterator[str]:
    """What TorchRec's averaging of replicas leaves out, so that they would drift apart."""
    if config.embedding.replicas == 1:
        if config.embedding.sync_every > 1:
            yield f"embedding.sync_every = {config.embedding.sync_every} does nothing without embedding.replicas"
        return
    for name, table in config.tables.items():
        if table.cache is not None:
            yield f"table {name!r} has a cache, which embedding.replicas does not average; remove one of them"
        if (table.optimizer or config.optimizer.sparse).name == "adam":
            yield f"table {name!r} is trained by adam, whose state embedding.replicas does not average; use adagrad, say"


def monitored_metric(config: Config) -> str:
    """The metric that picks the best checkpoint."""
    if config.retrieval is not None:
        return config.evaluate.monitor or monitored(config.retrieval)
    first = config.tasks[0]
    prefix = f"{first.name}/" if len(config.tasks) > 1 else ""
    return prefix + (config.evaluate.monitor or METRICS[first.kind][0])


MAX_ROWS = 1 << 40  # of a table, as far as distrec.data.hashing spreads ids over it
METRICS = {
    "binary": ("auc", "ne", "logloss", "calibration"),
    "regression": ("rmse", "mse", "mae"),
}
