"""A small retriever on several ranks: trained, evaluated by exact search, exported. serving.py FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as torch_dist
from small_retrieval import retrieval_values, write_retrieval

from distrec import dist, log
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.errors import UserError
from distrec.export.write import export
from distrec.metrics.retrieval import RetrievalMetrics
from distrec.recall import everyone
from distrec.recall.command import build_index, recommend_to_all
from distrec.retrieval import exact
from distrec.retrieval.exact import Share, pair_scores, split_rows, top_k
from distrec.trainer import build

EXACT = {"items": 101, "queries": 30, "k": 7, "dim": 4}


def searched(ranks: dist.Ranks) -> dict[str, Any]:
    """What exact search finds for each rank's own queries, over a catalogue that no rank holds."""
    draw = np.random.default_rng(0)
    items, queries = (
        torch.from_numpy(draw.integers(-2, 3, (EXACT[n], EXACT["dim"])).astype(np.float32)) for n in ("items", "queries")
    )
    starts = split_rows(EXACT["items"], ranks.world)
    low, high = starts[ranks.rank : ranks.rank + 2]
    share = Share(items[low:high].clone(), starts, ranks.rank)
    exact.BLOCK_ROWS = 16
    Share.blocks.__defaults__ = (16,)
    mine = queries if ranks.rank else queries[:11]  # unequal numbers of queries, all of them twice but for the first rank's
    targets = torch.arange(len(mine)) % EXACT["items"]
    found = top_k(mine, share, EXACT["k"], (targets, torch.arange(len(mine) + 1)))
    metrics = RetrievalMetrics((3, EXACT["k"]), EXACT["items"], torch.arange(EXACT["items"]))
    metrics.update(found.items, (targets + 1) % EXACT["items"], torch.arange(len(mine) + 1))
    pairs = pair_scores(mine, share, found.items)
    everyone: list[Any] = [None] * ranks.world
    torch_dist.all_gather_object(everyone, (found.items.tolist(), pairs.tolist(), found.scores.tolist()))
    return {"found": everyone, "metrics": metrics.compute(torch_dist.group.WORLD)}


def refused(config: Config, ranks: dist.Ranks, folder: Path) -> list[str]:
    """What each rank hears of rows that the first one cannot write."""
    write, said = everyone._Part.write, ""
    everyone._Part.write = _refuse if ranks.first else write
    try:
        recommend_to_all(config, ranks, folder / "run", folder / "index", "valid", 7, folder / "refused")
    except UserError as error:
        said = str(error)
    everyone._Part.write = write
    heard: list[Any] = [None] * ranks.world
    torch_dist.all_gather_object(heard, said)
    return heard


def _refuse(*_: Any) -> None:
    raise UserError("no room for them")


def main(folder: Path) -> None:
    log.quiet_dependencies()
    ranks = dist.start("cpu", 120)
    log.setup(ranks.rank, folder / "logs")
    data = dist.from_first(lambda: write_retrieval(folder / "data"))
    tables = {
        "user": {"rows": 60, "dim": 8, "sharding": "data_parallel", "optimizer": {"name": "adagrad", "lr": 0.1}},
        "item": {"rows": 40, "dim": 8, "sharding": "row_wise", "init_scale": 0.1},
    }
    values = retrieval_values(
        data,
        folder / "run",
        tables=tables,
        features={"sparse": [{"name": "user_id", "table": "user"}, {"name": "item_index", "table": "item"}]},
        model={"name": "two_tower", "params": {"normalize": False}},
        train={"device": "cpu", "log_every": 5, "steps": 12},
    )
    values["data"] |= {"valid": str(data / "valid"), "eval_batch_size": 7}
    values["retrieval"] |= {"item_features": ["item_index"], "rank_among": 20, "query_id": "user_id"}
    config = parse(values)
    report = build(config, ranks, None).run()
    found: dict[str, Any] = {"evaluated": report.metrics}
    found["export"] = export(config, ranks, folder / "run", None, None, "fp32", "none").facts
    run, index = folder / "run", folder / "index"
    dist.from_first(lambda: build_index(run, "Flat", 0.9, None, None, index))
    recommend_to_all(config, ranks, run, index, "valid", 7, folder / "everyone")
    found["refused"] = refused(config, ranks, folder)
    values["tables"]["item"]["sharding"] = "table_wise"  # one rank holds none of it
    found["moved"] = export(parse(values), ranks, folder / "run", folder / "moved", None, "fp32", "none").facts
    found["rounded"] = export(config, ranks, folder / "run", folder / "int8", None, "int8", "none").facts
    found["exact"] = searched(ranks)  # last, for it makes blocks small
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(found))
    dist.stop()


main(Path(sys.argv[1]))
