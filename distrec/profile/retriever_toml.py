"""A retriever's draft -> TOML with the reason of every decision beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from distrec.config.retrieval import Retrieval
from distrec.profile.retriever import LAST, RetrieverDraft, Side, SparseDraft
from distrec.profile.splits import SPLITS
from distrec.profile.tables import dim_for
from distrec.profile.toml_lines import commented, inline, listed, one_line, quoted, remark, value_of
from distrec.profile.toml_out import LONGEST_HISTORY, LONGEST_LIST, dense_line, named

DIM = 64  # of users and items, and of both vectors
NEWEST = 3  # items of a history that are pooled apart


def retriever_toml(draft: RetrieverDraft) -> str:
    """The whole config as text that `distrec.config.load` reads."""
    parts = [_head(draft), _data(draft), _tables(draft), _features(draft), _retrieval(draft), _training()]
    return "\n".join("\n".join(part) + "\n" for part in parts)


def _head(draft: RetrieverDraft) -> Iterator[str]:
    yield one_line(f"# Drafted by `distrec init {shlex.quote(draft.folder)}` from its dataset.json and a sample of its rows.")
    yield "# A start: change what you know better. docs/config.md has every key."
    run = shlex.quote(f"runs/{draft.name}")
    yield from ("#", "# distrec check my.toml", "# distrec train my.toml", f"# distrec export {run} && distrec index {run}")
    yield f"name = {quoted(draft.name)}"


def _data(draft: RetrieverDraft) -> Iterator[str]:
    yield "[data]"
    for split in SPLITS:
        if split in draft.told["rows"]:
            yield commented(f"{split} = {quoted(f'{draft.folder}/{split}')}", f"{draft.told['rows'][split]:,} rows")
        else:
            yield f'# {split} = "…"                     # the dataset has none'
    yield commented(f"batch_size = {draft.batch_size}", "rows a rank: each is scored against the items of all the others")


def _tables(draft: RetrieverDraft) -> Iterator[str]:
    yield "[tables]"
    yield "# rows: as many ids as there are. Those that nobody counted, and text, are hashed into twice as many or more."
    users, items = draft.cardinality("user_id"), draft.cardinality("item_id")
    yield f"user = {{ rows = {users}, dim = {DIM}, init_scale = 0.1 }}"
    yield commented(f"item = {{ rows = {items}, dim = {DIM}, init_scale = 0.1 }}", "shared by the item and the histories")
    for sparse in (*draft.query.sparse, *draft.item.sparse):
        table = sparse.table
        yield commented(f"{table.name} = {{ rows = {table.rows}, dim = {dim_for([table])} }}", table.reason)


def _features(draft: RetrieverDraft) -> Iterator[str]:
    names = draft.feature_names()
    yield "[features]"
    for column, why in draft.left_out.items():
        yield from remark(f"left out {column!r}: {why}")
    rules = ["nulls stop the run, but where `null` says what stands for them: the median"]
    if draft.query.dense:
        rules.append("the query's have one, for `distrec recall --history` knows no number of whom it is asked for")
    yield from listed("dense", rules, (dense_line(dense, names) for dense in (*draft.query.dense, *draft.item.dense)))
    yield from listed("sparse", [], (*_of_query(draft, names), *_of_item(draft, names)))


def _of_query(draft: RetrieverDraft, names: Mapping[str, str]) -> Iterator[str]:
    history, longest = "history_item_id", min(draft.told["max_history"], LONGEST_HISTORY)
    yield f"{inline({'name': names['user_id'], 'table': 'user'})},"
    yield from (_sparse(sparse, names) for sparse in draft.query.sparse)
    pooled = {"table": "item", "pooling": "mean"}
    if draft.told["split"] != "given" and longest > NEWEST:  # else the order of a history is not known
        newest = {"name": LAST, "column": history} | pooled | {"max_length": NEWEST}
        yield commented(f"{inline(newest)},", "what comes next depends on them most")
    yield f"{inline({'name': names[history]} | pooled | {'max_length': longest})},"


def _of_item(draft: RetrieverDraft, names: Mapping[str, str]) -> Iterator[str]:
    yield f"{inline({'name': names['item_id'], 'table': 'item', 'pooling': 'mean'})},"
    yield from (_sparse(sparse, names) for sparse in draft.item.sparse)


def _sparse(sparse: SparseDraft, names: Mapping[str, str]) -> str:
    table, lengths = sparse.table, sparse.column.lengths
    keys = named(sparse.column.name, names) | {"table": table.name} | ({"ids": "hash"} if table.ids == "hash" else {})
    if lengths is None:
        return f"{inline(keys)},"
    keys |= {"pooling": "mean"} | ({"max_length": LONGEST_LIST} if lengths.longest > LONGEST_LIST else {})
    return commented(f"{inline(keys)},", f"{lengths.mean:.1f} ids a row")


def _retrieval(draft: RetrieverDraft) -> Iterator[str]:
    names = draft.feature_names()
    yield "[retrieval]"
    yield f"items = {quoted(f'{draft.folder}/items')}"
    features = [names[column] for column in ("item_id", *_columns(draft.item))]
    yield commented(f"item_features = {value_of(features)}", "the others describe the query")
    if draft.told.get("repeats") == "all":
        yield from remark('mask = "seen" would hide what users take again: targets may be among what they have had')
    else:
        yield commented('mask = "seen"', "nobody is given what they have had")
    if any(entry["name"] == "raw_user_id" for entry in draft.told.get("query_columns", ())):
        yield commented('query_id = "raw_user_id"', "`distrec recall --query` takes your own ids")
    yield commented('own_id = "raw_id"', "and answers name them")
    yield 'title = "title"'
    if draft.has_categories:
        yield 'category = "category"'
    yield from ('train_count = "train_count"', "temperature = 0.1")
    yield from _lengths(draft.cardinality("item_id"))


def _lengths(items: int) -> Iterator[str]:
    """Of the lists that are scored, where there are fewer items than the default asks for."""
    usual = Retrieval.model_fields["ks"].default
    if items < max(usual):
        yield commented(f"ks = {value_of([k for k in usual if k <= items] or [items])}", f"there are {items} items")


def _columns(side: Side) -> Iterator[Any]:
    yield from (dense.column for dense in side.dense)
    yield from (sparse.column.name for sparse in side.sparse)


def _training() -> Iterator[str]:
    yield from ("[model]", 'name = "two_tower"', f"params = {{ query_mlp = [128], item_mlp = [128], dim = {DIM} }}")
    yield from ("", "[optimizer]", 'sparse = { name = "adagrad", lr = 0.1 }', "", "[train]", "epochs = 5")
