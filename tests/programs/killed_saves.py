"""One training that is killed again and again while it saves, and goes on from what stands.

killed_saves.py FOLDER KILLS    until so many kills fell within a save; results.json: what each kill hit, which checkpoints
                                stood after it, and the digests of the state at the end

Each life is a process forked from this one, so that it starts at once. It trains with a checkpoint after every step, and says
through a pipe when a save begins; this process then waits a random part of the time that a save takes, and kills it.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from resume import digests
from single_rank import alone, make
from small_run import write_rows

from distrec import log
from distrec.checkpoint import Checkpoints

SAVES_BEFORE = 2  # a life gets so far, then dies in a save
MISSES = 2  # at most, for each kill that hits: a save may end before its time
LIMIT_S = 60


def live(rows: Path, folder: Path, steps: int, tell: int) -> None:
    """Train to the end, or until killed; `tell` hears a byte when a save begins, and another when it ends."""
    save = Checkpoints.save

    def told(self: Checkpoints, *args: Any, **options: Any) -> Path:
        os.write(tell, b"(")
        path = save(self, *args, **options)
        os.write(tell, b")")
        return path

    Checkpoints.save = told  # type: ignore[method-assign]
    with alone() as ranks:
        trainer = make(ranks, rows, folder, "auto", train={"steps": steps}, checkpoint={"every_steps": 1, "keep": 2})
        trainer.run()
        (folder / "digests.json").write_text(json.dumps(digests(trainer)))


def spawn(rows: Path, folder: Path, steps: int) -> tuple[int, int]:
    """A life: its process, and the pipe that it speaks through."""
    hear, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        return process, hear
    try:
        live(rows, folder, steps, tell)
    except BaseException as error:
        (folder / "died.txt").write_text(repr(error))
        os._exit(1)
    os._exit(0)


def kill_in_a_save(rows: Path, folder: Path, steps: int, share: float) -> str:
    """Start a life and kill it when `share` of its third save is done; what it hit: `in` a save, or `after` it."""
    process, hear = spawn(rows, folder, steps)
    took, began = 0.0, 0.0
    for _ in range(SAVES_BEFORE):
        expect(hear, b"(")
        began = time.monotonic()
        expect(hear, b")")
        took = time.monotonic() - began
    expect(hear, b"(")
    ready, _, _ = select.select([hear], [], [], share * took)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(hear)
    return "after" if ready else "in"


def expect(hear: int, said: bytes) -> None:
    ready, _, _ = select.select([hear], [], [], LIMIT_S)
    found = os.read(hear, 1) if ready else b"silence"
    assert found == said, found


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("checkpoints/step-*/manifest.json"))


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    log.quiet_dependencies()
    rows, draw, steps = write_rows(folder / "rows", rows=600), random.Random(0), (SAVES_BEFORE + 1) * (MISSES + 1) * kills + 2
    process, _ = spawn(rows, folder / "whole", steps)
    assert os.waitpid(process, 0)[1] == 0, (folder / "whole" / "died.txt").read_text()
    hits, left = [], []
    while hits.count("in") < kills and len(hits) < (MISSES + 1) * kills:
        share = (len(hits) % kills + draw.random()) / kills  # every part of a save has its turn
        hits.append(kill_in_a_save(rows, folder / "killed", steps, share))
        left.append(checkpoints(folder / "killed"))
    process, _ = spawn(rows, folder / "killed", steps)
    code = os.waitpid(process, 0)[1]
    ends = {name: json.loads((folder / name / "digests.json").read_text()) for name in ("whole", "killed") if code == 0}
    (folder / "results.json").write_text(json.dumps({"hits": hits, "left": left, "code": code, "ends": ends}))


if __name__ == "__main__":
    main()
