"""A retriever on several ranks: what each step lost, what came out, and whether a stop left a trace.

retrieval.py FOLDER     the log in FOLDER/train, with the catalogue in FOLDER/items
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from resume import digests, gather
from small_retrieval import retrieval_values

from distrec import dist, log
from distrec.config.layout import Layout
from distrec.config.load import parse
from distrec.config.retrieval import Retrieval
from distrec.data.complete import no_rows
from distrec.dist import gather_rows
from distrec.errors import UserError
from distrec.retrieval.candidates import Candidates
from distrec.retrieval.evaluate import Queries, RetrievalEvaluation
from distrec.retrieval.exact import Share
from distrec.retrieval.frequency import Frequency
from distrec.trainer import Trainer, build

STEPS = 6
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"loss": "softmax", "negatives": {}},
    "softmax alone": {"loss": "softmax", "log_q": False, "negatives": {"not_in": "others"}},
    "bpr": {"loss": "bpr", "negatives": {"column": "negatives", "column_length": 3}},
    "ccl": {"loss": "ccl", "margin": 0.2, "negatives": {"in_batch": True, "column": "negatives", "column_length": 2}},
    "bce": {"loss": "bce", "negatives": {"in_batch": False, "column": "negatives", "column_length": 2}},
}
RESUMED: dict[str, dict[str, Any]] = {
    "drawn": {"negatives": {"sampled": 6, "per_row": 2, "distribution": "popularity"}},
    "hard": {"log_q": False, "negatives": {"per_row": 3, "distribution": "hard", "pool": 5, "refresh_steps": 5}},
}


def trainer(
    ranks: dist.Ranks, data: Path, folder: Path, batch_size: int, resume: str | None = None, **sections: Any
) -> Trainer:
    values = retrieval_values(data, folder)
    values["data"] |= {"batch_size": batch_size, "shuffle": False}
    values["retrieval"] |= sections.pop("retrieval", {})
    values["train"] |= sections.pop("train", {})
    return build(
        parse(values | {"optimizer": {"dense": {"lr": 0.01}, "sparse": {"name": "adagrad", "lr": 0.1}}} | sections),
        ranks,
        resume,
    )


def learn(ranks: dist.Ranks, data: Path, folder: Path, batch_size: int, retrieval: dict[str, Any]) -> dict[str, Any]:
    """Some steps: the loss of each, and then the vectors of all items, and of them the dense part and the estimate."""
    train = {"steps": STEPS, "log_every": 1}
    sharding = {"sharding": "row_wise"}
    run = trainer(ranks, data, folder, batch_size, retrieval=retrieval, train=train, embedding=sharding)
    run.run()
    run.pipeline.detach()
    catalogue = run.engine.items.catalogue  # type: ignore[union-attr]
    head = run.engine.model.module.head  # type: ignore[union-attr]
    queries = next(iter(run.readers["train"].batches(epochs=1)))
    if ranks.first:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [line["train/loss"] for line in lines] if ranks.first else [],
        "items": run.engine.item_vectors(catalogue.batch(np.arange(catalogue.rows))).tolist(),
        "queries": run.engine.query_vectors(queries)[:8].tolist(),
        "dense": [parameter.sum().item() for parameter in head.parameters()],
        "buffers": [buffer.double().sum().item() for buffer in head.buffers()],
    }


def stop_and_go(ranks: dist.Ranks, data: Path, folder: Path, retrieval: dict[str, Any]) -> dict[str, Any]:
    """12 steps; and 7, then 5 more."""
    found = {}
    for name, parts in {"whole": [12], "parts": [7, 12]}.items():
        for steps, resume in zip(parts, [None, "newest"], strict=False):
            run = trainer(ranks, data, folder / name, 32, resume, retrieval=retrieval, train={"steps": steps})
            run.run()
        found[name] = gather(digests(run))
    return found


def exchange(ranks: dist.Ranks) -> dict[str, Any]:
    """Rank r's rows are r + 1; its loss weighs all rows by (r + 1) x place."""
    rows = torch.full((2, 3), float(ranks.rank + 1), requires_grad=True)
    everyone = gather_rows(rows)
    weights = (ranks.rank + 1) * torch.arange(1.0, len(everyone) + 1).unsqueeze(1)
    (everyone * weights).sum().backward()
    assert rows.grad is not None
    return {"rows": gather(everyone[:, 0].tolist()), "gradients": gather(rows.grad.tolist())}


def corrected(ranks: dist.Ranks) -> dict[str, Any]:
    """What logQ takes from the scores of a query's own item and of shared ones; ranks have 3 rows each, and 2 draws."""
    values = retrieval_values(Path("data"), Path("run"))
    values["retrieval"] |= {"negatives": {"sampled": 2, "per_row": 1}}
    frequency = Frequency(10, 10)
    frequency.expect(torch.arange(10.0), 6)
    candidates = Candidates(parse(values).retrieval, frequency, torch.arange(10) / 45)  # type: ignore[arg-type]
    keys = torch.tensor([[1, 2, -1, 3, 4, 5, 6, 7], [2, 8, 9, 9, 0, 1, 1, 1]])[ranks.rank]
    batch = replace(no_rows(Layout((), (), ())), weights=torch.ones(8), queries=3, items=keys)
    pool = candidates(batch, torch.zeros(3, 4), torch.zeros(8, 4))
    assert pool.offsets is not None
    taken = [(-offsets).exp().flatten().tolist() for offsets in pool.offsets]
    return {"keys": gather([part.flatten().tolist() for part in pool.keys]), "expected": gather(taken)}


def greedy(ranks: dist.Ranks) -> list[str]:
    """What each rank says when the second has a query that has seen all items but 2, and 3 are to be sampled."""
    config = Retrieval(items=("items",), item_features=("item",), ks=(1,), rank_among=3)
    share = Share(torch.ones(3, 2), (0, 3, 6), ranks.rank)
    seen = torch.arange(3 * ranks.rank)
    queries = Queries(torch.ones(1, 2), (torch.tensor([5]), torch.tensor([0, 1])), (seen, torch.tensor([0, len(seen)])))
    try:
        RetrievalEvaluation(config, share, None, torch.distributed.group.WORLD).add(queries)
    except UserError as error:
        return gather(str(error))
    return gather("nothing")


def main() -> None:
    folder = Path(sys.argv[1])
    log.quiet_dependencies()
    ranks = dist.start("cpu", 120)
    results = {
        "exchange": exchange(ranks),
        "corrected": corrected(ranks),
        "greedy": greedy(ranks),
        "learned": {name: learn(ranks, folder, folder / name, 32, config) for name, config in LOSSES.items()},
        "resumed": {name: stop_and_go(ranks, folder, folder / f"resumed {name}", config) for name, config in RESUMED.items()},
    }
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
