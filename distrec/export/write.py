"""A trained model as files that serve: its tables, its dense graph, and a retriever's vectors, each rank its own part."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from distrec.checkpoint import Manifest
from distrec.config.load import structure
from distrec.config.schema import Config
from distrec.dist import Ranks, from_first, of_all_ranks, together
from distrec.embeddings import shard
from distrec.embeddings.quantize import Precision, quantize, restore
from distrec.embeddings.table_files import own_rows, write_parts
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.export.graph import Graph, export_onnx, export_program
from distrec.export.vectors import Run, write_item_queries, write_items, write_page, write_queries
from distrec.models.inputs import InputSpec
from distrec.parts import filled_by_all
from distrec.recall.vectors import EXPORT
from distrec.retrieval.task import query_names, retriever_spec
from distrec.run_folder import CONFIG
from distrec.trained import restored, scoring

Programs = Literal["onnx", "torch", "none"]
FOLDER, PAGE = "export", "items"  # of a run: what is exported, and TensorBoard's page of items
OWN_PAGE = "projector"  # of an export elsewhere: the page of its items
QUANTIZED_ROWS = 2**16  # rows of a table that are rounded at once


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    facts: dict[str, Any]  # the manifest


def export(
    config: Config, ranks: Ranks, run: Path, out: Path | None, step: int | None, precision: Precision, programs: Programs
) -> Exported:
    """Write a run's checkpoint as files that serve. Every rank must call it.

    Everything is of one model: with less than fp32 the tables are rounded first, and a retriever's vectors, of items and of
    queries, are computed from the rounded ones. So the queries that a server computes from these tables are asked of items
    that went the same way, and the metrics `after` are those of the files. The vectors themselves are fp32.

    Args:
        config: of the run.
        ranks: they share the tables and the catalogue.
        run: its folder.
        out: folder to write into; default: `export` in the run's. Then TensorBoard's page of items is in the run's, too.
        step: which checkpoint; default: the best, else the newest.
        precision: of the tables that are written; the manifest's `model` has it as `tables`. With less than fp32, the
            manifest has the metrics of data.valid (else data.test) `before` and `after`.
        programs: `onnx`: the dense graph by torch.export and as ONNX; `torch`: only the former; `none`: neither.

    Raises:
        UserError: no such checkpoint, a folder that holds something else, a model that cannot be exported.
    """
    target = out or run / FOLDER
    engine, manifest = restored(config, ranks, run, step)
    with filled_by_all(target, EXPORT, ranks) as (folder, facts):
        facts |= {"model": identity(config, manifest) | {"tables": precision}, "config_sha256": _config_hash(run)}
        facts |= {"numbering": engine.numbering.numbers}
        facts |= _fill(folder, run / PAGE if out is None else folder / OWN_PAGE, engine, precision, programs)
    return Exported(target, facts)


def _fill(folder: Path, page: Path, engine: Engine, precision: Precision, programs: Programs) -> dict[str, Any]:
    """Write all files, and say what they are: tables before the engine's are rounded, vectors after that."""
    facts: dict[str, Any] = {"inputs": inputs_of(engine)}
    if programs != "none":
        facts["program"] = from_first(lambda: write_programs(folder, engine, programs))
    score = scoring(engine)
    facts["tables"] = _write_tables(folder, engine, precision)
    if precision != "fp32":
        facts["rounding"] = measure_rounding(engine, score, precision)
    if engine.items is not None:
        facts |= _write_vectors(folder, page, engine, score)
    return facts


