"""The verbs, as a user meets them: what works, and every mistake in one message with the fix and without a traceback."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Command
from small_run import values, write_rows
from toml_text import to_toml

from distrec.__main__ import main, with_resume_value

ROWS = 600
NO_HISTORY = {"sparse": [{"name": "user", "table": "user"}, {"name": "item", "table": "item"}]}
HEAVY = ("torch", "torchrec", "pyarrow", "polars", "numpy", "rich", "pydantic", "tensorboard")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows", rows=ROWS)


@pytest.fixture
def config(rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config whose run folder is tmp_path/run; 3 steps, unless told otherwise."""

    def write(data: Path = rows, name: str = "small.toml", **sections: Any) -> Path:
        train = {"device": "cpu", "log_every": 2, "steps": 3}
        path = tmp_path / name
        path.write_text(to_toml(values(data, tmp_path / "run", **{"train": train, **sections})), encoding="utf-8")
        return path

    return write


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


# -- help ------------------------------------------------------------------------------------------------------------


def loaded_after(*words: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and which of the heavy packages a fresh process has loaded at the end."""
    program = f"""
import atexit, sys
atexit.register(lambda: print("LOADED", *[name for name in {HEAVY} if name in sys.modules]))
from distrec.__main__ import main
main({list(words)})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    out, _, loaded = done.stdout.rpartition("LOADED")
    return done.returncode, out + done.stderr, loaded.split()


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("prepare", "synthetic", "-h")])
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    code, out, loaded = loaded_after(*words)
    assert code == 0
    assert "Usage: distrec" in out
    assert not {*loaded} - {"pydantic"}  # typer's own choice, for the options of a verb
    assert loaded == [] or words != ("--help",)


def test_a_mistake_in_a_config_is_found_before_torch_is_loaded(config: Callable[..., Path]) -> None:
    code, out, loaded = loaded_after("train", str(config()), "data.batch_sise=3")
    assert code == 2
    assert "data.batch_sise: no such key; did you mean 'batch_size'?" in out
    assert not {"torch", "pyarrow", "polars"} & set(loaded)


def test_help_names_the_verbs_in_whole_sentences(distrec: Command) -> None:
    commands, more = (distrec(*of, "--help").out.partition("Commands:\n")[2].splitlines() for of in ((), ("prepare",)))
    verbs = "train check init inspect evaluate doctor schema plan export index recall prepare"
    assert " ".join(line.split()[0] for line in commands) == verbs
    assert all(line.endswith(".") and "..." not in line for line in commands + more)
    assert distrec("train", "--help").out.startswith("Usage: distrec train [OPTIONS] {CONFIG} [KEY=VALUE]...")


