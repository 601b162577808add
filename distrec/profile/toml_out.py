"""A draft -> TOML with the reason of every decision beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from distrec.environment import component_path
from distrec.profile.columns import Column
from distrec.profile.draft import Draft
from distrec.profile.numeric import DenseDraft
from distrec.profile.roles import Role
from distrec.profile.splits import SPLITS
from distrec.profile.tables import FEWEST_ROWS, MOST_ROWS, NARROWEST, WIDEST, TableDraft, unique_names
from distrec.profile.toml_lines import commented, inline, listed, one_line, quoted, remark, value_of

LONGEST_HISTORY = 50
LONGEST_LIST = 100
OTHER_LABELS = (
    "Other labels, by their names and values. To predict one, too, uncomment its task: the losses are added, metrics are named "
    'by task, and those of the first pick the best step. The model "mmoe" has a tower for each task, and params of its own.'
)


def to_toml(draft: Draft) -> str:
    """The whole config as text that `distrec.config.load` reads."""
    parts = [_head(draft), _data(draft), _tables(draft), _features(draft), _tasks(draft), _model(draft), _training(draft)]
    return "\n".join("\n".join(part) + "\n" for part in map(list, parts))


def notes(draft: Draft) -> list[str]:
    """What a person should hear at once, beside the config."""
    look = draft.look
    rows = f"{look.sample.rows:,} of {look.sample.total:,} rows" if not look.sample.whole else f"all {look.sample.total:,} rows"
    files = len(look.splits.files["train"])
    said = [f"looked at {rows} to train on, in {files} file{'s' * (files > 1)}; label {look.roles.label!r} ({look.roles.kind})"]
    said.append(f"split: {look.splits.reason}")
    if look.splits.warning:
        said.append(f"warning: {look.splits.warning}")
    said += [f"warning: {w}" for w in _label_warnings(draft)]
    said += [f"left out {role.column!r}: {role.reason}" for role in look.roles.features("left out")]
    if others := ", ".join(map(repr, look.roles.other_labels)):
        said.append(f"tasks for {others} stand in the config, commented out")
    return [one_line(line) for line in said]


def _head(draft: Draft) -> Iterator[str]:
    look = draft.look
    seen = f"{look.sample.rows:,} of {look.sample.total:,} rows" if not look.sample.whole else f"all {look.sample.total:,} rows"
    yield one_line(f"# Drafted by `distrec init {' '.join(map(shlex.quote, draft.given))}`")
    yield f"# from {seen} to train on, and the footers of all files. Read the reasons, and change what you know better."
    yield from ("#", "# distrec check my.toml", "# distrec train my.toml")
    yield one_line(f"# torchx run -s local_cwd {shlex.quote(component_path())}:train --config my.toml -j 1x2")
    yield f"name = {quoted(draft.name)}"


def _data(draft: Draft) -> Iterator[str]:
    look = draft.look
    yield "[data]"
    yield from remark(f"The split: {look.splits.reason}.")
    if look.splits.warning:
        yield from remark(f"WARNING: {look.splits.warning}.")
    for split in SPLITS:
        if paths := look.splits.paths.get(split):
            yield from _paths(split, paths)
        elif split == "valid":
            yield '# valid = "…"'
    yield commented(f"batch_size = {draft.batch_size}", "rows a rank")
    if look.roles.weight is not None:
        yield commented(f"weight = {quoted(look.roles.weight)}", "by its name, weighs the rows")
    if look.roles.group is not None and look.roles.kind == "binary":
        yield commented(f"group = {quoted(look.roles.group)}", "also report GAUC, which ranks within each of them")


def _paths(split: str, paths: tuple[str, ...]) -> Iterator[str]:
    if len(paths) == 1:
        yield f"{split} = {quoted(paths[0])}"
        return
    yield f"{split} = ["
    yield from (f"  {quoted(path)}," for path in paths)
    yield "]"


def _tables(draft: Draft) -> Iterator[str]:
    if not draft.tables:
        return
    yield "[tables]"
    yield "# rows: the largest id + 1. Where ids are sparse, text, or of unknown bounds, they are hashed into a power of two"
    yield f"# that gives each id two rows or more, from {FEWEST_ROWS:,} to {MOST_ROWS:,}."
    yield f"# dim: one for all, the fourth root of the largest table's rows up to a multiple of 8, {NARROWEST} to {WIDEST}"
    for table in draft.tables:
        yield commented(f"{table.name} = {{ rows = {table.rows}, dim = {draft.dim} }}", table.reason)


def _features(draft: Draft) -> Iterator[str]:
    roles, names = draft.look.roles, feature_names(draft)
    tables = {column: table for table in draft.tables for column in table.columns}
    yield "[features]"
    dense_rules = [
        "nulls and NaN stop the run, but where `null` says what stands for them: the median",
        "shift and scale: mean and standard deviation after the transform",
    ]
    yield from listed("dense", dense_rules, (dense_line(d, names) for d in draft.dense))
    pooled, ordered = roles.features("id", "ids"), roles.features("history")
    sparse_rule = "integers that no name tells to be quantities are taken for ids: if one counts or measures, make it dense"
    yield from listed("sparse", [sparse_rule], (_sparse(role, tables[role.column], names, draft) for role in pooled))
    yield from listed("sequence", ["oldest id first"], (_sequence(role, tables[role.column], names, draft) for role in ordered))
    others = [role for role in roles.features("left out", "time") if role.column != roles.label]
    if others:
        yield "# Left out:"
        yield from (one_line(f"#   {quoted(role.column)}: {role.reason}") for role in others)


def feature_names(draft: Draft) -> dict[str, str]:
    """Column -> the name of its feature."""
    return unique_names(role.column for role in draft.look.roles.features())


def dense_line(dense: DenseDraft, names: Mapping[str, str]) -> str:
    """A dense feature in its list; `names` of features by column."""
    keys = named(dense.column, names)
    if dense.null is not None:
        keys["null"] = dense.null
    if dense.transform != "none":
        keys["transform"] = dense.transform
    if (dense.shift, dense.scale) != (0.0, 1.0):
        keys |= {"shift": dense.shift, "scale": dense.scale}
    return commented(f"{quoted(keys['name']) if len(keys) == 1 else inline(keys)},", dense.reason)


def _sparse(role: Role, table: TableDraft, names: Mapping[str, str], draft: Draft) -> str:
    keys = named(role.column, names) | _lookup(table)
    lengths = draft.look.columns[role.column].lengths
    reasons = [role.reason] if role.reason else []
    if lengths is not None:
        keys["pooling"] = "mean"
        reasons.append(f"{lengths.mean:.1f} ids a row")
    if lengths is not None and lengths.longest > LONGEST_LIST:
        keys["max_length"] = LONGEST_LIST
    return commented(f"{inline(keys)},", ", ".join(reasons))


def _sequence(role: Role, table: TableDraft, names: Mapping[str, str], draft: Draft) -> str:
    lengths = draft.look.columns[role.column].lengths
    assert lengths is not None, role.column
    keys = named(role.column, names) | _lookup(table) | {"max_length": min(max(lengths.p99, 1), LONGEST_HISTORY)}
    return commented(f"{inline(keys)},", f"{lengths.mean:.1f} ids a row, {lengths.empty:.0%} empty")


def _lookup(table: TableDraft) -> dict[str, Any]:
    return {"table": table.name} | ({"ids": "hash"} if table.ids == "hash" else {})


def named(column: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The keys that say which column a feature reads."""
    return {"name": names[column]} | ({"column": column} if names[column] != column else {})


