"""What `distrec check` looks at: all that can be known of a config, its model and its data without training."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import torch

from distrec import data
from distrec.checkpoint import saved_steps
from distrec.config.check import find_faults
from distrec.config.layout import layout
from distrec.config.schema import Config
from distrec.data.numbering import Numbering
from distrec.embeddings import plan as plans
from distrec.engine import make_task, numbering_of, open_items_of, open_split, reading_of
from distrec.errors import UserError
from distrec.profile.outside import id_faults
from distrec.retrieval.retriever import Items, query_use
from distrec.run_folder import CHECKPOINTS


def validate(config: Config) -> str:
    """Check all that can be checked on one machine without training; returns what the config describes, in one line.

    Raises:
        UserError: all faults, each on lines of its own.
    """
    faults = list(find_faults(config))
    if faults:  # the model and the data would only repeat them in other words
        raise UserError(_listed(faults))
    features = layout(config.features, config.tables)
    splits = [split for split in ("train", "valid", "test") if getattr(config.data, split)]
    rows: dict[str, int] = {}
    items: list[Items | None] = [None]
    numbering = [Numbering()]

    def open_catalogue() -> None:
        items[0] = open_items_of(config)
        numbering[0] = numbering_of(config, items[0])

    def open_rows(split: str) -> None:
        paths, known = getattr(config.data, split), None if config.retrieval is None else query_use(config.retrieval)
        named = [known] if known is not None and split != "train" else []
        if config.retrieval is None or items[0] is not None:
            how = reading_of(config, features, items[0], split)
            dataset = open_split(config, how, split, numbering[0])
            rows[split] = dataset.rows
            faults.extend(id_faults(dataset, how.present, how.items, config.data.verify_checksums))
        elif not named:  # without the items, nothing can be found out about what a log says of them
            data.open_dataset(paths, [], config.data.retries, f"data.{split}")
        if named:
            data.open_dataset(paths, named, config.data.retries, f"data.{split}")

    checks = [lambda: _require_start(config), lambda: make_task(config, torch.device("cpu")), open_catalogue]
    checks += [lambda split=split: open_rows(split) for split in splits]
    checks += [lambda part=part: items[0] and getattr(items[0].catalogue, part) for part in ("own_ids", "titles", "categories")]
    for attempt in checks:
        try:
            attempt()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(_listed(faults))
    size = plans.human_bytes(sum(plans.table_bytes(table) for table in config.tables.values()))
    counted = ", ".join(f"{count:,} rows in data.{split}" for split, count in rows.items())
    return f"{config.model.name}, {len(config.tables)} tables of {size}, {counted}"


def _require_start(config: Config) -> None:
    """Whether there is something to begin with; that it fits, only training finds out."""
    folder = config.train.start_from
    if folder is not None and not saved_steps(Path(folder) / CHECKPOINTS):
        raise UserError(f"train.start_from: {folder} has no checkpoint; name the folder of a run that was trained")


def _listed(faults: list[str]) -> str:
    """One fault as it is, several as a list; a fault may have several lines itself."""
    if len(faults) == 1:
        return faults[0]
    return "\n".join([f"{len(faults)} faults:", *(indent(fault, "  ") for fault in faults)])
