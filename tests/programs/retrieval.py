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
from torch import Tensor, nn

from distrec import dist, log
from distrec.batch import Batch
from distrec.config.layout import Layout
from distrec.config.load import parse
from distrec.config.retrieval import Retrieval
from distrec.data.complete import no_rows
from distrec.data.negatives import Drawer
from distrec.data.neighbours import Neighbours
from distrec.dist import gather_rows
from distrec.errors import UserError
from distrec.models.inputs import Embedded
from distrec.retrieval.candidates import Candidates
from distrec.retrieval.evaluate import Queries, RetrievalEvaluation
from distrec.retrieval.exact import Share, split_rows
from distrec.retrieval.frequency import Frequency
from distrec.retrieval.task import RetrievalHead, Towers
from distrec.trainer import Trainer, build

STEPS = 6
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"loss": "softmax", "negatives": {}},
    "softmax alone": {"loss": "softmax", "log_q": False, "negatives": {"not_in": "others"}},
    "bpr": {"loss": "bpr", "negatives": {"column": "negatives", "column_length": 3}},
    "ccl": {"loss": "ccl", "margin": 0.2, "negatives": {"in_batch": True, "column": "negatives", "column_length": 2}},
    "bce": {"loss": "bce", "negatives": {"in_batch": False, "column": "negatives", "column_length": 2}},
    "mixed": {"loss": "softmax", "negatives": {"sampled": 4}},
    "draws": {"loss": "softmax", "negatives": {"in_batch": False, "sampled": 6}},
    "popular": {"loss": "softmax", "negatives": {"sampled": 5, "distribution": "popularity", "alpha": 0.5}},
    "of each row": {"loss": "softmax", "negatives": {"per_row": 2}},
    "of groups": {"loss": "softmax", "negatives": {"sampled": 3, "shared_by": 8}},
    "of groups, ccl": {"loss": "ccl", "margin": 0.2, "negatives": {"in_batch": False, "sampled": 3, "shared_by": 8}},
    "hard": {"log_q": False, "negatives": {"per_row": 3, "distribution": "hard", "pool": 5, "refresh_steps": 2}},
    "column": {"log_q": False, "negatives": {"column": "negatives", "column_length": 2}},
}
RESUMED: dict[str, dict[str, Any]] = {
    "drawn": {"negatives": {"sampled": 6, "per_row": 2, "distribution": "popularity"}},
    "hard": {"log_q": False, "negatives": {"per_row": 3, "distribution": "hard", "pool": 5, "refresh_steps": 5}},
}

WITHIN: dict[str, dict[str, Any]] = {  # what ranks may share or not
    "softmax": {"loss": "softmax", "temperature": 0.5, "negatives": {"sampled": 3, "per_row": 2}},
    "ccl": {"loss": "ccl", "margin": 0.2, "negatives": {}},
}
ITEMS = np.random.default_rng(0).normal(size=(41, 6)).astype(np.float32)  # vectors, which two ranks cannot halve
POOL = 5


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
    """Some steps: the loss of each, and then the vectors of all items, and of them the dense part and the estimate.

    One rank draws what two would, so that it trains on the same batches.
    """
    train = {"steps": STEPS, "log_every": 1}
    sharding = {"sharding": "row_wise"}
    config = retrieval if ranks.world > 1 else retrieval | {"negatives": of_two(retrieval["negatives"])}
    run = trainer(ranks, data, folder, batch_size, retrieval=config, train=train, embedding=sharding)
    if ranks.world == 1:
        draw_as_two(run)
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


def of_two(negatives: dict[str, Any]) -> dict[str, Any]:
    """What one rank has to be asked for, so that as many items are drawn as by two. A group's draws are not its rank's."""
    shared = "sampled" in negatives and "shared_by" not in negatives
    return negatives | ({"sampled": 2 * negatives["sampled"]} if shared else {})


