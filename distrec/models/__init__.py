"""Models by name, and how one is found and built."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from distrec.config.load import nearest, validate
from distrec.config.schema import Section
from distrec.errors import UserError
from distrec.models.deepfm import DeepFM
from distrec.models.din import DIN
from distrec.models.dlrm import DLRM
from distrec.models.inputs import InputSpec


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


MODELS: dict[str, ModelClass] = {"deepfm": DeepFM, "din": DIN, "dlrm": DLRM}


def find(name: str) -> ModelClass:
    """The model class of a name in `MODELS`, or of `package.module:Class`.

    Raises:
        UserError: no such name, module or class, or the class is no model; says which, and what comes nearest.
    """
    if ":" in name:
        return _import(name)
    if name not in MODELS:
        raise UserError(f"model.name = {name!r} is no model{nearest(name, list(MODELS))}; your own is package.module:Class")
    return MODELS[name]


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


def _import(name: str) -> ModelClass:
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


def _require_model(name: str, found: Any) -> ModelClass:
    if not _derives(found, nn.Module):
        raise UserError(f"model.name = {name!r} is not a subclass of torch.nn.Module")
    if not _derives(getattr(found, "Params", None), Section):
        raise UserError(f"model.name = {name!r} needs a nested class Params that derives from distrec.config.schema.Section")
    return found


def _derives(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)
