"""The loop on one rank: what it writes, learns, remembers and repeats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from single_rank import lines, make, summary
from small_run import ROWS, values, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed._shard.sharded_tensor import ShardedTensor

from distrec import dist
from distrec.engine import Engine
from distrec.evaluate import Evaluation, better
from distrec.metrics.steps import StepMeans
from distrec.metrics.usage import TableUse
from distrec.run_folder import saved_config
from distrec.trained import score
from distrec.trainer import Trainer

EPOCH = math.ceil(ROWS / 64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train`, `valid` and `test`, of the same signal."""
    folder = tmp_path_factory.mktemp("rows")
    for seed, split in enumerate(("train", "valid", "test")):
        write_rows(folder / split, ROWS if split == "train" else 500, seed=seed)
    return folder


def splits(rows: Path) -> dict[str, str]:
    return {"valid": str(rows / "valid"), "test": str(rows / "test")}


def weights(trainer: Trainer) -> dict[str, bytes]:
    """Every bit of the model, by name."""
    state = trainer.engine.model.state_dict()
    parts = {name: v.local_shards()[0].tensor if isinstance(v, ShardedTensor) else v for name, v in state.items()}
    return {name: part.contiguous().numpy().tobytes() for name, part in parts.items()}


def steps_of(found: list[dict[str, Any]], tag: str) -> list[int]:
    return [line["step"] for line in found if tag in line]


