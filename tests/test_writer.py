"""The writer, read back from both of its files."""

import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from distrec.errors import UserError
from distrec.metrics.writer import NullWriter, Writer


def lines(folder: Path) -> list[dict]:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def layout(folder: Path) -> dict[str, list[str]]:
    """Title of each chart -> its tags' regular expressions."""
    (event,) = events(folder).Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    return {chart.title: list(chart.multiline.tag) for category in charts for chart in category.chart}


def test_both_files_hold_the_same_numbers_while_the_writer_is_open(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars(50, {"train/loss": torch.tensor(0.5), "perf/samples_per_s": 200_000})
    writer.scalars(100, {"train/loss": 0.25})
    first, second = lines(tmp_path)
    assert first == {"step": 50, "time": first["time"], "train/loss": 0.5, "perf/samples_per_s": 200_000.0}
    assert second == {"step": 100, "time": second["time"], "train/loss": 0.25}
    assert points(tmp_path, "train/loss") == [(50, 0.5), (100, 0.25)]
    assert events(tmp_path).Scalars("train/loss")[0].wall_time == pytest.approx(first["time"])
    writer.close()


def test_what_is_not_finite_is_null_in_json_and_itself_in_tensorboard(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"valid/auc": math.nan, "train/loss": -math.inf})
    (line,) = lines(tmp_path)
    assert line["valid/auc"] is None
    assert line["train/loss"] is None
    assert math.isnan(points(tmp_path, "valid/auc")[0][1])
    assert points(tmp_path, "train/loss") == [(1, -math.inf)]


def test_a_resumed_run_drops_the_steps_that_run_again(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (10, 20, 30, 40):
            writer.scalars(step, {"train/loss": float(step)})
    with Writer(tmp_path, resume_step=20) as writer:
        assert [line["step"] for line in lines(tmp_path)] == [10, 20]
        writer.scalars(30, {"train/loss": 0.0})
    assert [line["train/loss"] for line in lines(tmp_path)] == [10.0, 20.0, 0.0]
    assert points(tmp_path, "train/loss") == [(10, 10.0), (20, 20.0), (30, 0.0)]


def test_a_fresh_run_in_a_used_folder_starts_over(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(0, {"train/loss": 1.0})
        writer.scalars(5, {"train/loss": 1.0})
    with Writer(tmp_path) as writer:
        writer.scalars(5, {"train/loss": 2.0})
    assert [line["train/loss"] for line in lines(tmp_path)] == [2.0]
    assert points(tmp_path, "train/loss") == [(5, 2.0)]


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 0.0, "train/loss": 1.0}\n{"step": 2, "ti')
    with Writer(tmp_path, resume_step=2) as writer:
        writer.scalars(3, {"train/loss": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    path.write_text('{"step": 1, "time": 0.0}')  # whole, but for its end of line
    with Writer(tmp_path, resume_step=2) as writer:
        writer.scalars(3, {"train/loss": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


@pytest.mark.parametrize(
    ("chart", "tags", "others"),
    [
        ("loss", ["train/loss", "valid/loss", "train/click/loss"], ["train/logloss"]),
        ("AUC and GAUC", ["train/auc", "valid/auc", "valid/click/gauc"], ["test/auc", "valid/auc_rows"]),
        ("normalized entropy", ["valid/ne", "valid/click/ne"], ["valid/none", "valid/phone"]),
        ("RMSE", ["valid/rmse", "valid/rating/rmse"], ["valid/mse"]),
        ("NDCG", ["valid/ndcg@10", "valid/ndcg@20"], ["valid/ndcg", "valid/sampled_99/ndcg@10", "test/ndcg@10"]),
        ("samples a second", ["perf/samples_per_s"], ["perf/step_s"]),
        ("share of time waiting for data", ["perf/data_wait"], ["perf/step_s"]),
        ("GiB", ["system/rss_gib", "system/gpu_peak_gib"], ["perf/step_s"]),
    ],
)
def test_the_layout_draws_the_tags_that_runs_write(tmp_path, chart, tags, others):
    with Writer(tmp_path, kinds=("binary", "regression", "retrieval")):
        pass
    patterns = [re.compile(pattern) for pattern in layout(tmp_path)[chart]]
    assert all(any(p.match(tag) for p in patterns) for tag in tags)
    assert not any(p.match(tag) for p in patterns for tag in others)


def test_the_layout_has_no_empty_charts_of_other_kinds(tmp_path):
    with Writer(tmp_path / "binary"), Writer(tmp_path / "regression", kinds=("regression",)):
        pass
    assert "RMSE" not in layout(tmp_path / "binary")
    assert not {"AUC and GAUC", "NDCG"} & layout(tmp_path / "regression").keys()
    assert "RMSE" in layout(tmp_path / "regression")


def test_hparams_stay_in_the_run_and_name_settings_and_metrics(tmp_path):
    config = {
        "name": "dlrm",
        "train": {"seed": 3, "clip_norm": None},
        "data": {"shuffle": True},
        "model": {"params": {"top_mlp": (256, 128)}},
        "tasks": ({"name": "label"},),
    }
    with Writer(tmp_path) as writer:
        writer.scalars(7, {"test/auc": 0.75})
        writer.hparams(config, {"test/auc": 0.75})
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    content = events(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {key: value.WhichOneof("kind") for key, value in settings.items()} == {
        "name": "string_value",
        "train.seed": "number_value",
        "data.shuffle": "string_value",
        "model.params.top_mlp": "string_value",
    }
    assert settings["train.seed"].number_value == 3
    assert settings["model.params.top_mlp"].string_value == "[256, 128]"
    content = events(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["test/auc"]


def test_texts_and_histograms_are_kept_and_histograms_skip_what_is_not_finite(tmp_path):
    with Writer(tmp_path) as writer:
        writer.text("run/config", "name = 1")
        writer.histogram("rows/movie", torch.tensor([1, 2, 3]), 5)
        writer.histogram("rows/user", torch.tensor([1.0, math.nan, math.inf]), 5)
        writer.histogram("rows/none", torch.tensor([]), 5)
    accumulated = events(tmp_path)
    assert b"name = 1" in accumulated.Tensors("run/config/text_summary")[0].tensor_proto.string_val[0]
    histogram = accumulated.Histograms("rows/movie")[0]
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.sum) == (5, 3, 6)
    assert accumulated.Histograms("rows/user")[0].histogram_value.num == 1
    assert "rows/none" not in accumulated.Tags()["histograms"]


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r'cannot write metrics to the run folder ".*file/run"'):
        Writer(tmp_path / "file" / "run")


def test_the_null_writer_has_the_same_methods_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {name: method for name, method in inspect.getmembers(Writer, inspect.isfunction) if name[0] != "_"}
    assert {"scalars", "text", "histogram", "hparams", "close"} == set(methods)
    for name, method in methods.items():
        assert inspect.signature(method) == inspect.signature(getattr(NullWriter, name))
    with NullWriter() as writer:
        writer.scalars(1, {"train/loss": 1.0})
        writer.text("a", "b")
        writer.histogram("a", torch.ones(3), 1)
        writer.hparams({}, {})
    assert list(tmp_path.iterdir()) == []
