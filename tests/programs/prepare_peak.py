"""The most memory, in MiB, that a log takes which is dealt to many buckets. prepare_peak.py LOG OUT"""

from __future__ import annotations

import sys
from pathlib import Path

from distrec.prepare.retrieval import buckets, interactions
from distrec.prepare.retrieval.log import LogColumns


def main(log: str, out: str) -> None:
    interactions.ROWS_A_BUCKET = buckets.ROWS_A_WRITE = 100_000
    interactions.interactions([[log]], out, columns=LogColumns("user_id", "item_id", "timestamp"))
    # Not `ru_maxrss`: a process begins with that of the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


main(*sys.argv[1:])
