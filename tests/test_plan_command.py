"""`distrec plan` as it is typed: what it prints, writes and refuses, and the plans of the configs that come with it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command import Command
from PIL import Image
from toml_text import to_toml

from distrec.cli import app  # noqa: F401  # so that the first test does not pay for the import
from distrec.planner.screen import _groups

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs/plan").glob("*.toml"))
GOLDEN = ROOT / "tests/golden"


def write(path: Path, rows: int = 1_000_000, **sections: Any) -> Path:
    values = {
        "name": path.stem,
        "data": {"train": "none", "batch_size": 512},
        "tables": {"user": {"rows": rows, "dim": 64}, "item": {"rows": rows // 2, "dim": 64}},
        "features": {"dense": ["x"], "sparse": [{"name": "u", "table": "user"}, {"name": "i", "table": "item"}]},
        "model": {"name": "deepfm", "params": {"mlp": [8]}},
    }
    path.write_text(to_toml(values | sections), encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.toml")


# -- what it prints --------------------------------------------------------------------------------------------------


def test_tables_bars_and_times_are_shown(distrec: Command, small: Path) -> None:
    ended = distrec(
        "plan", small, "--gpus", 2, "--hbm", "1GB", "tables.user.sharding=row_wise", "tables.item.sharding=table_wise"
    )
    assert ended.code == 0
    assert re.search(r"user +1,000,000 x 64 +fp32 +row_wise +fused +all +248\.\d MB", ended.out)  # 244.1 + 3.8, and lookups
    assert re.search(r"item +500,000 x 64 +fp32 +table_wise +fused +[01] +12\d\.\d MB", ended.out)
    bars = re.findall(r"^rank \d (\S+) (\d+\.\d) MB$", ended.out, re.MULTILINE)
    assert len(bars) == 2
    for bar, megabytes in bars:
        assert len(bar) == 56
        taken = len(bar) - bar.count("·") - bar.count("|")
        assert taken == pytest.approx(56 * float(megabytes) / 1024, abs=1)
        assert bar.index("|") == pytest.approx(56 * 0.85, abs=1)  # the rest is kept free
    assert "exchange of gradients" in ended.out


def test_of_many_ranks_those_alike_share_a_bar(distrec: Command, small: Path) -> None:
    """One machine holds each table; the others hold nothing of it."""
    words = [f"tables.{name}.sharding=table_row_wise" for name in ("user", "item")]
    ended = distrec("plan", small, "--nodes", 6, "--gpus", 8, *words)
    bars = re.findall(r"^ *rank (\S+) .* (\S+ [KMG]B)$", ended.out, re.MULTILINE)
    assert [ranks for ranks, _ in bars] == ["0-7", "8-15", "16-47"]
    assert len({size for _, size in bars}) == 3


def test_ranks_that_all_differ_are_shown_in_sixteen_groups() -> None:
    names = [name for name, _ in _groups([2**20 * rank for rank in range(48)])]
    assert (len(names), names[0], names[-1]) == (16, "rank 0-2", "rank 45-47")
    assert [name for name, _ in _groups([5] * 3)] == ["rank 0", "rank 1", "rank 2"]


def test_a_thousand_tables_show_the_largest(distrec: Command, tmp_path: Path) -> None:
    tables = {f"t{i}": {"rows": 10 + i, "dim": 8, "sharding": "table_wise"} for i in range(40)}
    sparse = [{"name": name, "table": name} for name in tables]
    ended = distrec("plan", write(tmp_path / "many.toml", tables=tables, features={"sparse": sparse}), "--gpus", 2)
    assert "t39 " in ended.out
    assert "t9 " not in ended.out
    assert "and 10 smaller tables" in ended.out


def test_nothing_is_cut_off(distrec: Command, tmp_path: Path) -> None:
    table = {"rows": 1_000_000_000, "dim": 128, "cache": 0.1, "sharding": "table_row_wise"}
    path = write(
        tmp_path / "long.toml",
        tables={"merchandise_category": table},
        features={"sparse": [{"name": "category", "table": "merchandise_category"}]},
    )
    ended = distrec("plan", path, "--nodes", 2)
    assert re.search(r"merchandise_category +1,000,000,000 x 128 +fp32 +table_row_wise +fused_uvm_caching +0-7 ", ended.out)
    assert "…" not in ended.out


def test_json_holds_the_numbers(distrec: Command, small: Path) -> None:
    ended = distrec("plan", small, "--gpus", 2, "--json", "tables.user.sharding=row_wise", "tables.item.sharding=row_wise")
    found = json.loads(ended.out)
    assert found["tables"]["user"] | {"bytes": 0} == {
        "shape": [1_000_000, 64],
        "precision": "fp32",
        "sharding": "row_wise",
        "kernel": "fused",
        "ranks": "0-1",
        "bytes": 0,
    }
    assert found["bytes_a_rank"]["weights"] == {"mean": 1_500_000 * 64 * 4 / 2, "max": 1_500_000 * 64 * 4 / 2}
    assert found["bytes_a_rank"]["kept_free"] == int(80 * 2**30 * 0.15)


def test_on_cpu_a_rank_has_host_memory(distrec: Command, small: Path) -> None:
    found = json.loads(distrec("plan", small, "--device", "cpu", "--gpus", 2, "--host", "3GB", "--json").out)
    assert (found["bytes_a_rank"]["memory"], found["bytes_a_rank"]["kept_free"]) == (3 * 2**30, 0)


def test_two_clusters_side_by_side(distrec: Command, small: Path) -> None:
    ended = distrec("plan", small, "--gpus", 2, "--compare", "2x4")
    [heading] = [line for line in ended.out.splitlines() if "1x2 cuda ranks" in line and "2x4 cuda ranks" in line]
    assert heading
    assert re.search(r"rows a second at that rate +[\d,]+ +[\d,]+", ended.out)


def test_two_configs_side_by_side(distrec: Command, small: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "larger.toml", rows=8_000_000)
    ended = distrec("plan", small, "--gpus", 2, "--compare", other, "tables.user.sharding=row_wise")
    row = re.search(r"fullest rank +(\S+) (MB|GB) +(\S+) (MB|GB)", ended.out)
    assert row is not None
    assert (row[2], row[4]) == ("MB", "GB")


# -- what it writes --------------------------------------------------------------------------------------------------


def test_a_picture_shows_each_rank(distrec: Command, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    assert distrec("plan", small, "--gpus", 4, "--hbm", "300MB", "--png", path, "tables.user.sharding=row_wise").code == 0
    picture = Image.open(path).convert("RGB")
    assert picture.width > 1000
    colours = {colour for _, colour in picture.getcolors(maxcolors=2**24) or []}
    assert {(0x3B, 0x6E, 0xA8), (0x5A, 0x9E, 0x6F), (0xC8, 0x69, 0x4F)} <= colours  # weights, lookups, an exchange


def test_a_saved_plan_is_planned_with_again(distrec: Command, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert distrec("plan", small, "--gpus", 2, "--save", path, "tables.user.sharding=table_wise").code == 0
    found = json.loads(distrec("plan", small, "--gpus", 2, "--json", f"embedding.plan={path}").out)
    assert found["tables"]["user"]["sharding"] == "table_wise"


def test_a_saved_plan_is_refused_where_it_does_not_fit(distrec: Command, small: Path, tmp_path: Path) -> None:
    """Whole tables of 244 and 122 MB and their state, 4 bytes a row, on two ranks; of 280 MB, 238 are for use."""
    path = tmp_path / "plan.json"
    words = [f"tables.{name}.sharding=table_wise" for name in ("user", "item")]
    assert distrec("plan", small, "--gpus", 2, "--save", path, *words).code == 0
    assert distrec("plan", small, "--gpus", 2, "--hbm", "320MB", f"embedding.plan={path}").code == 0
    ended = distrec("plan", small, "--gpus", 2, "--hbm", "280MB", f"embedding.plan={path}")
    assert ended.code == 2
    assert re.search(r"does not fit: rank \d needs 24\d\.\d MB for tables, and of 280\.0 MB there are 23\d\.\d MB", ended.err)


def test_json_of_two_holds_both(distrec: Command, small: Path) -> None:
    found = json.loads(distrec("plan", small, "--gpus", 2, "--compare", "2x4", "--json").out)
    assert (found["cluster"], found["compared_with"]["cluster"]) == ("1x2 cuda ranks of 80.0 GB", "2x4 cuda ranks of 80.0 GB")


# -- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hbm", "lots"], "--hbm lots is no size; write it as 80GB"),
        (["--inter", "5"], "--inter 5 is no size"),
        (["--device", "cpu", "--hbm", "64GB"], "with --device cpu, --host says"),
        (["--intra", "0GB/s"], "--intra 0GB/s is nothing"),
        (["--compare", "nowhere.toml"], "no config file at nowhere.toml"),
        (["--compare", "1x1", "--hbm", "300MB"], "--compare 1x1: the tables do not fit"),
        (["--png", "plan.docx"], "the picture cannot be written to plan.docx"),
        (["--png", "folder"], "the picture cannot be written to folder: name it .png, .svg or .pdf"),
        (["--hbm", "1KB"], "smaller dense part: more ranks do not help."),
        (["--save", "no/where.json"], "the plan cannot be written to no/where.json"),
        (["embedding.plan=none.json"], "embedding.plan = 'none.json' cannot be read"),
        (["tables.user.cache=0.1", "--device", "cpu"], "table 'user': a cache on the GPU needs one"),
    ],
)
def test_mistakes_are_told(distrec: Command, small: Path, words: list[str], said: str) -> None:
    ended = distrec("plan", small, "--gpus", 2, *words)
    assert ended.code == 2
    assert said in ended.err


def test_what_does_not_fit_comes_with_ways_out_that_work_as_printed(distrec: Command, small: Path) -> None:
    ended = distrec("plan", small, "--gpus", 1, "--hbm", "400MB")
    assert ended.code == 2
    assert "Table 'user'" in ended.err or "All ranks together are short" in ended.err
    [command] = re.findall(r"add its words to `(.*)`", ended.err)
    ways = re.findall(r"^  \d\. .*\n     (.*)$", ended.err, re.MULTILINE)
    assert len(ways) == 3
    for way in ways:
        assert distrec(*shlex.split(command)[1:], *way.split()).code == 0, way


# -- the configs that come with it -----------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """The commands in the heads of the configs."""
    found = [
        (f"{path.stem}-{number}", shlex.split(line))
        for path in CONFIGS
        for number, line in enumerate(re.findall(r"^# (distrec plan .*)$", path.read_text(), re.MULTILINE), 1)
    ]
    assert len(found) >= 5
    return found


def hard(name: str, words: list[str]) -> Any:
    ranks = int(words[words.index("--nodes") + 1]) * 8
    return pytest.param(name, words, id=name, marks=[pytest.mark.slow] if ranks > 128 else [])


def shown() -> list[Any]:
    """Each command of the page with what stands below it there."""
    page = (ROOT / "docs/how-big.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n\$ (distrec plan (?:.*\\\n)*.*)\n((?:(?!```).*\n)+)```$", page, re.MULTILINE)
    assert len(blocks) >= 4
    return [
        pytest.param(shlex.split(words.replace("\\\n", "")), text, id=str(place)) for place, (words, text) in enumerate(blocks)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "text"), shown())
def test_the_page_shows_what_is_printed(
    distrec: Command, words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    words = [str(tmp_path / "plan.png") if word.endswith(".png") else word for word in words]
    ended = distrec(*words[1:])
    printed = [line.rstrip() for line in (ended.out + ended.err).splitlines()]
    lines = [line for line in text.splitlines() if line.strip() not in ("", "…") and not line.startswith("planned in")]
    assert [line for line in lines if line not in printed] == []


@pytest.mark.parametrize(("name", "words"), [hard(*command) for command in commands()])
def test_the_plans_of_the_shipped_configs(
    distrec: Command, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To renew them: run the test with DISTREC_GOLDEN=write in the environment, and read the difference."""
    monkeypatch.chdir(ROOT)
    ended = distrec(*words[1:], "--json")
    text = ended.out if ended.code == 0 else json.dumps({"refused": refusal(ended.err)}, indent=2)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("DISTREC_GOLDEN") == "write":
        path.write_text(text.rstrip() + "\n")
    assert_alike(json.loads(text), json.loads(path.read_text()), name)


def refusal(said: str) -> list[str]:
    """The lines, without the milliseconds of the ways out."""
    return [re.sub(r", \d+\.\d ms a step on tables", "", line) for line in said.splitlines()]


def assert_alike(found: Any, expected: Any, where: str) -> None:
    """Equal, numbers within a thousandth."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, float | int):
        assert found == pytest.approx(expected, rel=1e-3), where
    else:
        assert found == expected, where


def test_mlperf_is_mlperf() -> None:
    """204,184,588 rows of 128, and 214 ids a row: the benchmark's hash sizes and multi-hot sizes."""
    text = (ROOT / "configs/plan/dlrm_dcnv2_mlperf.toml").read_text()
    assert sum(int(rows) for rows in re.findall(r"rows = (\d+), dim = 128", text)) == 204_184_588
    assert sum(int(ids) for ids in re.findall(r"pooling_factor = (\d+)", text)) == 214
