"""torch-rechub's own trainer, one run for each line on stdin; run by `benchmarks.train_rechub`, with a Python that has it.

Usage: ROWS.npz BATCH_SIZE TABLE_ROWS DIM STEPS. ROWS holds `labels (n,)` and an `(n,)` int64 array a feature. For each line,
answers with one line of JSON: seconds, processor seconds and peak MiB. It imports nothing of distrec.
"""

# pyright: reportMissingImports=false

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

MLP = {"dims": [256, 128], "activation": "relu", "dropout": 0.0}


def main(path: str, batch_size: int, table_rows: int, dim: int, steps: int) -> None:
    """Serve."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # torch-rechub prints
    torch.manual_seed(0)
    columns = dict(np.load(path))
    labels = columns.pop("labels")
    features = [SparseFeature(name, vocab_size=table_rows, embed_dim=dim) for name in columns]
    trainer = CTRTrainer(DeepFM(deep_features=features, fm_features=features, mlp_params=MLP), device="cpu")
    count = steps * batch_size
    data = DataGenerator({name: ids[:count] for name, ids in columns.items()}, labels[:count])
    loader, *_ = data.generate_dataloader(x_val={}, y_val=[], x_test={}, y_test=[], batch_size=batch_size)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        reset_peak()
        began, cpu_before = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train_one_epoch(loader)
        took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_before, "peak_mib": peak_mib()}
        print(json.dumps(took), file=answers, flush=True)


def reset_peak() -> None:
    """As in `benchmarks.harness`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float | None:
    """As in `benchmarks.harness`."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return None


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
