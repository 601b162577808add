"""What surrounds distrec: variables to be set before torch is loaded, unless the user has set them; TorchX's component."""

from __future__ import annotations

import os
from pathlib import Path

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
DEFAULTS = {
    # Tensors of 2 MiB and more in huge pages where the kernel's setting is madvise: lookups in large tables on CPU wait for
    # the TLB (benchmarks/huge_pages.py). Torch reads it at its first allocation.
    HUGE_PAGES: "1",
}


def component_path() -> str:
    """TorchX's component as it can be named from here: in the checkout as documents do, elsewhere by its whole path."""
    component = Path("launch/component.py")
    found = Path(__file__).parents[1] / component
    return str(component if component.exists() or not found.exists() else found)


def prepare() -> None:
    """Fill in what is missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
