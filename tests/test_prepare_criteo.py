"""Criteo's text -> Parquet, against Python's own reading of the same lines; and every way a file can be bad."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrec.config.load import load
from distrec.errors import UserError
from distrec.prepare import criteo_ids, criteo_lines, criteo_stream
from distrec.prepare.criteo import criteo
from distrec.prepare.criteo_lines import Block, blocks, files_of
from distrec.prepare.criteo_rows import decode, hex_values
from distrec.prepare.output import no_progress

ROOT = Path(__file__).parents[1]


def lines(rows: int, seed: int = 0) -> list[str]:
    """Rows of Criteo's form with blanks, negative numbers, and ids of which few are frequent."""
    draw = random.Random(seed)
    return [line(draw) for _ in range(rows)]


def line(draw: random.Random) -> str:
    numbers = ["" if draw.random() < 0.2 else str(draw.randint(-3, 60_000)) for _ in range(13)]
    ids = ["" if draw.random() < 0.1 else f"{int(draw.paretovariate(0.7)) * 2654435761 % 2**32:08x}" for _ in range(26)]
    return "\t".join([str(draw.randint(0, 1)), *numbers, *ids])


def write(path: Path, rows: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


def parsed(rows: list[str]) -> list[tuple]:
    """What the lines say, read by Python."""
    return [
        tuple(None if not text else int(text, 16 if at > 13 else 10) for at, text in enumerate(row.split("\t"))) for row in rows
    ]


def read(prepared, *splits: str) -> list[tuple]:
    tables = [pq.read_table(prepared.folder / split) for split in splits or ("train", "valid", "test")]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def description(prepared) -> dict:
    return json.loads(prepared.description.read_text())


@pytest.fixture(scope="module")
def sample() -> Path:
    if not (root := os.environ.get("DISTREC_DATA")):
        pytest.skip("needs the Criteo sample; set DISTREC_DATA")
    return Path(root) / "criteo-kaggle-10k.tsv.gz"


def test_the_real_sample_is_what_python_reads(sample, tmp_path):
    prepared = criteo([sample], tmp_path)
    with gzip.open(sample, "rt") as file:
        expected = parsed(file.read().splitlines())
    assert read(prepared) == expected
    assert prepared.rows == {"train": 8571, "valid": 714, "test": 715}
    assert {c["name"]: (c["type"], c["role"]) for c in description(prepared)["columns"]} == {
        "label": ("int8", "label"),
        **{f"i{n}": ("int32", "dense") for n in range(1, 14)},
        **{f"c{n}": ("int64", "sparse") for n in range(1, 27)},
    }


@pytest.mark.parametrize("chunk", [1, 7, 400, 10_000, 1 << 20])
@pytest.mark.parametrize(("end", "last"), [("\n", True), ("\r\n", True), ("\n", False)])
def test_blocks_are_whole_lines_wherever_they_are_cut(tmp_path, monkeypatch, chunk, end, last):
    monkeypatch.setattr(criteo_lines, "CHUNK", chunk)
    rows = lines(30)
    file = write(tmp_path / "train.txt", rows, end)
    if not last:
        file.write_bytes(file.read_bytes().rstrip(b"\n"))
    found = list(blocks(file))
    assert b"".join(block.text for block in found) == ("".join(row + end for row in rows)).encode()
    assert all(block.text.endswith(b"\n") for block in found)
    assert [block.line for block in found] == [1 + sum(b.text.count(b"\n") for b in found[:i]) for i in range(len(found))]
    assert [row for block in found for row in decode(block)["label"].to_pylist()] == [int(row[0]) for row in rows]


@pytest.mark.parametrize("packed", ["one member", "two members"])
def test_gzip_is_known_by_its_content(tmp_path, packed):
    rows = lines(50)
    content = [("".join(row + "\n" for row in part)).encode() for part in (rows[:20], rows[20:])]
    file = tmp_path / "day_0"  # with no .gz
    file.write_bytes(gzip.compress(b"".join(content)) if packed == "one member" else b"".join(map(gzip.compress, content)))
    assert read(criteo([file], tmp_path / "out")) == parsed(rows)


def test_of_one_file_the_last_seventh_is_held_out(tmp_path):
    rows = lines(70)
    prepared = criteo([write(tmp_path / "train.txt", rows)], tmp_path / "out")
    assert [read(prepared, split) for split in ("train", "valid", "test")] == [
        parsed(rows[:60]),
        parsed(rows[60:65]),
        parsed(rows[65:]),
    ]


@pytest.mark.parametrize("source", ["{}", "{}/day_*", "{0}/day_2 {0}/day_9 {0}/day_10"])
def test_of_several_files_the_last_by_number_is_held_out(tmp_path, source):
    folder = tmp_path / "days"
    folder.mkdir()
    days = {day: lines(20, seed=day) for day in (10, 2, 9)}
    for day, rows in days.items():
        write(folder / f"day_{day}", rows)
    prepared = criteo(source.format(folder).split(), tmp_path / "out")
    assert read(prepared, "train") == parsed(days[2] + days[9])
    assert (read(prepared, "valid"), read(prepared, "test")) == (parsed(days[10][:10]), parsed(days[10][10:]))
    assert description(prepared)["files"] == ["day_2", "day_9", "day_10"]


def test_rows_become_row_groups_that_deal_well(tmp_path, monkeypatch):
    monkeypatch.setattr("distrec.prepare.criteo_lines.CHUNK", 3000)
    prepared = criteo([write(tmp_path / "train.txt", lines(700))], tmp_path / "out")
    [file] = [pq.ParquetFile(path) for path in prepared.files if path.parent.name == "train"]
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [38] * 15 + [30]


def with_field(row: str, at: int, text: str) -> str:
    fields = row.split("\t")
    fields[at] = text
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: row.rpartition("\t")[0], "39 fields, where Criteo has 40.*test.txt has no label"),
        (lambda row: row + "\tab", "41 fields, where Criteo has 40"),
        (lambda row: "", "it is empty, where Criteo has 40 fields"),
        (lambda row: with_field(row, 0, "2"), "label is '2'"),
        (lambda row: with_field(row, 0, ""), "label is ''"),
        (lambda row: with_field(row, 3, "1.5"), "i3 is '1.5', which is no integer"),
        (lambda row: with_field(row, 3, '"7'), "i3 is '\"7', which is no integer"),
        (lambda row: with_field(row, 3, '"7"'), "i3 is '\"7\"', which is no integer"),
        (lambda row: with_field(row, 0, "-1"), "label is '-1'"),
        (lambda row: with_field(row, 13, "3000000000"), "i13 is 3000000000, which does not fit 32 bits"),
        (lambda row: with_field(row, 14, "68fd1g64"), "c1 is '68fd1g64', which is no hexadecimal id"),
        (lambda row: with_field(row, 39, "f" * 17), "c26 is 'f{17}', which is no hexadecimal id of 64 bits"),
        (lambda row: with_field(row, 20, "0x12"), "c7 is '0x12', which is no hexadecimal id"),
        (lambda row: with_field(row, 20, "käse"), "c7 is 'käse', which is no hexadecimal id"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, monkeypatch, spoil, message):
    monkeypatch.setattr("distrec.prepare.criteo_lines.CHUNK", 2000)
    rows = lines(100)
    rows[61], rows[80] = spoil(rows[61]), "a later one"
    file = write(tmp_path / "train.txt", rows)
    with pytest.raises(UserError, match=rf"train\.txt, line 62: {message}"):
        criteo([file], tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_an_empty_file_is_named(tmp_path):
    files = [write(tmp_path / "day_0", lines(9)), write(tmp_path / "day_1", [])]
    with pytest.raises(UserError, match=r"day_1 is empty"):
        criteo(files, tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut short", "flipped"])
def test_a_damaged_gzip_is_named_with_the_line_that_it_reaches(tmp_path, damage):
    content = bytearray(gzip.compress("".join(row + "\n" for row in lines(5000)).encode()))
    if damage == "cut short":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 255
    (tmp_path / "train.txt.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.txt\.gz, line \d+: cannot be read: .*fetch the file again"):
        criteo([tmp_path / "train.txt.gz"], tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_sources_that_name_no_text_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no file at .*day_\*"):
        files_of([tmp_path / "day_*"])
    file = write(tmp_path / "train.txt", lines(9))
    with pytest.raises(UserError, match="named twice"):
        files_of([file, tmp_path])
    with tarfile.open(tmp_path / "dac.tar.gz", "w:gz") as archive:
        archive.add(file, "train.txt")
    with pytest.raises(UserError, match=r"dac\.tar\.gz is an archive; extract it"):
        files_of([tmp_path / "dac.tar.gz"])
    (tmp_path / "binary").write_bytes(b"\0" * 4000)
    monkeypatch.setattr(criteo_lines, "LONGEST", 1000)
    monkeypatch.setattr(criteo_lines, "CHUNK", 600)
    with pytest.raises(UserError, match=r"binary, line 1: over 1,000 bytes without a line end"):
        list(blocks(tmp_path / "binary"))


def test_rows_and_options_that_are_too_few_are_refused(tmp_path):
    file = write(tmp_path / "train.txt", lines(7))
    with pytest.raises(UserError, match="7 rows are too few"):
        criteo([file], tmp_path / "out")
    for option, least in (("min_count", 1), ("max_rows_per_table", 2)):
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')} 0: must be at least {least}"):
            criteo([file], tmp_path / "out", **{option: 0})


def test_hexadecimal_of_any_length():
    texts = ["a", "", "FFffFFff", "ffffffffffffffff", "8000000000000000", "0123456789abcdef", "0"]
    unsigned = [int(text, 16) if text else None for text in texts]
    expected = [value if value is None or value < 2**63 else value - 2**64 for value in unsigned]
    column = pa.array([text.encode() if text else None for text in texts], pa.binary())
    assert hex_values(column).to_pylist() == expected
    assert hex_values(column.slice(2, 3)).to_pylist() == expected[2:5]
    assert hex_values(column.slice(1, 1)).to_pylist() == [None]


def test_ids_modulo_mlperfs_sizes(tmp_path):
    rows = lines(70)
    prepared = criteo([write(tmp_path / "train.txt", rows)], tmp_path / "out", hash_sizes="mlperf", max_rows_per_table=1000)
    columns = description(prepared)["columns"]
    sizes = [c["cardinality"] for c in columns if c["role"] == "sparse"]
    small = {6: 3, 9: 63, 13: 10, 16: 155, 17: 4, 18: 976, 19: 14, 25: 108, 26: 36}  # of the published list
    assert sizes == [small.get(n, 1000) for n in range(1, 27)]
    expected = [
        (*row[:14], *(None if i is None else i % s for i, s in zip(row[14:], sizes, strict=True))) for row in parsed(rows)
    ]
    assert read(prepared) == expected


def test_mlperfs_sizes_are_those_it_publishes():
    assert len(criteo_ids.MLPERF) == 26
    assert (criteo_ids.MLPERF[2], criteo_ids.MLPERF[10], criteo_ids.MLPERF[25]) == (17_295, 3_067_956, 36)
    assert sum(criteo_ids.MLPERF) == 204_184_588  # rows of the benchmark's tables: 104.5 GB with 128 floats each


@pytest.mark.parametrize("most", [None, 5])
def test_a_vocabulary_holds_the_frequent_ids_of_training_rows(tmp_path, monkeypatch, most):
    monkeypatch.setattr("distrec.prepare.criteo_lines.CHUNK", 5000)
    monkeypatch.setattr("distrec.prepare.criteo_ids.MERGE_AT", 50)
    rows = lines(700)
    prepared = criteo([write(tmp_path / "train.txt", rows)], tmp_path / "out", min_count=3, max_rows_per_table=most)
    training, everything = parsed(rows[:600]), parsed(rows)
    numbers = []
    for column in range(14, 40):
        seen = Counter(row[column] for row in training if row[column] is not None)
        known = sorted((i for i, count in seen.items() if count >= 3), key=lambda i, seen=seen: (-seen[i], i))
        numbers.append({i: n for n, i in enumerate(known[: most and most - 1], start=1)})
    expected = [
        (*row[:14], *(None if i is None else known.get(i, 0) for i, known in zip(row[14:], numbers, strict=True)))
        for row in everything
    ]
    assert read(prepared) == expected
    sizes = [c["cardinality"] for c in description(prepared)["columns"] if c["role"] == "sparse"]
    assert sizes == [len(known) + 1 for known in numbers]
    assert max(sizes) > 5 or most


def test_a_vocabulary_may_be_empty(tmp_path):
    prepared = criteo([write(tmp_path / "train.txt", lines(70))], tmp_path / "out", min_count=1000)
    assert {i for row in read(prepared) for i in row[14:]} == {0, None}


def test_counts_are_those_of_python(monkeypatch):
    monkeypatch.setattr(criteo_ids, "MERGE_AT", 100)
    ids = np.random.default_rng(0).zipf(1.3, 5000) % 1000 - 500
    counts = criteo_ids.Counts()
    for part in np.array_split(ids, 37):
        counts.add(part)
    expected = sorted((i for i, n in Counter(ids.tolist()).items() if n > 1), key=lambda i: (-np.sum(ids == i), i))
    assert counts.frequent(2, None).tolist() == expected
    assert counts.frequent(2, 3).tolist() == expected[:3]


def test_no_more_is_read_than_is_used(tmp_path, monkeypatch):
    """What bounds memory: a consumer that waits holds the reader back."""
    read_blocks = []

    def endless(file: Path):
        while True:
            read_blocks.append(Block(file, len(read_blocks) + 1, (lines(1)[0] + "\n").encode()))
            yield read_blocks[-1]

    monkeypatch.setattr(criteo_stream, "blocks", endless)
    tables = criteo_stream.Reading([tmp_path / "endless"], 1, no_progress).tables()
    assert sum(table.num_rows for table in islice(tables, 5)) == 5
    tables.close()
    assert len(read_blocks) <= 5 + criteo_stream.AHEAD + 2


def test_files_that_shrink_while_they_are_read_are_noticed(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    with pytest.raises(UserError, match="became shorter"):
        list(criteo_stream.Cut(iter([table])).row_groups(4))


def test_progress_counts_both_passes(tmp_path):
    calls: dict[str, list] = {"rows": [], "files": []}
    file = write(tmp_path / "train.txt", lines(70))
    options = {"progress": lambda *c: calls["rows"].append(c), "count_progress": lambda *c: calls["files"].append(c)}
    criteo([file], tmp_path / "out", min_count=1, **options)
    assert (calls["files"], calls["rows"][-1]) == ([(1, 1)], (130, 130))


def test_the_command(tmp_path, capsys):
    file = write(tmp_path / "train.txt", lines(70))
    command = [sys.executable, "-m", "distrec", "prepare", "criteo", "--source", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--min-count", "2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "train 60, valid 5, test 5 rows" in done.stdout) == (0, True), done.stderr
    with file.open("a") as lengthened:
        lengthened.write("1\t2\n")
    done = subprocess.run([*command, "--overwrite"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"distrec: {file}, line 71: 2 fields, where Criteo has 40, separated by tabs"


def test_the_config_reads_what_is_written(tmp_path):
    config = load(ROOT / "configs/dlrm_criteo_kaggle.toml")
    columns = description(criteo([write(tmp_path / "train.txt", lines(70))], tmp_path / "out"))["columns"]
    by_role = {role: {c["name"] for c in columns if c["role"] == role} for role in ("dense", "sparse", "label")}
    assert {f.name for f in config.features.dense} == by_role["dense"]
    assert {f.name: f.ids for f in config.features.sparse} == dict.fromkeys(by_role["sparse"], "hash")
    assert {task.label for task in config.tasks} == by_role["label"]


@pytest.mark.slow
def test_the_config_trains_on_what_is_written(sample, tmp_path):
    folder = criteo([sample], tmp_path / "data").folder
    words = [f"data.{split}={folder / split}" for split in ("train", "valid", "test")]
    words += [f"folder={tmp_path / 'run'}", "train.device=cpu", "data.batch_size=512"]
    command = [sys.executable, "-m", "distrec", "train", "configs/dlrm_criteo_kaggle.toml", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/summary.json").read_text())
    assert 0.5 < metrics["metrics"]["valid/auc"] < 0.9, metrics