def draw_as_two(run: Trainer) -> None:
    """Let one rank draw what two draw that have half of each batch: first what is shared of both, then what rows have alone."""
    items, retrieval = run.engine.items, run.config.retrieval
    assert items is not None
    assert retrieval is not None
    catalogue, seed = items.catalogue, run.config.train.seed
    two = [Drawer(retrieval.negatives, catalogue.train_count, catalogue.rows, seed, rank) for rank in range(2)]

    def draw(batch: Batch, shared: int, per_row: int) -> np.ndarray:
        deals = tuple(replace(deal, world=2, batch_size=deal.batch_size // 2) for deal in batch.position.deals)
        position, half, parts = replace(batch.position, deals=deals), len(batch.weights) // 2, []
        for rank, drawer in enumerate(two):
            rows = slice(rank * half, (rank + 1) * half)
            drawer.neighbours = items.drawer.neighbours
            own = replace(batch, weights=batch.weights[rows], items=batch.items[rows], position=position)  # type: ignore[index]
            parts.append(np.split(drawer.draw(own, shared // 2, per_row), [shared // 2]))
        return np.concatenate([part for kind in zip(*parts, strict=True) for part in kind])

    items.drawer.draw = draw  # type: ignore[method-assign]


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


class Given(nn.Module):
    """Two towers whose vectors are what it was made with."""

    def __init__(self, queries: Tensor, items: Tensor):
        super().__init__()
        self.queries, self.items = nn.Parameter(queries), nn.Parameter(items)

    def query(self, inputs: Embedded) -> Tensor:
        return self.queries

    def item(self, inputs: Embedded) -> Tensor:
        return self.items


def loss_of(rank: int, retrieval: dict[str, Any], **negatives: Any) -> dict[str, Any]:
    """Of the rows and draws of a rank, with whatever ranks there are: the loss, and what it says of their vectors."""
    values = {"items": "x", "item_features": ["item"], "negatives": retrieval["negatives"] | negatives}
    config, rows = Retrieval.model_validate(retrieval | values), 5
    count = rows + config.negatives.draws(rows) + rows * config.negatives.per_row
    generator = torch.Generator().manual_seed(rank)
    keys = torch.randint(0, 12, (count,), generator=generator)
    model = Given(*(torch.randn(n, 4, generator=generator) for n in (rows, count)))
    frequency = Frequency(12, 12)
    frequency.expect(torch.arange(12.0), rows)
    candidates = Candidates(config, frequency if config.loss == "softmax" else None, torch.arange(12) / 66)
    empty = Layout((), (), ())
    weights, normalizer = (torch.arange(count) < rows).float(), torch.tensor(float(rows))
    batch = replace(no_rows(empty), dense=torch.zeros(count, 0), weights=weights, normalizer=normalizer)
    head = RetrievalHead(Towers(model, empty, ()), empty, config, candidates, None)  # type: ignore[arg-type]
    loss, _ = head(replace(batch, queries=rows, items=keys), None, None)
    loss.backward()
    gradients = [part.grad.flatten().tolist() for part in (model.queries, model.items) if part.grad is not None]
    return {"loss": loss.item(), "gradients": [value for part in gradients for value in part]}


def within(ranks: dist.Ranks) -> dict[str, Any]:
    """What each rank loses when ranks share their items, and when they do not."""
    return {
        name: {str(shared): gather(loss_of(ranks.rank, config, cross_rank=shared)) for shared in (False, True)}
        for name, config in WITHIN.items()
    }


def near(ranks: dist.Ranks) -> list[list[list[int]]]:
    """The neighbours of all items on each rank, each of which has its share of the vectors."""
    starts = split_rows(len(ITEMS), ranks.world)
    neighbours = Neighbours(len(ITEMS), POOL)
    neighbours.search(Share(torch.from_numpy(ITEMS[slice(*starts[ranks.rank : ranks.rank + 2])]), starts, ranks.rank))
    return gather(neighbours.table.tolist())


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
        "within": within(ranks),
        "near": near(ranks),
        "learned": {name: learn(ranks, folder, folder / name, 32, config) for name, config in LOSSES.items()},
        "resumed": {name: stop_and_go(ranks, folder, folder / f"resumed {name}", config) for name, config in RESUMED.items()},
    }
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
