"""Generated configs, ten thousand of them in the slow run: each is refused in words, or its model is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_strategies import configs
from hypothesis import HealthCheck, Phase, given, settings
from small_run import values, write_rows

from distrec.config.load import dump, parse
from distrec.errors import UserError
from distrec.validate import validate

MODELS = {
    "dlrm": {"bottom_mlp": [8], "top_mlp": [16]},
    "deepfm": {"mlp": [8]},
    "din": {"targets": ["item"], "histories": ["history"]},
    "wide_deep": {"mlp": [8], "wide_only": ["item"], "deep_only": ["history"]},
    "dcn": {"mlp": [8], "cross_rank": 4, "experts": 2},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), rows=300)


def outcomes(base: dict[str, Any], count: int) -> list[bool]:
    """Of `count` configs made from `base`, whether each is sound; `UserError`s with a message are the only errors."""
    sound, silent = [], []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configs(base))
    def check(config: dict[str, Any]) -> None:
        nonlocal silent
        try:
            parsed = parse(config)
            validate(parsed)
        except UserError as error:
            silent += [] if str(error).strip() else [config]
            sound.append(False)
        else:
            assert parse(json.loads(dump(parsed))) == parsed
            sound.append(True)

    check()
    assert silent == []
    return sound


@pytest.mark.parametrize("count", [50, pytest.param(3400, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("model", MODELS)
def test_every_config_is_sound_or_refused(rows: Path, model: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows)  # what a config names as a path may be anything
    base = values(rows, Path("run"), model={"name": model, "params": MODELS[model]})
    found = outcomes(base, count)
    assert len(found) >= count
    assert 0.05 < sum(found) / len(found) < 0.9, "they should try both"
