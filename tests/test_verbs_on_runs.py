"""`evaluate`, `export`, `index` and `recall` on runs that have gone on, are another's, may not be written, or were moved."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from command import Command
from read_only import read_only
from single_rank import alone
from small_retrieval import retrieval_values, write_retrieval

from distrec.config.load import parse
from distrec.config.paths import readable_from_here
from distrec.errors import UserError
from distrec.export.write import export
from distrec.recall.command import build_index, items_of
from distrec.recall.picture import draw
from distrec.trainer import build

STEPS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and `run`, a small retriever with checkpoints of steps 3 and 6, exported and indexed."""
    folder = tmp_path_factory.mktemp("trained")
    values = retrieval_values(write_retrieval(folder / "data", rows=600), folder / "run", checkpoint={"every_steps": 3})
    values["data"]["valid"] = str(folder / "data/valid")
    values["retrieval"]["query_id"] = "user_id"
    values["train"]["steps"] = STEPS
    config = parse(values)
    with alone() as ranks:
        build(config, ranks, None).run()
        export(config, ranks, folder / "run", None, None, "fp32", "none")
    build_index(folder / "run", "Flat", 0.9, None, None, None)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def go_on(run: Path, to: int, keep: int | None = None) -> None:
    """As if the run had been trained on to step `to`, the best by then; of the older ones, `keep` is kept."""
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / f"step-{STEPS:09d}", checkpoints / f"step-{to:09d}")
    for path in checkpoints.glob("step-*"):
        if path.name not in (f"step-{to:09d}", f"step-{keep or 0:09d}"):
            shutil.rmtree(path)
    (checkpoints / "best.json").write_text(json.dumps({"step": to, "metrics": {}}))


# -- an index of an older step, or of another run ----------------------------------------------------------------------


def test_recall_says_that_the_index_is_older_than_all_checkpoints(distrec: Command, run: Path, tmp_path: Path) -> None:
    assert distrec("recall", run, "--query", "7").code == 0
    shutil.copytree(run / "index", tmp_path / "other")
    go_on(run, 12)
    for words, index, again in (
        ([], run / "index", f"distrec export {run} and distrec index {run}\n"),
        (["--index", tmp_path / "other"], tmp_path / "other", f"distrec index {run} --out {tmp_path / 'other'}\n"),
    ):
        ended = distrec("recall", run, "--query", "7", *words)
        assert ended.code == 2
        assert f"the index in {index} is of step 6, whose checkpoint is gone (kept are: 12); export the run again" in ended.err
        assert ended.err.endswith(again)


def test_index_warns_of_an_export_that_is_not_of_the_best_checkpoint(distrec: Command, run: Path) -> None:
    assert distrec("index", run).err == ""
    go_on(run, 12, keep=STEPS)
    warned = distrec("index", run)
    assert warned.code == 0
    best = f"warning: {run / 'export'} is of step 6; the best checkpoint of {run} is of step 12"
    assert warned.err == f"{best}; to index that one, export it first: distrec export {run}\n"
    assert distrec("recall", run, "--query", "7").code == 0
    shutil.rmtree(run / "checkpoints/step-000000006")
    assert f"{best}, and none is kept of step 6, so that recall will refuse the index; to index" in distrec("index", run).err
    (run / "checkpoints/best.json").unlink()
    assert f"the newest checkpoint of {run} is of step 12" in distrec("index", run).err


@pytest.mark.parametrize("how", ["name", "weights"])
def test_an_export_of_another_run_is_not_indexed_as_this_ones(distrec: Command, run: Path, trained: Path, how: str) -> None:
    if how == "name":
        config = run / "config.json"
        config.write_text(config.read_text().replace('"name": "small"', '"name": "other"'))
    else:  # the same config, trained again
        path = run / f"checkpoints/step-{STEPS:09d}"
        shutil.rmtree(path)
        shutil.copytree(run / "checkpoints/step-000000003", path)
    before = (run / "index/manifest.json").read_text()
    ended = distrec("index", run, "--export", trained / "run/export")
    assert ended.code == 2
    assert f"{trained / 'run/export'} is not the export of the run in {run} (" in ended.err
    assert ("run small, now other" if how == "name" else "checkpoint ") in ended.err
    assert f"name the run that it is of, or export this one: distrec export {run}" in ended.err
    assert (run / "index/manifest.json").read_text() == before
    (run / "config.json").unlink()  # an export without its run is taken as it is
    assert distrec("index", run, "--export", trained / "run/export").code == 0