def judged(trainer: Trainer, *values: float) -> Trainer:
    """The trainer, with evaluations that find these values of AUC, one after the other."""
    found = iter(values)

    def evaluate(reader: Any, run: Any) -> Evaluation:
        return Evaluation({"auc": next(found)}, 1, [])

    trainer.engine.evaluate = evaluate  # type: ignore[method-assign]
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ranks: dist.Ranks, rows: Path) -> tuple[Path, Any]:
    """The folder and the report of three epochs with everything on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    report = make(ranks, rows / "train", folder, data=splits(rows), train={"epochs": 3}, checkpoint={"keep": 1}).run()
    return folder, report


def test_the_numbers_of_a_run(whole: tuple[Path, Any]) -> None:
    found = lines(whole[0])
    assert [line["step"] for line in found] == sorted(line["step"] for line in found)
    ends = [EPOCH, 2 * EPOCH, 3 * EPOCH]
    assert steps_of(found, "train/loss") == sorted({*range(5, 3 * EPOCH, 5), *ends})
    assert steps_of(found, "valid/auc") == ends
    assert steps_of(found, "test/auc") == [3 * EPOCH]
    keys = {"step", "time", "train/loss", "train/auc", "train/ne", "train/logloss", "train/calibration", "train/lr_dense"}
    keys |= {"train/lr_sparse", "train/epoch", "train/skipped", "perf/samples_per_s", "perf/step_s", "perf/data_wait"}
    assert keys <= found[0].keys()


def test_numbers_are_of_the_steps_since_the_last_ones(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    """Steps have equal rows, so the mean over four lines of a step each is the line of the four."""
    found: dict[int, list[dict[str, Any]]] = {}
    for every in (1, 4):
        make(ranks, rows / "train", tmp_path / str(every), train={"steps": 12, "log_every": every}).run()
        found[every] = lines(tmp_path / str(every))
    assert [line["step"] for line in found[4]] == [4, 8, 12]
    for tag in ("train/loss", "train/logloss"):
        means = np.array([line[tag] for line in found[1]]).reshape(3, 4).mean(1)
        np.testing.assert_allclose([line[tag] for line in found[4]], means, rtol=1e-6)


def test_the_summary_is_the_report(whole: tuple[Path, Any]) -> None:
    found, report = summary(whole[0]), whole[1]
    assert (found["steps"], found["total_steps"]) == (3 * EPOCH, 3 * EPOCH)
    assert (report.steps, report.stopped_by, report.early) == (3 * EPOCH, None, False)
    last = [line for line in lines(whole[0]) if "valid/auc" in line or "test/auc" in line][-2:]
    expected = {tag: value for line in last for tag, value in line.items() if tag[:5] in ("valid", "test/")}
    assert found["metrics"] == report.metrics == expected
    assert {"start", "train", "evaluate", "save"} == found["seconds"].keys()


def test_a_resumed_run_took_the_time_of_all_its_parts(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    first = make(ranks, rows / "train", tmp_path / "run", train={"steps": 4}).run()
    second = make(ranks, rows / "train", tmp_path / "run", "newest", train={"steps": 8})
    assert second.record.clock.seconds["train"] == first.seconds["train"] > 0
    assert second.record.clock.seconds["start"] > first.seconds["start"]
    assert second.run().seconds["train"] > first.seconds["train"]


def test_tensorboard_shows_the_same_numbers_and_more(whole: tuple[Path, Any]) -> None:
    events = EventAccumulator(str(whole[0]), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    for tag in ("train/loss", "valid/auc", "test/auc", "perf/samples_per_s"):
        written = [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]
        assert [(line["step"], line[tag]) for line in lines(whole[0]) if tag in line] == written
    assert {"ids/user", "ids/item"} <= set(events.Tags()["histograms"])
    assert len(events.Histograms("ids/user")) == 3
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"] if "/" in tag}
    assert '"batch_size": 64' in texts["config/text_summary"]
    assert "| user | 50 x 8 |" in texts["plan/text_summary"]


def test_the_planted_signal_is_learned(whole: tuple[Path, Any]) -> None:
    """Labels follow from item and history, but for one in ten that is flipped: no model is much over 0.9."""
    assert whole[1].metrics["valid/auc"] > 0.7
    assert whole[1].metrics["test/auc"] > 0.7


def test_the_best_checkpoint_stays_beside_the_newest(whole: tuple[Path, Any]) -> None:
    by_step = {line["step"]: line["valid/auc"] for line in lines(whole[0]) if "valid/auc" in line}
    best = max(by_step, key=lambda step: by_step[step])
    assert whole[1].best_step == best
    assert json.loads((whole[0] / "checkpoints" / "best.json").read_text())["step"] == best
    kept = sorted(path.name for path in (whole[0] / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:09d}" for step in sorted({best, 3 * EPOCH})]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_scoring_a_checkpoint_finds_what_training_found(whole: tuple[Path, Any], ranks: dist.Ranks, split: str) -> None:
    folder, report = whole
    step, found = score(saved_config(folder, []), ranks, folder, split, None)
    assert step == report.best_step
    told = {line["step"]: line for line in lines(folder) if f"{split}/auc" in line}[step if split == "valid" else 3 * EPOCH]
    assert {f"{split}/{name}": value for name, value in found.metrics.items()} == {
        tag: value for tag, value in told.items() if tag.startswith(split)
    }


def test_a_run_whose_tables_had_several_copies_is_scored_with_one(whole: tuple[Path, Any], ranks: dist.Ranks) -> None:
    """A single rank cannot hold two copies, and two copies have every part of a table twice, which an export would write."""
    folder, report = whole
    copies = ["embedding.replicas=2", "embedding.sync_every=8", "embedding.plan=of-a-copy.json", "train.device=auto"]
    step, found = score(saved_config(folder, copies), ranks, folder, "test", None)
    assert (step, found.metrics["auc"]) == (report.best_step, report.metrics["test/auc"])


def test_the_test_rows_are_scored_with_the_best_weights_and_told_at_the_end(
    ranks: dist.Ranks, rows: Path, tmp_path: Path
) -> None:
    trainer = make(ranks, rows / "train", tmp_path, data=splits(rows), train={"steps": 9}, evaluate={"every_steps": 3})
    loaded = []
    load = trainer.engine.load
    trainer.engine.load = lambda checkpoints, step: (loaded.append(step), load(checkpoints, step))[1]  # type: ignore
    report = judged(trainer, 0.6, 0.8, 0.7, 0.75).run()
    assert loaded == [6]
    assert (report.steps, report.best_step, report.metrics) == (9, 6, {"valid/auc": 0.7, "test/auc": 0.75})
    assert steps_of(lines(tmp_path), "test/auc") == [9]


def test_a_seed_is_a_run(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        trainer = make(ranks, rows / "train", tmp_path / str(number), train={"steps": 8, "seed": seed})
        trainer.run()
        found.append(weights(trainer))
    assert found[0] == found[1]
    assert all(found[0][name] != found[2][name] for name in found[0])


def test_evaluating_and_saving_leave_no_trace_in_training(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    """The model has dropout and batch norm, which evaluation could disturb."""
    model = {"name": "dlrm", "params": {"bottom_mlp": [8], "top_mlp": [16], "dropout": 0.2, "batch_norm": True}}
    plain = make(ranks, rows / "train", tmp_path / "plain", model=model, train={"steps": 9})
    plain.run()
    often = {"evaluate": {"every_steps": 2}, "checkpoint": {"every_steps": 3}}
    watched = make(
        ranks,
        rows / "train",
        tmp_path / "watched",
        model=model,
        data={"valid": str(rows / "valid")},
        train={"steps": 9},
        **often,
    )
    watched.run()
    assert weights(plain) == weights(watched)


def test_early_stopping_ends_and_stays_ended(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    def trainer(resume: str | None, patience: int | None, *values: float) -> Trainer:
        evaluate = {"every_steps": 2} | ({"patience": patience} if patience else {})
        made = make(
            ranks, rows / "train", tmp_path, resume, data={"valid": str(rows / "valid")}, train={"steps": 20}, evaluate=evaluate
        )
        return judged(made, *values)

    report = trainer(None, 2, 0.6, 0.7, 0.7, 0.65).run()
    assert (report.steps, report.early, report.best_step) == (8, True, 4)
    report = trainer("newest", 2).run()
    assert (report.steps, report.early, report.best_step) == (8, True, 4)
    assert report.metrics == {"valid/auc": 0.65}
    report = trainer("newest", 4, 0.7, 0.69).run()
    assert (report.steps, report.early, report.best_step) == (12, True, 4)


def test_a_run_cut_off_before_its_evaluation_makes_up_for_it(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"data": {"valid": str(rows / "valid")}, "evaluate": {"every_steps": 2}}
    trainer = judged(make(ranks, rows / "train", tmp_path, train={"steps": 6}, **sections), 0.5)
    with pytest.raises(StopIteration):
        trainer.run()  # at the evaluation after step 4
    report = judged(make(ranks, rows / "train", tmp_path, "newest", train={"steps": 6}, **sections), 0.8, 0.7).run()
    assert (report.steps, report.best_step) == (6, 4)
    assert steps_of(lines(tmp_path), "valid/auc") == [2, 4, 6]


def test_nothing_left_to_do_is_said_and_done(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    first = make(ranks, rows / "train", tmp_path, data=splits(rows), train={"epochs": 1})
    report = first.run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").glob("step-*/__*")}
    again = make(ranks, rows / "train", tmp_path, "newest", data=splits(rows), train={"epochs": 1})
    told = again.run()
    assert (told.steps, told.total_steps, told.best_step) == (EPOCH, EPOCH, EPOCH)
    assert told.metrics == report.metrics
    assert weights(first) == weights(again)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").glob("step-*/__*")} == before


@pytest.mark.parametrize(
    ("train", "evaluate", "checkpoint", "evaluated", "saved"),
    [
        ({"epochs": 2}, {}, {}, [EPOCH, 2 * EPOCH], [EPOCH, 2 * EPOCH]),
        ({"steps": 7}, {"every_steps": 3}, {}, [3, 6, 7], [3, 6, 7]),
        ({"steps": 7}, {"every_steps": 3}, {"every_steps": 2}, [3, 6, 7], [2, 3, 4, 6, 7]),
        ({"steps": EPOCH + 2}, {}, {"every_steps": 30}, [EPOCH, EPOCH + 2], [30, EPOCH, EPOCH + 2]),
        ({"steps": 40, "epochs": 1}, {}, {}, [EPOCH], [EPOCH]),
        ({"steps": 4, "epochs": 1}, {}, {}, [4], [4]),
    ],
)
def test_what_is_due_when(
    ranks: dist.Ranks, rows: Path, tmp_path: Path, train: dict, evaluate: dict, checkpoint: dict, evaluated: list, saved: list
) -> None:
    trainer = make(
        ranks,
        rows / "train",
        tmp_path,
        data={"valid": str(rows / "valid")},
        train=train,
        evaluate=evaluate,
        checkpoint=checkpoint,
    )
    written: list[int] = []
    save = trainer.checkpoints.save
    trainer.checkpoints.save = lambda state, manifest, best: (written.append(manifest.step), save(state, manifest, best))[1]  # type: ignore
    trainer.run()
    assert steps_of(lines(tmp_path), "valid/auc") == evaluated
    assert written == saved


def test_without_rows_to_evaluate_on_it_saves_at_the_end_of_an_epoch(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    trainer = make(ranks, rows / "train", tmp_path, train={"steps": EPOCH + 1})
    trainer.run()
    assert trainer.checkpoints.steps() == [EPOCH, EPOCH + 1]


def test_best_is_taken_back_with_the_checkpoint_that_was_damaged(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"data": {"valid": str(rows / "valid")}, "evaluate": {"every_steps": 2}}
    judged(make(ranks, rows / "train", tmp_path, train={"steps": 4}, **sections), 0.6, 0.8).run()
    (tmp_path / "checkpoints" / "step-000000004" / ".metadata").write_bytes(b"")
    trainer = make(ranks, rows / "train", tmp_path, "newest", train={"steps": 4}, **sections)
    assert trainer.optimizers.steps == 2
    assert trainer.checkpoints.best() == 2
    report = judged(trainer, 0.5).run()
    assert (report.best_step, trainer.checkpoints.best()) == (2, 2)
    assert steps_of(lines(tmp_path), "valid/auc") == [2, 4]


@pytest.mark.parametrize(("scale", "warnings"), [(ROWS, 0), (1e-9, 1)])
def test_a_huge_loss_that_is_a_number_is_told_once_with_its_step(
    scale: float, warnings: int, ranks: dist.Ranks, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = values(rows, tmp_path)["features"] | {"dense": [{"name": "x", "scale": scale}]}
    make(ranks, rows / "train", tmp_path / "run", train={"steps": 12, "log_every": 4}, features=features).run()
    said = [record.getMessage() for record in caplog.records if "1,000 times" in record.getMessage()]
    assert len(said) == warnings
    shown = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["tensors"]
    assert ("warnings/text_summary" in shown) == bool(warnings)
    for text in said:
        assert text.startswith('warning: at step 4, task "label": logloss is ')
    huge = [line["train/logloss"] > 1000 for line in lines(tmp_path / "run") if "train/logloss" in line]
    assert sum(huge) >= 2 * warnings  # later windows too, of which the first one told


@pytest.mark.parametrize(
    ("loss", "temperature", "weight", "told"),
    [(999, 1, 1, False), (1001, 1, 1, True), (1001, 0.07, 1, False), (1001, 1, 1500, False), (1e30, 0.07, 1500, True)],
)
def test_so_is_that_of_a_retriever(loss: float, temperature: float, weight: float, told: bool) -> None:
    retrieval = SimpleNamespace(temperature=temperature, negative_weight=weight)
    engine: Any = SimpleNamespace(config=SimpleNamespace(retrieval=retrieval))
    assert bool(Engine.divergence(engine, StepMeans(["accuracy"]), {"loss": loss})) == told


def test_a_regression(ranks: dist.Ranks, rows: Path, tmp_path: Path) -> None:
    """Ratings by item; the constant mean has the standard deviation of the ratings as its RMSE."""
    for split in ("train", "valid"):
        item = np.random.default_rng(len(split)).integers(0, 40, ROWS)
        write_rows(tmp_path / split, seed=7, item=item, rating=1.0 + item % 5)
    sections: dict[str, Any] = {
        "tasks": [{"label": "rating", "kind": "regression"}],
        "data": {"valid": str(tmp_path / "valid")},
    }
    report = make(ranks, tmp_path / "train", tmp_path / "run", train={"epochs": 4}, **sections).run()
    assert report.metrics.keys() == {"valid/loss", "valid/mse", "valid/rmse", "valid/mae"}
    assert report.metrics["valid/rmse"] < 0.6 * math.sqrt(2.0)
    best = min(line["valid/rmse"] for line in lines(tmp_path / "run") if "valid/rmse" in line)
    assert json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())["metrics"]["rmse"] == best


def test_two_tasks(ranks: dist.Ranks, tmp_path: Path) -> None:
    item = np.random.default_rng(0).integers(0, 40, ROWS)
    write_rows(tmp_path / "rows", item=item, rating=1.0 + item % 5)
    tasks = [{"name": "click", "label": "label"}, {"name": "stars", "label": "rating", "kind": "regression", "weight": 0.5}]
    trainer = make(
        ranks, tmp_path / "rows", tmp_path / "run", tasks=tasks, data={"valid": str(tmp_path / "rows")}, train={"epochs": 2}
    )
    report = trainer.run()
    assert {"valid/click/auc", "valid/stars/rmse", "valid/loss"} <= report.metrics.keys()
    assert "train/stars/rmse" in lines(tmp_path / "run")[0]
    expected = report.metrics["valid/click/logloss"] + 0.5 * report.metrics["valid/stars/mse"]
    assert report.metrics["valid/loss"] == pytest.approx(expected)
    assert trainer.memory.best == max(line["valid/click/auc"] for line in lines(tmp_path / "run") if "valid/click/auc" in line)


@pytest.mark.parametrize(("value", "best", "wins"), [(0.9, 1.2, True), (1.05, 0.9, True), (0.5, 0.9, False), (0.2, 2.1, True)])
def test_calibration_is_best_at_one(value: float, best: float, wins: bool) -> None:
    assert better(value, best, "click/calibration") is wins


def test_a_table_without_ids_in_a_batch_is_counted_as_such() -> None:
    use = TableUse({"a": "t", "b": "t"}, {"t": 4})
    use.update([("a", torch.tensor([], dtype=torch.int64)), ("b", torch.tensor([1, 1, 3]))])
    assert use.buckets["t"].tolist() == [0, 2, 0, 1]
    assert use.ids == {"a": 0, "b": 3}


def test_a_gpu_that_is_not_there_is_missed_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Exception, match=r"1 ranks? .*needs? 1 GPUs? and it has 0 GPUs; .*train\.device=cpu"):
        dist.start("cuda")
