"""What `distrec export`, `index` and `recall` do with their words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distrec.checkpoint import best_step, manifest_of, path_of, saved_steps
from distrec.config.schema import Config
from distrec.dist import Ranks, from_first, refuse, together
from distrec.engine import Engine, open_reader
from distrec.errors import UserError
from distrec.export.write import FOLDER, identity, model_of, round_tables
from distrec.json_out import to_json
from distrec.log import logger
from distrec.recall import queries as asking
from distrec.recall import screen
from distrec.recall.auto import Point
from distrec.recall.everyone import recommend_all
from distrec.recall.index import KIND, VectorIndex, differences
from distrec.recall.make import make_index
from distrec.recall.picture import draw
from distrec.recall.queries import Question, ask_history, ask_users
from distrec.recall.report import halves, hold, measure_index
from distrec.recall.search import recommend
from distrec.recall.vectors import Export
from distrec.retrieval.popular import by_popularity
from distrec.run_folder import CHECKPOINTS, CONFIG, saved_config
from distrec.seal import refuse_to_replace, refuse_unwritable
from distrec.trained import restored, scoring

INDEX, REPORT, EVERYONE = "index", "report", "recommended"  # folders of a run
SHOWN = 10  # items that are recommended, where the catalogue has so many
UNKNOWN = "its vector is zero: the model knows no feature of it, so every item is as good, and their order says nothing"
FEW = "the index found no more items, for it looks at a part of them; index again for more: distrec index RUN --recall 0.99"
DEPTH = 100  # items at which an index is measured, where the catalogue has so many


def build_index(run: Path, factory: str, target: float, k: int | None, source: Path | None, out: Path | None) -> None:
    """Index a run's export.

    Raises:
        UserError: there is no export, it is of another run, or the factory string is none or does not fit it.
    """
    if not 0 < target <= 1:
        raise UserError(f"--recall {target}: the share of the exact best items to find, over 0 and up to 1")
    export = Export.open(source or run / FOLDER)
    if k is not None and not 0 < k <= export.items.rows:
        raise UserError(f"-k {k}, and the export has {export.items.rows:,} items: k is from 1 to that")
    require_own(export, run)
    folder = out or run / INDEX
    refuse_to_replace(folder, KIND)
    refuse_unwritable(folder.resolve().parent)  # it is made beside what it replaces
    index = make_index(export, factory, target, k or DEPTH, logger.info)
    screen.indexed(str(folder), index.facts, index.save(folder))


def require_own(export: Export, run: Path) -> None:
    """Compare an export with its run, as far as that is there, and warn when the run has a better checkpoint by now.

    Raises:
        UserError: it is the export of another run, or of other weights that this one had.
    """
    if not (run / CONFIG).exists():
        return
    config, folder, step = saved_config(run, []), run / CHECKPOINTS, export.model["step"]
    steps, best = saved_steps(folder), best_step(folder)
    now = identity(config, manifest_of(path_of(folder, step))) if step in steps else model_of(config)
    if differing := differences(export.model, now):
        raise UserError(
            f"{export.folder} is not the export of the run in {run} ({differing}); name the run that it is of, or export this "
            f"one: distrec export {run}"
        )
    if steps and step != (wanted := steps[-1] if best is None else best):
        which = f"the {'newest' if best is None else 'best'} checkpoint of {run} is of step {wanted}"
        gone = "" if step in steps else f", and none is kept of step {step}, so that recall will refuse the index"
        again = f"to index that one, export it first: distrec export {run}"
        logger.warning("warning: %s is of step %d; %s%s; %s", export.folder, step, which, gone, again)


def recommend_items(
    config: Config,
    ranks: Ranks,
    run: Path,
    index: Path | None,
    users: Sequence[str],
    history: str | None,
    k: int | None,
    as_json: bool,
) -> None:
    """Print recommendations for users, or for a history. Every rank must call it.

    Raises:
        UserError: no such user or item, an index of another model, k larger than the catalogue.
    """
    found, engine = open_index(config, ranks, run, index)
    k = _count(found, k)
    questions = together(lambda: _questions(engine, users, history))
    for question in questions:
        vectors = engine.query_vectors(question.batch).cpu().numpy()
        if ranks.first:
            scores, rows = recommend(found, vectors, k, question.hidden)
            listed = _listed(engine, found, rows[0], scores[0])
            warnings = [] if vectors.any() else [UNKNOWN]
            warnings += [FEW] if len(listed) < min(k, len(found.ids) - question.left_out) else []
            for warning in warnings:
                logger.warning("%s: %s", question.said, warning)
            if as_json:
                print(to_json({"query": question.said, "items": listed, "warnings": warnings}))
            else:
                _show(question, listed)


def recommend_to_all(
    config: Config, ranks: Ranks, run: Path, index: Path | None, split: str, k: int | None, out: Path | None
) -> None:
    """Write recommendations for every query of a split. Every rank must call it.

    Raises:
        UserError: see `open_index` and `recommend_all`; k larger than the catalogue.
    """
    found, engine = open_index(config, ranks, run, index)
    written = recommend_all(engine, found, split, _count(found, k), ranks, out or run / EVERYONE)
    if ranks.first:
        screen.recommended_to_all(str(written.folder), written.facts)


def write_report(
    config: Config, ranks: Ranks, run: Path, index: Path | None, source: Path | None, out: Path | None, command: str
) -> None:
    """Measure the model by exact search and the index against it, and write `report.md`, `report.json` and `recall.png`.

    Every rank must call it; they share the exact search.

    Args:
        config: of the run.
        ranks: that share the search.
        run: its folder.
        index: folder of the index; default: `index` in the run's.
        source: folder of the export that was indexed; default: `export` in the run's.
        out: folder to write into; default: `report` in the run's.
        command: what was typed, for the report.

    Raises:
        UserError: no rows to evaluate on, no index, or one of another model; nothing can be written.
    """
    retrieval, split = asking.retrieval_of(config), "test" if config.data.test else "valid"
    if not getattr(config.data, split):
        refuse(f"the report needs queries with targets: distrec recall {run} --report data.test=PATH")
    from_first(lambda: refuse_unwritable(out or run / REPORT))
    found, engine = open_index(config, ranks, run, index)
    quality = engine.evaluate(open_reader(engine, split), scoring(engine))
    popular = most_popular(engine, split)

    def write() -> Path:
        export = Export.open(source or run / FOLDER)
        found.require_model(export.model, index or run / INDEX)
        held = hold(export, halves(export.queries.rows)[1], DEPTH)
        points = [Point(**point) for point in found.facts["points"]]
        measured = measure_index(found, export, held, sorted(retrieval.ks), points)
        shown = {
            name: value for name, value in found.facts.items() if name not in ("points", "files", "model", "kind", "format")
        }
        size = found.facts["files"]["index.faiss"][0]
        report = {
            "command": command,
            "model": found.facts["model"],
            "split": split,
            "queries": quality.rows,
            "mask": retrieval.mask,
            "ks": sorted(retrieval.ks),
            "exact": quality.metrics,
            "popular": popular,
            "warnings": [*quality.warnings, *_beaten(quality.metrics, popular, sorted(retrieval.ks))],
            "index": shown,
            "index_split": export.facts["queries"]["split"],
            "index_bytes": size,
            "measured": measured,
        }
        return _write(out or run / REPORT, report)

    folder = from_first(write)
    if ranks.first:
        print((folder / "report.md").read_text(encoding="utf-8"))
        screen.console.print(f"wrote {folder}: report.md, report.json, recall.png")


def most_popular(engine: Engine, split: str) -> dict[str, float] | None:
    """The metrics of giving everyone the items that most training rows have; None where those are not counted.

    Every rank must call it.
    """
    assert engine.items is not None
    counts = engine.items.catalogue.train_count
    if counts is None:
        return None
    score = by_popularity(torch.from_numpy(counts).float().to(engine.ranks.device))
    return engine.evaluate(open_reader(engine, split), score).metrics


def _beaten(model: Mapping[str, float], popular: Mapping[str, float] | None, ks: Sequence[int]) -> list[str]:
    """A warning where a model finds no more than its data's favourites do."""
    worse = [k for k in ks if popular is not None and model[f"recall@{k}"] <= popular[f"recall@{k}"]]
    if not worse:
        return []
    return [f"the most popular items, given to everyone, find as much as the model or more (recall@{worse[-1]})"]


