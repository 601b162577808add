"""A Dockerfile as its instructions, with its arguments filled in, and the files that an engine would be sent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from string import Template
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Instruction(NamedTuple):
    name: str
    words: str


def instructions(**arguments: str) -> list[Instruction]:
    """In their order, continued lines joined; `arguments` as --build-arg would give them."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    found = [Instruction(*line.split(maxsplit=1)) for line in text.replace("\\\n", "").splitlines() if line.strip()]
    known = dict(words.split("=") for name, words in found if name == "ARG") | arguments
    return [Instruction(name, Template(words).safe_substitute(known)) for name, words in found]


def environment() -> dict[str, str]:
    """What ENV sets."""
    return dict(word.split("=") for name, words in instructions() if name == "ENV" for word in words.split())


def context() -> list[Path]:
    """Paths under the root that git knows or would add, less what .dockerignore keeps back."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore, "all is kept back, but for what is named"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(name) for name in names if Path(name).parts[0] in kept and (ROOT / name).is_file()]
