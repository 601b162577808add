"""Where a run's numbers go: TensorBoard events and JSON lines, the same numbers in both.

The first part of a tag is one of `train`, `valid`, `test`, `perf` and `system`; several tasks add theirs before the
metric, as in `valid/click/auc`. The TensorBoard page CUSTOM SCALARS draws the tags named here side by side.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor

from distrec.errors import UserError
from distrec.json_out import to_json
from distrec.metrics.append import AppendFile
from distrec.metrics.events import Events

ChartKind = Literal["binary", "regression", "retrieval"]
JSON_LINES = "metrics.jsonl"

# Charts are regular expressions over tags: `(.*/)?` lets a task's name in.
LOSS = {"loss": ["Multiline", [r"(train|valid)/(.*/)?loss$"]]}
QUALITY = {
    "binary": {
        "AUC and GAUC": ["Multiline", [r"(train|valid)/(.*/)?g?auc$"]],
        "normalized entropy": ["Multiline", [r"(train|valid)/(.*/)?ne$"]],
        "calibration": ["Multiline", [r"(train|valid)/(.*/)?calibration$"]],
    },
    "regression": {
        "RMSE": ["Multiline", [r"(train|valid)/(.*/)?rmse$"]],
        "MAE": ["Multiline", [r"(train|valid)/(.*/)?mae$"]],
    },
    "retrieval": {
        "NDCG": ["Multiline", [r"valid/ndcg@.*"]],
        "recall": ["Multiline", [r"valid/recall@.*"]],
        "coverage": ["Multiline", [r"valid/coverage@.*"]],
        "popularity over that of the targets": ["Multiline", [r"valid/popularity@.*"]],
    },
}
SPEED = {
    "samples a second": ["Multiline", [r"perf/samples_per_s$"]],
    "share of time waiting for data": ["Multiline", [r"perf/data_wait$"]],
    "seconds a step": ["Multiline", [r"perf/step_s$"]],
}
MEMORY = {"GiB": ["Multiline", [r"system/.*_gib$"]]}


class NullWriter:
    """Writes nothing: for the ranks that are not the first, so that the loop need not ask which one it is on."""

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Nothing."""

    def text(self, tag: str, markdown: str) -> None:
        """Nothing."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Nothing."""

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(UserError) if error else nullcontext():  # why the run ends is said, not what came of it
            self.close()


class Writer(NullWriter):
    """Writes to `folder`: events for `tensorboard --logdir`, and `metrics.jsonl`, both at each call.

    A disk that is full is a warning, and the numbers wait for room; at the end, those that still wait are an error.

    A line of `metrics.jsonl` is one call of `scalars`: `{"step": 50, "time": 1700000000.0, "train/loss": 0.41}`, with
    `time` in seconds since 1970 and `null` for a number that is NaN or infinite, which JSON cannot say.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_step: int | None = None,
        kinds: Sequence[ChartKind] = ("binary",),
    ):
        """Start a run, or go on after `resume_step`: what the folder holds of later steps is dropped, for they run again.

        `kinds` are those of the tasks, or `retrieval`; CUSTOM SCALARS gets their charts and no empty ones of others.

        Raises:
            UserError: the folder cannot be written.
        """
        kept = -1 if resume_step is None else resume_step
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._lines = _open_lines(Path(folder) / JSON_LINES, kept)
            self._events = Events(Path(folder), kept + 1)
        except OSError as error:
            raise UserError(f'cannot write metrics to the run folder "{folder}": {error.strerror}; set `folder`') from error
        quality = LOSS | {title: chart for kind, charts in QUALITY.items() if kind in kinds for title, chart in charts.items()}
        self._events.charts({"Quality": quality, "Speed": SPEED, "Memory": MEMORY})

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Write numbers (0-d tensors among them) of one step by tag."""
        now = time.time()
        numbers = {tag: float(value) for tag, value in values.items()}
        self._lines.write(f"{to_json({'step': step, 'time': now} | numbers)}\n".encode())
        for tag, number in numbers.items():
            self._events.scalar(tag, number, step, now)

    def text(self, tag: str, markdown: str) -> None:
        """Show a text, the config say, on TensorBoard's page TEXT."""
        self._events.text(tag, markdown)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Show how the finite ones of `values` are distributed: the counts of ids by row of a table, say."""
        finite = values.detach().double()
        finite = finite[finite.isfinite()].cpu()
        if len(finite):
            self._events.histogram(tag, finite.numpy(), step)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Put the run on TensorBoard's page HPARAMS, which compares runs: a row of settings and final metrics.

        `config` may be nested; its keys are joined by dots. `metrics` are by tag, which `scalars` must have written:
        the page reads the numbers from there.
        """
        self._events.hparams(_flat(config), dict(metrics))

    def close(self) -> None:
        """Close both files.

        Raises:
            UserError: numbers still wait for room on the disk.
        """
        with closing(self._events), closing(self._lines):
            pass


def _open_lines(path: Path, last_step: int) -> AppendFile:
    """Open for appending, less the lines after `last_step` and those that a crash cut short."""
    old = path.read_text(errors="replace").splitlines() if path.exists() else []
    short = path.with_suffix(".jsonl.tmp")
    short.write_text("".join(f"{line}\n" for line in old if _step(line) <= last_step))
    short.replace(path)
    return AppendFile(path)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Settings by dotted key, as numbers and strings; what is unset or a list of sections has no cell."""
    flat: dict[str, float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + key] = value
        elif value is not None and not _holds_sections(value):
            flat[prefix + key] = value if isinstance(value, str) else to_json(value)
    return flat


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)
