"""Configs made of the JSON Schema: mostly what it allows, with the edges that numbers have, and sometimes what it does not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from distrec.config.document import json_schema
from distrec.models import MODELS

SCHEMA = json_schema({name: model.Params for name, model in MODELS.items()})
NAMES = st.sampled_from(["user", "item", "history", "x", "label", "t", "none", "a.b", "", "é", "my:Model", "*"])
SMALL = st.integers(0, 12) | st.sampled_from([16, 32, 64])
GIANT = st.sampled_from([2**40, 2**53 + 1, 2**63, 10**30, -1, -(2**70)])  # no allocator believes in them
EDGES = st.sampled_from([0.0, -0.0, 1.0, 1e-300, 5e-324, 1e39, 1e300, -1e300, float("inf"), float("nan"), 1 - 2**-53])
ANYTHING = st.recursive(
    st.none() | st.booleans() | SMALL | GIANT | EDGES | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)


def of(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values for a place of the schema; bounds are not kept."""
    if "$ref" in node:
        return defined(node["$ref"].removeprefix("#/$defs/"))
    if "const" in node or "enum" in node:
        return st.sampled_from(node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        return st.one_of([of(choice) for choice in node["anyOf"]])
    return OF_TYPE[node.get("type", "any")](node)


def defined(name: str, known: dict[str, st.SearchStrategy[Any]] = {}) -> st.SearchStrategy[Any]:  # noqa: B006
    if name not in known:
        known[name] = st.deferred(lambda: of(SCHEMA["$defs"][name]))
    return known[name]


def _array(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "prefixItems" in node:
        return st.tuples(*map(of, node["prefixItems"])).map(list)
    return st.lists(of(node.get("items", {})), max_size=3)


def _object(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "patternProperties" in node:
        return st.dictionaries(NAMES, of(next(iter(node["patternProperties"].values()))), max_size=3)
    if "properties" not in node:
        return st.dictionaries(NAMES, ANYTHING, max_size=2)
    keys = {key: of(inner) for key, inner in node["properties"].items()}
    required = set(node.get("required", ()))
    return st.fixed_dictionaries(
        {key: value for key, value in keys.items() if key in required},
        optional={key: value for key, value in keys.items() if key not in required},
    )


OF_TYPE = {
    "any": lambda node: ANYTHING,
    "integer": lambda node: st.integers(0, 9).flatmap(lambda share: SMALL if share else GIANT),
    "number": lambda node: st.integers(0, 3).flatmap(lambda share: st.floats(0.01, 0.99) if share else EDGES),
    "string": lambda node: NAMES | st.text(max_size=3),
    "boolean": lambda node: st.booleans(),
    "null": lambda node: st.none(),
    "array": _array,
    "object": _object,
}


@st.composite
def configs(draw: st.DrawFn, base: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with one to three places given other values: of the schema mostly, and sometimes anything."""
    values = copy.deepcopy(dict(base))
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, values, SCHEMA)
    return values


def _change(draw: st.DrawFn, at: dict[str, Any], node: Mapping[str, Any]) -> None:
    """Go down some way, and set, replace or drop a key there."""
    node = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node
    free = next(iter(node.get("patternProperties", {}).values()), {})  # of what stands under any name: a table
    known = dict(node.get("properties", {})) | (dict.fromkeys(at, free) if free else {})
    key = draw(st.sampled_from(sorted({*known, *at}) or ["x"]))
    inner = at.get(key)
    if isinstance(inner, dict) and inner and draw(st.integers(0, 5)):
        return _change(draw, inner, known.get(key, {}))
    match draw(st.integers(0, 19)):
        case 0:
            at.pop(key, None)
        case 1:
            at[key] = draw(ANYTHING)
        case _:
            at[key] = draw(of(known.get(key, {})))
    return None