def open_index(config: Config, ranks: Ranks, run: Path, index: Path | None) -> tuple[VectorIndex, Engine]:
    """An index, and the model at the step and in the precision that it was built from. Every rank must call it.

    Raises:
        UserError: there is no index, the run's checkpoint of that step is gone, or is another one, or the catalogue is.
    """
    asking.retrieval_of(config)
    folder = index or run / INDEX
    found = together(lambda: VectorIndex.load(folder))
    together(lambda: found.require_model(model_of(config), folder))
    step, steps = found.facts["model"]["step"], from_first(lambda: saved_steps(run / CHECKPOINTS))
    if step not in steps:
        kept, there = ", ".join(map(str, steps)) or "none", "" if index is None else f" --out {index}"
        refuse(
            f"the index in {folder} is of step {step}, whose checkpoint is gone (kept are: {kept}); export the run again and "
            f"index that: distrec export {run} and distrec index {run}{there}"
        )
    engine, manifest = restored(config, ranks, run, step)
    together(lambda: found.require_model(identity(config, manifest), folder))
    assert engine.items is not None, "a retriever has items"
    catalogue = engine.items.catalogue
    together(lambda: found.require_items(catalogue.own_ids, catalogue.own_column, folder))
    round_tables(engine, found.facts["model"].get("tables", "fp32"))
    return found, engine


