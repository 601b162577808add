"""Whole runs of a retriever in one process, and configs that contradict themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from single_rank import lines
from small_retrieval import GENRES, ITEMS, USERS, retrieval_values, write_retrieval

from distrec import dist
from distrec.config.check import find_faults, monitored_metric
from distrec.config.load import parse, structure
from distrec.data.negatives import Drawer
from distrec.data.neighbours import Neighbours
from distrec.engine import open_reader
from distrec.errors import UserError
from distrec.planner.planning import beside_tables
from distrec.profile.inspection import inspect_config
from distrec.retrieval.exact import Share
from distrec.trained import score
from distrec.trainer import Trainer, build
from distrec.validate import validate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval(tmp_path_factory.mktemp("data"))


def train(ranks: dist.Ranks, data: Path, folder: Path, retrieval: dict | None = None, **sections: Any) -> Trainer:
    values = retrieval_values(data, folder)
    values["retrieval"] |= retrieval or {}
    trainer = build(parse(values | sections), ranks, None)
    trainer.run()
    trainer.pipeline.detach()
    return trainer


def scores(trainer: Trainer) -> np.ndarray:
    """(users, items), of the queries of the training log, each user once."""
    found: dict[int, torch.Tensor] = {}
    assert trainer.engine.items is not None
    for batch in trainer.readers["train"].batches(epochs=1):
        users = batch.sparse["user_id"].values()[: batch.queries]  # type: ignore[index]
        found |= dict(zip(users.tolist(), trainer.engine.query_vectors(batch), strict=True))
    items = trainer.engine.item_vectors(trainer.engine.items.catalogue.batch(np.arange(ITEMS)))
    return np.array([(found[user] @ items.T).numpy() for user in range(USERS)])


SEVERAL = {"sampled": 8, "per_row": 4}


@pytest.mark.parametrize(
    ("model", "retrieval"),
    [
        ({"name": "two_tower", "params": {"query_mlp": [16], "item_mlp": [16], "dim": 8}}, {"negatives": SEVERAL}),
        ({"name": "dssm", "params": {"query_mlp": [16, 8], "item_mlp": [16, 8]}}, {"loss": "bce", "temperature": 0.2}),
        ({"name": "dssm", "params": {"query_mlp": [16, 8], "item_mlp": [16, 8]}}, {"loss": "bpr", "temperature": 0.2}),
        (
            {"name": "two_tower", "params": {"dim": 8}},
            {"log_q": False, "negatives": {"distribution": "hard", "per_row": 6, "pool": 20, "refresh_steps": 20}},
        ),
    ],
    ids=["softmax", "bce", "bpr", "hard"],
)
def test_a_user_is_given_what_they_like(model: dict, retrieval: dict, ranks: dist.Ranks, data: Path, tmp_path: Path) -> None:
    trainer = train(ranks, data, tmp_path, retrieval, model=model, train={"device": "cpu", "epochs": 4, "log_every": 10})
    best = np.argsort(-scores(trainer), axis=1)[:, :10]
    assert (best % GENRES == np.arange(USERS)[:, None] % GENRES).mean() > 0.95  # 10 items are of the genre; chance is 0.25
    told = lines(tmp_path)
    assert told[-1]["train/loss"] < told[0]["train/loss"]
    assert told[-1]["train/accuracy"] > told[0]["train/accuracy"]


def test_hard_negatives_are_searched_for_while_it_trains(ranks: dist.Ranks, data: Path, tmp_path: Path) -> None:
    hard = {"distribution": "hard", "per_row": 2, "pool": 3, "refresh_steps": 20}
    run = {"device": "cpu", "steps": 40}  # the last search is that of the last step
    trainer = train(ranks, data, tmp_path, {"log_q": False, "negatives": hard}, train=run)
    assert trainer.engine.items is not None
    assert trainer.engine.neighbours is not None
    items = trainer.engine.item_vectors(trainer.engine.items.catalogue.batch(np.arange(ITEMS))).numpy()
    alike = items @ items.T
    np.fill_diagonal(alike, -np.inf)
    expected = np.argsort(-alike, axis=1)[:, :3]
    assert (trainer.engine.neighbours.table.numpy() == expected).mean() > 0.95  # but for near ties


def test_a_search_follows_every_so_many_steps_and_the_next_step_draws_by_it(
    ranks: dist.Ranks, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has 32 steps, and checkpoints interrupt it too: neither is a time to search, nor to forget that it is due."""
    searches, drawn_after = [0], []
    search, draw = Neighbours.search, Drawer.draw

    def counted(self: Neighbours, share: Share) -> None:
        searches[0] += 1
        search(self, share)

    def noted(self: Drawer, *of_batch: Any) -> np.ndarray:
        drawn_after.append(searches[0])
        return draw(self, *of_batch)

    monkeypatch.setattr(Neighbours, "search", counted)
    monkeypatch.setattr(Drawer, "draw", noted)
    hard = {"distribution": "hard", "per_row": 2, "pool": 3, "refresh_steps": 15}
    run = {"train": {"device": "cpu", "steps": 50}, "checkpoint": {"every_steps": 20}}
    train(ranks, data, tmp_path, {"log_q": False, "negatives": hard}, **run)
    assert searches == [3]
    assert drawn_after == [0] * 15 + [1] * 15 + [2] * 15 + [3] * 5