# -- a run where nothing can be written ------------------------------------------------------------------------------


def test_a_run_that_may_only_be_read_is_used_without_a_log(distrec: Command, run: Path, tmp_path: Path) -> None:
    warning = f"warning: cannot write logs to {run}/logs: Permission denied; messages are shown here alone\n"
    with read_only(run):
        for words in (["evaluate", run], ["recall", run, "--query", "7"]):
            ended = distrec(*words)
            assert (ended.code, ended.err.startswith(warning)) == (0, True)
        for words, said in (
            (["export", run], f"cannot write {run}/export: Permission denied; name another folder with --out"),
            (["index", run], f"cannot write to {run}: Permission denied; name another folder with --out"),
            (["recall", run, "--report"], f"cannot write to {run}: Permission denied; name another folder with --out"),
        ):
            ended = distrec(*words)
            assert (ended.code, ended.err) == (2, f"{warning}distrec: {said}\n")
        export, index, report = (tmp_path / "out" / name for name in ("export", "index", "report"))
        for words in (
            ["export", run, "--program", "none", "--out", export],
            ["index", run, "--export", export, "--out", index],
            ["recall", run, "--index", index, "--query", "7"],
            ["recall", run, "--index", index, "--export", export, "--report", "--out", report],
        ):
            ended = distrec(*words)
            assert (ended.code, ended.err.startswith(warning)) == (0, True)
    assert (report / "recall.png").exists()
    assert next(export.glob("projector/**/metadata.tsv"))
    shutil.rmtree(run / "export")
    assert distrec("recall", run, "--index", index, "--export", export, "--report").code == 0


