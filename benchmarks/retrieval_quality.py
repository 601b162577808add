"""How good are distrec's retrievers, beside published figures? Trains configs over seeds, one process at a time.

    python -m benchmarks.retrieval_quality                                    # all rows, 3 seeds each: hours on 2 cores
    python -m benchmarks.retrieval_quality --only mf_movielens --seeds 5      # some rows; what is recorded is not run again
    python -m benchmarks.retrieval_quality --from runs/mf-gowalla             # record runs that `distrec train` has finished
    python -m benchmarks.retrieval_quality --popular                          # what the most popular items are worth
    python -m benchmarks.retrieval_quality --only                             # only write the document again

After every run `results/cpu/retrieval_quality.json` holds it, and `retrieval_quality.md` is written from that file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.quality_markdown import render
from benchmarks.quality_rows import DATASETS
from benchmarks.report import RESULTS, machine, versions
from distrec import dist, log
from distrec.config.load import load
from distrec.config.schema import Config
from distrec.engine import Engine
from distrec.errors import UserError
from distrec.json_out import to_json
from distrec.recall.command import most_popular
from distrec.run_folder import SUMMARY, saved_config

ROOT = Path(__file__).parents[1]
CONFIGS = tuple(row.config for dataset in DATASETS for row in dataset.rows)
DOCUMENT, RECORD = Path(__file__).with_suffix(".md"), RESULTS / "cpu" / "retrieval_quality.json"
FREE = {"name", "folder", "train.seed", "train.device"}  # keys in which a run may differ from the config that ships
GPU = "system/gpu_peak_gib"  # a run on a GPU tells it

Run = dict[str, Any]
Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> Path:
    """Train or record; returns the document's path."""
    chosen = _options(argv)
    for folder in chosen.folders:
        keep(finished(folder), chosen.record, chosen.document)
    if chosen.popular:
        found = {dataset.title: popular(dataset.rows[0].config) for dataset in DATASETS}
        write(read(chosen.record) | {"popular": found}, chosen.record, chosen.document)
    for config, seed in () if chosen.folders or chosen.popular else _wanted(chosen):
        with TemporaryDirectory() as folder:
            keep(train(config, seed, Path(folder, "run")), chosen.record, chosen.document)
    chosen.document.write_text(render(read(chosen.record)), encoding="utf-8")
    return chosen.document


def popular(config: str) -> dict[str, float] | None:
    """The metrics on data.test of giving everyone the items of most training rows, less those that a config masks.

    Raises:
        UserError: the data are not prepared.
    """
    run = load(ROOT / "configs" / f"{config}.toml", ["train.device=cpu"])
    log.quiet_dependencies()
    try:
        return most_popular(Engine.build(run, dist.start("cpu", run.train.timeout_s)), "test")
    finally:
        dist.stop()


def train(config: str, seed: int, folder: Path) -> Run:
    """One run in a process of its own, which says on screen how it goes.

    Raises:
        SystemExit: it failed, and has said why.
    """
    command = ["train", f"configs/{config}.toml", f"train.seed={seed}", f"folder={folder}"]
    if code := subprocess.run([sys.executable, "-m", "distrec", *command], cwd=ROOT, check=False).returncode:
        raise SystemExit(code)
    return finished(folder)


def finished(folder: Path) -> Run:
    """What a finished run of a config of this benchmark found.

    Raises:
        UserError: the run is not finished, has no test metrics, or is of none of the configs as they are now.
    """
    config = saved_config(folder, [])
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no finished run: {error}; let it finish (`distrec train … --resume`)") from None
    if summary["stopped_by"]:
        raise UserError(f"{folder} was stopped by {summary['stopped_by']}; let it finish (`distrec train … --resume`)")
    metrics = {name.removeprefix("test/"): v for name, v in summary["metrics"].items() if name.startswith("test/")}
    if not metrics:
        raise UserError(f"{folder} was not scored on data.test; name a run whose config has it")
    name = shipped_as(config, folder)
    return {
        "config": name,
        "digest": digest(name),
        "seed": config.train.seed,
        "metrics": metrics,
        "seconds": sum(summary["seconds"].values()),
        "test_s": None if config.data.valid else summary["seconds"]["evaluate"],
        "device": "gpu" if GPU in summary["throughput"] else "cpu",
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine("cpu"),
        "versions": versions(),
    }


def shipped_as(config: Config, folder: Path) -> str:
    """Which config of this benchmark a run was started with.

    Raises:
        UserError: none, as they are now; says what differs from the one that comes nearest.
    """
    found = {name: differences(config, load(ROOT / "configs" / f"{name}.toml")) for name in CONFIGS}
    nearest = min(found, key=lambda name: len(found[name]))
    if found[nearest]:
        keys = ", ".join(found[nearest][:5])
        raise UserError(
            f"{folder} was trained with none of the configs as they are now; configs/{nearest}.toml has other {keys}"
        )
    return nearest


def differences(one: Config, other: Config) -> list[str]:
    """Dotted keys in which two configs differ, but for those that a run is free to set."""
    sides = [dict(_flat(config.model_dump(mode="json"))) for config in (one, other)]
    return sorted({key for key in sides[0].keys() | sides[1].keys() if sides[0].get(key) != sides[1].get(key)} - FREE)


def digest(config: str) -> str:
    """Of what a config says, comments and layout apart: a figure is of the config that had this digest."""
    values = tomllib.loads((ROOT / "configs" / f"{config}.toml").read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def keep(run: Run, record: Path, document: Path) -> None:
    """Put a run with the others; it replaces one of its seed, and those of the config as it once was."""
    known = read(record)
    others = [
        r for r in known["runs"] if r["config"] != run["config"] or (r["digest"] == run["digest"] and r["seed"] != run["seed"])
    ]
    write(known | {"runs": sorted([*others, run], key=lambda r: (CONFIGS.index(r["config"]), r["seed"]))}, record, document)


def read(record: Path) -> Record:
    """What is recorded: `runs`, and by dataset what is `popular`."""
    empty = {"benchmark": "retrieval_quality", "popular": {}, "runs": []}
    return empty | (json.loads(record.read_text(encoding="utf-8")) if record.exists() else {})


def write(known: Record, record: Path, document: Path) -> None:
    """Write the record, and the document from it."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(to_json(known, indent=1) + "\n", encoding="utf-8")
    document.write_text(render(known), encoding="utf-8")


def _wanted(chosen: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for config in chosen.only:
        there = {
            run["seed"] for run in read(chosen.record)["runs"] if run["config"] == config and run["digest"] == digest(config)
        }
        yield from ((config, seed) for seed in range(chosen.seeds) if chosen.again or seed not in there)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=CONFIGS, default=CONFIGS, help="configs to train; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 of each; default 3")
    parser.add_argument("--again", action="store_true", help="also those that are recorded")
    parser.add_argument("--from", dest="folders", nargs="+", type=Path, default=[], help="record finished runs, and train none")
    parser.add_argument("--popular", action="store_true", help="record what the most popular items are worth, and train none")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON of all runs")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="Markdown written from it")
    return parser.parse_args(argv)


def _flat(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