@pytest.mark.parametrize("name", ["youtube_dnn", "simplex"])
def test_a_model_of_an_item_table_learns_from_histories(name: str, ranks: dist.Ranks, data: Path, tmp_path: Path) -> None:
    values = retrieval_values(data, tmp_path)
    sparse = [{"name": "user_id", "table": "user"}, {"name": "item_index", "table": "item"}]
    features = values["features"] | {"dense": [], "sparse": sparse}
    tables = {table: values["tables"][table] for table in ("user", "item")}
    retrieval = {"item_features": ["item_index"], "negatives": {"in_batch": False, "sampled": 20}}
    if name == "simplex":
        retrieval |= {"loss": "ccl", "margin": 0.3, "negative_weight": 5.0}
    run = {"device": "cpu", "epochs": 5}
    trainer = train(ranks, data, tmp_path, retrieval, features=features, tables=tables, model={"name": name}, train=run)
    best = np.argsort(-scores(trainer), axis=1)[:, :10]
    assert (best % GENRES == np.arange(USERS)[:, None] % GENRES).mean() > 0.75


@pytest.mark.parametrize("corrected", [True, False])
def test_scores_are_log_probabilities_with_the_correction_and_not_without(
    corrected: bool, ranks: dist.Ranks, tmp_path: Path
) -> None:
    """Every query is alike, so all that there is to learn is how often each item is wanted."""
    share = 1 / np.arange(1, ITEMS + 1)
    item = np.random.default_rng(0).choice(ITEMS, 6000, p=share / share.sum())
    data = write_retrieval(tmp_path, rows=6000, user_id=np.zeros(6000, np.int64), item_index=item, item_id=item)
    sparse = [{"name": "user_id", "table": "user"}, {"name": "item_index", "table": "item"}]
    trainer = train(
        ranks,
        data,
        tmp_path / "run",
        {"item_features": ["item_index"], "temperature": 1.0, "log_q": corrected, "train_count": None},
        features={"sparse": sparse},
        tables={name: {"rows": 60, "dim": 8, "init_scale": 0.3} for name in ("user", "item")},
        model={"name": "two_tower", "params": {"normalize": False}},
        optimizer={"sparse": {"name": "adagrad", "lr": 0.1}},
        train={"device": "cpu", "epochs": 5},
    )
    vectors = scores_of_one_user(trainer)
    log_share = np.log(np.bincount(item, minlength=ITEMS) / len(item))
    slope = np.polyfit(log_share, vectors, 1)[0]
    assert slope == pytest.approx(1.0, abs=0.25) if corrected else abs(slope) < 0.35


def scores_of_one_user(trainer: Trainer) -> np.ndarray:
    assert trainer.engine.items is not None
    batch = next(iter(trainer.readers["train"].batches(epochs=1)))
    items = trainer.engine.item_vectors(trainer.engine.items.catalogue.batch(np.arange(ITEMS)))
    return (items @ trainer.engine.query_vectors(batch)[0]).numpy()


