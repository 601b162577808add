"""Huge pages for large tensors, from the first allocation on, unless the user has turned them off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import re, sys
from distrec.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules
import torch
table = torch.ones(1 << 25)  # 128 MiB
print("MiB", int(re.search(r"AnonHugePages: *(\\d+)", open("/proc/self/smaps_rollup").read())[1]) // 1024)
"""


def huge_mib(environment: dict[str, str]) -> int:
    """MiB in huge pages of a process that goes through the command line and then fills 128 MiB."""
    left = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=left | environment, check=True)
    return int(done.stdout.rpartition("MiB ")[2])


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(encoding="ascii"), reason="needs huge pages by madvise"
)
def test_a_run_in_one_process_has_its_tables_in_huge_pages_unless_told_otherwise() -> None:
    assert huge_mib({}) >= 100
    assert huge_mib({"THP_MEM_ALLOC_ENABLE": "0"}) < 10
