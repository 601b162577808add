"""What documents and the heads of configs show can be typed: commands parse, keys are known, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from distrec.cli import app
from distrec.config.load import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `distrec …` that stands on lines of its own, without the shell's parts."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r"(?:[#$] )?(?:\w+=\S+ )*(distrec .*)", line):
            words = shlex.split(found[1], comments=True)
            yield words[: next((at for at, word in enumerate(words) if word in (">", "|", "||")), None)]


def shown() -> list[Any]:
    blocks = [(page, text) for page in PAGES for _, text in FENCE.findall(page.read_text(encoding="utf-8"))]
    heads = [(path, path.read_text(encoding="utf-8").split("name =")[0]) for path in CONFIGS]
    found = {(path, tuple(words)) for path, text in blocks + heads for words in commands(text)}
    assert len(found) > 60
    return [pytest.param(list(words), id=f"{path.name}: {shlex.join(words[1:])}") for path, words in sorted(found)]


@pytest.mark.parametrize("words", shown())
def test_a_command_that_is_shown_can_be_typed(words: list[str]) -> None:
    command: Any = get_command(app)
    context, (name, *rest) = None, words
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        name, command, rest = command.resolve_command(context, rest)
    config = context.params.get("config")
    if config is not None and str(config).startswith("configs/"):
        load(ROOT / config, context.params["overrides"] or [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not link.startswith("http")]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_have_links() -> None:
    assert sum(len(re.findall(r"\]\((?!http)", prose(page))) for page in PAGES) > 20
