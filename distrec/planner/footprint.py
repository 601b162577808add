"""Bytes that a rank needs beside its tables: the data-parallel part of the model, and the batches in the pipeline."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distrec.config.layout import Layout
from distrec.config.schema import DenseOptimizer
from distrec.models.inputs import Embedded, Jagged

BATCHES = 3  # that TorchRec's pipeline holds on the device: in training, in the exchange of ids, in the copy
PROBE_ROWS = 61  # prime, so that a tensor with a dimension that it divides grows with the batch, and others are weights
ID_BYTES, LENGTH_BYTES, NUMBER_BYTES = 8, 4, 4


class Footprint(NamedTuple):
    """Bytes on each rank, whatever the plan."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # of the dense part at their peak, in forward or backward, with the vectors that it is given
    received: int  # those vectors as they come out of the exchange, beside what ranks looked up for each other
    batches: int  # rows in the pipeline

    @property
    def reserved(self) -> int:
        """What no plan can use: all but the vectors, which are among the activations."""
        return sum(self) - self.received

    def tensors(self, lookups: int) -> int:
        """The most that a step makes and frees again, on a rank that looks up `lookups` bytes of ids and vectors.

        Either the vectors are in exchange, and those that are sent lie there twice, as they were looked up and sorted by
        receiver; or the dense part is at its peak.
        """
        return max(2 * lookups + self.received, self.activations)


def footprint(model: nn.Module, layout: Layout, optimizer: DenseOptimizer, batch_size: int, tasks: int) -> Footprint:
    """What the data-parallel part takes.

    Args:
        model: the dense model, on a device that can run it.
        layout: the features.
        optimizer: its state is counted.
        batch_size: rows a rank and step.
        tasks: labels a row.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return Footprint(
        parameters=weights,
        gradients=weights,
        optimizer=weights * _slots(optimizer),
        activations=peak_activations(model, layout) * batch_size // PROBE_ROWS,
        received=batch_size * _vector_bytes(layout),
        batches=BATCHES * batch_size * _row_bytes(layout, tasks),
    )


def peak_activations(model: nn.Module, layout: Layout) -> int:
    """The most bytes that a forward and backward on `PROBE_ROWS` rows hold at once, parameters aside, inputs too."""
    model = copy.deepcopy(model)  # a step in training mode moves running statistics
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    own_random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with own_random_state, torch.enable_grad(), _LiveBytes() as live:
        result = model(_probe(layout, device))
        logits = result[0] if isinstance(result, tuple) else result
        logits.sum().backward()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of batch-sized tensors from the operator that makes them until the last reference goes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(tensor)._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and any(size and size % PROBE_ROWS == 0 for size in tensor.shape):
                self._count(_storage(tensor), known)
        return result

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        if storage._cdata in known | self._known:  # a view, or written in place
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _probe(layout: Layout, device: torch.device) -> Embedded:
    lookups = (*layout.bags, *layout.sequences)
    length = max((round(f.pooling_factor) for f in layout.sequences if not f.pooling), default=1) or 1  # some models need one
    return Embedded(
        dense=torch.zeros(PROBE_ROWS, len(layout.dense), device=device),
        pooled={f.name: _vectors(PROBE_ROWS, f.dim, device) for f in lookups if f.pooling},
        sequences={
            f.name: Jagged(
                _vectors(PROBE_ROWS * length, f.dim, device),
                torch.arange(PROBE_ROWS + 1, device=device) * length,
            )
            for f in lookups
            if not f.pooling
        },
    )


def _vectors(count: int, dim: int, device: torch.device) -> Tensor:
    """Not a leaf of the autograd graph, which would be kept to its end."""
    return torch.zeros(1, dim, device=device, requires_grad=True).expand(count, dim).clone()


def _slots(optimizer: DenseOptimizer) -> int:
    """Tensors of state a parameter."""
    return {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": int(optimizer.momentum > 0)}[optimizer.name]


def _vector_bytes(layout: Layout) -> int:
    """Bytes of a row's looked-up vectors."""
    return NUMBER_BYTES * (sum(f.dim for f in layout.bags) + sum(round(f.pooling_factor * f.dim) for f in layout.sequences))


def _row_bytes(layout: Layout, tasks: int) -> int:
    """Bytes of a row of a `Batch`: ids and their lengths, numbers, labels, a weight and a group."""
    lookups = (*layout.bags, *layout.sequences)
    ids = sum(round(f.pooling_factor * ID_BYTES) + LENGTH_BYTES for f in lookups)
    return ids + NUMBER_BYTES * (len(layout.dense) + tasks + 2)
