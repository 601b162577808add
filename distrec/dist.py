"""Process groups: who this rank is, and how ranks agree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from distrec.errors import AnotherRankFailed, UserError

T = TypeVar("T")
ROLL_CALL_S = 5.0  # ranks that wait in one collective lose contact within moments of each other


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of the run."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.rank == 0


def start(device: str = "auto", timeout_s: int = 600) -> Ranks:
    """Join the process group that torchrun's environment describes; without one, be a group of one.

    Args:
        device: `auto` (cuda when there is one), `cpu` or `cuda`.
        timeout_s: seconds after which a collective that a rank does not join fails.

    Raises:
        UserError: cuda was asked for and there is none, or fewer GPUs than local ranks.
    """
    rank, world, local_rank, local_world = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    chosen = _device(device, local_rank, local_world)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    alone = {} if "RANK" in os.environ else {"store": HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), **alone)
    return Ranks(rank, world, local_rank, local_world, chosen)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def roll_call(patience_s: float = ROLL_CALL_S) -> set[int]:
    """The ranks that have lost contact as this one has, this one included; called by each when its collective fails.

    A rank that is not among them failed, hangs, or is stopped. They meet in the store, which rank 0 serves; when it is the
    one that is gone, nobody else is heard. Without a process group, nobody at all.
    """
    if not dist.is_initialized():
        return set()
    store, rank, others = dist.distributed_c10d._get_default_store(), dist.get_rank(), set(range(dist.get_world_size()))
    heard = {rank}

    def ask() -> None:
        with suppress(RuntimeError):  # of a store that is gone
            store.set(f"distrec/lost/{rank}", "")
            while missing := others - heard:
                heard.update(other for other in missing if store.check([f"distrec/lost/{other}"]))
                time.sleep(0.2)

    asking = threading.Thread(target=ask, daemon=True)  # a store may also not answer, and its client waits for long
    asking.start()
    asking.join(patience_s)
    return set(heard)


def from_first(make: Callable[[], T]) -> T:
    """Run `make` on rank 0 and give every rank its result; a `UserError` there is raised everywhere."""
    result, error = _attempt(make) if dist.get_rank() == 0 else (None, None)
    box: list = [result, _said(error)]
    dist.broadcast_object_list(box, src=0)
    _raise_own(error)
    return _unpack(box[0], [box[1]])


def together(make: Callable[[], T]) -> T:
    """Run `make` on every rank; if any raises a `UserError`, all ranks raise, and the message is said once."""
    result, error = _attempt(make)
    everyone = of_all_ranks(_said(error))
    _raise_own(error)
    return _unpack(result, everyone)


def of_all_ranks(own: T) -> list[T]:
    """What each rank has, by rank. Every rank must call it."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def refuse(message: str) -> NoReturn:
    """Raise what every rank has found and calls this for, as a `UserError` that is said once."""
    raise UserError(message) if dist.get_rank() == 0 else AnotherRankFailed(message)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward is its transpose: every rank adds up what all ranks' losses say of its own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather(list(everyone.chunk(dist.get_world_size())), rows.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        own = torch.empty_like(gradient.chunk(dist.get_world_size())[0])
        dist.reduce_scatter(own, [part.contiguous() for part in gradient.chunk(dist.get_world_size())])
        return own


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, `(N, ...)` each, as `(W N, ...)`, rank 0's first. Gradients flow back and add up.

    Every rank must call it with as many rows, and go backward through it.
    """
    if dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # type: ignore[return-value]


def lowest(values: Tensor) -> Tensor:
    """Elementwise minimum over ranks, in place."""
    dist.all_reduce(values, op=dist.ReduceOp.MIN)
    return values


def _attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # told to the other ranks first, which wait for this one
        return None, error


def _said(error: Exception | None) -> str | None:
    return None if error is None else str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _raise_own(error: Exception | None) -> None:
    """A fault of distrec keeps its traceback, on the rank where it happened."""
    if error is not None and not isinstance(error, UserError):
        raise error


def _unpack(result: T | None, errors: list[str | None]) -> T:
    said = [error for error in errors if error]
    if not said:
        return result  # type: ignore[return-value]
    if dist.get_rank() != 0:
        raise AnotherRankFailed(said[0])
    raise UserError("\n".join(_with_ranks(errors)))


def _with_ranks(errors: list[str | None]) -> list[str]:
    """The distinct messages, each with its ranks where not all ranks say the same."""
    ranks: dict[str, list[str]] = {}
    for rank, error in enumerate(errors):
        if error:
            ranks.setdefault(error, []).append(str(rank))
    alone = len(ranks) == 1 and len(next(iter(ranks.values()))) == len(errors)
    return [error if alone or len(errors) == 1 else f"rank {', '.join(at)}: {error}" for error, at in ranks.items()]


def _device(wanted: str, local_rank: int, local_world: int) -> torch.device:
    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    if count < local_world:
        found = f"{count} GPU" + ("" if count == 1 else "s")
        raise UserError(
            f"{local_world} ranks on this machine need {local_world} GPUs and it has {found}; "
            "start fewer ranks (-j) or set train.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
