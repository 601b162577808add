"""The config's JSON Schema, with which editors complete and check a file, and the same for people as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from distrec.config.schema import Config
from distrec.config.words import Section

Node = Mapping[str, Any]  # a JSON Schema object
DRAFT = "https://json-schema.org/draft/2020-12/schema"
REF = "#/$defs/"
INTRODUCTION = """\
# The config

Every key of a config file, generated from `distrec/config/schema.py` by `make docs`. An unknown key is refused, with the
nearest known one. Any key can be set on the command line: `distrec train CONFIG train.epochs=3 tables.movie.dim=32`.

Editors complete and check a config with `distrec schema > distrec.schema.json` and this as the first line of the file
(Even Better TOML and Taplo read it): `#:schema ./distrec.schema.json`.
"""


class _Plain(GenerateJsonSchema):
    """Without the titles that only repeat a key's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(params: Mapping[str, type[Section]]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a config file.

    Args:
        params: the `Params` of each model by the model's name; other models' `model.params` are left free.
    """
    whole = _of(Config)
    definitions = whole.pop("$defs")
    whole["properties"]["tables"]["additionalProperties"] = False  # a name that the pattern refuses
    for name, section in params.items():
        own = _of(section)
        definitions |= own.pop("$defs", {}) | {f"{name}.params": own}
    definitions["Model"]["allOf"] = [_params_rule(name) for name in params]
    return {"$schema": DRAFT, "title": "distrec config", **whole, "$defs": definitions}


def _params_rule(model: str) -> Node:
    """`model.params` are those of the model that is named."""
    return {
        "if": {"required": ["name"], "properties": {"name": {"const": model}}},
        "then": {"properties": {"params": {"$ref": f"{REF}{model}.params"}}},
    }


def _of(section: type[Section]) -> dict[str, Any]:
    schema = section.model_json_schema(schema_generator=_Plain)
    schema.pop("title")
    return schema


def markdown(params: Mapping[str, type[Section]]) -> str:
    """The same as a page: a table of keys for each section of the file, in the order of the schema."""
    schema = json_schema(params)
    parts = [INTRODUCTION, *_sections(schema, schema, "", "The top level")]
    for name in params:
        parts += _sections(schema, schema["$defs"][f"{name}.params"], "model.params", f"`[model.params]` of `{name}`")
    return "\n".join(parts)


def _sections(schema: Node, section: Node, path: str, heading: str) -> Iterator[str]:
    """A section's text, and those of the sections within it."""
    keys, inner = section["properties"], {}
    for key, node in keys.items():
        if found := _held(node):
            inner[key] = found
    rows = [_row(key, node, key in section.get("required", ())) for key, node in keys.items() if "$ref" not in node]
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    yield "\n".join([f"## {heading}", "", section["description"], "", *table])
    for key, (name, form) in inner.items():
        below = f"{path}.{key}".lstrip(".")
        yield from _sections(schema, schema["$defs"][name], below, f"`{form.format(below)}`")


def _held(node: Node) -> tuple[str, str] | None:
    """The section that a key holds, and how TOML writes its heading; None for a value."""
    if "$ref" in node:
        return _name(node), "[{}]"
    if "patternProperties" in node:
        return _name(next(iter(node["patternProperties"].values()))), "[{}.NAME]"
    if found := next((choice for choice in node.get("anyOf", ()) if "$ref" in choice), None):
        return _name(found), "[{}]"
    items = node.get("items", {})
    found = next((choice for choice in (items, *items.get("anyOf", ())) if "$ref" in choice), None)
    return (_name(found), "[[{}]]") if found else None


def _name(node: Node) -> str:
    return node["$ref"].removeprefix(REF)


def _row(key: str, node: Node, required: bool) -> str:
    default = "required" if required else _default(node.get("default"))
    cells = (f"`{key}`", type_words(node), default, node.get("description", ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(value: Any) -> str:
    """A value as TOML writes it; nothing for None, which the meaning explains, and for sections, whose tables follow."""
    if value is None or (isinstance(value, list) and value and isinstance(value[0], dict)):
        return ""
    return f"`{json.dumps(value)}`"


def type_words(node: Node) -> str:
    """A JSON Schema node as words: `integer > 0`, ``one of `a`, `b` ``, `list of number`."""
    if "anyOf" in node:
        choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        return " or ".join("a list of such" if c.get("items") in choices else type_words(c) for c in choices)
    if "$ref" in node or "patternProperties" in node:
        return "table"
    if choices := node.get("enum") or ([node["const"]] if "const" in node else []):
        return ("one of " if len(choices) > 1 else "") + ", ".join(f'`"{choice}"`' for choice in choices)
    if node["type"] == "array":
        return _list_words(node)
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = ", ".join(f"{sign} {node[bound]}" for bound, sign in bounds.items() if bound in node)
    return f"{node['type']} {limits}".strip()


def _list_words(node: Node) -> str:
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}, each {type_words(node['prefixItems'][0])}"
    return f"list of {type_words(node['items'])}"
