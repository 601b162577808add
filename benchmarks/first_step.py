"""The process that `benchmarks.start` measures: trains one step. Usage: WHEN_IT_WAS_STARTED CONFIG.json.

It imports nothing before `main` that a run would not.
"""

import json
import sys
import time
from pathlib import Path


def main(began: float, path: Path) -> list[float]:
    """When the process was asked for, and when each of the phases of `benchmarks.start` ended."""
    times = [began, time.time()]
    from distrec import dist, log
    from distrec.config.load import parse
    from distrec.trainer import build

    log.quiet_dependencies()
    times.append(time.time())
    ranks = dist.start("cpu")
    times.append(time.time())
    trainer = build(parse(json.loads(path.read_text(encoding="utf-8"))), ranks, None)
    times.append(time.time())
    trainer.train(trainer.readers["train"].batches(), 1)
    times.append(time.time())
    dist.stop()
    return times


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), Path(sys.argv[2]))))
