"""How many lookups a second does the sharded embedding layer do, forward and with the fused update, beside its parts?

Beside FBGEMM's kernel called by itself, with its check that ids are in range and without (distrec's layer has it without, for
the reader has checked them), torch's `EmbeddingBag(sparse=True)` with torch's Adagrad, and the floor: each row that a batch
uses, moved once (forward: read; with the update: read and written), which is held against a plain copy. On one rank and on
two, also by sharding type; the kernel then has the same share of the lookups and nothing to exchange.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.embedding_layers import LookUp, Shape, bags, draw, kernel, layer
from benchmarks.harness import Case, Run, compare
from benchmarks.launch import on_ranks
from benchmarks.report import options, publish, quiet
from distrec import dist
from distrec.batch import KeyedJaggedTensor

QUESTION = "Embedding lookups a second"
LAYER, KERNEL, UNCHECKED = "distrec's layer", "FBGEMM's kernel", "FBGEMM's kernel, ids unchecked"
COPY = "copy of the floor's bytes"
COPIED = 2**26  # floats
BATCHES = 4  # different ones, by turns
AMOUNT = {"cpu": 1_000_000, "cuda": 100_000_000}  # lookups of a run, at least: a good part of a second

USUAL, TINY = Shape(), Shape(rows=1_000, dim=8, batch=64)
WITH_TORCH = (TINY, USUAL, replace(USUAL, batch=2048))  # torch's own layer is slow, and not elsewhere in question
SHAPES = {
    "tiny": [TINY],
    "short": [USUAL, replace(USUAL, batch=2048)],
    "full": [
        USUAL,
        replace(USUAL, batch=2048),
        replace(USUAL, rows=100_000),
        replace(USUAL, rows=10_000_000, tables=1, dim=16),
        replace(USUAL, dim=16),
        replace(USUAL, dim=256, rows=250_000),
        replace(USUAL, pooling=1),
        replace(USUAL, pooling=50, batch=4096),
        replace(USUAL, exponent=0.0),
        replace(USUAL, exponent=1.5),
        replace(USUAL, precision="fp16"),
        replace(USUAL, optimizer="adagrad"),
        replace(USUAL, optimizer="sgd"),
    ],
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure; returns the JSON's path."""
    chosen = options(QUESTION, argv)
    quiet()
    torch.sparse.check_sparse_tensor_invariants.disable()  # else torch's Adagrad warns that they are off
    ranks = dist.start()
    cases = [case for shape in SHAPES[chosen.size] for case in measure(shape, ranks, chosen.rounds, chosen.size == "tiny")]
    dist.stop()
    with TemporaryDirectory() as folder:
        for world in (1, 2) if ranks.device.type == "cpu" else (1,):
            words = (chosen.size, str(chosen.rounds))
            cases += on_ranks("benchmarks.embedding_ranks", world, Path(folder, f"ranks-{world}.json"), *words)
    return publish("embedding", QUESTION, cases, chosen, ranks.device.type)


def measure(shape: Shape, ranks: dist.Ranks, rounds: int, once: bool) -> list[Case]:
    """Forward alone, and with backward and update."""
    batches = [draw(shape, seed, ranks.device) for seed in range(BATCHES)]
    lookups = {
        LAYER: layer(shape, ranks),
        KERNEL: kernel(shape, ranks.device),
        UNCHECKED: kernel(shape, ranks.device, check=False),
    }
    source, target = torch.ones(COPIED, device=ranks.device), torch.ones(COPIED, device=ranks.device)
    plain = bags(shape, ranks.device) if shape in WITH_TORCH else None
    moved = sum(unique_rows(batch) for batch in batches) / len(batches) * shape.row_bytes  # a batch
    repeats = 1 if once else -(-AMOUNT[ranks.device.type] // shape.lookups)
    found = []
    for backward, name in ((False, "forward"), (True, "forward, backward, update")):
        runs: dict[str, Run] = {key: partial(work, lookup, batches, repeats, backward) for key, lookup in lookups.items()}
        if plain is not None:
            runs["torch, sparse gradients"] = partial(work, plain[0], batches, repeats, backward, plain[1])
        floor = moved * (2 if backward else 1)
        runs[COPY] = partial(copy, floor, repeats, source, target)
        facts = vars(shape) | {"lookups": shape.lookups, "floor_bytes": floor, "repeats": repeats}
        also = ("floor GB/s", floor / shape.lookups / 1e9)
        amount = shape.lookups * repeats
        found.append(compare(f"{shape.name}; {name}", "lookups/s", amount, runs, KERNEL, rounds, also=also, **facts))
    return found


def work(
    lookup: LookUp,
    batches: Sequence[KeyedJaggedTensor],
    repeats: int,
    backward: bool,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Look `repeats` batches up; with `backward`, move their rows: the kernels do it on their own, torch by its optimizer."""
    for index in range(repeats):
        batch = batches[index % len(batches)]
        with torch.set_grad_enabled(backward):
            pooled = lookup(batch)
        if backward:
            pooled.backward(torch.ones_like(pooled))
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
    _finish(batches[0].values())


def copy(moved: float, repeats: int, source: Tensor, target: Tensor) -> None:
    """Move as many bytes from `source` to `target`, which are too large for a cache: half of them read, half written."""
    length = max(int(moved / 8), 1)
    parts = len(source) // length
    for index in range(repeats):
        part = slice(index % parts * length, (index % parts + 1) * length)
        target[part].copy_(source[part])
    _finish(target)


def unique_rows(batch: KeyedJaggedTensor) -> int:
    """Rows that a batch uses, over all tables."""
    return sum(len(part.values().unique()) for part in batch.to_dict().values())


def _finish(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