def identity(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Which weights these are: the run, a hash of what in its config shapes them, the step, one of the checkpoint's files."""
    files = {name: list(value) for name, value in manifest.files.items()}
    return model_of(config) | {"step": manifest.step, "checkpoint": _hash(files)}


def model_of(config: Config) -> dict[str, Any]:
    """The part of `identity` that is the same at every step."""
    return {"run": config.name, "config": _hash(structure(config))}


def inputs_of(engine: Engine) -> dict[str, Any]:
    """How a server gets from a row to the program's inputs: each of its features with its column, its table, its pooling."""
    layout, retrieval = engine.layout, engine.config.retrieval
    if retrieval is not None:
        layout = layout.only(query_names(layout, retrieval.item_features))
    lookups = [asdict(feature) for feature in (*layout.bags, *layout.sequences)]
    return {"dense": [feature.model_dump() for feature in layout.dense], "ids": lookups}


def write_programs(folder: Path, engine: Engine, programs: Programs) -> dict[str, Any]:
    """Write the dense graph: a ranker's, or that of a retriever's queries.

    Returns:
        `name`, `files`, `inputs` in order and their `types`, `outputs` in order, and with ONNX the largest `difference` from
        the model that was seen.

    Raises:
        UserError: the model cannot be exported, or ONNX says something else than the model.
    """
    name, graph = graph_of(engine)
    files = [f"{name}.pt2"]
    try:
        program = export_program(graph, folder / files[0])
    except OSError:  # a full disk, say
        raise
    except Exception as error:  # whatever a model of the user's own makes torch.export raise
        raise UserError(
            f"model {engine.config.model.name!r} cannot be traced by torch.export: {error}; try --program none"
        ) from error
    facts: dict[str, Any] = {
        "name": name,
        "inputs": graph.names,
        "types": graph.types,
        "outputs": outputs_of(engine.config),
    }
    if programs == "onnx":
        files.append(f"{name}.onnx")
        facts["difference"] = export_onnx(graph, program, folder / files[1])
    return facts | {"files": files}


def outputs_of(config: Config) -> list[dict[str, str]]:
    """What the columns of the program's output are: a ranker's tasks, or all of them a retriever's vector."""
    if config.retrieval is not None:
        return [{"name": "query", "kind": "vector"}]
    return [{"name": task.name, "kind": task.kind} for task in config.tasks]


def graph_of(engine: Engine) -> tuple[str, Graph]:
    """The model on the CPU, without its tables; of a retriever the query's side, which is what is asked while serving."""
    config, layout = engine.config, engine.layout
    task: Any = engine.model.module
    model = copy.deepcopy(task.head.model).cpu()
    if config.retrieval is not None:
        return "query", Graph(model.model, retriever_spec(layout, config.retrieval.item_features).query, model.model.query)
    spec = InputSpec(len(layout.dense), layout.pooled_dims, layout.sequence_dims, len(config.tasks))
    return "ranker", Graph(model, spec, model)


def measure_rounding(engine: Engine, score: Run, precision: Precision) -> dict[str, Any]:
    """What the tables' precision costs: metrics before and after. The engine's tables are rounded from here on."""
    split = _split(engine.config)
    if split is None:
        round_tables(engine, precision)
        return {"precision": precision}
    before = engine.evaluate(open_reader(engine, split), score).metrics
    round_tables(engine, precision)
    after = engine.evaluate(open_reader(engine, split), score).metrics
    return {"precision": precision, "split": split, "before": before, "after": after}


@torch.no_grad()
def round_tables(engine: Engine, precision: Precision) -> None:
    """Let every table hold what `precision` keeps of it: of fp32 all."""
    if precision == "fp32":
        return
    for shards in shard.local_shards(engine.model).values():
        for weights, _, _ in shards:
            for rows in weights.split(QUANTIZED_ROWS):
                rows.copy_(restore(quantize(rows, precision)))
    shard.forget_cached_rows(engine.model)


def _write_vectors(folder: Path, page: Path, engine: Engine, score: Run) -> dict[str, Any]:
    assert engine.items is not None
    catalogue, ranks, split = engine.items.catalogue, engine.ranks, _split(engine.config)
    together(lambda: catalogue.own_ids)
    items = write_items(folder, catalogue, ranks, score)
    if split is not None:
        queries = write_queries(folder, open_reader(engine, split), ranks, score, items["dim"])
    else:
        queries = together(lambda: write_item_queries(folder, items, ranks))
    facts = {"metric": "inner_product", "dim": items["dim"], "dtype": "float32"}
    facts["zero_vectors"] = sum(part["zero"] for part in of_all_ranks(items))
    facts["items"] = {**_parts(items), "own_id": catalogue.own_column}
    facts["queries"] = {**_parts(queries), "split": split}
    parts = [folder / name for name in facts["items"]["parts"]]
    from_first(lambda: write_page(page, catalogue, parts, items["dim"]))
    return facts


def _write_tables(folder: Path, engine: Engine, precision: Precision) -> dict[str, Any]:
    whole, ranks = shard.replicated_tables(engine.model), engine.ranks
    own = {}
    for name, shards in shard.local_shards(engine.model).items():
        held = [own_rows(shards[0][0], ranks.rank, ranks.world)] if name in whole else shards
        own[name] = write_parts(folder, name, ranks.rank, held, precision)
    everyone = of_all_ranks(own)
    return {
        name: {
            "rows": table.rows,
            "dim": table.dim,
            "precision": precision,
            "parts": [p for part in everyone for p in part[name]],
        }
        for name, table in engine.config.tables.items()
    }


def _parts(own: dict[str, Any]) -> dict[str, Any]:
    everyone = of_all_ranks(own)
    return {"parts": [part["file"] for part in everyone], "rows": sum(part["rows"] for part in everyone)}


def _split(config: Config) -> Literal["valid", "test"] | None:
    return "valid" if config.data.valid else "test" if config.data.test else None


def _config_hash(run: Path) -> str:
    """Of the run's config as it lies in its folder, every key of it."""
    return from_first(lambda: hashlib.sha256((run / CONFIG).read_bytes()).hexdigest())


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
