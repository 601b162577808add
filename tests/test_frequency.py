"""The streaming frequency estimate, against a loop over batches and against the shares that a stream was drawn by."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from distrec.retrieval.frequency import HASHES, Frequency


def loop(batches: list[list[int]], rate: float, start: dict[int, tuple[float, float]]) -> dict[int, float]:
    """Algorithm 2 of Yi et al., with the number of occurrences and a clock of rows, item by item: the shares."""
    clock, last, gap, times = 0, Counter(), {i: g for i, (g, _) in start.items()}, {i: t for i, (_, t) in start.items()}
    for batch in batches:
        clock += sum(item >= 0 for item in batch)
        for item, count in Counter(batch).items():
            if item >= 0:
                gap[item] = (1 - rate) * gap[item] + rate * (clock - last[item])
                times[item] = (1 - rate) * times[item] + rate * count
                last[item] = clock
    return {item: times[item] / gap[item] for item in gap}


def test_it_is_the_algorithm_item_by_item() -> None:
    draw = np.random.default_rng(0)
    items, rows = 12, 8
    batches = [draw.choice([*range(items), -1], rows).tolist() for _ in range(40)]
    batches[5] = batches[5][:3]  # batches may differ in size
    counts = torch.arange(items)
    frequency = Frequency(items, 100, rate=0.1)
    frequency.expect(counts, rows)
    share = ((counts + 1) / (counts + 1).sum()).tolist()
    start = {i: (max(1.0, s * rows) / s, max(1.0, s * rows)) for i, s in enumerate(share)}
    for batch in batches:
        frequency.see(torch.tensor(batch))
    expected = loop(batches, 0.1, start)
    found = frequency.share(torch.arange(items))
    torch.testing.assert_close(found, torch.tensor([expected[i] for i in range(items)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("buckets", [200, 10_000])
def test_it_finds_the_shares_of_a_skewed_stream_that_it_knew_nothing_of(buckets: int) -> None:
    items = 2000
    share = 1 / np.arange(1, items + 1) ** 0.9
    share /= share.sum()
    draw = np.random.default_rng(1)
    frequency = Frequency(items, buckets, rate=0.02)
    frequency.expect(torch.zeros(items), 256)
    for _ in range(1500):
        frequency.see(torch.from_numpy(draw.choice(items, 256, p=share)))
    found = frequency.share(torch.arange(100)).numpy()
    error = np.log(found / share[:100])
    if buckets >= items:
        assert np.abs(error).mean() < 0.12
        assert np.abs(error.mean()) < 0.06  # items that are in most batches, and items that are in few
    else:  # 10 items a bucket: shares are too large, those of rare items most; popular ones are still told apart
        assert 0 < error[:10].mean() < 0.6
        assert np.corrcoef(np.log(found), np.log(share[:100]))[0, 1] > 0.8


def test_of_several_hashes_the_one_with_the_fewest_collisions_counts() -> None:
    items = torch.arange(1000)
    frequency = Frequency(1000, 50)
    counts = torch.zeros(1000)
    counts[7] = 1e6
    frequency.expect(counts, 10)
    with_popular = [(frequency._buckets(items)[h] == frequency._buckets(items)[h][7]).sum() for h in range(HASHES)]
    assert all(count > 1 for count in with_popular)  # each hash puts others beside the popular one
    shares = frequency.share(items)
    assert (shares > 0.5).sum() == 1


def test_memory_is_that_of_the_buckets_whatever_the_catalogue() -> None:
    def size(items: int) -> int:
        return sum(buffer.numel() for buffer in Frequency(items, 64).buffers())

    assert size(10**6) == size(10**3)
    assert size(10) < size(64) < size(1000)


def test_expected_counts_are_those_that_it_was_told() -> None:
    counts = torch.tensor([0.0, 3.0, 996.0])
    frequency = Frequency(3, 8)
    frequency.expect(counts, 50)
    torch.testing.assert_close(frequency.share(torch.arange(3)), (counts + 1) / 1002)


def test_its_state_goes_into_checkpoints() -> None:
    first, second = Frequency(5, 8), Frequency(5, 8)
    first.expect(torch.ones(5), 4)
    first.see(torch.tensor([0, 1, 1, -1]))
    second.load_state_dict(first.state_dict())
    for frequency in (first, second):
        frequency.see(torch.tensor([4, 1, 0, 0]))
    assert torch.equal(first.share(torch.arange(5)), second.share(torch.arange(5)))
    assert int(first.clock) == 7
