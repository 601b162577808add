"""Buffers that follow the batches: the running mean and variance of batch norm and of Dice."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RunningStatistics:
    """Keeps them equal on all ranks, and free of batches that are not trained on.

    TorchRec's data parallelism leaves buffers alone, so each rank would evaluate with the statistics of its own rows, and
    a checkpoint would hold those of whichever rank happened to write them. They are averaged after every step, and not
    only when they are needed, so that a run's numbers do not depend on when it saves.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        """Look after the floating-point buffers of `module`, which every rank holds whole."""
        self._device = device
        self._buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Before a forward pass in training: keep what `undo` brings back."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def undo(self) -> None:
        """Forget the batch that went through since `remember`."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def finite(self) -> Tensor:
        """() bool. The variance of extreme values overflows, and what it divides is 0: the loss looks sound and is not."""
        flags = [buffer.isfinite().all() for buffer in self._buffers]
        return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=self._device)

    @torch.no_grad()
    def average(self) -> None:
        """After a step: the mean over ranks, in place. Every rank must call it."""
        if not self._buffers or dist.get_world_size() == 1:
            return
        flat = torch.cat([buffer.flatten().float() for buffer in self._buffers])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
