"""Means over steps: of what a step's outputs say in one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class StepMeans:
    """The mean over steps and ranks of some of a step's outputs, each ()."""

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu"):
        """Of the outputs with these names."""
        self._names = tuple(names)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=self._device)  # and the steps

    @torch.no_grad()
    def count(self, outputs: Mapping[str, Tensor]) -> None:
        """Take in a step; never waits for a GPU."""
        self._sums += torch.stack([*(outputs[name].double() for name in self._names), torch.ones_like(self._sums[0])])

    def compute(self, ranks: dist.ProcessGroup | None = None) -> dict[str, float]:
        """The means over all `ranks`, or of this process alone; NaN without a step. Every rank must call it."""
        total = self._sums.clone()
        if ranks is not None:
            dist.all_reduce(total, group=ranks)
        return dict(zip(self._names, (total[:-1] / total[-1]).tolist(), strict=True))
