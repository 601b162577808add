"""The harness counts right, and every benchmark runs in its smallest form and leaves what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import markdown
from benchmarks.harness import Case, Spread, Took, Variant, compare, scaled
from benchmarks.report import command, draw, options

ROOT = Path(__file__).parents[1]
NAMES = {  # a benchmark, and the variants that it must measure
    "input": {
        *("PyArrow, all threads", "PyArrow, one thread", "scan, hash, copy"),
        *("distrec", "row by row", "default collate"),
    },
    "embedding": {
        *("distrec's layer", "FBGEMM's kernel", "torch, sparse gradients", "copy of the floor's bytes"),
        *("table_wise", "row_wise", "column_wise"),
    },
    "huge_pages": {"small pages, 1 thread", "huge pages, 1 thread"},
    "train": {"distrec, from Parquet", "distrec, batches made before", "bare TorchRec loop", "dense part alone"},
    "prepare": {"plain text", "gzip", "PyArrow's CSV parser", "Parquet, leave-one-out"},
    "start": {"all", "python", "imports", "process group", "build", "first step", "import torch"},
    "recall": {"distrec", "bare Faiss", "Flat", "NumPy"},
    "checkpoint": {"distrec, save", "disk, write and fsync"},
}


def test_there_is_a_test_for_every_benchmark() -> None:
    programs = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "argv: Sequence[str]" in p.read_text(encoding="utf-8")}
    assert programs - {"report", "retrieval_quality"} == set(NAMES)  # the latter: test_retrieval_quality.py


def test_variants_run_by_turns_and_the_warmup_does_not_count() -> None:
    ran: list[str] = []
    seconds = {"a": iter([9.0, 1.0, 4.0, 2.0]), "b": iter([9.0, 2.0, 2.0, 2.0])}

    def run(name: str) -> float:
        ran.append(name)
        return next(seconds[name])

    case = compare("c", "rows/s", 8, {name: lambda name=name: run(name) for name in "ab"}, "b", rounds=3)
    assert ran == list("abababab")
    assert case.variants["a"].rates == [8.0, 2.0, 4.0]
    assert case.variants["a"].rate == Spread(median=4.0, min=2.0, max=8.0)
    assert case.ratios()["a"] == Spread(median=1.0, min=0.5, max=2.0)  # pair by pair: 2, 1/2, 1


def test_a_run_that_says_nothing_is_timed_by_the_wall() -> None:
    import time

    case = compare("c", "rows/s", 1, {"a": lambda: time.sleep(0.05)}, "a", rounds=1, warmup=0)
    assert 1 / 0.2 < case.variants["a"].rates[0] < 1 / 0.05


def test_a_run_elsewhere_tells_what_it_took_there() -> None:
    case = compare("c", "rows/s", 6, {"a": lambda: Took(2.0, cpu_s=1.5, peak_mib=7.0)}, "a", rounds=2)
    assert case.variants["a"] == Variant("a", [3.0, 3.0], [1.5, 1.5], 7.0)


def test_a_part_of_the_work_is_told_as_all_of_it() -> None:
    run = scaled(lambda: Took(2.0, cpu_s=1.5, peak_mib=7.0), 10)
    assert run() == Took(20.0, 15.0, 7.0)


def test_processor_time_is_compared_round_by_round() -> None:
    fast, slow = Variant("a", [1.0] * 3, [1.0, 2.0, 4.0], None), Variant("b", [1.0] * 3, [2.0, 8.0, 4.0], None)
    assert fast.cpu_ratio(slow) == 2.0  # of 2, 4 and 1
    assert slow.cpu_ratio(Variant("c", [1.0], [], None)) is None


def test_the_command_that_is_kept_names_no_path_of_this_machine() -> None:
    given = ["--size", "tiny", "--rechub", "/there/python", "--out", "/here"]
    kept = command("train", options("?", given, **{"--rechub": "a Python"}))
    assert kept == "python -m benchmarks.train --size tiny --rounds 1 --rechub …"
    assert (
        command("train", options("?", given[:2], **{"--rechub": "a Python"}))
        == "python -m benchmarks.train --size tiny --rounds 1"
    )


@pytest.mark.parametrize("count", [1, 10, 11, 25])
def test_a_picture_has_a_place_for_every_case(count: int, tmp_path: Path) -> None:
    case = Case("c", "rows/s", "a", {"a": Variant("a", [1.0, 2.0], [], None)}, {})
    draw("?", [case] * count, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
def test_the_peak_is_that_of_the_variant_alone() -> None:
    def small() -> None:
        pass

    def large() -> None:
        np.ones(64 * 2**17).sum()  # 64 MiB

    case = compare("c", "x/s", 1, {"before": small, "large": large, "after": small}, "large", rounds=1, warmup=0)
    before, most, after = (case.variants[name].peak_mib or 0.0 for name in ("before", "large", "after"))
    assert most - before > 50
    assert most - after > 50


def test_a_case_survives_json() -> None:
    case = Case("c", "rows/s", "a", {"a": Variant("a", [1.0, 2.0], [0.5, 0.5], None)}, {"rows": 3}, ("GB/s", 2.0))
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_leaves_json_and_a_picture(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--size", "tiny", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "cpu" / f"{name}.json").read_text())
    assert (tmp_path / "cpu" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert found["versions"]["torch"]
    assert found["machine"]["cores"] > 0
    assert str(tmp_path) not in json.dumps(found)
    assert NAMES[name] <= {variant for case in found["cases"] for variant in case["variants"]}
    for case in found["cases"]:
        assert case["reference"] in case["variants"]
        for variant in case["variants"].values():
            assert len(variant["rounds"]) == 2
            assert 0 < variant["rate"]["min"] <= variant["rate"]["median"] <= variant["rate"]["max"]


def test_the_document_of_what_was_measured_holds_what_the_results_hold() -> None:
    text = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    results = list(markdown.tables())
    left = {Path(path).stem for path in (ROOT / "benchmarks" / "results" / "cpu").glob("*.json")}
    assert left - {"retrieval_quality"} == set(NAMES)
    for command_, _ in results:
        typed = command_.replace("--rechub …", "--rechub rechub/bin/python").replace("--run …", "--run runs/two-tower-gowalla")
        assert typed in text
    known = "\n".join(table for _, table in results)
    blocks = [block for block in text.split("\n\n") if block.startswith("| variant |")]
    assert len(blocks) > 10
    assert [block.splitlines()[2] for block in blocks if block.strip() not in known] == []
