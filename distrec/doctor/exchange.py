"""What one rank of the self-test does: join the group, exchange rows with every rank, check each value.

    python -m distrec.agent --nproc-per-node=2 -m distrec.doctor.exchange FOLDER DEVICE TIMEOUT_S

Each rank leaves FOLDER/rank-N.json, rewritten at each stage, so that the parent can say how far a rank came that died.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import all_to_all_single

from distrec import dist
from distrec.json_out import to_json


def main(folder: str, device: str, timeout_s: str) -> int:
    """Exchange once. Returns 0, or 3 when a value that arrived is wrong."""
    path = Path(folder) / f"rank-{os.environ['RANK']}.json"
    _note(path, "started")
    ranks = dist.start(device, int(timeout_s))
    _note(path, "joined")
    wrong = strangers(exchange(ranks.rank, ranks.world, ranks.device), ranks.rank, ranks.world)
    _note(path, "wrong" if wrong else "exchanged", wrong)
    dist.stop()
    return 3 if wrong else 0


def exchange(rank: int, world: int, device: torch.device) -> Tensor:
    """Send a piece to every rank with `all_to_all_single`; what arrived, in the order of the senders."""
    sent = torch.cat([piece(rank, to) for to in range(world)]).to(device)
    sizes = [len(piece(rank, to)) for to in range(world)]
    arriving = [len(piece(sender, rank)) for sender in range(world)]
    arrived = torch.empty(sum(arriving), dtype=sent.dtype, device=device)
    all_to_all_single(arrived, sent, arriving, sizes)
    return arrived.cpu()


def strangers(arrived: Tensor, rank: int, world: int) -> list[int]:
    """The senders whose piece is not what they sent."""
    expected = [piece(sender, rank) for sender in range(world)]
    pieces = arrived.split([len(part) for part in expected])
    return [sender for sender in range(world) if not torch.equal(pieces[sender], expected[sender])]


def piece(sender: int, receiver: int) -> Tensor:
    """What one rank sends another: int64 (1024 (1 + (sender + 2 receiver) % 3),), numbers that no other pair has."""
    length = 1024 * (1 + (sender + 2 * receiver) % 3)
    return torch.arange(length) + (sender << 40) + (receiver << 16)


def _note(path: Path, stage: str, wrong: list[int] | None = None) -> None:
    path.write_text(to_json({"stage": stage, "wrong": wrong or []}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
