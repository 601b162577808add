"""The mean label over time, from a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distrec.prepare.epochs import unit_of
from distrec.profile.columns import clock, floats
from distrec.profile.sample import Sample

PERIODS = 10


@dataclass(frozen=True)
class Period:
    """Consecutive sampled rows."""

    first: str  # when it begins, or how far through the files
    rows: int
    rate: float  # mean label


def label_rates(sample: Sample, label: str, time: str | None) -> list[Period]:
    """The sample in at most ten periods of about equally many rows: by time, or in the files' order where none is known."""
    [(_, values)] = sample.columns([sample.survey.columns[label]])
    labels = floats(values)
    if time is None:
        place = sample.row_numbers()
        return [Period(f"{place[part[0]]:.0%} of the rows", len(part), float(labels[part].mean())) for part in _equal(place)]
    [(facts, when)] = sample.columns([sample.survey.columns[time]])
    moments = clock(when)
    known = np.flatnonzero(when.is_valid().to_numpy(zero_copy_only=False))
    periods = [known[part] for part in _equal(moments[known])]
    return [
        Period(_date(moments[part].min().item(), str(facts.type)), len(part), float(labels[part].mean())) for part in periods
    ]


def _equal(place: np.ndarray) -> list[np.ndarray]:
    """Indices of each period, ascending by `place`; equal places are never parted."""
    order = np.argsort(place, kind="stable")
    edges = np.searchsorted(place[order], place[order][np.linspace(0, len(order), PERIODS, endpoint=False).astype(int)])
    return [part for part in np.split(order, np.unique(edges)[1:]) if len(part)] if len(order) else []


def _date(moment: int, type: str) -> str:
    """In UTC, where the number can be told to be a moment."""
    if type.startswith("date32"):
        return str(np.datetime64(moment, "D"))
    unit = next((u for u in ("ns", "us", "ms", "s") if f"[{u}" in type), None) or unit_of(moment)
    if unit is None:
        return str(moment)
    return str(np.array(moment, f"datetime64[{unit}]").astype("datetime64[m]")).replace("T", " ")
