"""How every benchmark measures: variants by turns, A-B-A-B, so that what else the machine does falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from distrec.metrics.throughput import resident_bytes

MIB = 2**20


@dataclass(frozen=True)
class Took:
    """What one run took."""

    seconds: float
    cpu_s: float | None = None  # processor seconds
    peak_mib: float | None = None  # most memory in RAM


Run = Callable[[], Took | float | None]  # does the work once; what it does not tell is measured from outside


@dataclass(frozen=True)
class Spread:
    """What several runs gave."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"median": self.median, "min": self.min, "max": self.max}


@dataclass(frozen=True)
class Variant:
    """One way to do a case's work, measured."""

    name: str
    rates: list[float]  # amount a second, a round
    cpu_s: list[float]  # processor seconds of this process, a round: what sharing a machine disturbs less than the rates
    peak_mib: float | None  # most memory in RAM while it ran, all that the process holds included; None: not known

    @property
    def rate(self) -> Spread:
        """Over the rounds."""
        return Spread.of(self.rates)

    def ratio(self, reference: Variant) -> Spread:
        """This one's rate over the reference's of the same round."""
        return Spread.of([mine / other for mine, other in zip(self.rates, reference.rates, strict=True)])

    def cpu_ratio(self, reference: Variant) -> float | None:
        """The same by processor time, its median: how much of the reference's work this one does with the time it gets."""
        pairs = zip(self.cpu_s, reference.cpu_s, strict=True) if self.cpu_s and reference.cpu_s else ()
        ratios = [other / mine for mine, other in pairs if mine > 0]
        return median(ratios) if ratios else None


@dataclass(frozen=True)
class Case:
    """Variants that did the same work by turns."""

    name: str
    unit: str  # of the rates: "rows/s"
    reference: str  # the variant that the others are compared with
    variants: dict[str, Variant]
    facts: dict[str, Any]  # what the work was: sizes, settings
    also: tuple[str, float] | None = None  # a second unit, and how much of it one of `unit` is

    def ratios(self) -> dict[str, Spread]:
        """Each variant against the reference, pair by pair."""
        return {name: variant.ratio(self.variants[self.reference]) for name, variant in self.variants.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ratios = self.ratios()
        measured = {
            v.name: {
                "rate": v.rate.to_json(),
                "ratio": ratios[v.name].to_json(),
                "cpu_ratio": v.cpu_ratio(self.variants[self.reference]),
                "cpu_s": Spread.of(v.cpu_s).to_json() if v.cpu_s else None,
                "peak_mib": v.peak_mib,
                "rounds": v.rates,
                "cpu_s_rounds": v.cpu_s,
            }
            for v in self.variants.values()
        }
        return {
            "case": self.name,
            "unit": self.unit,
            "reference": self.reference,
            "facts": self.facts,
            "also": self.also,
            "variants": measured,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Case:
        """The inverse of `to_json`: a case that was measured in another process."""
        variants = {
            name: Variant(name, found["rounds"], found["cpu_s_rounds"], found["peak_mib"])
            for name, found in value["variants"].items()
        }
        also = value["also"] and (value["also"][0], value["also"][1])
        return cls(value["case"], value["unit"], value["reference"], variants, value["facts"], also)


def compare(
    name: str,
    unit: str,
    amount: float,
    runs: Mapping[str, Run],
    reference: str,
    rounds: int,
    warmup: int = 1,
    also: tuple[str, float] | None = None,
    **facts: Any,
) -> Case:
    """Run every variant once a round, in turn, `rounds` times after `warmup` rounds that do not count.

    Args:
        name: of the case.
        unit: of `amount` a second.
        amount: work of one run of any variant.
        runs: by name.
        reference: name of the variant that the others are compared with.
        rounds: counted rounds, at least 1.
        warmup: rounds before them.
        also: a second unit to tell the rates in, and how much of it one of `unit` is.
        facts: kept with the results.
    """
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    cpu: dict[str, list[float]] = {variant: [] for variant in runs}
    peaks: dict[str, float | None] = dict.fromkeys(runs)
    for turn in range(warmup + rounds):
        for variant, run in runs.items():
            took = timed(run)
            if turn >= warmup:
                seconds[variant].append(took.seconds)
                cpu[variant] += [took.cpu_s] if took.cpu_s is not None else []
                peaks[variant] = highest(peaks[variant], took.peak_mib)
    variants = {v: Variant(v, [amount / s for s in seconds[v]], cpu[v], peaks[v]) for v in runs}
    return Case(name, unit, reference, variants, facts, also)


def timed(run: Run) -> Took:
    """One run: what it says itself, else by this process's clocks."""
    reset_peak()
    cpu_before, began = time.process_time(), time.perf_counter()
    said = run()
    seconds = time.perf_counter() - began
    if isinstance(said, Took):
        return said
    return Took(seconds if said is None else said, time.process_time() - cpu_before, peak_mib())


def scaled(run: Run, factor: float) -> Run:
    """A run that does only one `factor`-th of the work, told as if it had done all."""

    def whole() -> Took:
        took = timed(run)
        return Took(took.seconds * factor, None if took.cpu_s is None else took.cpu_s * factor, took.peak_mib)

    return whole


def reset_peak() -> None:
    """Let the kernel forget the peak of this process's memory, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_mib() -> float | None:
    """The most memory that this process held since `reset_peak`; None on systems that do not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), resident_bytes() / MIB)


def highest(one: float | None, other: float | None) -> float | None:
    """The larger, where both are known."""
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None
