"""Rules that join sections of a config: every fault by name, all at once."""

from __future__ import annotations

from typing import Any

import pytest
from small_config import SMALL, small

from distrec.config.check import check, find_faults
from distrec.config.load import parse
from distrec.errors import UserError


def test_a_sound_config_has_no_fault() -> None:
    assert list(find_faults(parse(small()))) == []
    check(parse(small(data={"train": "rows", "valid": "v", "group": "u"}, evaluate={"monitor": "gauc", "patience": 2})))


FAULTS = [
    (
        {"features": {"sparse": [{"name": "user", "table": "usr"}]}},
        "feature 'user' names table 'usr', which is not declared; did",
    ),
    ({"tables": SMALL["tables"] | {"old": {"rows": 3, "dim": 4}}}, "table 'old' is used by no feature; remove [tables.old]"),
    ({"features": SMALL["features"] | {"dense": ["x", "x"]}}, "feature 'x' is declared 2 times"),
    ({"features": SMALL["features"] | {"dense": ["user"]}}, "feature 'user' is declared 2 times"),
    ({"tasks": [{"name": "a"}, {"name": "a", "label": "b"}]}, "task 'a' is declared 2 times"),
    (
        {"features": SMALL["features"] | {"dense": [{"name": "x", "column": "label"}]}},
        "feature 'x' reads column 'label', the label of task 'label': the model would see it",
    ),
    ({"evaluate": {"monitor": "acu"}}, "evaluate.monitor = 'acu' is no metric of task 'label'; did you mean 'auc'?"),
    ({"evaluate": {"monitor": "gauc"}}, "data.group names no column"),
    (
        {"evaluate": {"monitor": "auc"}, "tasks": [{"kind": "regression"}]},
        "evaluate.monitor = 'auc' is no metric of task 'label'",
    ),
    ({"evaluate": {"every_steps": 5}}, "evaluate needs rows to evaluate on; name them in data.valid"),
    ({"evaluate": {"patience": 5}}, "evaluate needs rows to evaluate on; name them in data.valid"),
    (
        {
            "tables": {"user": {"rows": 50, "dim": 8, "precision": "fp16"}, "item": {"rows": 40, "dim": 8}},
            "optimizer": {"sparse": {"name": "adam", "every_row": True}},
        },
        "table 'user': every_row needs weights in fp32; set tables.user.precision to it, or remove every_row",
    ),
    ({"train": {"device": "cpu", "precision": "bf16"}}, 'train.precision = "bf16" needs a GPU'),
    ({"features": {}, "tables": {}}, "features: there is none"),
    (
        {"tables": {"user": {"rows": 2**40 + 1, "dim": 8}, "item": {"rows": 2**40, "dim": 8}}},
        "table 'user' has 1099511627777 rows; ids address at most 1099511627776: split the table",
    ),
]


@pytest.mark.parametrize(("sections", "fault"), FAULTS, ids=[fault[:40] for _, fault in FAULTS])
def test_a_contradiction_between_sections_is_named(sections: dict[str, Any], fault: str) -> None:
    assert any(fault in found for found in find_faults(parse(small(**sections))))


def test_all_contradictions_are_told_at_once() -> None:
    config = parse(
        small(
            tables={"user": {"rows": 5, "dim": 8}, "item": {"rows": 5, "dim": 8}, "old": {"rows": 3, "dim": 4}},
            features={
                "dense": ["x", "x", "click"],
                "sparse": [{"name": "user", "table": "user"}, {"name": "item", "table": "itme"}],
            },
            tasks=[{"name": "t", "label": "click"}, {"name": "t", "label": "buy"}],
            evaluate={"monitor": "gauc", "every_steps": 10},
            train={"device": "cpu", "precision": "bf16"},
        )
    )
    with pytest.raises(UserError) as caught:
        check(config)
    told = str(caught.value).splitlines()
    assert told[0] == "the config contradicts itself:"
    assert len(told) == 10
    parts = (
        "'x' is",
        "'t' is",
        "'itme'",
        "'item' is used",
        "'old' is used",
        "'click', the label",
        "gauc",
        "data.valid",
        "bf16",
    )
    for part in parts:
        assert sum(part in line for line in told) == 1, part
