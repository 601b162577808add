"""Trainings that are stopped and resumed, seen from inside: which rows were trained on, and every bit of the state.

resume.py FOLDER straight [DEVICE]   12 steps; and in another run folder 7 steps, then 5 more from the checkpoint
resume.py FOLDER resume KIND         the run of 7 steps, resumed on these ranks, sharded KIND, to the end of its epoch
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_run import values
from torch.distributed._shard.sharded_tensor import ShardedTensor

from distrec import dist, log
from distrec.config.load import parse
from distrec.pipeline import outputs
from distrec.trainer import Trainer, build


class Spied:
    """A trainer, and the numbers of the rows it was given."""

    def __init__(self, ranks: dist.Ranks, data: Path, folder: Path, resume: str | None, /, **sections: Any):
        self.trainer: Trainer = build(parse(values(data / "train", folder, **sections)), ranks, resume)
        self.rows: list[list[int]] = []
        reader = self.trainer.readers["train"]
        batches = reader.batches

        def spy(*args: Any, **options: Any) -> Iterator:
            for batch in batches(*args, **options):
                self.rows.append((batch.dense[batch.weights > 0, 0] * 2000).round().long().tolist())
                yield batch

        reader.batches = spy  # type: ignore[method-assign]

    def run(self, steps: int) -> list[int]:
        """Train; returns the rows of this rank's `steps` batches."""
        self.trainer.run()
        return [row for batch in self.rows[:steps] for row in batch]


def digests(trainer: Trainer) -> dict[str, str]:
    """A hash of all bits of each part of this rank's state."""
    return {key: digest(value) for key, value in sorted(flat(trainer.engine.state()).items())}


def digest(value: Any) -> str:
    parts = [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
    found = hashlib.sha256()
    for part in parts:
        found.update(
            part.detach().cpu().contiguous().numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode()
        )
    return found.hexdigest()[:16]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: part for name, inner in value.items() for key, part in flat(inner, f"{prefix}/{name}").items()}


def gather(value: Any) -> list[Any]:
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def straight(ranks: dist.Ranks, folder: Path, device: str = "cpu") -> dict[str, Any]:
    train = {"device": device, "log_every": 5}
    whole = Spied(ranks, folder, folder / "whole", None, train=train | {"steps": 12})
    rows = whole.run(12)
    whole_digests = digests(whole.trainer)  # at once: the random state is the process's
    Spied(ranks, folder, folder / "parts", None, train=train | {"steps": 7}).trainer.run()
    if ranks.first:
        shutil.copytree(folder / "parts", folder / "at7")
    torch.distributed.barrier()
    rest = Spied(ranks, folder, folder / "parts", "newest", train=train | {"steps": 12})
    rest_rows = rest.run(5)
    rest_digests = digests(rest.trainer)
    return {
        "rows": gather(rows),
        "rest_rows": gather(rest_rows),
        "whole": gather(whole_digests),
        "parts": gather(rest_digests),
        "probe": probe(rest.trainer, 7),
    }


def probe(trainer: Trainer, step: int) -> dict[str, float]:
    """Metrics of the saved step on the training rows: what the model of that checkpoint says of them."""
    trainer.engine.load(trainer.checkpoints, step)
    return trainer.engine.evaluate(trainer.readers["train"], partial(outputs, trainer.pipeline, trainer.engine)).metrics


def resume(ranks: dist.Ranks, folder: Path, kind: str) -> dict[str, Any]:
    target = folder / f"resumed-{ranks.world}-{kind}"
    if ranks.first:
        shutil.copytree(folder / "at7", target)
    torch.distributed.barrier()
    spied = Spied(ranks, folder, target, "newest", embedding={"sharding": kind} if kind != "any" else {})
    rows = spied.run(1000)
    return {"rows": gather(rows), "steps": spied.trainer.optimizers.steps, "probe": probe(spied.trainer, 7)}


def main() -> None:
    folder, verb, *words = Path(sys.argv[1]), *sys.argv[2:]
    log.quiet_dependencies()
    device = (*words, "cpu")[0] if verb == "straight" else "cpu"
    torch.use_deterministic_algorithms(device == "cuda", warn_only=True)  # else FBGEMM adds up long segments by atomics
    ranks = dist.start(device, 120)
    results = straight(ranks, folder, *words) if verb == "straight" else resume(ranks, folder, *words)
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