def test_versions_are_told_without_loading_what_they_are_of() -> None:
    code, out, loaded = loaded_after("--version")
    told = dict(line.split(" ") for line in out.splitlines())
    assert (code, loaded) == (0, [])
    assert [*told][:4] == ["distrec", "python", "torch", "torchrec"]
    assert {"fbgemm-gpu", "fbgemm-gpu-cpu"} & told.keys()
    assert told["torch"] == metadata.version("torch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument 'CONFIG'"),
        (["train", "x.toml", "--resme"], "No such option: --resme"),
        (["evaluate", "runs/x", "--split", "tset"], "'tset' is not one of 'valid', 'test'"),
        (["evaluate", "runs/x", "--step", "last"], "--step"),
        (["prepare", "synthetic"], "Missing option '--out'"),
    ],
)
def test_a_wrong_word_is_told_with_the_right_ones(distrec: Command, words: list[str], said: str) -> None:
    ended = distrec(*words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


# -- training --------------------------------------------------------------------------------------------------------


def test_a_run_says_where_things_are_and_can_be_scored(distrec: Command, config: Callable[..., Path], rows: Path) -> None:
    path = config()
    ended = distrec("train", path, f'data.valid=["{rows}"]')
    folder = path.parent / "run"
    assert (ended.code, ended.err) == (0, "")
    longer = f"{path} 'data.valid=[\"{rows}\"]' train.steps=6 --resume"
    assert f"train longer:   distrec train {longer}\n" in ended.out
    assert f"tensorboard --logdir {folder}" in ended.out
    assert "nan" not in ended.out.lower()
    told = summary(folder)
    assert (told["steps"], told["total_steps"], told["stopped_by"], told["best_step"]) == (3, 3, None, 3)
    scored = distrec("evaluate", folder)
    assert scored.code == 0
    assert f"step 3, data.valid, {ROWS} rows" in scored.out
    assert f"{told['metrics']['valid/auc']:.5g}" in scored.out
    assert distrec("train", *shlex.split(longer)).code == 0
    assert summary(folder)["steps"] == 6


def test_a_second_run_into_a_folder_is_refused(distrec: Command, config: Callable[..., Path]) -> None:
    path = config()
    assert distrec("train", path).code == 0
    before = (path.parent / "run" / "config.json").read_text()
    ended = distrec("train", path, "train.seed=1")
    assert ended.code == 2
    assert "run holds a run already; go on with it (--resume newest), name another folder (folder=" in ended.err
    assert (path.parent / "run" / "config.json").read_text() == before


def test_resume_goes_on_and_auto_starts_too(distrec: Command, config: Callable[..., Path]) -> None:
    path = config()
    refused = distrec("train", path, "--resume")
    assert refused.code == 2
    assert "there is no run in" in refused.err
    assert distrec("train", path, "--resume", "auto").code == 0
    longer = distrec("train", path, "train.steps=5", "--resume", "newest")
    assert longer.code == 0
    assert "resuming after step 3" in longer.out
    again = distrec("train", path, "train.steps=6", "--resume", "auto")
    assert "resuming after step 5" in again.out
    assert summary(path.parent / "run")["steps"] == 6
    done = distrec("train", path, "train.steps=6", "--resume")
    assert done.code == 0
    assert "6 of 6 steps" in done.out


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["train", "c", "--resume"], ["train", "c", "--resume=newest"]),
        (["train", "--resume", "c"], ["train", "--resume=newest", "c"]),
        (["train", "c", "--resume", "auto"], ["train", "c", "--resume", "auto"]),
        (["train", "c", "--resume=auto", "a=1"], ["train", "c", "--resume=auto", "a=1"]),
        (["train", "c"], ["train", "c"]),
    ],
)
def test_resume_may_stand_alone(words: list[str], parsed: list[str]) -> None:
    assert with_resume_value(words) == parsed


@pytest.mark.parametrize("mistake", ["data.train=nowhere", "embedding.memory=1KB", "features.sparse.1.column=user"])
def test_a_mended_run_may_use_the_folder_of_one_that_never_trained(
    distrec: Command, config: Callable[..., Path], mistake: str
) -> None:
    path = config()
    assert distrec("train", path, mistake).code == 2
    assert distrec("train", path).code == 0
    assert distrec("train", path, mistake).code == 2
    assert distrec("train", path, "train.steps=4", "--resume").code == 0, "a refusal must not harm the run that is there"


def test_a_regression_trains_and_is_scored_by_rmse(distrec: Command, config: Callable[..., Path], rows: Path) -> None:
    path = config(tasks=[{"name": "r", "label": "x", "kind": "regression"}], features=NO_HISTORY, model={"name": "deepfm"})
    assert distrec("train", path, f"data.valid={rows}").code == 0
    metrics = summary(path.parent / "run")["metrics"]
    assert math.isclose(metrics["valid/rmse"] ** 2, metrics["valid/mse"], rel_tol=1e-6)
    assert "valid/auc" not in metrics


def test_two_tasks_train_and_are_scored_each_by_its_own(distrec: Command, config: Callable[..., Path], rows: Path) -> None:
    tasks = [{"name": "click"}, {"name": "stay", "label": "x", "kind": "regression", "weight": 1e-6}]
    path = config(tasks=tasks, features=NO_HISTORY)
    ended = distrec("train", path, f"data.valid={rows}")
    assert ended.code == 0, ended.err
    told = summary(path.parent / "run")
    assert {"valid/click/auc", "valid/stay/rmse"} <= told["metrics"].keys()
    assert told["best_step"] == 3


