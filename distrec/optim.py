"""Everything that moves parameters: the dense optimizer, the fused ones, replicated tables, and the schedule over all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizerWrapper

from distrec.config.schema import DenseOptimizer, Optimizer, Schedule, SparseOptimizer, Table


def schedule_factor(schedule: Schedule, step: int) -> float:
    """Factor on every learning rate for the update number `step` (the first is 0): linear warm-up, a plateau, decay."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "none" or schedule.decay_steps is None:
        return 1.0
    done = min(1.0, max(0, step - schedule.warmup_steps - schedule.hold_steps) / schedule.decay_steps)
    shape = 1.0 - done if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final_factor + (1.0 - schedule.final_factor) * shape


class ReplicatedTables(torch.optim.Optimizer):
    """The fused kernels' arithmetic for tables that every rank holds whole, and that arrive with dense gradients.

    Rows without gradient stay as they are, moments included, as in FBGEMM's exact optimizers, unless the config says
    `every_row`. Slots have the fused optimizers' names and shapes, so a checkpoint moves between plans.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: SparseOptimizer):
        words = {"lr": config.lr, "eps": config.eps, "betas": config.betas, "weight_decay": config.weight_decay}
        super().__init__(list(parameters), words | {"step": 0})
        self._update = UPDATES[config.name]
        self._every_row = config.every_row
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = {
                    slot: weight.new_zeros(shape(weight), dtype=torch.float32) for slot, shape in SLOTS[config.name]
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient, or every row."""
        for group in self.param_groups:
            group["step"] += 1
            for weight in group["params"]:
                if self._every_row:
                    _adam_on_every_row(weight, weight.grad, self.state[weight], group)
                else:
                    rows = rows_to_update(weight.grad)
                    self._update(weight, rows, weight.grad[rows].float(), self.state[weight], group)


def rows_to_update(grad: Tensor) -> Tensor:
    """Indices (R,) of the rows of `grad` (rows, D) to update: those with a gradient, the only ones that any update moves.

    On a GPU all of them: the host would have to wait for the number of the others.
    """
    if grad.is_cuda:
        return torch.arange(len(grad), device=grad.device)
    return grad.ne(0).any(dim=1).nonzero().squeeze(1)


def _sgd(weight: Tensor, rows: Tensor, grad: Tensor, state: dict, group: dict) -> None:
    weight.index_add_(0, rows, grad.to(weight.dtype), alpha=-group["lr"])


def _adagrad(weight: Tensor, rows: Tensor, grad: Tensor, state: dict, group: dict) -> None:
    total = state["momentum1"][rows] + grad.square()
    state["momentum1"][rows] = total
    weight.index_add_(0, rows, (grad / (total.sqrt() + group["eps"])).to(weight.dtype), alpha=-group["lr"])


def _rowwise_adagrad(weight: Tensor, rows: Tensor, grad: Tensor, state: dict, group: dict) -> None:
    if group["weight_decay"]:
        looked_up = grad.ne(0).any(dim=1, keepdim=True)
        grad = torch.where(looked_up, grad + group["weight_decay"] * weight[rows], grad)
    total = state["momentum1"][rows] + grad.square().mean(dim=1)
    state["momentum1"][rows] = total
    weight.index_add_(0, rows, (grad / (total.sqrt() + group["eps"]).unsqueeze(1)).to(weight.dtype), alpha=-group["lr"])


def _adam(weight: Tensor, rows: Tensor, grad: Tensor, state: dict, group: dict) -> None:
    first, second = group["betas"]
    moved = grad.ne(0).any(dim=1, keepdim=True)
    mean, square = state["momentum1"][rows], state["exp_avg_sq"][rows]
    mean = torch.where(moved, (mean * first).add_(grad, alpha=1 - first), mean)
    square = torch.where(moved, (square * second).addcmul_(grad, grad, value=1 - second), square)
    state["momentum1"][rows], state["exp_avg_sq"][rows] = mean, square
    mean, square = mean / (1 - first ** group["step"]), square / (1 - second ** group["step"])
    change = torch.where(moved, mean / (square.sqrt() + group["eps"]), 0.0)
    weight.index_add_(0, rows, change.to(weight.dtype), alpha=-group["lr"])


def _adam_on_every_row(weight: Tensor, grad: Tensor, state: dict, group: dict) -> None:
    """torch.optim.Adam's step in one pass over memory, by its own kernel, on our slots."""
    first, second = group["betas"]
    adam(
        [weight],
        [grad],
        [state["momentum1"]],
        [state["exp_avg_sq"]],
        [],
        [torch.full((), group["step"] - 1.0, device=weight.device)],  # the kernel counts this step; a copied number would wait
        fused=True,
        amsgrad=False,
        beta1=first,
        beta2=second,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


UPDATES: dict[str, Callable[[Tensor, Tensor, Tensor, dict, dict], None]] = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
}
# By the names that TorchRec has for the state of FBGEMM's kernels: the first is momentum1, others are called as in torch.
SLOTS: dict[str, list[tuple[str, Callable[[Tensor], Any]]]] = {
    "sgd": [],
    "adagrad": [("momentum1", lambda weight: weight.shape)],
    "rowwise_adagrad": [("momentum1", lambda weight: weight.shape[:1])],
    "adam": [("momentum1", lambda weight: weight.shape), ("exp_avg_sq", lambda weight: weight.shape)],
}


