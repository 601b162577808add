"""What no file of the project may be or hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("distrec", "launch", "benchmarks", "tests")
TEXTS = {".py", ".toml", ".md", ".txt", ".sh", ".yaml", ".yml", ""}
LONGEST = 400
NAMELESS = {"util", "utils", "common", "helper", "helpers", "misc", "base"}
PLACES = re.compile(r"(?<![\w.:~-])/(?:home|work|root|Users|mnt/data)/[\w.-]+")
REGISTRIES = re.compile(r"https?://[^\s\"')]*/simple\b")  # the path under which a package index answers
UNFILLED = re.compile(r"@@\w+@@|\bTODO\b|\bFIXME\b")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def code_files() -> list[Path]:
    found = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 80, "the walk found too little to mean anything"
    return found


def text_files() -> list[Path]:
    """All that is written by hand, dotfiles of the root too."""
    folders = [ROOT / name for name in (*CODE, "configs", "requirements", ".ci", "docs")]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix in TEXTS]
    found += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXTS and path.name != ".git"]
    names = {path.name for path in found}
    assert {"run", "Makefile", "Dockerfile", "cpu.txt", "pyproject.toml", "trainer.py"} <= names
    return [path for path in found if path != Path(__file__)]


def test_no_file_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): count for path in code_files() if (count := len(read(path).splitlines())) > LONGEST}
    assert long == {}


def test_json_is_written_by_the_one_function_that_writes_no_nan() -> None:
    """The others take a hash of it, copy plain values or quote a text, and no file of theirs is JSON."""
    hashed = {"export/write.py", "seal.py", "benchmarks/retrieval_quality.py"}
    own = {"json_out.py", "config/load.py", "config/document.py", "profile/toml_lines.py", "doctor/libraries.py"}
    between = {f"benchmarks/{name}.py" for name in ("first_step", "launch", "prepare", "rechub_loop", "start")}  # processes
    written = [path for path in code_files() if path.parent.name != "tests" and re.search(r"\bjson\.dumps?\(", read(path))]
    names = {str(path.relative_to(ROOT)).removeprefix("distrec/") for path in written if "programs" not in path.parts}
    assert names == hashed | own | between


def test_every_name_says_what_the_thing_is_for() -> None:
    parts = {path: {part.lower().strip("_") for part in path.relative_to(ROOT).with_suffix("").parts} for path in code_files()}
    words = {path: part | {word for name in part for word in name.split("_")} for path, part in parts.items()}
    assert [str(path.relative_to(ROOT)) for path, found in words.items() if found & NAMELESS] == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [("a place on one machine", PLACES), ("a package registry", REGISTRIES), ("what nobody has filled in", UNFILLED)],
)
def test_files_name_nothing_of_one_workplace_and_nothing_is_left_open(what: str, pattern: re.Pattern[str]) -> None:
    found = {str(path.relative_to(ROOT)): hit for path in text_files() if (hit := pattern.findall(read(path)))}
    assert found == {}, what


def test_one_index_is_named_and_only_where_torch_is_pinned() -> None:
    named = {path.name: hosts for path in text_files() if (hosts := re.findall(r"--(?:extra-)?index-url[ =](\S+)", read(path)))}
    assert named == {"torch-cpu.txt": [TORCH_INDEX]}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("cd /home/ann/x", PLACES),
        ('"/root/shared"', PLACES),
        ("-i https://example.org/team/simple", REGISTRIES),
        ("$ ls\n@@LIST@@", UNFILLED),
    ],
)
def test_the_patterns_find_what_they_are_for(text: str, pattern: re.Pattern[str]) -> None:
    assert pattern.search(text)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
