"""What the README shows is what there is."""

import re
import tomllib
from pathlib import Path

import pytest
from single_rank import alone
from small_retrieval import retrieval_values, write_retrieval
from small_run import values, write_rows
from typer.main import get_command

from distrec import log
from distrec.cli import app
from distrec.config.check import find_faults
from distrec.config.load import parse
from distrec.trainer import build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
    found = [text for named, text in fenced if named == language and containing in text]
    assert len(found) == 1, (language, containing)
    return found[0]


def test_the_config_for_ones_own_data_is_sound() -> None:
    config = parse(tomllib.loads(block("toml", "my-ranker")))
    assert list(find_faults(config)) == []


def test_the_models_of_ones_own_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(block("python", "class Wide") + block("python", "class Linear"))
    monkeypatch.syspath_prepend(str(tmp_path))
    rows, log_of_items = write_rows(tmp_path / "rows"), write_retrieval(tmp_path / "log", rows=300)
    few = {"steps": 3, "device": "cpu"}
    ranker = {"name": "my_models:Wide", "params": {"mlp": [32]}}
    retriever = {"name": "my_models:Linear", "params": {"dim": 16}}
    log.quiet_dependencies()
    with alone() as ranks:
        for given in (
            values(rows, tmp_path / "ranker", model=ranker, train=few),
            retrieval_values(log_of_items, tmp_path / "retriever", model=retriever, train=few),
        ):
            assert build(parse(given), ranks, None).run().steps == 3


def test_the_tree_names_every_module() -> None:
    tree = block("", "launch/component.py   ")
    modules = {p.stem if p.suffix else p.name for p in (ROOT / "distrec").iterdir() if p.suffix == ".py" or p.is_dir()}
    missing = {m for m in modules - {"__init__", "__pycache__"} if not re.search(rf"\b{m}(\.py|/)", tree)}
    assert len(modules) > 10
    assert not missing


def test_the_paths_it_names_exist() -> None:
    named = set(re.findall(r"\b(?:configs|launch|distrec|tests|requirements)/[\w/.-]*\w", README))
    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_verbs_it_names_exist() -> None:
    verbs = set(re.findall(r"\bdistrec (\w+) ", README)) - {"trains", "does"}
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {"train", "check", "evaluate", "prepare"} <= verbs
    assert {v for v in verbs if v not in known and re.search(rf"^distrec {v}\b|`distrec {v}\b", README, flags=re.M)} == set()