def dense_optimizer(parameters: Mapping[str, nn.Parameter], config: DenseOptimizer) -> KeyedOptimizerWrapper:
    """The optimizer of the data-parallel part, its state keyed by parameter name."""
    moments = {"betas": config.betas, "eps": config.eps}
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": partial(torch.optim.Adam, **moments),
        "adamw": partial(torch.optim.AdamW, **moments),
        "adagrad": partial(torch.optim.Adagrad, eps=config.eps),
        "sgd": partial(torch.optim.SGD, momentum=config.momentum),
    }
    make = partial(makers[config.name], lr=config.lr, weight_decay=config.weight_decay)
    return KeyedOptimizerWrapper(dict(parameters), lambda params: make(params))


class Optimizers:
    """All optimizers of a run as the one object that TorchRec's pipeline drives.

    Sparse rows move inside backward, at the rate set by `zero_grad`; `step` moves the rest. With `skip` set, `step` moves
    nothing: the batch had no usable loss.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        tables: Mapping[str, Table],
        names: Mapping[str, str],
        count_kernels: Callable[[int], None],
        config: Optimizer,
        clip_norm: float | None,
    ):
        """`names` maps the parameter names of tables to table names (`distrec.embeddings.tables.table_names`);
        `count_kernels` sets how many steps the fused kernels take themselves to have done (`distrec.embeddings.shard.Counts`).
        """
        self.steps = 0
        self.earlier = 0  # steps of runs before this one, which Adam has moments of; the schedule begins anew
        self.skip = False
        self._config, self._clip_norm = config, clip_norm
        self._sparse = {name: tables[name].optimizer or config.sparse for name in names.values()}
        self._names = names
        own = {key: p for key, p in model.named_parameters() if not hasattr(p, "_in_backward_optimizers")}
        self._dense_parameters = {key: p for key, p in own.items() if key not in names}
        self._dense = dense_optimizer(self._dense_parameters, config.dense) if self._dense_parameters else None
        self._replicated = {
            names[key]: ReplicatedTables([p], self._sparse[names[key]]) for key, p in own.items() if key in names
        }
        moved_whole = [own[key] for key in own if key in names and self._sparse[names[key]].every_row]
        self._clipped = [*self._dense_parameters.values(), *moved_whole]  # every rank has their whole gradient
        self._fused = model.fused_optimizer
        self._count_kernels = count_kernels
        self._rates = [(group, self._base_rate(group, key)) for key, group in self._groups()]

    def zero_grad(self) -> None:
        """Clear gradients, and set the learning rates and the step number for the coming update."""
        factor = schedule_factor(self._config.schedule, self.steps)
        for optimizer in self._replicated.values():
            optimizer.param_groups[0]["step"] = self.earlier + self.steps
        self._count_kernels(self.earlier + self.steps)
        for group, rate in self._rates:
            group["lr"] = rate * factor
        self._fused.zero_grad()
        for optimizer in self._parts():
            optimizer.zero_grad()

    def step(self) -> None:
        """Clip, and move what the fused optimizers have not moved."""
        if not self.skip:
            if self._clip_norm is not None and self._clipped:
                nn.utils.clip_grad_norm_(self._clipped, self._clip_norm)
            for optimizer in self._parts():
                optimizer.step()
        self.steps += 1

    def learning_rates(self) -> dict[str, float]:
        """The rates of the next update, for the log."""
        factor = schedule_factor(self._config.schedule, self.steps)
        return {"dense": self._config.dense.lr * factor, "sparse": self._config.sparse.lr * factor}

    def state_dict(self) -> dict[str, Any]:
        """State by parameter and by table, in one form whatever the plan: tensors, or sharded tensors."""
        tables: dict[str, dict[str, Any]] = {
            name: dict(optimizer.state[_only(optimizer)]) for name, optimizer in self._replicated.items()
        }
        for key, slots in self._fused.state_dict()["state"].items():
            tables[self._names[key]] = {slot.rsplit(".", 1)[-1]: value for slot, value in slots.items()}
        return {"dense": self._dense_state(), "tables": {name: slots for name, slots in tables.items() if slots}}

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Take back what `state_dict` gave after `steps` steps. Table slots were loaded in place, into the tensors it gave."""
        if self._dense is not None:
            self._dense.load_state_dict(state["dense"])
        self.steps = steps

    def prepare_to_load(self) -> None:
        """Make the dense optimizer's lazy state exist, so that there is something to load into."""
        if self._dense is not None:
            self._dense.init_state()

    def _dense_state(self) -> dict[str, Any]:
        return self._dense.state_dict() if self._dense is not None else {}

    def _parts(self) -> list[torch.optim.Optimizer]:
        return [*([self._dense] if self._dense is not None else []), *self._replicated.values()]

    def _groups(self) -> Iterable[tuple[str | None, Any]]:
        if self._dense is not None:
            yield from ((None, group) for group in self._dense.param_groups)
        for name, optimizer in self._replicated.items():
            yield from ((name, group) for group in optimizer.param_groups)
        yield from ((_TABLES_OWN, group) for group in self._fused.param_groups)

    def _base_rate(self, group: dict, name: str | None) -> float:
        if name is None:
            return self._config.dense.lr
        return group["lr"] if name == _TABLES_OWN else self._sparse[name].lr


_TABLES_OWN = "<fused: the rate that the kernel was built with>"


def _only(optimizer: torch.optim.Optimizer) -> Tensor:
    return optimizer.param_groups[0]["params"][0]
