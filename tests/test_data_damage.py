"""Parquet files that were damaged at random are read as they were, or refused by name: never a traceback, a crash or a hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from parquet_files import numbered, numbered_reader, real_rows

from distrec.errors import UserError

PROGRAM = Path(__file__).parent / "programs" / "damaged_files.py"


@pytest.mark.parametrize(
    ("first", "last"), [(0, 40), pytest.param(40, 1040, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_damage_is_a_message_or_nothing(tmp_path: Path, first: int, last: int) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, f"the file of seed {(tmp_path / 'at').read_text()}: {done.stderr[-3000:]}"
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == last - first
    said = {seed: result["found"] for seed, result in results.items()}
    assert {seed: found for seed, found in said.items() if "Traceback" in found} == {}
    named = {seed: f"{seed}.parquet" in found for seed, found in said.items() if found not in ("same", "other")}
    assert len(named) > 0.7 * len(said)
    assert all(named.values())
    verified = {seed for seed, result in results.items() if result["checksums"]}
    assert {seed for seed in verified if said[seed] == "other"} == set(), "of files with checksums, other rows"


def test_a_row_group_with_fewer_rows_than_its_footer_says_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else padding rows would take the place of the missing ones, in silence."""
    folder = numbered(tmp_path / "rows", [[20, 10]])

    class Short(pq.ParquetFile):
        def iter_batches(self, *, row_groups: list[int], **options):
            for batch in super().iter_batches(row_groups=row_groups, **options):
                yield batch.slice(0, 7) if row_groups == [1] else batch

    reader = numbered_reader(folder, shuffle=False)
    assert real_rows(reader.batches(epochs=1)) == list(range(30))
    monkeypatch.setattr(pq, "ParquetFile", Short)
    with pytest.raises(
        UserError, match=r"part-000\.parquet: row group 1 has 9 rows where its footer says 10: the file is dama"
    ):
        list(reader.batches(epochs=1))
