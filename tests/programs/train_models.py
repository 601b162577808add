"""Every model trained by the trainer on these ranks: its weights before and after, whole, as `NAME.pt`.

train_models.py FOLDER     the log of `trained_cases.write_log` in FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from resume import gather
from sharding import whole_tables
from torch import Tensor
from trained_cases import CASES, case_values

from distrec import dist, log
from distrec.config.load import parse
from distrec.trainer import Trainer, build


def learn(name: str, ranks: dist.Ranks, folder: Path) -> dict[str, Any]:
    """Train one case; what rank 0 has to tell."""
    run = build(parse(case_values(name, folder, folder / name)), ranks, None)
    before = weights(run)
    run.run()
    run.pipeline.detach()
    weights_of_ranks = before, weights(run)
    types = {table: spec.sharding_type for part in run.engine.plan.plan.values() for table, spec in part.items()}
    if ranks.first:
        torch.save(weights_of_ranks, folder / f"{name}.pt")
    return {"losses": losses(folder / name) if ranks.first else [], "sharding": types}


def weights(run: Trainer) -> dict[str, Any]:
    """Tables, put together from all ranks' shards; and the state of the model beside them, one for each rank."""
    head: Any = run.engine.model.module.head  # type: ignore[union-attr]
    model = head.model if run.engine.items is None else head.model.model
    dense: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
    return {"tables": whole_tables(run.engine), "dense": gather(dense)}


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def main() -> None:
    folder = Path(sys.argv[1])
    log.quiet_dependencies()
    ranks = dist.start("cpu", 120)
    results = {name: learn(name, ranks, folder) for name in CASES}
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