def test_another_catalogue_can_be_ranked_but_not_trained_on(ranks: dist.Ranks, data: Path, tmp_path: Path) -> None:
    """What a checkpoint says of items, how often they come up and what is near them, goes by their places in the catalogue."""
    trainer = train(ranks, data, tmp_path / "run", train={"device": "cpu", "steps": 8})
    items = pq.read_table(data / "items")
    (tmp_path / "other").mkdir()
    pq.write_table(items.take(list(range(ITEMS - 1, 3, -1))), tmp_path / "other/items.parquet")  # without the first 4
    values = retrieval_values(data, tmp_path / "run")
    values["retrieval"] |= {"items": str(tmp_path / "other"), "mask": None}
    rows = pq.read_table(data / "valid")
    valid = rows.filter(pa.array([row[0] > 3 for row in rows["targets"].to_pylist()]))
    pq.write_table(valid, tmp_path / "valid.parquet")
    values["data"] |= {"valid": str(tmp_path / "valid.parquet")}
    _, found = score(parse(values), ranks, tmp_path / "run", "valid", None)
    engine = replace(trainer.engine, config=parse(values | {"data": values["data"] | {"eval_batch_size": len(valid)}}))
    vectors = trainer.engine.query_vectors(next(iter(open_reader(engine, "valid").batches(epochs=1))))
    assert trainer.engine.items is not None
    table = trainer.engine.item_vectors(trainer.engine.items.catalogue.batch(np.arange(ITEMS)))
    best = np.argsort(-(vectors @ table.T).numpy()[:, 4:], axis=1)[:, :10] + 4
    hits = [row[0] in ten for row, ten in zip(valid["targets"].to_pylist(), best.tolist(), strict=True)]
    assert found.metrics["recall@10"] == pytest.approx(np.mean(hits))
    with pytest.raises(UserError, match=r"retrieval\.items"):
        build(parse(values), ranks, "newest")


def test_a_run_whose_queries_have_no_targets_leaves_json_and_goes_on(ranks: dist.Ranks, data: Path, tmp_path: Path) -> None:
    rows = pq.read_table(data / "valid")
    untargeted = pa.array([[]] * len(rows), rows["targets"].type)
    (tmp_path / "valid").mkdir()
    pq.write_table(rows.set_column(rows.schema.get_field_index("targets"), "targets", untargeted), tmp_path / "valid/0.parquet")
    values = retrieval_values(data, tmp_path / "run", train={"device": "cpu", "steps": 8})
    values["data"] |= {"valid": str(tmp_path / "valid")}
    for resume, steps in ((None, 8), ("newest", 8), ("newest", 12)):
        values["train"]["steps"] = steps
        trainer = build(parse(values), ranks, resume)
        report = trainer.run()
        trainer.pipeline.detach()
        assert np.isnan(report.metrics["valid/recall@5"])
        assert report.metrics["valid/coverage@5"] > 0
    files = [*(tmp_path / "run").rglob("*.json"), *(tmp_path / "run").rglob("*.jsonl")]
    assert {"summary.json", "best.json", "manifest.json", "metrics.jsonl"} <= {file.name for file in files}
    for file in files:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(text, parse_constant=pytest.fail)


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"item_features": ["item_index", "gender"]},
        "retrieval.item_features names 'gender', which is no feature; did you mean 'genre'?",
    ),
    ({"item_features": ["x", "price", "user_id", "item_index", "genre", "history"]}, "none is left to describe the query"),
    ({"negatives": {"in_batch": False}}, "retrieval.negatives: there are none"),
    ({"negatives": {"sampled": 3, "distribution": "popularity"}, "train_count": None}, "needs retrieval.train_count"),
    ({"negatives": {"distribution": "hard"}, "log_q": False}, '"hard" needs per_row'),
    ({"negatives": {"distribution": "hard", "per_row": 2, "sampled": 2}, "log_q": False}, "set it to 0"),
    ({"negatives": {"shared_by": 2}}, "share the sampled items, and there are none; set sampled"),
    ({"negatives": {"distribution": "hard", "per_row": 2}}, "retrieval.log_q cannot correct hard negatives"),
    ({"negatives": {"column": "negatives", "column_length": 2}}, "cannot know how the negatives of a column were drawn"),
    ({"mask": "targets"}, "retrieval.mask names 'targets', the targets"),
]


@pytest.mark.parametrize(("retrieval", "said"), FAULTS)
def test_a_contradiction_is_named_with_its_fix(retrieval: dict, said: str, data: Path) -> None:
    values = retrieval_values(data, data)
    assert list(find_faults(parse(values))) == []
    values["retrieval"] |= retrieval
    assert any(said in fault for fault in find_faults(parse(values)))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"tasks": [{"name": "click", "label": "click"}]}, "[[tasks]] are for rankers"),
        ({"data": {"train": "x", "group": "user_id"}}, "data.group is for a ranker's GAUC"),
        ({"evaluate": {"monitor": "auc"}}, "evaluate.monitor = 'auc' is no metric of a retriever"),
        (
            {"evaluate": {"monitor": "recall@7"}},
            "'recall@7' is no metric of a retriever: retrieval.ks has 5, 10; add 7 to it, or take one of them",
        ),
        ({"evaluate": {"monitor": "recal@10"}}, "did you mean 'recall@10'?"),
        (
            {"features": {"dense": ["price"], "sparse": [{"name": "sku", "column": "item_id", "table": "item"}]}},
            "feature 'sku' reads column 'item_id', the item that is to be found, and describes the query: the model would see "
            "it; add it to retrieval.item_features",
        ),
    ],
)
def test_what_is_a_rankers_is_refused(sections: dict, said: str) -> None:
    assert any(said in fault for fault in find_faults(parse(retrieval_values(Path("x"), Path("y"), **sections))))


