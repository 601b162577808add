"""What is in some Parquet files, or in the files of a config: columns, label over time, leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.config.load import nearest
from distrec.config.schema import Config, IdFeature
from distrec.data.files import Source, find_files
from distrec.errors import UserError
from distrec.profile.clocks import time_column
from distrec.profile.columns import Column, flatten, keys_of, read_columns
from distrec.profile.draft import look_at
from distrec.profile.footers import Facts, Survey, ranges, survey_files
from distrec.profile.leaks import SharedRows, feature_aucs, shared_rows, too_good
from distrec.profile.rates import Period, label_rates
from distrec.profile.retriever import description_of
from distrec.profile.roles import Purpose, Role, Roles
from distrec.profile.sample import Sample, take_sample
from distrec.profile.splits import SPLITS, Split, overlap

NO_LABEL = (
    "inspect looks for what gives a label away, and the rows of a retriever have none; distrec check reads its files, "
    "and for a column as a label: distrec inspect PARQUET --label COLUMN"
)


@dataclass(frozen=True)
class Inspection:
    """All that `distrec inspect` shows; shares are of the sampled rows of train."""

    warnings: tuple[str, ...]
    columns: Mapping[str, Column]
    roles: Roles
    rows: Mapping[Split, int]
    sampled: Mapping[Split, int]
    aucs: Mapping[str, float]  # single features
    out_of_range: Mapping[str, float]  # share of the sampled ids of index features that lie outside [0, rows)
    rates: Mapping[Split, tuple[Period, ...]]
    shared: Mapping[Split, SharedRows]


def inspect_files(paths: Sequence[str], label: str | None = None, time: str | None = None) -> Inspection:
    """Of Parquet files.

    Raises `UserError` as `distrec.profile.draft.look_at` does, and for a folder that was prepared for a retriever.
    """
    if label is None and description_of(paths) is not None:
        raise UserError(NO_LABEL)
    look = look_at(paths, label, time)
    said = [look.splits.warning] if look.splits.warning else []
    return _inspection(look.survey, look.splits.files, look.roles, look.columns, look.sample, {}, said)


def inspect_config(config: Config) -> Inspection:
    """Of the files and features that a config names.

    Raises `UserError` when nothing is found, a file is damaged, a column is missing or of a type that cannot be read, or the
    config is a retriever's.
    """
    if config.retrieval is not None:
        raise UserError(NO_LABEL)
    named: dict[Split, tuple[str, ...]] = {split: getattr(config.data, split) for split in SPLITS}
    retries = config.data.retries
    sources: dict[Split, list[Source]] = {
        split: find_files(paths, retries, f"data.{split}") for split, paths in named.items() if paths
    }
    unique = {source.path: source for found in sources.values() for source in found}
    survey = survey_files(list(unique.values()), "the config's data")
    place = {path: i for i, path in enumerate(unique)}
    files: dict[Split, tuple[int, ...]] = {split: tuple(place[s.path] for s in found) for split, found in sources.items()}
    sample = take_sample(survey, files["train"])
    time = time_column(survey.columns.values())
    roles = _roles_of(config, survey, time)
    said = [*_same_files(sources), *filter(None, [overlap(files, ranges(survey, time)) if time else ""])]
    tables = {
        f.column or f.name: config.tables[f.table].rows for f in _ids(config) if f.ids == "index" and f.table in config.tables
    }
    return _inspection(survey, files, roles, read_columns(sample), sample, tables, said)


def _inspection(
    survey: Survey,
    files: Mapping[Split, Sequence[int]],
    roles: Roles,
    columns: Mapping[str, Column],
    sample: Sample,
    tables: Mapping[str, int],
    said: Sequence[str],
) -> Inspection:
    others: dict[Split, Sample] = {split: take_sample(survey, chosen) for split, chosen in files.items() if split != "train"}
    samples: dict[Split, Sample] = {"train": sample, **others}
    compared = [facts.name for facts in survey.readable()]
    aucs = feature_aucs(sample, roles)
    shared: dict[Split, SharedRows] = {split: shared_rows(sample, other, compared) for split, other in others.items()}
    out_of_range = _out_of_range(sample, tables)
    return Inspection(
        warnings=(*said, *_auc_warnings(aucs), *_shared_warnings(shared), *_range_warnings(out_of_range, tables, columns)),
        columns=columns,
        roles=roles,
        rows={split: s.total for split, s in samples.items()},
        sampled={split: s.rows for split, s in samples.items()},
        aucs=aucs,
        out_of_range=out_of_range,
        rates={split: tuple(label_rates(s, roles.label, roles.time)) for split, s in samples.items()},
        shared=shared,
    )


def _ids(config: Config) -> list[IdFeature]:
    return [*config.features.sparse, *config.features.sequence]


def _roles_of(config: Config, survey: Survey, time: str | None) -> Roles:
    purposes: dict[str, Purpose] = {f.column or f.name: "dense" for f in config.features.dense}
    purposes.update((f.column or f.name, "id") for f in config.features.sparse)
    purposes.update((f.column or f.name, "history") for f in config.features.sequence)
    task, weight = config.tasks[0], config.data.weight
    _require(survey, (*purposes, task.label, *filter(None, (weight, config.data.group))))
    others: tuple[tuple[str | None, Purpose], ...] = ((time, "time"), (weight, "weight"), (task.label, "label"))
    purposes.update((name, purpose) for name, purpose in others if name is not None)
    by_column = {name: Role(name, purposes.get(name, "left out"), "by the config") for name in survey.columns}
    return Roles(by_column, task.label, task.kind, time, weight, config.data.group)


def _require(survey: Survey, names: Sequence[str]) -> None:
    for name in names:
        if name not in survey.columns:
            raise UserError(f"no column {name!r}, which the config names{nearest(name, list(survey.columns))}")
        facts = survey.columns[name]
        if facts.kind == "unreadable":
            raise UserError(f"column {name!r}, which the config names, cannot be read: {facts.fault or f'it is {facts.type}'}")


def _out_of_range(sample: Sample, tables: Mapping[str, int]) -> dict[str, float]:
    wanted = [sample.survey.columns[name] for name in tables]
    return {facts.name: _outside(facts, values, tables[facts.name]) for facts, values in sample.columns(wanted)}


def _outside(facts: Facts, values: pa.Array, rows: int) -> float:
    flat, _ = flatten(values, facts.kind)
    if facts.kind not in ("integer", "integers"):
        return 1.0
    keys = keys_of(flat.drop_null(), facts)
    return float(np.mean((keys < 0) | (keys >= rows))) if len(keys) else 0.0


def _same_files(sources: Mapping[Split, Sequence[Source]]) -> list[str]:
    train = {source.path for source in sources["train"]}
    return [
        f"{source.path} is in data.train and in data.{split}: the model is scored on rows that it learned"
        for split, found in sources.items()
        if split != "train"
        for source in found
        if source.path in train
    ]


def _auc_warnings(aucs: Mapping[str, float]) -> list[str]:
    return [f"feature {name!r}: {why}" for name, why in too_good(aucs).items()]


def _shared_warnings(shared: Mapping[Split, SharedRows]) -> list[str]:
    return [
        f"about {found.share:.1%} of the rows of {split} stand in train, too ({found.pairs:,} equal pairs in the samples)"
        for split, found in shared.items()
        if found.leaks
    ]


def _range_warnings(shares: Mapping[str, float], tables: Mapping[str, int], columns: Mapping[str, Column]) -> list[str]:
    """The footers know of ids that no sample meets."""
    said = []
    for name, share in shares.items():
        bounds, rows = columns[name].bounds, tables[name]
        if bounds is not None and not (bounds[0] >= 0 and bounds[1] < rows):
            seen = f"{share:.2%} of the sampled ones" if share else "none of the sampled ones"
            found = f"column {name!r} has ids from {bounds[0]:,} to {bounds[1]:,}"
            said.append(f"{found}, outside the {rows:,} rows of its table ({seen})")
    return said