def _tasks(draft: Draft) -> Iterator[str]:
    roles, columns = draft.look.roles, draft.look.columns
    names = unique_names([roles.label, *roles.other_labels])
    yield "[[tasks]]"
    for warning in _label_warnings(draft):
        yield from remark(f"WARNING: {warning}.")
    yield from _task(names[roles.label], columns[roles.label], roles.kind)
    if roles.other_labels:
        yield from ("", *remark(OTHER_LABELS))
    for label in roles.other_labels:
        yield from (f"# {line}" for line in ("[[tasks]]", *_task(names[label], columns[label], "binary")))


def _task(name: str, label: Column, kind: str) -> Iterator[str]:
    yield f"name = {quoted(name)}"
    yield f"label = {quoted(label.name)}"
    yield commented(f"kind = {quoted(kind)}", _label_says(label, kind))


def _label_says(column: Column, kind: str) -> str:
    assert column.moments is not None
    assert column.bounds is not None
    if kind == "binary":
        return f"{column.moments.shape.mean:.2%} are 1"
    low, high = column.bounds
    return f"from {low:g} to {high:g}, mean {column.moments.shape.mean:.4g}, standard deviation {column.moments.shape.std:.4g}"


def _label_warnings(draft: Draft) -> Iterator[str]:
    column = draft.look.columns[draft.look.roles.label]
    if column.distinct.seen == 1:
        yield f"the label is always {column.top[0][0]}: there is nothing to learn"
    elif column.distinct.seen == 2 and draft.look.roles.kind == "regression":
        values = " and ".join(sorted(value for value, _ in column.top))
        yield f"the label has the two values {values}; to predict a probability, write them as 0 and 1"


def _model(draft: Draft) -> Iterator[str]:
    yield "[model]"
    yield commented(f"name = {quoted(draft.model)}", draft.model_reason)
    if draft.params:
        names = feature_names(draft)
        pairs = {
            key: [names[c] for c in value] if key in ("targets", "histories") else value for key, value in draft.params.items()
        }
        yield from ("", "[model.params]", *(f"{key} = {value_of(value)}" for key, value in pairs.items()))


def _training(draft: Draft) -> Iterator[str]:
    yield "[optimizer]"
    yield 'dense = { name = "adam", lr = 1e-3 }'
    yield 'sparse = { name = "rowwise_adagrad", lr = 0.02 }'
    yield from ("", "[train]", "epochs = 1")
