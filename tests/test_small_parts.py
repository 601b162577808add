"""The small parts of a run, each by itself on one rank."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrec import dist, log, run_folder, signals
from distrec.config.layout import layout
from distrec.config.load import parse
from distrec.config.schema import Config, Features, Table
from distrec.errors import AnotherRankFailed, UserError
from distrec.evaluate import better
from distrec.json_out import finite, to_json
from distrec.metrics.usage import BUCKETS, TableUse
from distrec.signals import StopRequest

# -- JSON ------------------------------------------------------------------------------------------------------------


def test_json_has_null_where_a_number_is_none() -> None:
    value = {"a": [1.5, math.nan, {"b": (math.inf, 2)}], "c": -math.inf, "d": "NaN", "e": np.float64("nan"), "f": True}
    said = '{"a": [1.5, null, {"b": [null, 2]}], "c": null, "d": "NaN", "e": null, "f": true}'
    assert to_json(value) == json.dumps(finite(value)) == said


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_program_goes_on(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) == before


def test_the_first_signal_names_the_reason() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the same wish, come by another way
        assert stop.signal == signal.SIGTERM


def test_a_late_second_interrupt_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += signals.PATIENCE_S + 0.1
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may say it often
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# -- the run folder --------------------------------------------------------------------------------------------------


def config(folder: Path, **sections: Any) -> Config:
    return parse(
        {
            "name": "small",
            "folder": str(folder),
            "data": {"train": "rows"},
            "tables": {"user": {"rows": 50, "dim": 8}},
            "features": {"sparse": [{"name": "user", "table": "user"}]},
            "model": {"name": "dlrm"},
        }
        | sections
    )


def test_a_claimed_folder_holds_its_config(tmp_path: Path) -> None:
    first = config(tmp_path / "a" / "b")
    assert run_folder.claim(first, None) == tmp_path / "a" / "b"
    assert run_folder.saved_config(tmp_path / "a" / "b", []) == first
    assert run_folder.saved_config(tmp_path / "a" / "b", ["train.seed=5"]).train.seed == 5


def test_a_folder_is_entered_again_only_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"there is no run in .*run to resume"):
        run_folder.claim(config(folder), "newest")
    run_folder.claim(config(folder), "auto")
    with pytest.raises(UserError, match="holds a run already"):
        run_folder.claim(config(folder), None)
    for resume in ("newest", "auto"):
        assert run_folder.claim(config(folder, train={"seed": 9}), resume) == folder
    assert run_folder.saved_config(folder, []).train.seed == 0, "whether the run can go on with it is not known yet"
    run_folder.write_config(folder, config(folder, train={"seed": 9}))
    assert run_folder.saved_config(folder, []).train.seed == 9


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the run folder .*file/run cannot be written: .*; set `folder`"):
        run_folder.claim(config(tmp_path / "file" / "run"), None)


@pytest.mark.parametrize(
    ("result", "kept"),
    [(None, False), ("metrics.jsonl", True), ("checkpoints/step-000000001/manifest.json", True), ("logs/rank-0.log", False)],
)
def test_a_failed_run_keeps_its_claim_only_with_something_to_show(tmp_path: Path, result: str | None, kept: bool) -> None:
    def fail() -> None:
        run_folder.claim(config(tmp_path), None)
        if result is not None:
            (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / result).write_text("x")
        raise UserError("no such data")

    with pytest.raises(UserError, match="no such data"), run_folder.given_back_if_unused(tmp_path):
        fail()
    assert (tmp_path / run_folder.CONFIG).exists() is kept


def test_a_claim_of_another_run_is_not_taken_back(tmp_path: Path) -> None:
    run_folder.claim(config(tmp_path), None)
    with pytest.raises(UserError, match="holds a run"), run_folder.given_back_if_unused(tmp_path):
        run_folder.claim(config(tmp_path), None)
    assert (tmp_path / run_folder.CONFIG).exists()


def test_what_is_no_run_has_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.json"):
        run_folder.saved_config(tmp_path, [])
    (tmp_path / "config.json").write_text('{"name": 3', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        run_folder.saved_config(tmp_path, [])


def test_the_summary_is_json(tmp_path: Path) -> None:
    run_folder.write_summary(tmp_path, {"steps": 3, "folder": Path("x")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 3, "folder": "x"}


# -- which rows are used ---------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[dist.Ranks]:
    yield dist.start("cpu")
    dist.stop()


def test_a_small_table_is_counted_row_by_row(alone: dist.Ranks) -> None:
    use = TableUse({"item": "item", "history": "item", "user": "user"}, {"item": 5, "user": 3})
    use.update(
        [("item", torch.tensor([0, 4])), ("history", torch.tensor([4, 4, 1])), ("user", torch.tensor([], dtype=torch.int64))]
    )
    use.update([("item", torch.tensor([0]))])
    use.merge(torch.distributed.group.WORLD)  # type: ignore[arg-type]
    assert use.buckets["item"].tolist() == [2, 1, 0, 0, 3]
    assert use.buckets["user"].tolist() == [0, 0, 0]
    assert use.ids == {"item": 3, "history": 3, "user": 0}


def test_a_large_table_is_counted_by_equal_ranges() -> None:
    rows = 4 * BUCKETS
    use = TableUse({"f": "t"}, {"t": rows})
    use.update([("f", torch.tensor([0, 3, 4, rows - 1]))])
    counts = use.buckets["t"]
    assert len(counts) == BUCKETS
    assert (int(counts[0]), int(counts[1]), int(counts[-1]), int(counts.sum())) == (2, 1, 1, 4)


# -- one rank --------------------------------------------------------------------------------------------------------


def fail(error: Exception) -> None:
    raise error


def test_a_process_on_its_own_is_the_first_of_one(alone: dist.Ranks) -> None:
    assert (alone.rank, alone.world, alone.local_rank, alone.local_world, alone.first) == (0, 1, 0, 1, True)
    assert alone.device == torch.device("cpu")
    assert dist.lowest(torch.tensor([2.0, -1.0])).tolist() == [2.0, -1.0]


@pytest.mark.parametrize("agree", [dist.from_first, dist.together])
@pytest.mark.usefixtures("alone")
def test_agreeing_with_nobody_is_calling(agree: Any) -> None:
    assert agree(lambda: {"a": [1]}) == {"a": [1]}
    assert agree(lambda: None) is None
    with pytest.raises(UserError, match=r"^no such file$") as caught:
        agree(lambda: fail(UserError("no such file")))
    assert not isinstance(caught.value, AnotherRankFailed)
    with pytest.raises(ZeroDivisionError, match="ours"):
        agree(lambda: fail(ZeroDivisionError("ours")))


def test_leaving_twice_is_leaving() -> None:
    dist.stop()
    dist.stop()


@pytest.mark.parametrize(("gpus", "said"), [(0, "0 GPUs"), (1, "1 GPU;")])
def test_too_few_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, gpus: int, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 ranks on this machine need 2 GPUs and it has") as caught:
        dist.start("cuda")
    assert said in str(caught.value).replace(" GPUs;", " GPUs ;")


# -- layout ----------------------------------------------------------------------------------------------------------


def routes(*sparse: dict[str, Any], sequence: tuple[dict[str, Any], ...] = ()) -> tuple[list[str], list[str]]:
    """Names of the features that are pooled inside the lookup, and of those that are not."""
    features = Features.model_validate({"sparse": sparse, "sequence": sequence})
    tables = {name: Table(rows=10, dim=4 * (1 + index)) for index, name in enumerate("abc")}
    found = layout(features, tables)
    return [f.name for f in found.bags], [f.name for f in found.sequences]


def test_a_table_is_pooled_inside_its_lookup_where_it_can_be() -> None:
    a = {"name": "fa", "table": "a"}
    b = {"name": "fb", "table": "b", "pooling": "mean"}
    assert routes(a, b) == (["fa", "fb"], [])
    assert routes(a, {"name": "fa2", "table": "a"}) == (["fa", "fa2"], [])


def test_a_history_takes_its_table_and_all_its_features_along() -> None:
    target, other = {"name": "target", "table": "a"}, {"name": "fb", "table": "b"}
    history = {"name": "history", "table": "a", "max_length": 3}
    assert routes(target, other, sequence=(history,)) == (["fb"], ["history", "target"])


def test_two_poolings_of_one_table_are_pooled_after_the_lookup() -> None:
    mean, sum_, other = (
        {"name": n, "table": t, "pooling": p} for n, t, p in (("m", "a", "mean"), ("s", "a", "sum"), ("o", "b", "sum"))
    )
    assert routes(mean, sum_, other) == (["o"], ["m", "s"])


def test_dimensions_are_those_of_the_tables() -> None:
    features = Features.model_validate(
        {
            "dense": ["x"],
            "sparse": [{"name": "target", "table": "a", "column": "item_id"}, {"name": "user", "table": "b"}],
            "sequence": [{"name": "history", "table": "a", "max_length": 3}],
        }
    )
    found = layout(features, {"a": Table(rows=10, dim=4), "b": Table(rows=20, dim=8)})
    assert found.pooled_dims == {"user": 8, "target": 4}
    assert found.sequence_dims == {"history": 4}
    assert [f.name for f in found.dense] == ["x"]
    history, target = found.sequences
    assert (target.column, target.rows, target.dim, target.pooling, target.max_length) == ("item_id", 10, 4, "sum", None)
    assert (history.column, history.pooling, history.max_length) == ("history", None, 3)


# -- which metric is better ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "best", "name", "is_better"),
    [
        (0.7, 0.6, "auc", True),
        (0.6, 0.6, "auc", False),
        (0.7, 0.6, "click/gauc", True),
        (0.7, 0.6, "logloss", False),
        (0.5, 0.6, "stay/rmse", True),
        (0.6, 0.6, "rmse", False),
        (0.1, None, "auc", True),
        (9.0, None, "rmse", True),
        (0.1, math.nan, "auc", True),
        (math.nan, None, "auc", False),
        (math.nan, 0.5, "rmse", False),
    ],
)
def test_better_knows_the_direction_of_a_metric(value: float, best: float | None, name: str, is_better: bool) -> None:
    assert better(value, best, name) is is_better


# -- what a run says -------------------------------------------------------------------------------------------------


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    before = log.logger.handlers, log.logger.propagate, log.logger.level
    yield log.logger
    for handler in log.logger.handlers:
        handler.close()
    log.logger.handlers, log.logger.propagate = before[:2]
    log.logger.setLevel(before[2])


@pytest.mark.parametrize(("rank", "said"), [(0, "hello\n"), (3, "")])
def test_rank_0_speaks_and_all_ranks_warn(
    rank: int, said: str, logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.setup(rank, tmp_path / "logs")
    logger.info("hello")
    logger.warning("beware")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (said, "beware\n")
    kept = (tmp_path / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == ["INFO hello", "WARNING beware"]


def test_setting_up_again_closes_the_former_file(logger: logging.Logger, tmp_path: Path) -> None:
    log.setup(0, tmp_path / "one")
    former = logger.handlers[1]
    assert isinstance(former, logging.FileHandler)
    log.setup(0, tmp_path / "two")
    assert former.stream is None or former.stream.closed
    logger.info("hello")
    assert (tmp_path / "one" / "rank-0.log").read_text() == ""
    assert "hello" in (tmp_path / "two" / "rank-0.log").read_text()


def test_a_log_folder_that_cannot_be_made_is_named(logger: logging.Logger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write logs to .*file/logs: .*; set `folder`"):
        log.setup(0, tmp_path / "file" / "logs")


@pytest.mark.parametrize(("rank", "said"), [(0, True), (3, False)])
def test_logs_that_need_not_be_are_missed_once(
    rank: int, said: bool, logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    log.setup(rank, tmp_path / "file" / "logs", required=False)
    assert ("warning: cannot write logs to" in capsys.readouterr().err) == said
    logger.warning("beware")
    assert capsys.readouterr().err == "beware\n"


def test_what_dependencies_say_as_a_rule_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = list(root.filters)
    log.quiet_dependencies()
    log.quiet_dependencies()
    try:
        assert len(root.filters) <= len(before) + 1
        root.warning("Sharding spec not found for key x")
        root.warning("Could not determine LOCAL_WORLD_SIZE from environment")
        root.warning("the disk is full")
        assert [record.getMessage() for record in caplog.records] == ["the disk is full"]
    finally:
        root.filters[:] = before
