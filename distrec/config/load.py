"""TOML file + `key=value` overrides -> `Config`, or a `UserError` that names every fault."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from distrec.config.retrieval import Retrieval
from distrec.config.schema import Config
from distrec.config.words import Section
from distrec.errors import UserError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply overrides such as `train.epochs=3` or `tables.movie.dim=32`; `evaluate.monitor=` unsets.

    Raises:
        UserError: no such file, not TOML, an override that does not parse, or any value the schema refuses.
    """
    return parse(_read(Path(path)), overrides, source=str(path))


def parse(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config") -> Config:
    """The same from values that are already read."""
    changed: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for override in overrides:
        _apply(changed, override)
    try:
        return validate(Config, changed, source)
    except UserError:
        if overrides and _is_valid(values):
            source = "what the command line sets"
        return validate(Config, changed, source)


def _is_valid(values: Mapping[str, Any]) -> bool:
    """Whether a config is one without overrides, so that what is wrong with them is no fault of its file."""
    try:
        Config.model_validate(values)
    except ValidationError:
        return False
    return True


def validate(section: type, values: Mapping[str, Any], source: str) -> Any:
    """Check `values` against a section of the schema; the error lists all faults, one a line."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join([f"{source} is not valid:", *_faults(error, section)])) from None


def dump(config: Config) -> str:
    """The whole config as JSON, defaults included: what a run folder and a checkpoint keep."""
    return config.model_dump_json(indent=2)


def structure(config: Config) -> dict[str, Any]:
    """What a checkpoint's tensors depend on, and what they mean: features, tasks, model, tables and kinds of optimizers.

    Left out is what a run may change when it goes on: rates, weights, and what becomes of values that are missing or bad.
    """
    ids = {"__all__": {"out_of_range", "pooling_factor"}}
    free = {"dense": {"__all__": {"null"}}, "sparse": ids, "sequence": ids}
    parts = config.model_dump(
        mode="json", include={"features", "tasks", "model"}, exclude={"features": free, "tasks": {"__all__": {"weight"}}}
    )
    tables = {
        name: {
            "rows": table.rows,
            "dim": table.dim,
            "precision": table.precision,
            "optimizer": (table.optimizer or config.optimizer.sparse).name,
        }
        for name, table in config.tables.items()
    }
    if config.retrieval is not None:
        parts["retrieval"] = _retrieval_structure(config.retrieval)
    return parts | {"tables": tables, "optimizer": {"dense": config.optimizer.dense.name}}


def _retrieval_structure(retrieval: Retrieval) -> dict[str, Any]:
    """Which features are the item's, what scores mean, the buckets of the frequency estimate, the table of hard negatives."""
    parts = retrieval.model_dump(mode="json", include={"item_features", "loss", "log_q", "log_q_buckets"})
    hard = retrieval.negatives.distribution == "hard"
    return parts | ({"pool": retrieval.negatives.pool} if hard else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file at {path}{_neighbours(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name one config file in it{_neighbours(path / 'x')}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what Python itself refuses: endless digits, nesting
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _neighbours(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:5]
    return f"; in {path.parent} there is: {', '.join(near)}" if near else ""


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {override!r} is not of the form key=value, such as train.epochs=3")
    *path, last = key.strip().split(".")
    at: Any = values
    for depth, part in enumerate(path):
        at = _step(at, part, ".".join(path[: depth + 1]), override)
    if isinstance(at, dict) and not text.strip():
        _unset(at, last, path, override)
    else:
        at[_index(at, last, key.strip(), override) if isinstance(at, list) else last] = _value(text)


def _unset(at: dict[str, Any], last: str, path: Sequence[str], override: str) -> None:
    """As if the key stood nowhere: its default holds."""
    known = list(dict.fromkeys([*at, *_keys_at(Config, path)]))
    if known and last not in known:  # nothing would be left of it for the schema to refuse
        raise UserError(f"override {override!r}: no such key{nearest(last, known)}")
    at.pop(last, None)


def _step(at: Any, part: str, where: str, override: str) -> Any:
    inner = at[_index(at, part, where, override)] if isinstance(at, list) else at.setdefault(part, {})
    if not isinstance(inner, dict | list):
        raise UserError(f"override {override!r}: {where} is {inner!r}, which has no keys")
    return inner


def _index(at: list, part: str, where: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(at):
        raise UserError(f"override {override!r}: {where} must be an index below {len(at)}, for the list that stands there")
    return int(part)


def _value(text: str) -> Any:
    """A TOML value where the text is one, else the text itself: `lr=0.1`, `epochs=3`, `device=cpu`."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _faults(error: ValidationError, section: type[Section]) -> list[str]:
    return [f"  {_dotted(fault['loc'])}: {_words(fault, section)}" for fault in error.errors(include_url=False)]


def _dotted(loc: Sequence[Any]) -> str:
    return ".".join(str(part) for part in loc) or "(top level)"


def _words(fault: Any, section: type[Section]) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such key" + nearest(str(fault["loc"][-1]), _keys_at(section, fault["loc"][:-1]))
    if fault["type"] == "missing":
        return "this key is required"
    if fault["type"] == "tuple_type":
        return f"Input should be a list, in square brackets (it is {fault['input']!r})"
    message = fault["msg"].removeprefix("Value error, ")
    return message if fault["type"] == "value_error" else f"{message} (it is {fault['input']!r})"


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a misspelt name, else the list of what there is."""
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _keys_at(section: Any, loc: Sequence[Any]) -> list[str]:
    """The keys that the schema knows at a place, following model fields, dict values and list items."""
    parts = iter(loc)
    for part in parts:
        field = section.model_fields.get(part)
        section = _section_in(field.annotation) if field else None
        if section is None:
            return []
        if get_origin(field.annotation) in (dict, tuple):
            next(parts, None)  # a table's name or a list's index: the section is already that of the items
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The first Section named anywhere in a type such as `dict[str, Table]` or `tuple[Task, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for a in getattr(annotation, "__args__", ()) if (found := _section_in(a))), None)