def test_popularity_can_only_be_watched_where_it_is_counted() -> None:
    values = retrieval_values(Path("x"), Path("y"), evaluate={"monitor": "popularity@5"})
    assert not list(find_faults(parse(values)))
    del values["retrieval"]["train_count"]
    assert ["evaluate.monitor = 'popularity@5' is no metric" in fault for fault in find_faults(parse(values))] == [True]


def test_a_column_of_negatives_needs_a_length() -> None:
    values = retrieval_values(Path("x"), Path("y"))
    values["retrieval"]["negatives"] = {"column": "negatives"}
    with pytest.raises(UserError, match="column and column_length go together"):
        parse(values)


@pytest.mark.parametrize(("ks", "monitored"), [([10, 20, 50], "ndcg@20"), ([5, 10], "ndcg@10"), ([50, 100], "ndcg@50")])
def test_the_best_checkpoint_is_that_of_the_ndcg_of_a_short_list(ks: list[int], monitored: str) -> None:
    values = retrieval_values(Path("x"), Path("y"))
    values["retrieval"]["ks"] = ks
    assert monitored_metric(parse(values)) == monitored


def test_check_finds_what_is_wrong_with_the_catalogue_the_model_and_the_log_at_once(data: Path) -> None:
    values = retrieval_values(data, data)
    values["model"] = {"name": "dlrm"}
    values["retrieval"]["targets"] = "target"
    values["data"]["valid"] = str(data / "valid")
    with pytest.raises(UserError) as error:
        validate(parse(values))
    assert "model.name = 'dlrm' ranks" in str(error.value)
    assert "no column 'target' (items, for targets); did you mean 'targets'?" in str(error.value)
    for key, value in (("ks", [41]), ("rank_among", ITEMS)):
        with pytest.raises(UserError, match=f"retrieval.{key} .*retrieval.items has"):
            validate(parse(values | {"retrieval": values["retrieval"] | {key: value}}))
    values["model"], values["retrieval"]["targets"] = {"name": "two_tower"}, "targets"
    values["retrieval"] |= {"own_id": "train_count", "title": "nome", "category": "kind", "query_id": "user"}
    with pytest.raises(UserError) as error:  # a run finds out when it is trained, and asked
        validate(parse(values))
    assert "retrieval.own_id: column 'train_count' has" in str(error.value)
    assert all(f"no column {name!r}" in str(error.value) for name in ("nome", "kind", "user"))
    values["retrieval"]["item_id"] = "title_id"
    with pytest.raises(UserError, match="no column 'title_id'"):
        validate(parse(values))


def test_negatives_are_planned_for(data: Path) -> None:
    values = retrieval_values(data, data)
    plain = beside_tables(parse(values))
    values["retrieval"]["negatives"] = {"per_row": 3}
    assert beside_tables(parse(values)).batches == 4 * plain.batches


def test_a_checkpoint_depends_on_what_its_tensors_mean_and_no_more() -> None:
    def saved(**retrieval: Any) -> dict[str, Any]:
        values = retrieval_values(Path("x"), Path("y"))
        values["retrieval"] |= retrieval
        return structure(parse(values))

    hard = {"distribution": "hard", "per_row": 2, "pool": 3}
    others = [{"item_features": ["genre"]}, {"loss": "bpr"}, {"log_q": False}, {"log_q_buckets": 8}, {"negatives": hard}]
    assert all(saved(**other) != saved() for other in others)
    assert saved(negatives=hard) != saved(negatives=hard | {"pool": 4})
    free = [{"temperature": 0.2}, {"negatives": {"sampled": 9, "pool": 9}}, {"ks": [3]}, {"title": None}, {"items": "z"}]
    assert all(saved(**other) == saved() for other in free)


def test_inspect_has_no_label_to_look_for(data: Path) -> None:
    with pytest.raises(UserError, match="the rows of a retriever have none"):
        inspect_config(parse(retrieval_values(data, data)))
