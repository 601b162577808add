"""What is said at the end of a run: which step its numbers are of, and how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_retrieval import retrieval_values
from small_run import values
from typer.main import get_command

from distrec import screen
from distrec.cli import app
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.environment import component_path
from distrec.record import Report

ROOT = Path(__file__).parents[1]
VALID, TEST = {"valid/auc": 0.7}, {"valid/auc": 0.7, "test/auc": 0.8}


def said(
    capsys: pytest.CaptureFixture[str],
    world: tuple[int, int] = (1, 1),
    words: tuple[str, ...] = (),
    config: Config | None = None,
    **of_run: Any,
) -> str:
    """The report of a run of 130 steps, its best the 26th."""
    steps = {"steps": 130, "total_steps": 130, "best_step": 26, "stopped_by": None, "early": False}
    outcome = Report(**steps | {"metrics": VALID, "throughput": {}, "seconds": {}} | of_run)
    config = config or parse(
        values(Path("rows"), Path("runs/small"), data={"train": "rows", "valid": "rows"}, train={"epochs": 5})
    )
    screen.report(outcome, config, "my.toml", words, world)
    return capsys.readouterr().out


def next_command(text: str, what: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {what}:")]
    return line.partition(":")[2].strip()


def test_the_best_step_is_told_where_it_is_not_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert "best on data.valid: step 26; evaluate and export go by it, valid/… above is of step 130" in said(capsys)
    assert "step 26; test/…, evaluate and export go by it, valid/… above is of step 130" in said(capsys, metrics=TEST)
    assert "best on" not in said(capsys, best_step=130)
    assert "best on" not in said(capsys, best_step=None)


def test_a_run_that_is_through_goes_on_with_more_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    told = next_command(said(capsys, words=("train.epochs=5", "data.batch_size=8")), "train longer")
    assert told == "distrec train my.toml data.batch_size=8 train.epochs=6 --resume"
    assert next_command(said(capsys, steps=100), "go on with it") == "distrec train my.toml --resume"
    get_command(app).make_context("distrec", told.split()[1:])  # type: ignore[attr-defined]


def test_a_run_that_has_gone_further_than_it_is_asked_to_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, total_steps=5)
    assert "small: 130 steps before, and 5 are asked for: nothing was trained" in told
    assert next_command(told, "train longer") == "distrec train my.toml train.epochs=6 --resume"


@pytest.mark.parametrize(("rows", "offered"), [({}, False), ({"valid": "v"}, True), ({"test": "t"}, True)])
def test_a_report_is_offered_where_there_are_queries_to_measure_with(
    capsys: pytest.CaptureFixture[str], rows: dict[str, str], offered: bool
) -> None:
    config = parse(retrieval_values(Path("data"), Path("runs/small"), data={"train": "rows"} | rows))
    assert ("distrec recall runs/small --report" in said(capsys, config=config)) == offered


def test_it_goes_on_with_as_many_ranks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = next_command(said(capsys, (1, 2), ("name=x",), steps=100), "go on with it")
    component = "torchx run -s local_cwd launch/component.py:train"
    assert told == f"{component} --config my.toml -j 1x2 --resume newest name=x"
    assert next_command(said(capsys, (2, 8), steps=100), "go on with it").endswith("with --resume newest")


def test_the_component_is_named_so_that_torchx_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert component_path() == "launch/component.py"
    monkeypatch.chdir(tmp_path)
    assert component_path() == str(ROOT / "launch/component.py")
