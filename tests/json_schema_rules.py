"""The part of JSON Schema (draft 2020-12) that the config's schema uses, read from the standard and from nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
BOUNDS = {
    "exclusiveMinimum": lambda value, bound: value > bound,
    "minimum": lambda value, bound: value >= bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "maximum": lambda value, bound: value <= bound,
}
ANNOTATIONS = {"description", "default", "title", "$schema", "$defs", "then"}


def breaches(root: Mapping[str, Any], node: Mapping[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Where and how a value breaks the schema."""
    for keyword, argument in node.items():
        if keyword not in ANNOTATIONS:
            yield from RULES[keyword](root, node, value, at, argument)


def _ref(root, node, value, at, name):
    yield from breaches(root, root["$defs"][name.removeprefix("#/$defs/")], value, at)


def _type(root, node, value, at, name):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (name in ("integer", "number") and not number) or not isinstance(value, TYPES[name]):
        yield f"{at}: not of type {name}"


def _any_of(root, node, value, at, choices):
    if all(list(breaches(root, choice, value, at)) for choice in choices):
        yield f"{at}: fits no choice"


def _all_of(root, node, value, at, parts):
    for part in parts:
        yield from breaches(root, part, value, at)


def _if(root, node, value, at, condition):
    if not list(breaches(root, condition, value, at)):
        yield from breaches(root, node["then"], value, at)


def _properties(root, node, value, at, properties):
    for key in properties.keys() & value.keys() if isinstance(value, dict) else ():
        yield from breaches(root, properties[key], value[key], f"{at}.{key}")


def _pattern_properties(root, node, value, at, patterns):
    for key in value if isinstance(value, dict) else ():
        for pattern, inner in patterns.items():
            if re.search(pattern, key):
                yield from breaches(root, inner, value[key], f"{at}.{key}")


def _additional(root, node, value, at, allowed):
    if not isinstance(value, dict) or allowed is True:
        return
    assert allowed is False
    for key in value.keys() - node.get("properties", {}).keys():
        if not any(re.search(pattern, key) for pattern in node.get("patternProperties", ())):
            yield f"{at}.{key}: no such key"


def _required(root, node, value, at, keys):
    if isinstance(value, dict):
        yield from (f"{at}.{key}: required" for key in keys if key not in value)


def _items(root, node, value, at, inner):
    for index, item in enumerate(value if isinstance(value, list) else ()):
        yield from breaches(root, inner, item, f"{at}[{index}]")


def _prefix_items(root, node, value, at, inners):
    for index, (inner, item) in enumerate(zip(inners, value if isinstance(value, list) else (), strict=False)):
        yield from breaches(root, inner, item, f"{at}[{index}]")


def _simple(holds):
    def rule(root, node, value, at, argument):
        if not holds(value, argument):
            yield f"{at}: {value!r} breaks {argument!r}"

    return rule


def _bound(holds):
    return _simple(lambda value, bound: not isinstance(value, int | float) or holds(value, bound))


RULES = {
    "$ref": _ref,
    "type": _type,
    "anyOf": _any_of,
    "allOf": _all_of,
    "if": _if,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "prefixItems": _prefix_items,
    "enum": _simple(lambda value, choices: value in choices),
    "const": _simple(lambda value, constant: value == constant),
    "pattern": _simple(lambda value, pattern: not isinstance(value, str) or bool(re.search(pattern, value))),
    "minLength": _simple(lambda value, least: not isinstance(value, str) or len(value) >= least),
    "minItems": _simple(lambda value, least: not isinstance(value, list) or len(value) >= least),
    "maxItems": _simple(lambda value, most: not isinstance(value, list) or len(value) <= most),
    **{keyword: _bound(holds) for keyword, holds in BOUNDS.items()},
}