def test_a_file_without_rows_is_read_over(distrec: Command, config: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    data = shutil.copytree(rows, tmp_path / "with-empty")
    pq.write_table(pq.read_table(rows / "part-0.parquet").slice(0, 0), data / "part-00.parquet")
    path = config(data, train={"device": "cpu", "epochs": 1})
    assert distrec("train", path).code == 0
    assert summary(tmp_path / "run")["steps"] == math.ceil(ROWS / 64)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.batch_sise=3"], ["data.batch_sise: no such key; did you mean 'batch_size'?"]),
        (["embedding.memory=1KB"], ["the tables do not fit", "user: 50 x 8 fp32 = 1.6 KB", "on 1 rank with 1.0 KB"]),
        (["embedding.memory=lots"], ["embedding.memory: 'lots' is no size"]),
        (["data.train=no/such/place"], ["no/such/place: no Parquet file there"]),
        (["features.dense.0.column=zz"], ["part-0.parquet: no column 'zz' (dense feature 'x')", "known: x, user"]),
        (["features.sparse.0.column=usr"], ["no column 'usr' (feature 'user'); did you mean 'user'?"]),
        (["data.weight=wait"], ["no column 'wait' (data.weight)"]),
        (["data.batch_size=601"], ["data.batch_size = 601, but data.train has 600 rows in all"]),
        (["features.sequence.0.table=user", "features.sparse.1.table=itme"], ["names table 'itme', which is not declared"]),
        (["model.name=dlmr"], ["model.name = 'dlmr' is no model; did you mean 'dlrm'?"]),
        (["model.name=nowhere:Net"], ["cannot import 'nowhere'"]),
        (["model.params.top_mpl=[3]"], ["top_mpl: no such key; did you mean 'top_mlp'?"]),
        (["folder=small.toml/x"], ["cannot write logs to small.toml/x/logs"]),
        (["features.sparse.0=3"], ["features.sparse.0"]),
    ],
)
def test_a_mistake_ends_in_one_message(
    distrec: Command,
    config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = distrec("train", config(), *words)
    assert ended.code == 2
    assert ended.err.startswith("distrec: ")
    for part in said:
        assert part in ended.err


def test_a_config_that_is_not_there(distrec: Command, config: Callable[..., Path]) -> None:
    path = config()
    for verb in ("train", "check"):
        ended = distrec(verb, path.with_name("smal.toml"))
        assert ended.code == 2
        assert ended.err == f"distrec: no config file at {path.parent}/smal.toml; in {path.parent} there is: small.toml\n"


def test_text_where_an_index_is_expected(distrec: Command, config: Callable[..., Path], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "text", rows=100, user=[f"u{i}" for i in range(100)])
    ended = distrec("train", config(data))
    assert ended.code == 2
    assert "part-0.parquet: column 'user' (feature 'user') has type string; it needs integers" in ended.err
    assert 'use ids = "hash" for strings' in ended.err
    assert distrec("train", config(data), "features.sparse.0.ids=hash", "train.steps=1").code == 0


@pytest.mark.parametrize("bad", [50, 2**40, -3])
@pytest.mark.parametrize("policy", ["error", "null", "hash"])
def test_an_id_outside_its_table(distrec: Command, config: Callable[..., Path], tmp_path: Path, bad: int, policy: str) -> None:
    user = np.arange(200) % 50
    user[117] = bad
    data = write_rows(tmp_path / "bad", rows=200, user=user)
    path = config(data, train={"device": "cpu", "epochs": 1})
    ended = distrec("train", path, f"features.sparse.0.out_of_range={policy}")
    assert ended.code == (2 if policy == "error" else 0), ended.err
    if policy == "error":
        for part in ("feature 'user'", f"id {bad} is outside [0, 50)", "part-1.parquet, row 17", "table 'user'"):
            assert part in ended.err


def test_a_missing_number(distrec: Command, config: Callable[..., Path], tmp_path: Path) -> None:
    x = np.arange(200.0)
    x[150] = np.nan
    data = write_rows(tmp_path / "nan", rows=200, x=x)
    ended = distrec("train", config(data))
    assert ended.code == 2
    assert "feature 'x'" in ended.err
    assert "part-1.parquet, row 50: null or NaN; set null = 0.0" in ended.err
    assert distrec("train", config(data), "features.dense.0.null=0.0").code == 0


def test_a_label_that_is_none(distrec: Command, config: Callable[..., Path], tmp_path: Path) -> None:
    label = pa.array([0, 1] * 49 + [2, 1], pa.int8())
    ended = distrec("train", config(write_rows(tmp_path / "odd", rows=100, files=1, label=label)))
    assert ended.code == 2
    assert "part-0.parquet, row 98: 2, but a binary label is 0 or 1" in ended.err


def test_a_fault_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("distrec.cli.app", fail)
    with pytest.raises(SystemExit) as end:
        main(["check"])
    assert end.value.code == 1
    assert "ZeroDivisionError: ours" in capsys.readouterr().err


# -- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(distrec: Command, config: Callable[..., Path], rows: Path) -> Path:
    path = config(checkpoint={"every_steps": 2, "keep": 5})
    assert distrec("train", path, f"data.valid={rows}").code == 0
    return path.parent / "run"


def test_evaluate_takes_other_rows_and_an_older_step(distrec: Command, finished: Path, rows: Path) -> None:
    ended = distrec("evaluate", finished, f"data.test={rows / 'part-1.parquet'}", "--split", "test", "--step", "2")
    assert ended.code == 0
    assert f"step 2, data.test, {ROWS // 2} rows" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "test"], "has no data.test; name the rows: distrec evaluate"),
        (["--step", "999"], "has no checkpoint of step 999; it has: 2, 3"),
        (["data.valid=no/such/place"], "no/such/place: no Parquet file there"),
        (["tables.user.dim=16"], "tables.user.dim (8, now 16)"),
        (["tables.usr.dim=16"], "tables.usr.rows: this key is required"),
    ],
)
def test_evaluate_refuses_what_it_cannot_score(distrec: Command, finished: Path, words: list[str], said: str) -> None:
    ended = distrec("evaluate", finished, *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_evaluate_of_what_is_no_run(distrec: Command, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        ended = distrec("evaluate", place)
        assert ended.code == 2
        assert "is no run folder: it has no config.json" in ended.err
    (tmp_path / "config.json").write_text("{")
    ended = distrec("evaluate", tmp_path)
    assert ended.code == 2
    assert "config.json cannot be read" in ended.err


def test_a_run_that_was_moved_is_scored_where_it_is(distrec: Command, finished: Path) -> None:
    moved = finished.rename(finished.with_name("moved"))
    assert distrec("evaluate", moved).code == 0
    assert not finished.exists()


# -- check and prepare -----------------------------------------------------------------------------------------------


def test_check_says_what_a_sound_config_describes(distrec: Command, config: Callable[..., Path]) -> None:
    path = config()
    ended = distrec("check", path)
    assert (ended.code, ended.err) == (0, "")
    assert f"{path} is sound: dlrm, 2 tables of 2.8 KB, 600 rows in data.train" in ended.out.replace("\n", "")
    assert not (path.parent / "run").exists()


def test_check_reports_all_faults_of_a_config(distrec: Command, config: Callable[..., Path]) -> None:
    ended = distrec("check", config(), "evaluate.monitor=acu", "tables.old={ rows = 3, dim = 4 }", "evaluate.patience=1")
    assert ended.code == 2
    for part in ("did you mean 'auc'?", "table 'old' is used by no feature", "name them in data.valid"):
        assert part in ended.err


def test_check_reports_all_faults_of_model_and_data(distrec: Command, config: Callable[..., Path]) -> None:
    words = ["model.params.dropout=2", "features.dense.0.column=xx", "data.valid=no/such/place", "data.test=nor/here"]
    ended = distrec("check", config(), *words)
    assert (ended.code, [len(line) - len(line.lstrip()) for line in ended.err.splitlines()]) == (2, [0, 2, 4, 2, 2, 2])
    parts = (
        "distrec: 4 faults:",
        "dropout",
        "no column 'xx'",
        "data.valid: no/such/place: no Parquet",
        "data.test: nor/here: no Parquet",
    )
    assert [part for part in parts if part not in ended.err] == []
