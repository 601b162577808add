"""What ranks receive and what rows learn when vectors and gradients travel in half precision.

comms.py FOLDER   one update with each precision, from the same weights on the same rows
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import resume
from sharding import LR, batch, config

from distrec import dist, log
from distrec.config.load import parse
from distrec.embeddings import shard
from distrec.engine import Engine

KINDS = ("table_wise", "row_wise")
TYPES = {"exact": [], "forward": ["embedding.comms.forward=fp16"], "backward": ["embedding.comms.backward=fp16"]}


def update(kind: str, overrides: list[str], ranks: dist.Ranks) -> dict[str, Any]:
    """Vectors looked up for this rank's rows, by feature; and what an update took from the rank's rows, over the rate."""
    built = Engine.build(parse(config(kind, "sgd").model_dump(mode="json"), overrides), ranks)
    mine, before = batch(ranks.rank, ranks.world, 0), parts(built)
    embeddings: Any = built.model.module.embeddings
    pooled, sequences = embeddings.bags(mine.sparse).to_dict(), embeddings.sequences(mine.sequence)
    vectors = pooled | {name: jagged.values() for name, jagged in sequences.items()}
    built.optimizers.zero_grad()
    built.model(batch(ranks.rank, ranks.world, 0))[0].backward()
    built.optimizers.step()
    taken = {name: ((rows - before[name]) / -LR).tolist() for name, rows in parts(built).items()}
    return {"vectors": {name: value.detach().tolist() for name, value in vectors.items()}, "gradients": taken}


def parts(built: Engine) -> dict[str, Any]:
    return {name: held[0][0].detach().clone() for name, held in shard.local_shards(built.model).items() if held}


def main() -> None:
    folder = Path(sys.argv[1])
    log.quiet_dependencies()
    ranks = dist.start("cpu", 120)
    results = {
        f"{kind}/{name}": resume.gather(update(kind, overrides, ranks)) for kind in KINDS for name, overrides in TYPES.items()
    }
    if ranks.first:
        (folder / "results.json").write_text(json.dumps(results))
    dist.stop()


if __name__ == "__main__":
    main()
