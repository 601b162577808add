"""Pieces of TOML that a person reads: values, lists of inline tables, and remarks beside them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

COMMENT_AT = 35  # column
WIDTH = 110  # of remarks


def listed(name: str, rule: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """`name = […]` of a line each, after what holds for all of them; nothing where there is no line."""
    items = list(lines)
    if items:
        yield from (f"{name} = [", *(f"  # {line}" for line in rule), *(f"  {item}" for item in items), "]")


def inline(keys: Mapping[str, Any]) -> str:
    """An inline table."""
    return "{ " + ", ".join(f"{key} = {value_of(value)}" for key, value in keys.items()) + " }"


def value_of(value: Any) -> str:
    """Text, a number, a boolean, or a list of them."""
    if isinstance(value, list):
        return "[" + ", ".join(map(value_of, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def commented(text: str, comment: str) -> str:
    """A line with its reason, where there is one."""
    return f"{text:<{COMMENT_AT}}  # {one_line(comment)}" if comment else text


def remark(text: str) -> list[str]:
    """A comment of as many lines as it needs."""
    return textwrap.wrap(one_line(text), WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def one_line(text: str) -> str:
    """Without the control characters that a comment must not hold; a value or a name may have any."""
    return "".join(c if c.isprintable() else " " for c in text)
