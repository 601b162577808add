"""Everything that a config for one's own data needs, decided; `toml_out` writes it down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from distrec.errors import UserError
from distrec.profile.clocks import time_column
from distrec.profile.columns import Column, read_columns
from distrec.profile.footers import Survey, survey
from distrec.profile.leaks import feature_aucs, too_good
from distrec.profile.numeric import DenseDraft, draft_dense
from distrec.profile.roles import Roles, assign
from distrec.profile.sample import Sample, take_sample
from distrec.profile.splits import Splits, split_files
from distrec.profile.tables import TableDraft, dim_for, draft_tables

MANY_FIELDS = 100  # from here on, all pairs of them cost more than a cross network
CROSS_RANK = 64
BATCHES = 200  # an epoch has so many, where the batch size allows
SMALLEST_BATCH, LARGEST_BATCH = 64, 4096


@dataclass(frozen=True)
class Look:
    """What was found out about some files."""

    survey: Survey
    splits: Splits
    sample: Sample  # of the rows to train on
    columns: Mapping[str, Column]
    roles: Roles
    aucs: Mapping[str, float]  # of single features


@dataclass(frozen=True)
class Draft:
    """A config before it is text."""

    name: str
    given: tuple[str, ...]
    look: Look
    tables: tuple[TableDraft, ...]
    dim: int
    dense: tuple[DenseDraft, ...]
    batch_size: int
    model: str
    params: Mapping[str, Any]
    model_reason: str


def look_at(paths: Sequence[str], label: str | None = None, time: str | None = None) -> Look:
    """Read footers and a sample of the files at `paths`, and say what each column is for.

    Raises `UserError` when nothing is found, a file is damaged, `time` is no column of times, or there is no label to train on.
    """
    found = survey(paths)
    clock = time_column(found.columns.values(), time)
    if time is not None and clock is None:
        raise UserError(
            f"--time {time!r} names no column of times or integers; there is: {', '.join(list(found.columns)[:20])}"
        )
    splits = split_files(found, paths, clock)
    sample = take_sample(found, splits.files["train"])
    columns = read_columns(sample)
    roles = assign(columns, found.columns, clock, label)
    return Look(found, splits, sample, columns, roles, feature_aucs(sample, roles))


def draft(paths: Sequence[str], label: str | None = None, time: str | None = None) -> Draft:
    """A config for the Parquet files at `paths`. Raises `UserError` as `look_at` does, and when no column holds ids."""
    look = look_at(paths, label, time)
    roles = look.roles.without(too_good(look.aucs))
    look = Look(look.survey, look.splits, look.sample, look.columns, roles, look.aucs)
    _require_ids(roles)
    tables = draft_tables(roles, look.columns)
    dim = dim_for(tables)
    dense = tuple(draft_dense(look.columns[role.column], role.reason) for role in roles.features("dense"))
    model, params, reason = _model(tables, roles, len(dense), dim)
    return Draft(
        name_of(paths[0]), tuple(paths), look, tuple(tables), dim, dense, batch_size(look.sample.total), model, params, reason
    )


def _require_ids(roles: Roles) -> None:
    """The pipeline overlaps lookups with all else: without a table there is nothing that it could run."""
    if not roles.features("id", "ids", "history"):
        others = [role for role in roles.by_column.values() if role.column != roles.label]
        why = "\n".join(f"  {role.column!r}: {role.reason or role.purpose}" for role in others)
        raise UserError(
            f"no column beside the label {roles.label!r} holds ids, and a run needs an embedding table\n{why}".rstrip()
        )


def name_of(path: str) -> str:
    """A run's name, from the path of its data."""
    stem = PurePosixPath(re.split(r"[*?\[]", path)[0].rstrip("/") or "data").name.removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-") or "my-data"


def batch_size(rows: int) -> int:
    """A power of two that gives an epoch some 200 steps, and never more rows than there are."""
    wanted = max(rows // BATCHES, 1)
    return min(max(1 << (wanted.bit_length() - 1), SMALLEST_BATCH), LARGEST_BATCH, rows)


def _model(tables: Sequence[TableDraft], roles: Roles, dense: int, dim: int) -> tuple[str, dict[str, Any], str]:
    pair = _target_and_history(tables, roles)
    fields = sum(len(table.columns) for table in tables) + bool(dense)
    if pair is not None and fields < MANY_FIELDS:
        target, history = pair
        params = {"targets": [target], "histories": [history], "attention_mlp": [32, 16], "top_mlp": [128, 64]}
        return "din", params, f"attention from {target} over {history}, which share a table"
    bottom = {"bottom_mlp": [64, dim]} if dense else {}
    if 2 <= fields < MANY_FIELDS:
        return "dlrm", {**bottom, "interaction": "dot", "top_mlp": [128, 64]}, "dot products of all pairs of fields"
    params = {**bottom, "interaction": "dcn", "cross_rank": CROSS_RANK, "top_mlp": [128, 64]}
    few = "a cross network, for there are no two fields to take products of"
    return "dlrm", params, few if fields < MANY_FIELDS else f"a cross network: {fields} fields have too many pairs"


def _target_and_history(tables: Sequence[TableDraft], roles: Roles) -> tuple[str, str] | None:
    for table in tables:
        purposes = {roles.by_column[name].purpose: name for name in reversed(table.columns)}
        if "id" in purposes and "history" in purposes:
            return purposes["id"], purposes["history"]
    return None
