"""Reads Parquet files that were damaged at random, each as a run would read it.

damaged_files.py FOLDER FIRST LAST    the files of the seeds FIRST to LAST - 1

It keeps the seed at work in FOLDER/at, so that who started it can name the file that crashed it or made it hang; results.json
says by seed what came of it: the message of a UserError, "same", "other" rows, or a traceback.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.config.layout import layout
from distrec.config.schema import Data, DenseFeature, Features, SequenceFeature, SparseFeature, Table, Task
from distrec.data import Reader, open_dataset, uses
from distrec.errors import UserError

ROWS = 700
LIMIT_S = 30  # for a file; then the process ends
MEMORY = 8 << 30  # bytes of address space: a damaged length must not be believed
OPTIONS = [
    {"compression": "none", "use_dictionary": False},
    {"compression": "snappy"},
    {"compression": "zstd", "data_page_version": "2.0"},
    {"compression": "none", "use_byte_stream_split": ["x"], "use_dictionary": ["id"]},
]
FEATURES = Features(
    dense=(DenseFeature(name="x", null=0.0),),
    sparse=(SparseFeature(name="id", table="t", ids="hash"), SparseFeature(name="word", table="t", ids="hash")),
    sequence=(SequenceFeature(name="past", table="t", ids="hash", max_length=5),),
)
TABLES = {"t": Table(rows=1 << 30, dim=4)}


def columns(seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table(
        {
            "x": pa.array(draw.random(ROWS), mask=draw.random(ROWS) < 0.1),
            "id": draw.integers(0, 50, ROWS),
            "word": [f"w{n}" for n in draw.integers(0, 99, ROWS)],
            "past": [draw.integers(0, 1000, n).tolist() for n in draw.integers(0, 8, ROWS)],
            "label": draw.integers(0, 2, ROWS),
        }
    )


def write(path: Path, seed: int, checksums: bool) -> bytes:
    pq.write_table(columns(seed), path, row_group_size=300, write_page_checksum=checksums, **OPTIONS[seed % len(OPTIONS)])
    return path.read_bytes()


def damage(content: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """The file after one of the accidents that files have; `other` is a sound file of another shape."""
    raw, (low, high) = bytearray(content), sorted(int(at) for at in draw.integers(0, len(content), 2))
    footer = int.from_bytes(content[-8:-4], "little") + 8
    match int(draw.integers(0, 9)):
        case 0:  # cut short
            return content[:high]
        case 1:  # flipped bits, anywhere
            for at in draw.integers(0, len(raw), int(draw.integers(1, 20))):
                raw[at] ^= 1 << int(draw.integers(0, 8))
        case 2:  # flipped bits in the footer
            for at in draw.integers(len(raw) - footer, len(raw) - 4, int(draw.integers(1, 4))):
                raw[at] ^= 1 << int(draw.integers(0, 8))
        case 3:  # a block of zeros, as a disk leaves that lost power
            raw[low : low + 512] = bytes(min(512, len(raw) - low))
        case 4:  # a block of another file
            raw[low:high] = other[low:high]
        case 5:  # another file's footer
            return content[:-footer] + other[-int.from_bytes(other[-8:-4], "little") - 8 :]
        case 6:  # a piece that is missing
            del raw[low : min(high, low + 1000)]
        case 7:  # a piece that is there twice
            raw[high:high] = raw[low:high]
        case _:  # noise
            raw[low : low + 64] = draw.bytes(min(64, len(raw) - low))
    return bytes(raw)


def read(path: Path, checksums: bool) -> list[Any]:
    """Every row, as a run would see it."""
    data, order, tasks = (
        Data(train=str(path), batch_size=64, shuffle=False, shuffle_window=256),
        layout(FEATURES, TABLES),
        (Task(),),
    )
    dataset = open_dataset(data.train, uses(data, order, tasks))
    batches = list(Reader(dataset, data, order, tasks, rank=0, world=1).batches(epochs=1))
    parts = [[b.dense, b.labels, b.sparse, b.sequence] for b in batches]
    return [part.tolist() if hasattr(part, "tolist") else _jagged(part) for row in parts for part in row if part is not None]


def _jagged(part: Any) -> list[Any]:
    return [part.values().tolist(), part.lengths().tolist()]


def outcome(folder: Path, seed: int) -> dict[str, Any]:
    draw, checksums = np.random.default_rng((seed, 1)), seed % 3 > 0
    path = folder / f"{seed}.parquet"
    sound = write(path, seed, checksums)
    expected = read(path, checksums)
    path.write_bytes(damage(sound, write(folder / "other", seed + 1, checksums), draw))
    try:
        found = "same" if read(path, checksums) == expected else "other"
    except UserError as error:
        found = str(error)
    except Exception:
        found = traceback.format_exc()
    path.unlink()
    return {"checksums": checksums, "found": found}


def main() -> None:
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    done: dict[int, Any] = {}
    for seed in range(first, last):
        (folder / "at").write_text(str(seed))
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        done[seed] = outcome(folder, seed)
    faulthandler.cancel_dump_traceback_later()
    (folder / "results.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
