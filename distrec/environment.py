"""What the environment has to hold before torch is loaded, unless the user has set it otherwise."""

from __future__ import annotations

import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
DEFAULTS = {
    # Tensors of 2 MiB and more in huge pages where the kernel's setting is madvise: lookups in large tables on CPU wait for
    # the TLB (benchmarks/huge_pages.py). Torch reads it at its first allocation.
    HUGE_PAGES: "1",
}


def prepare() -> None:
    """Fill in what is missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
