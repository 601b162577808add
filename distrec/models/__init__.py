"""Models by name, and how one is found and built."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from distrec.config.load import nearest, validate
from distrec.config.words import Section
from distrec.errors import UserError
from distrec.models.dcn import DCN
from distrec.models.deepfm import DeepFM
from distrec.models.din import DIN
from distrec.models.dlrm import DLRM
from distrec.models.dssm import DSSM
from distrec.models.inputs import InputSpec, RetrieverSpec
from distrec.models.mmoe import MMoE
from distrec.models.simplex import SimpleX
from distrec.models.two_tower import TwoTower
from distrec.models.wide_deep import WideDeep
from distrec.models.youtube_dnn import YoutubeDNN


class ModelClass(Protocol):
    """What a class must have to be used as a model: `Params`, and a constructor that takes the shapes and a `Params`.

    Its instances map an `Embedded` to logits (B, num_tasks), or to `(logits, {name: auxiliary loss})`.
    """

    @property
    def Params(self) -> type[Section]:
        """The model's parameters, their types and their defaults."""
        ...

    def __call__(self, spec: InputSpec, params: Any) -> nn.Module:
        """Build the model."""
        ...


class RetrieverClass(Protocol):
    """What a class must have to be used as a retriever: `Params`, and a constructor that takes the shapes and a `Params`.

    Its instances have `query`, which maps an `Embedded` of the query's features to vectors (B, D), and `item`, which maps one
    of the item's features to vectors (M, D). Their inner product is the score.
    """

    @property
    def Params(self) -> type[Section]:
        """The model's parameters, their types and their defaults."""
        ...

    def __call__(self, spec: RetrieverSpec, params: Any) -> nn.Module:
        """Build the model."""
        ...


MODELS: dict[str, ModelClass] = {
    "dcn": DCN,
    "deepfm": DeepFM,
    "din": DIN,
    "dlrm": DLRM,
    "mmoe": MMoE,
    "wide_deep": WideDeep,
}
RETRIEVERS: dict[str, RetrieverClass] = {
    "dssm": DSSM,
    "simplex": SimpleX,
    "two_tower": TwoTower,
    "youtube_dnn": YoutubeDNN,
}


def find(name: str) -> ModelClass:
    """The model class of a name in `MODELS`, or of `package.module:Class`.

    Raises:
        UserError: no such name, module or class, or the class is no model; says which, and what comes nearest.
    """
    if name in RETRIEVERS:
        raise UserError(f"model.name = {name!r} retrieves; describe the items in a section [retrieval], or use a ranker")
    return _find(name, MODELS)


def find_retriever(name: str) -> RetrieverClass:
    """The same of `RETRIEVERS`."""
    if name in MODELS:
        known = ", ".join(RETRIEVERS)
        raise UserError(f"model.name = {name!r} ranks; a config with [retrieval] needs a retriever: {known}")
    found = _find(name, RETRIEVERS)
    if missing := [side for side in ("query", "item") if not callable(getattr(found, side, None))]:
        raise UserError(f"model.name = {name!r} has no method {missing[0]!r}; a retriever has query and item")
    return found


def build(name: str, params: Mapping[str, Any], spec: InputSpec) -> nn.Module:
    """Build a model for inputs of the given shapes, with `params` as they stand in a config's `model.params`.

    Raises:
        UserError: what `find` raises, parameters that `Params` refuses, features that do not fit the model, or weights that
            do not fit into memory.
    """
    cls = find(name)
    checked = validate(cls.Params, params, f"model.params of {name}")
    try:
        return cls(spec, checked)
    except (RuntimeError, TypeError, MemoryError) as error:
        if not re.search("allocate|overflow", str(error), re.IGNORECASE):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} does not fit into memory: lower model.params or the tables' dim ({reason})") from None


def build_retriever(name: str, params: Mapping[str, Any], spec: RetrieverSpec) -> nn.Module:
    """The same of a retriever."""
    cls = find_retriever(name)
    return cls(spec, validate(cls.Params, params, f"model.params of {name}"))


def _find(name: str, known: Mapping[str, Any]) -> Any:
    if ":" in name:
        return _import(name)
    if name not in known:
        raise UserError(f"model.name = {name!r} is no model{nearest(name, list(known))}; your own is package.module:Class")
    return known[name]


def _import(name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"model.name = {name!r}: cannot import {module_name!r} ({reason}); is it on PYTHONPATH?") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"model.name = {name!r}: {module_name} has no {class_name!r}{nearest(class_name, _classes(module))}")
    return _require_model(name, found)


def _classes(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if _derives(value, nn.Module)]


def _require_model(name: str, found: Any) -> Any:
    if not _derives(found, nn.Module):
        raise UserError(f"model.name = {name!r} is not a subclass of torch.nn.Module")
    if not _derives(getattr(found, "Params", None), Section):
        raise UserError(f"model.name = {name!r} needs a nested class Params that derives from distrec.config.words.Section")
    return found


def _derives(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)
