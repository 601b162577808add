"""Metrics on two ranks: every rank gets what one process gets from all the rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distrec.config.schema import Task
from distrec.metrics.ranking import RankingMetrics
from distrec.metrics.sketch import Sketch, merge_owned

TASKS = (Task(name="click"), Task(name="rating", kind="regression"))


def rows(rank: int) -> tuple[torch.Tensor, ...]:
    """Unequal numbers of rows; each rank sees logits, groups and a label range that the other does not."""
    g = torch.Generator().manual_seed(rank)
    n = (3000, 401)[rank]
    logits = (torch.randn(n, 2, generator=g) * 4 + rank).round() / 4
    labels = torch.stack([(torch.rand(n, generator=g) < logits[:, 0].sigmoid()).float(), torch.rand(n, generator=g) + rank], 1)
    weights = torch.randint(0, 4, (n,), generator=g) / 2
    groups = torch.randint(0, 40, (n,), generator=g) + 20 * rank - 30
    return logits, labels, weights, groups


def metrics_of(*batches: tuple[torch.Tensor, ...]) -> RankingMetrics:
    metrics = RankingMetrics(TASKS, grouped=True)
    for batch in batches:
        metrics.update(*batch)
    return metrics


def coarse_sketch(rank: int) -> Sketch:
    """Rank 0 is past its capacity; rank 1 is not."""
    logits = torch.randn((5000, 100)[rank], generator=torch.Generator().manual_seed(rank))
    sketch = Sketch(min_capacity=512)
    sketch.add(logits, (logits > 0).float(), torch.ones_like(logits), torch.zeros_like(logits, dtype=torch.int64))
    return sketch


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranks = dist.group.WORLD
    both, empty, idle = metrics_of(rows(rank)), metrics_of(*[rows(0)] * (rank == 0)), metrics_of()
    with_nan = metrics_of(
        rows(rank), *[(torch.full((1, 2), torch.nan), torch.zeros(1, 2), torch.ones(1), torch.ones(1))] * rank
    )
    merged = merge_owned(coarse_sketch(rank), ranks)
    found = {
        "both": both.compute(ranks),
        "again": both.compute(ranks),
        "alone": both.compute(),
        "evidence": both.evidence(ranks),
        "one empty": empty.compute(ranks),
        "no rows": idle.compute(ranks),
        "nan": with_nan.compute(ranks),
        "sketch": (merged.mass.sum(0), len(merged.codes)),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_both_ranks_get_what_one_process_gets_from_all_rows(found):
    expected = metrics_of(rows(0), rows(1)).compute()
    assert found[0]["both"] == found[1]["both"] == pytest.approx(expected, abs=1e-12)
    assert "click/gauc" in expected
    assert expected["click/auc"] != pytest.approx(metrics_of(rows(0)).compute()["click/auc"], abs=1e-3)


def test_computing_leaves_the_local_rows_alone(found):
    for rank in (0, 1):
        assert found[rank]["again"] == found[rank]["both"]
        assert found[rank]["alone"] == metrics_of(rows(rank)).compute()


def test_evidence_counts_and_spans_both_ranks(found):
    expected = metrics_of(rows(0), rows(1)).evidence()
    assert found[0]["evidence"] == found[1]["evidence"] == expected
    logits, labels, weights, _ = (torch.cat(parts) for parts in zip(rows(0), rows(1), strict=True))
    real = weights > 0
    assert expected[1].rows == real.sum()
    assert expected[0].positives == labels[real, 0].sum()
    assert expected[1].labels == (labels[real, 1].min(), labels[real, 1].max())
    assert expected[1].predictions == (logits[real, 1].min(), logits[real, 1].max())


def test_a_rank_without_rows_takes_part(found):
    assert found[0]["one empty"] == found[1]["one empty"] == pytest.approx(metrics_of(rows(0)).compute(), abs=1e-12)
    assert all(value != value for rank in (0, 1) for value in found[rank]["no rows"].values())


def test_a_nan_on_one_rank_shows_on_both(found):
    assert all(value != value for rank in (0, 1) for value in found[rank]["nan"].values())


def test_coarse_and_exact_sketches_merge_on_the_owner_alone(found):
    assert [len(coarse_sketch(rank).codes) for rank in (0, 1)] == [256, 100]
    mass, entries = found[0]["sketch"]
    logits = torch.cat([torch.randn(n, generator=torch.Generator().manual_seed(r)) for r, n in ((0, 5000), (1, 100))])
    assert mass.tolist() == [(logits > 0).sum(), (logits <= 0).sum()]
    assert entries == 356
    assert found[1]["sketch"][1] == 0