def _count(index: VectorIndex, k: int | None) -> int:
    if k is not None and k > len(index.ids):
        refuse(f"-k {k}, and the index has {len(index.ids):,} items: k is from 1 to that")
    return min(SHOWN, len(index.ids)) if k is None else k


def _questions(engine: Engine, users: Sequence[str], history: str | None) -> list[Question]:
    asked = ask_users(engine, users)
    if history is not None:
        asked.append(ask_history(engine, items_of(history)))
    return asked


def items_of(history: str) -> list[str]:
    """The ids that `--history` names: separated by commas, or as a JSON list.

    Raises:
        UserError: it begins as a list and is none of ids.
    """
    if not history.lstrip().startswith("["):
        return [text.strip() for text in history.split(",") if text.strip()]
    try:
        ids = json.loads(history)
    except ValueError as error:
        raise UserError(f'--history {history}: not a JSON list of ids, such as ["a,b", "c"]: {error}') from None
    if not all(isinstance(one, str | int) for one in ids):
        raise UserError(f'--history {history}: ids are texts or integers, such as ["a,b", "c"]')
    return [str(one) for one in ids]


def _listed(engine: Engine, index: VectorIndex, rows: Any, scores: Any) -> list[dict[str, Any]]:
    assert engine.items is not None
    catalogue = engine.items.catalogue
    columns = {"item": index.ids, "title": catalogue.titles, "category": catalogue.categories}
    known = {name: column for name, column in columns.items() if column is not None}
    return [
        {**{name: column[int(row)].as_py() for name, column in known.items()}, "score": round(float(score), 6)}
        for row, score in zip(rows, scores, strict=True)
        if row >= 0
    ]


def _show(question: Question, listed: Sequence[dict[str, Any]]) -> None:
    columns = ["", *(listed[0] if listed else ("item", "score"))]
    rows = [
        [str(place), *("" if value is None else str(value) for value in item.values())] for place, item in enumerate(listed, 1)
    ]
    seen = question.left_out
    hidden = f"; {seen} item{' seen before is' if seen == 1 else 's seen before are'} left out" if seen else ""
    screen.recommended(f"for {question.said}{hidden}", columns, rows)


def _write(folder: Path, report: dict[str, Any]) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(to_json(report, indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(screen.markdown(report), encoding="utf-8")
        draw(report["measured"], report["index"], folder / "recall.png")
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}; name another folder with --out") from None
    return folder
