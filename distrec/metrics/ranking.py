"""Metrics of every task over a stream of batches on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from distrec.config.schema import Task
from distrec.errors import UserError
from distrec.metrics.pointwise import binary_metrics, binary_sums, ratio, regression_metrics, regression_sums
from distrec.metrics.sketch import Sketch, merge_owned
from distrec.metrics.suspicions import Evidence

FOLD_ROWS = 2**18


class Kind(NamedTuple):
    """How a task's sums are taken and read."""

    num_sums: int
    sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    metrics: Callable[[Tensor], dict[str, float]]


KINDS = {
    "binary": Kind(4, binary_sums, binary_metrics),
    "regression": Kind(3, regression_sums, regression_metrics),
}


class RankingMetrics:
    """AUC, GAUC, NE, log loss and calibration of binary tasks; MSE, RMSE and MAE of regressions.

    `update` only keeps a copy of its rows, so it never waits for a GPU; every 2**18 rows they are folded into sums
    and sketches on `device`. Rows of weight 0 count nowhere, not even with NaN in them. A NaN logit in any other row
    makes every metric of its task NaN.

    GAUC is the mean of the AUC within each group that holds both classes, weighted by the weight of its rows (Zhu et
    al., Optimized Cost per Click in Taobao Display Advertising, 2017; the metric of Zhou et al., Deep Interest Network
    for Click-Through Rate Prediction, 2018).
    """

    def __init__(self, tasks: Sequence[Task], grouped: bool = False, device: torch.device | str = "cpu"):
        """Measure `tasks`, in the order of a model's logits; with `grouped`, GAUC too."""
        self.tasks = tuple(tasks)
        self.grouped = grouped
        self.device = torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._num_rows = 0
        self._states = [TaskState(task, self.grouped, self.device) for task in self.tasks]

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> None:
        """Count a batch: `logits` and `labels` (B, T), `weights` (B,), and when `grouped` int64 `groups` (B,).

        Raises:
            ValueError: shapes differ, or `groups` is missing though the metrics are grouped.
        """
        if self.grouped and groups is None:
            raise ValueError("these metrics are by group: update needs groups (B,)")
        rows = {"logits": logits, "labels": labels, "weights": weights}
        if self.grouped and groups is not None:
            rows["groups"] = groups
        self._check_shapes(rows)
        self._rows.append(tuple(self._copy(name, part) for name, part in rows.items()))
        self._num_rows += len(weights)
        if self._num_rows >= FOLD_ROWS:
            self._fold()

    def count(self, outputs: Mapping[str, Tensor]) -> None:
        """The same of what a ranker's forward gives (`distrec.task.RankingTask`)."""
        self.update(outputs["logits"], outputs["labels"], outputs["weights"], outputs.get("groups"))

    def compute(self, ranks: dist.ProcessGroup | None = None) -> dict[str, float]:
        """The metrics over the rows of all `ranks`, the same on each, or of this process alone.

        Keys are `auc`, `gauc`, `ne`, `logloss`, `calibration`, `mse`, `rmse`, `mae`; `<task>/auc` and so on with
        several tasks. What the rows do not determine (AUC of one class, say) is NaN. Every rank must call it.
        """
        self._fold()
        named = [(self.prefix(state.task), state.compute(ranks)) for state in self._states]
        return {prefix + name: value for prefix, metrics in named for name, value in metrics.items()}

    def evidence(self, ranks: dist.ProcessGroup | None = None) -> list[Evidence]:
        """What `distrec.metrics.suspicions` needs to know of each task's rows on all `ranks`. Every rank must call it."""
        self._fold()
        return [state.evidence(self.prefix(state.task), ranks) for state in self._states]

    def prefix(self, task: Task) -> str:
        """What the names of a task's metrics begin with: nothing when it is the only task."""
        return f"{task.name}/" if len(self.tasks) > 1 else ""

    def state(self) -> dict[str, Tensor]:
        """All that this rank has counted, for a checkpoint."""
        self._fold()
        return {f"{s.task.name}/{name}": tensor for s in self._states for name, tensor in s.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Forget all rows and go on from `state`.

        Raises:
            UserError: the state is of other tasks.
        """
        if differing := sorted(self.state().keys() ^ state.keys()):
            raise UserError(
                f"the saved metrics and this config differ in {', '.join(differing[:3])}: resume with the [[tasks]] and "
                "data.group of the saved run"
            )
        for s in self._states:
            s.load_state({name: state[f"{s.task.name}/{name}"] for name in s.state()})

    def _copy(self, name: str, part: Tensor) -> Tensor:
        """A copy, for the caller may reuse its memory."""
        dtype = torch.int64 if name == "groups" else torch.float32
        return part.to(self.device, dtype, copy=True)

    def _check_shapes(self, rows: dict[str, Tensor]) -> None:
        num_rows, num_tasks = len(rows["weights"]), len(self.tasks)
        for name, part in rows.items():
            expected = (num_rows, num_tasks) if name in ("logits", "labels") else (num_rows,)
            if part.shape != expected:
                raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {expected}")

    def _fold(self) -> None:
        if not self._rows:
            return
        rows = [torch.cat(parts) for parts in zip(*self._rows, strict=True)]
        self._rows, self._num_rows = [], 0
        logits, labels, weights, *groups = (part[rows[2] > 0] for part in rows)
        if len(weights):
            for t, state in enumerate(self._states):
                state.add(logits[:, t].contiguous(), labels[:, t].contiguous(), weights, *groups)


class TaskState:
    """What is kept of one task's rows."""

    def __init__(self, task: Task, grouped: bool, device: torch.device):
        self.task = task
        self.kind = KINDS[task.kind]
        self.sums = torch.zeros(self.kind.num_sums, dtype=torch.float64, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # rows, labels over 0, NaN logits
        self.extremes = torch.full((4,), -math.inf, device=device)  # largest label, -label, logit, -logit
        sketched = ("auc", "gauc")[: 1 + grouped] if task.kind == "binary" else ()
        self.sketches = {name: Sketch(device) for name in sketched}

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> None:
        """Count at least one row; (N,) each, every weight positive."""
        self.sums = self.sums + self.kind.sums(logits, labels, weights)
        marks = torch.stack([torch.ones_like(labels, dtype=torch.bool), labels > 0, logits.isnan()])
        self.counts = self.counts + marks.sum(1)
        extremes = torch.stack([labels.max(), -labels.min(), logits.max(), -logits.min()])
        self.extremes = torch.maximum(self.extremes, extremes)
        for name, sketch in self.sketches.items():
            sketch.add(logits, labels, weights, groups if name == "gauc" else None)

    def compute(self, ranks: dist.ProcessGroup | None) -> dict[str, float]:
        """The task's metrics by name, over all `ranks`."""
        clean = int(_reduce(self.counts, dist.ReduceOp.SUM, ranks)[2]) == 0
        areas = {name: _area(sketch, ranks) for name, sketch in self.sketches.items()}
        ranked = {name: area if clean else math.nan for name, area in areas.items()}
        return ranked | self.kind.metrics(_reduce(self.sums, dist.ReduceOp.SUM, ranks))

    def evidence(self, prefix: str, ranks: dist.ProcessGroup | None) -> Evidence:
        """Counts and ranges over all `ranks`."""
        rows, positives, nans = _reduce(self.counts, dist.ReduceOp.SUM, ranks).tolist()
        extremes = _reduce(self.extremes, dist.ReduceOp.MAX, ranks).tolist()
        return Evidence(
            task=self.task,
            prefix=prefix,
            rows=rows,
            positives=positives,
            nan_predictions=nans,
            labels=(-extremes[1], extremes[0]),
            predictions=(-extremes[3], extremes[2]),
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""
        own = {"sums": self.sums, "counts": self.counts, "extremes": self.extremes}
        return own | {f"{name}/{key}": t for name, sketch in self.sketches.items() for key, t in sketch.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Become what `state` describes."""
        for name in ("sums", "counts", "extremes"):
            setattr(self, name, state[name].to(self.sums.device, copy=True))
        for name, sketch in self.sketches.items():
            sketch.load_state({key: state[f"{name}/{key}"] for key in sketch.state()})


def _area(sketch: Sketch, ranks: dist.ProcessGroup | None) -> float:
    """Mean AUC of the groups, weighted by their rows, over all `ranks`; each rank reads off the groups it owns."""
    owned = sketch if ranks is None else merge_owned(sketch, ranks)
    return ratio(*_reduce(owned.weighted_auc(), dist.ReduceOp.SUM, ranks).tolist())


def _reduce(values: Tensor, op: dist.ReduceOp.RedOpType, ranks: dist.ProcessGroup | None) -> Tensor:
    """A reduced copy; `values` itself stays this rank's own."""
    total = values.clone()
    if ranks is not None:
        dist.all_reduce(total, op, group=ranks)
    return total
