"""Faiss factory strings: which one suits a catalogue, and what a given one asks of it."""

from __future__ import annotations

import math
import re
from typing import Any

import faiss

from distrec.errors import UserError

FLAT = "Flat"
FEW_ROWS = 2**14  # a scan of so few is as fast as any index
FEWEST_A_LIST = 39  # vectors that k-means wants for each list, by Faiss' own measure
MOST_SUBVECTORS = 128
MANY_LISTS = 2**14  # from here on, the search for the nearest lists is itself worth an index
FATAL = re.compile(r"(?:IVF0|HNSW[01])(?!\d)")  # Faiss takes these, and the process dies when it adds or searches
EXAMPLES = '"Flat", "IVF1024,Flat", "IVFx,PQyx4fsr,RFlat" (distrec picks x and y), "HNSW32" or "auto"'


def candidates(rows: int, recall: float) -> list[str]:
    """What to try for `auto`, the fastest first; the last one always reaches the recall."""
    if rows < FEW_ROWS or recall >= 1:
        return [FLAT]
    lists = "IVFx_HNSW32" if lists_for(rows) >= MANY_LISTS else "IVFx"
    return [f"{lists},PQyx4fsr,RFlat", f"{lists},Flat", FLAT]


def fill(factory: str, rows: int, dim: int) -> str:
    """Replace the x of `IVFx` by a number of lists for the rows, and the y of `PQyx4…` by one of sub-vectors for the dim."""
    factory = re.sub(r"\bIVFx(?=[,_]|$)", f"IVF{lists_for(rows)}", factory)
    return re.sub(r"\bPQyx(?=\d)", f"PQ{subvectors_for(dim)}x", factory)


def make(factory: str, rows: int, dim: int) -> Any:
    """An empty index that ranks by inner product.

    Raises:
        UserError: the string does not parse, does not fit the dim, or wants more vectors to learn from than there are.
    """
    if found := FATAL.search(factory):
        raise UserError(f"factory {factory!r}: {found[0]} is too few to find anything by; try {EXAMPLES}")
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"factory {factory!r} is none that Faiss takes for vectors of {dim}: {reason(error)}; try {EXAMPLES}"
        ) from None
    lists = lists_of(index)
    if lists > rows:
        raise UserError(
            f"factory {factory!r} sorts vectors into {lists:,} lists, and {rows:,} vectors are too few to learn them from: "
            f"it wants {FEWEST_A_LIST} a list. IVF{lists_for(rows)} would fit; {FLAT!r} needs none"
        )
    return index


def lists_of(index: Any) -> int:
    """Of an IVF index, within whatever wraps it; 0 for others."""
    inner = faiss.try_extract_index_ivf(index)
    return 0 if inner is None else inner.nlist


def lists_for(rows: int) -> int:
    """About twice the square root of the rows, as a power of 2, while each gets enough to learn from."""
    enough = max(1, rows // FEWEST_A_LIST)
    return 2 ** min(round(math.log2(2 * math.sqrt(max(rows, 1)))), int(math.log2(enough)))


def subvectors_for(dim: int) -> int:
    """Parts of a vector with a code each: the largest divisor of the dim that Faiss' 4-bit kernels are quick with."""
    return max(part for part in range(1, min(dim, MOST_SUBVECTORS) + 1) if dim % part == 0)


def reason(error: RuntimeError) -> str:
    """What Faiss says, without where in its sources it says it."""
    return re.sub(r"^.*(?:failed: |\.cpp:\d+: )", "", str(error), flags=re.DOTALL)
