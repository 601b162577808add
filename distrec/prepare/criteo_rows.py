"""Criteo's lines -> Arrow tables: a label, 13 integers and 26 hexadecimal ids, separated by tabs; blank for missing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from distrec.errors import UserError
from distrec.prepare.criteo_lines import Block

DENSE = tuple(f"i{n}" for n in range(1, 14))
IDS = tuple(f"c{n}" for n in range(1, 27))
NAMES = ("label", *DENSE, *IDS)
TYPES = {"label": pa.int8(), **dict.fromkeys(DENSE, pa.int32()), **dict.fromkeys(IDS, pa.binary())}
SCHEMA = pa.schema([pa.field(n, pa.int64() if n in IDS else TYPES[n], nullable=n != "label") for n in NAMES])
PARSED = 1 << 18  # bytes that Arrow parses at once: what fits the cache is parsed four times as fast
LARGEST_DIGITS = 16  # of an id: 64 bits
DIGIT = np.full(256, 255, np.uint8)  # value of a character that is a hexadecimal digit
DIGIT[[*b"0123456789abcdef"]] = np.arange(16)
DIGIT[[*b"ABCDEF"]] = np.arange(10, 16)


class _Unreadable(ValueError):
    """A block holds a value that is not what its column holds."""


def decode(block: Block) -> pa.Table:
    """The rows of a block: `label` int8, `i1` to `i13` int32, `c1` to `c26` int64; a blank is null.

    Raises:
        UserError: the first line that is not in Criteo's form, by file and number.
    """
    try:
        return _decode(block.text)
    except (_Unreadable, pa.ArrowInvalid) as error:
        number, fault = next(_faults(block), (block.line, str(error)))
        raise UserError(f"{block.file}, line {number}: {fault}") from error


def hex_values(column: pa.BinaryArray) -> pa.Array:
    """Hexadecimal text -> int64 (16 digits wrap around to negative numbers); an empty text is null.

    Raises:
        ValueError: more than 16 digits, or another character.
    """
    _, starts, text = column.buffers()
    ends = np.frombuffer(starts, np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(ends)
    missing = lengths == 0
    if missing.all():
        return pa.nulls(len(column), pa.int64())
    characters = np.frombuffer(text, np.uint8)[ends[0] : ends[-1]]
    if not missing.any():
        return pa.array(_hex(characters, lengths))
    placed = np.zeros(len(column), np.int64)
    placed[~missing] = _hex(characters, lengths[~missing])
    return pa.array(placed, mask=missing)


def _decode(text: bytes) -> pa.Table:
    table = csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(column_names=list(NAMES), use_threads=False, block_size=PARSED),
        csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(column_types=TYPES, null_values=[""], strings_can_be_null=True, check_utf8=False),
    ).combine_chunks()
    if not np.isin(table["label"].to_numpy(), (0, 1)).all():  # a null is NaN there
        raise _Unreadable("label")
    columns = [hex_values(table[name].chunk(0)) if name in IDS else table[name] for name in NAMES]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _hex(text: NDArray[np.uint8], lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Values of texts that lie end to end. Eight digits, which Criteo has, are taken as they lie; others are padded."""
    digits = DIGIT[text]
    shortest, longest = int(lengths.min()), int(lengths.max())
    if digits.max() > 15 or longest > LARGEST_DIGITS:
        raise _Unreadable("id")
    if shortest == longest == 8:
        return _packed(digits.reshape(-1, 8)).astype(np.int64)
    padded = np.zeros((len(lengths), LARGEST_DIGITS), np.uint8)
    padded[np.arange(LARGEST_DIGITS) >= LARGEST_DIGITS - lengths[:, None]] = digits
    high, low = (_packed(np.ascontiguousarray(half)) for half in (padded[:, :8], padded[:, 8:]))
    return (high << np.uint64(32) | low).view(np.int64)


def _packed(digits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N, 8) digits, the first the highest -> (N,) numbers below 2^32, by moving neighbours together three times."""
    packed = digits.view(">u8").ravel().astype(np.uint64)
    for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        packed = (packed | packed >> np.uint64(shift)) & np.uint64(mask)
    return packed


def _faults(block: Block) -> Iterator[tuple[int, str]]:
    """Number of each faulty line with its first fault. Slow: for blocks that are known to have one."""
    for number, line in enumerate(block.text.split(b"\n")[:-1], start=block.line):
        fields = line.removesuffix(b"\r").decode("utf-8", "backslashreplace").split("\t")
        if fault := _shape_fault(fields) or next(filter(None, map(_fault, NAMES, fields)), ""):
            yield number, fault


def _shape_fault(fields: list[str]) -> str:
    if len(fields) == len(NAMES):
        return ""
    if fields == [""]:
        return f"it is empty, where Criteo has {len(NAMES)} fields"
    hint = "; Kaggle's test.txt has no label" if len(fields) == len(NAMES) - 1 else ""
    return f"{len(fields)} fields, where Criteo has {len(NAMES)}, separated by tabs{hint}"


def _fault(name: str, text: str) -> str:
    if name == "label":
        return "" if text in ("0", "1") else f"label is {text!r}, where 0 or 1 is needed"
    if name in IDS:
        return "" if re.fullmatch(r"[0-9a-fA-F]{0,16}", text) else f"{name} is {text!r}, which is no hexadecimal id of 64 bits"
    try:
        return "" if not text or -(2**31) <= int(text) < 2**31 else f"{name} is {text}, which does not fit 32 bits"
    except ValueError:
        return f"{name} is {text!r}, which is no integer"
