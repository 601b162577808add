"""What ranks really hold and allocate, under a plan that was made without them.

plan_bytes.py FOLDER DEVICE   each FOLDER/*.case.json is a config that names its plan; writes what ranks found, by case
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from distrec import dist, log
from distrec.batch import Batch, Position
from distrec.config.load import parse
from distrec.config.schema import Config
from distrec.embeddings import shard
from distrec.engine import Engine

STEPS = 6  # the peak is looked for in each
SECONDS = 1e-4  # between two looks at the memory
AT = [0]  # the step that is being taken
T = TypeVar("T")


def batch(config: Config, engine: Engine, step: int) -> Batch:
    """Rows of this rank: as many ids in each as the config says."""
    draw = torch.Generator().manual_seed(100 * step + engine.ranks.rank)
    rows = config.data.batch_size
    return Batch(
        dense=torch.randn(rows, len(engine.layout.dense), generator=draw),
        sparse=jagged(engine.layout.bags, rows, draw),
        sequence=jagged(engine.layout.sequences, rows, draw),
        labels=torch.randint(0, 2, (rows, 1), generator=draw).float(),
        weights=torch.ones(rows),
        normalizer=torch.tensor(float(rows)),
        groups=None,
        position=Position(),
    ).to(engine.ranks.device)


def jagged(lookups: Any, rows: int, draw: torch.Generator) -> KeyedJaggedTensor | None:
    if not lookups:
        return None
    counts = [round(f.pooling_factor) for f in lookups]
    ids = [torch.randint(0, f.rows, (rows * n,), generator=draw) for f, n in zip(lookups, counts, strict=True)]
    lengths = torch.cat([torch.full((rows,), n, dtype=torch.int32) for n in counts])
    return KeyedJaggedTensor([f.name for f in lookups], torch.cat(ids), lengths=lengths)


def train(config: Config, ranks: dist.Ranks) -> tuple[Engine, list[float]]:
    engine, losses = Engine.build(config, ranks), []
    for state in states(engine):
        state.fill_(1e-3)  # zeros take no memory before they are written
    for step in range(STEPS):
        AT[0] = step
        engine.optimizers.zero_grad()
        loss = engine.model(batch(config, engine, step))[0]
        loss.backward()
        engine.optimizers.step()
        losses.append(loss.item())
        del loss
        gc.collect()  # TorchRec's lookups refer to each other in circles
    return engine, losses


def states(engine: Engine) -> list[Tensor]:
    return [
        part for slots in engine.optimizers.state_dict()["tables"].values() for value in slots.values() for part in local(value)
    ]


def local(value: Any) -> list[Tensor]:
    return [part.tensor for part in value.local_shards()] if isinstance(value, ShardedTensor) else [value]


def on_gpu(run: Callable[[], T]) -> tuple[T, int]:
    """What `run` returns, and the most bytes that the allocator had given out while it ran."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return run(), torch.cuda.max_memory_allocated() - before


class Malloc(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def on_cpu(run: Callable[[], T]) -> tuple[T, int]:
    """The same: bytes that malloc has given out, looked at every tenth of a millisecond.

    That needs the interpreter as often, or else what is held for less than its usual 5 ms of a turn is missed.
    Of the steps' peaks the median: where other programs hold a rank up, gloo keeps what has arrived for it meanwhile.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Malloc
    done, peaks = threading.Event(), dict.fromkeys(range(STEPS), 0)

    def look() -> None:
        while not done.wait(SECONDS):
            now = mallinfo()
            peaks[AT[0]] = max(peaks[AT[0]], now.uordblks + now.hblkhd)

    sys.setswitchinterval(SECONDS)
    gc.collect()
    before = mallinfo()
    watch = threading.Thread(target=look)
    watch.start()
    try:
        return run(), statistics.median_high(peaks.values()) - before.uordblks - before.hblkhd
    finally:
        done.set()
        watch.join()


def measure(config: Config, ranks: dist.Ranks) -> dict[str, Any]:
    warm = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 16})})
    train(warm, ranks)  # threads, libraries, and buffers of the process itself
    measured = on_gpu if ranks.device.type == "cuda" else on_cpu
    (engine, losses), peak = measured(lambda: train(config, ranks))
    return {
        "weights": {
            name: sum(part.numel() * part.element_size() for part, _, _ in parts)
            for name, parts in shard.local_shards(engine.model).items()
        },
        "optimizer": sum(part.numel() * part.element_size() for part in states(engine)),
        "peak": peak,
        "losses": losses,
    }


def main() -> None:
    folder, device = Path(sys.argv[1]), sys.argv[2]
    log.quiet_dependencies()
    ranks, results = dist.start(device, 120), {}
    for path in sorted(folder.glob("*.case.json")):
        everyone: list[Any] = [None] * ranks.world
        torch.distributed.all_gather_object(everyone, measure(parse(json.loads(path.read_text())), ranks))
        results[path.name.removesuffix(".case.json")] = everyone
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