def test_an_index_or_report_that_could_not_be_written_is_refused_at_once(
    distrec: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("make_index", "restored"):
        monkeypatch.setattr(f"distrec.recall.command.{name}", lambda *words: pytest.fail("worked in vain"))
    with read_only(run):
        assert [distrec(*words).code for words in (["index", run], ["recall", run, "--report"])] == [2, 2]


# -- a run that is used from another folder than it was trained in -----------------------------------------------------


@pytest.fixture
def at_work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `data` and the run `runs/mine`, as if it had been trained from there; the process stands elsewhere."""
    work = tmp_path / "work"
    for name, place in (("data", "data"), ("run", "runs/mine")):
        shutil.copytree(trained / name, work / place)
    config = work / "runs/mine/config.json"
    config.write_text(config.read_text().replace(f"{trained}/run", "runs/mine").replace(f"{trained}/", ""))
    monkeypatch.chdir(tmp_path)
    return work


def test_a_run_is_used_from_anywhere_and_moves_with_its_data(
    distrec: Command, at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = (at_work / "runs/mine/config.json").read_bytes()
    assert distrec("evaluate", at_work / "runs/mine").code == 0
    assert distrec("recall", "work/runs/mine", "--query", "7").code == 0
    (tmp_path / "link").symlink_to(at_work / "runs/mine")
    assert distrec("evaluate", "link").code == 0
    moved = at_work.rename(tmp_path / "moved")
    monkeypatch.chdir(moved / "runs")
    assert distrec("export", "mine", "--program", "none").code == 0
    hashed = json.loads((moved / "runs/mine/export/manifest.json").read_text())["config_sha256"]
    assert hashed == hashlib.sha256(saved).hexdigest()
    assert (moved / "runs/mine/config.json").read_bytes() == saved


def test_what_is_typed_is_meant_from_here(distrec: Command, at_work: Path, tmp_path: Path) -> None:
    shutil.copytree(at_work / "data/valid", tmp_path / "rows")
    (tmp_path / "rows/part-1.parquet").unlink()
    assert "data.valid, 30 rows" in distrec("evaluate", at_work / "runs/mine", "data.valid=rows").out
    ended = distrec("evaluate", at_work / "runs/mine", "data.valid=data/valid")
    assert ended.code == 2
    assert f"data.valid: data/valid: no Parquet file there, seen from {tmp_path}; give" in ended.err


def test_a_run_that_lies_elsewhere_than_it_was_trained_says_where_it_looks(
    distrec: Command, at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(at_work / "runs/mine", tmp_path / "alone")
    ended = distrec("evaluate", "alone")
    assert ended.code == 2
    assert f"retrieval.items: data/items: no Parquet file there, seen from {tmp_path}; give" in ended.err
    monkeypatch.chdir(at_work)
    assert distrec("evaluate", tmp_path / "alone").code == 0


def test_paths_are_all_from_here_or_as_far_as_they_are_there_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("job/data/train", "job/data/valid", "here/data/train", "job/plan.json"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    data = {"train": ["data/tr*"], "valid": ["data/valid"], "test": ["s3://bucket/test", "/abs/test", "data/gone"]}
    values = {"name": "x", "folder": "./runs/x/", "data": data, "embedding": {"plan": "plan.json"}}
    found = readable_from_here(values, tmp_path / "job/runs/x")
    assert found["data"] == {
        "train": [f"{tmp_path}/job/data/tr*"],
        "valid": [f"{tmp_path}/job/data/valid"],
        "test": ["s3://bucket/test", "/abs/test", "data/gone"],
    }
    assert found["embedding"] == {"plan": f"{tmp_path}/job/plan.json"}
    assert readable_from_here(values, tmp_path / "job/runs/y") == values
    absolute = values | {"folder": "/runs/x"}
    assert readable_from_here(absolute, tmp_path / "job/runs/x") == absolute
    here = {"name": "x", "folder": None, "data": {"train": ["data/train"], "valid": []}, "retrieval": None}
    assert readable_from_here(here, tmp_path / "job/runs/x") == here


def test_a_path_that_cannot_be_looked_at_is_left_as_it_is(tmp_path: Path) -> None:
    """Not even its name can be looked up, as of what lies in a folder that may not be entered."""
    values = {"name": "x", "data": {"train": ["data/" + "x" * 300]}}
    assert readable_from_here(values, tmp_path / "runs/x") == values


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_a_history_may_name_ids_with_commas() -> None:
    assert items_of(" 3, 7,,8 ") == ["3", "7", "8"]
    assert items_of('["a,b", "[c]", 7]') == ["a,b", "[c]", "7"]
    for text, said in (("[a,b]", "not a JSON list of ids, such as"), ("[[3]]", "ids are texts or integers, such as")):
        with pytest.raises(UserError, match=said):
            items_of(text)


def test_recommendations_are_not_written_anywhere(distrec: Command, run: Path, tmp_path: Path) -> None:
    for option, use in (("--out", "--report and --all: what --query"), ("--export", "--report: recommendations come from")):
        ended = distrec("recall", run, "--history", "[3, 7]", option, tmp_path / "x")
        assert ended.code == 2
        assert f"{option} is for {use}" in ended.err
    assert "for 3, 7" in distrec("recall", run, "features.dense.0.null=0.0", "--history", "[3, 7]").out


def test_an_index_says_which_column_it_answers_with(distrec: Command, run: Path) -> None:
    ended = distrec("recall", run, "--query", "7", "retrieval.own_id=title")
    assert ended.code == 2
    assert f"the index in {run}/index answers with column 'item_id' of retrieval.items, and now 'title' is asked for: set " in (
        ended.err
    )
    assert "retrieval.own_id=item_id, or export" in ended.err
    assert distrec("recall", run, "--query", "7", "retrieval.own_id=item_id").code == 0


def test_a_key_of_a_run_may_be_unset(distrec: Command, run: Path) -> None:
    assert "items seen before are left out" in distrec("recall", run, "--query", "7").out
    assert "left out" not in distrec("recall", run, "--query", "7", "retrieval.mask=").out


def test_the_star_at_recall_1_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pixels, half of it is as wide as its marker; the axes must end beyond that."""
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, dpi: drawn.append(figure))
    monkeypatch.setattr("matplotlib.pyplot.close", lambda figure: figure.canvas.draw())
    curve = [{"parameters": f"nprobe={i}", "recall": r, "qps": 1e5 / r} for i, r in enumerate((0.5, 0.9, 1.0))]
    speeds = {"1": {"batch": 1.0}}
    for points in (curve, curve[2:]):
        draw({"curve": points, "k": 10, "qps": speeds, "flat_qps": {}}, {"factory": "IVF", "parameters": "nprobe=2"}, tmp_path)
        (axes,) = drawn.pop().axes
        (star,) = [line for line in axes.lines if line.get_marker() == "*"]
        at = axes.transData.transform((1.0, star.get_ydata()[0]))[0]
        assert at + star.get_markersize() / 2 * axes.figure.dpi / 72 < axes.get_window_extent().x1
