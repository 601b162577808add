"""A log on disk in parts, each with all rows of some keys, so that memory holds a part and never the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

ROWS_A_BUCKET = 1_000_000  # about, where users are many
MOST = 256  # files that are open at once
ROWS_A_WRITE = 1_000_000  # rows gathered before they are dealt: many buckets must not make many small writes


class Buckets:
    """Appends frames, then gives them back bucket by bucket, each in the order in which its rows came.

    Which keys share a bucket depends on polars' hash, which may change with its version.
    """

    def __init__(self, folder: Path, count: int, key: str) -> None:
        """Make `count` buckets in a folder that does not exist yet; rows with the same `key` share a bucket."""
        folder.mkdir()
        self._key = key
        self._paths = [folder / f"{number}.arrow" for number in range(count)]
        self._waiting: list[pl.DataFrame] = []
        self._stack, self._files = ExitStack(), dict[int, pa.RecordBatchFileWriter]()
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, frame: pl.DataFrame) -> None:
        """Append rows."""
        self._waiting.append(frame)
        self.rows += frame.height
        if sum(part.height for part in self._waiting) >= ROWS_A_WRITE:
            self._deal()

    def close(self) -> None:
        """Write what is waiting; reading comes after."""
        if self._waiting:
            self._deal()
        self._stack.close()

    def frames(self) -> Iterator[pl.DataFrame]:
        """The buckets that hold rows, one after the other."""
        for number in sorted(self._files):
            with pa.memory_map(str(self._paths[number])) as file:
                table = pa.ipc.open_file(file).read_all()
                yield pl.DataFrame(table)

    def column(self, name: str) -> Iterator[NDArray[np.int64]]:
        """One column of integers, bucket by bucket."""
        for number in sorted(self._files):
            with pa.memory_map(str(self._paths[number])) as file:
                index = pa.ipc.open_file(file).schema.get_field_index(name)
                options = pa.ipc.IpcReadOptions(included_fields=[index])
                yield pa.ipc.open_file(file, options=options).read_all()[name].to_numpy()

    def _deal(self) -> None:
        rows = pl.concat(self._waiting)
        self._waiting = []
        bucket = rows[self._key].hash(seed=0) % len(self._paths)
        for (number,), part in (
            rows.with_columns(bucket.alias("@bucket")).partition_by("@bucket", as_dict=True, include_key=False).items()
        ):
            self._append(int(number), part.to_arrow())

    def _append(self, number: int, part: pa.Table) -> None:
        if number not in self._files:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            file = pa.ipc.new_file(str(self._paths[number]), part.schema, options=options)
            self._files[number] = self._stack.enter_context(file)
        self._files[number].write_table(part)
