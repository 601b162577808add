"""A draft -> TOML with the reason of every decision beside it."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distrec.environment import component_path
from distrec.profile.columns import Column
from distrec.profile.draft import Draft
from distrec.profile.numeric import DenseDraft
from distrec.profile.roles import Role
from distrec.profile.splits import SPLITS
from distrec.profile.tables import FEWEST_ROWS, MOST_ROWS, NARROWEST, WIDEST, TableDraft, unique_names

LONGEST_HISTORY = 50
LONGEST_LIST = 100
COMMENT_AT = 35  # column
WIDTH = 110  # of remarks
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
    return [_one_line(line) for line in said]


def _head(draft: Draft) -> Iterator[str]:
    look = draft.look
    seen = f"{look.sample.rows:,} of {look.sample.total:,} rows" if not look.sample.whole else f"all {look.sample.total:,} rows"
    yield _one_line(f"# Drafted by `distrec init {' '.join(map(shlex.quote, draft.given))}`")
    yield f"# from {seen} to train on, and the footers of all files. Read the reasons, and change what you know better."
    yield from ("#", "# distrec check my.toml", "# distrec train my.toml")
    yield _one_line(f"# torchx run -s local_cwd {shlex.quote(component_path())}:train --config my.toml -j 1x2")
    yield f"name = {quoted(draft.name)}"


def _data(draft: Draft) -> Iterator[str]:
    look = draft.look
    yield "[data]"
    yield from _remark(f"The split: {look.splits.reason}.")
    if look.splits.warning:
        yield from _remark(f"WARNING: {look.splits.warning}.")
    for split in SPLITS:
        if paths := look.splits.paths.get(split):
            yield from _paths(split, paths)
        elif split == "valid":
            yield '# valid = "…"'
    yield _commented(f"batch_size = {draft.batch_size}", "rows a rank")
    if look.roles.weight is not None:
        yield _commented(f"weight = {quoted(look.roles.weight)}", "by its name, weighs the rows")
    if look.roles.group is not None and look.roles.kind == "binary":
        yield _commented(f"group = {quoted(look.roles.group)}", "also report GAUC, which ranks within each of them")


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
        yield _commented(f"{table.name} = {{ rows = {table.rows}, dim = {draft.dim} }}", table.reason)


def _features(draft: Draft) -> Iterator[str]:
    roles, names = draft.look.roles, feature_names(draft)
    tables = {column: table for table in draft.tables for column in table.columns}
    yield "[features]"
    dense_rules = [
        "nulls and NaN stop the run, but where `null` says what stands for them: the median",
        "shift and scale: mean and standard deviation after the transform",
    ]
    yield from _list("dense", dense_rules, (_dense(d, names) for d in draft.dense))
    pooled, ordered = roles.features("id", "ids"), roles.features("history")
    sparse_rule = "integers that no name tells to be quantities are taken for ids: if one counts or measures, make it dense"
    yield from _list("sparse", [sparse_rule], (_sparse(role, tables[role.column], names, draft) for role in pooled))
    yield from _list("sequence", ["oldest id first"], (_sequence(role, tables[role.column], names, draft) for role in ordered))
    others = [role for role in roles.features("left out", "time") if role.column != roles.label]
    if others:
        yield "# Left out:"
        yield from (_one_line(f"#   {quoted(role.column)}: {role.reason}") for role in others)


def feature_names(draft: Draft) -> dict[str, str]:
    """Column -> the name of its feature."""
    return unique_names(role.column for role in draft.look.roles.features())


def _list(name: str, rule: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    items = list(lines)
    if items:
        yield from (f"{name} = [", *(f"  # {line}" for line in rule), *(f"  {item}" for item in items), "]")


def _dense(dense: DenseDraft, names: Mapping[str, str]) -> str:
    keys = _named(dense.column, names)
    if dense.null is not None:
        keys["null"] = dense.null
    if dense.transform != "none":
        keys["transform"] = dense.transform
    if (dense.shift, dense.scale) != (0.0, 1.0):
        keys |= {"shift": dense.shift, "scale": dense.scale}
    return _commented(f"{quoted(keys['name']) if len(keys) == 1 else _inline(keys)},", dense.reason)


def _sparse(role: Role, table: TableDraft, names: Mapping[str, str], draft: Draft) -> str:
    keys = _named(role.column, names) | _lookup(table)
    lengths = draft.look.columns[role.column].lengths
    reasons = [role.reason] if role.reason else []
    if lengths is not None:
        keys["pooling"] = "mean"
        reasons.append(f"{lengths.mean:.1f} ids a row")
    if lengths is not None and lengths.longest > LONGEST_LIST:
        keys["max_length"] = LONGEST_LIST
    return _commented(f"{_inline(keys)},", ", ".join(reasons))


def _sequence(role: Role, table: TableDraft, names: Mapping[str, str], draft: Draft) -> str:
    lengths = draft.look.columns[role.column].lengths
    assert lengths is not None, role.column
    keys = _named(role.column, names) | _lookup(table) | {"max_length": min(max(lengths.p99, 1), LONGEST_HISTORY)}
    return _commented(f"{_inline(keys)},", f"{lengths.mean:.1f} ids a row, {lengths.empty:.0%} empty")


def _lookup(table: TableDraft) -> dict[str, Any]:
    return {"table": table.name} | ({"ids": "hash"} if table.ids == "hash" else {})


def _named(column: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {"name": names[column]} | ({"column": column} if names[column] != column else {})


def _tasks(draft: Draft) -> Iterator[str]:
    roles, columns = draft.look.roles, draft.look.columns
    names = unique_names([roles.label, *roles.other_labels])
    yield "[[tasks]]"
    for warning in _label_warnings(draft):
        yield from _remark(f"WARNING: {warning}.")
    yield from _task(names[roles.label], columns[roles.label], roles.kind)
    if roles.other_labels:
        yield from ("", *_remark(OTHER_LABELS))
    for label in roles.other_labels:
        yield from (f"# {line}" for line in ("[[tasks]]", *_task(names[label], columns[label], "binary")))


def _task(name: str, label: Column, kind: str) -> Iterator[str]:
    yield f"name = {quoted(name)}"
    yield f"label = {quoted(label.name)}"
    yield _commented(f"kind = {quoted(kind)}", _label_says(label, kind))


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
    yield _commented(f"name = {quoted(draft.model)}", draft.model_reason)
    if draft.params:
        names = feature_names(draft)
        pairs = {
            key: [names[c] for c in value] if key in ("targets", "histories") else value for key, value in draft.params.items()
        }
        yield from ("", "[model.params]", *(f"{key} = {_value(value)}" for key, value in pairs.items()))


def _training(draft: Draft) -> Iterator[str]:
    yield "[optimizer]"
    yield 'dense = { name = "adam", lr = 1e-3 }'
    yield 'sparse = { name = "rowwise_adagrad", lr = 0.02 }'
    yield from ("", "[train]", "epochs = 1")


def _inline(keys: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(value)}" for key, value in keys.items()) + " }"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _commented(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_AT}}  # {_one_line(comment)}" if comment else text


def _remark(text: str) -> list[str]:
    """A comment of as many lines as it needs."""
    return textwrap.wrap(_one_line(text), WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _one_line(text: str) -> str:
    """Without the control characters that a comment must not hold; a value or a name may have any."""
    return "".join(c if c.isprintable() else " " for c in text)
