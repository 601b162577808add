"""What a column's name says of its purpose."""

from __future__ import annotations

import re

OUTCOMES = (  # in order of preference
    *("label", "labels", "target", "clicked", "click", "y", "converted", "conversion", "purchased", "purchase", "bought"),
    *("ordered", "liked", "like", "rating", "response", "outcome"),
)
ASKING = {"is", "has", "did", "was", "label", "target"}  # is_clicked, label_click
TIMES = {"time", "timestamp", "ts", "datetime", "date", "dt", "day", "at", "unixtime", "epoch"}
WEIGHTS = {"sample", "example", "instance", "row", "importance", "loss"}  # of a weight
PEOPLE = {"user", "uid", "userid", "member", "customer", "visitor", "viewer", "buyer", "device"}
IDS = {"id", "ids", "uid", "key", "code", "zip", "category", "hash", "sku", "asin", "isbn", *PEOPLE, "item", "items"}
QUANTITIES = {
    *("count", "counts", "cnt", "num", "n", "number", "total", "sum", "avg", "mean", "max", "min", "std", "ratio", "rate"),
    *("price", "amount", "cost", "bid", "budget", "revenue", "income", "qty", "quantity", "age", "score", "size", "length"),
    *("duration", "seconds", "minutes", "hours", "days", "hour", "minute", "year", "width", "height", "weight", "distance"),
    *("depth", "rank", "position", "impressions", "views", "temperature", "percent", "pct", "stars", "balance"),
}
PASTS = {"history", "hist", "seq", "sequence", "recent", "last", "past", "previous", "prev", "clicked", "viewed", "bought"}
PASTS |= {"purchased", "seen", "visited", "watched", "played", "liked", "behavior", "behaviour", "browsed"}


def words(name: str) -> list[str]:
    """`isClicked`, `is_clicked` and `is clicked` are all `["is", "clicked"]`."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^a-z0-9]+", split.lower()) if word]


def outcome(name: str) -> int | None:
    """How well the name fits a label: smaller is better; None: not at all."""
    found = words(name)
    rest = [word for word in found if word not in ASKING] or found[:1]
    if len(rest) == 1 and rest[0] in OUTCOMES:
        return OUTCOMES.index(rest[0])
    return len(OUTCOMES) if found[:1] in (["label"], ["target"]) else None


def is_time(name: str) -> bool:
    """`timestamp`, `event_time`, `created_at`; not `watch_time`, which is a duration as often."""
    found = words(name)
    return bool(found) and found[-1] in TIMES and not {"watch", "dwell", "play", "wait", "of"} & set(found)


def is_weight(name: str) -> bool:
    """A weight of rows, not of parcels."""
    found = words(name)
    return bool(found) and found[-1] in ("weight", "weights") and bool(WEIGHTS & set(found))


def is_person(name: str) -> bool:
    """An id of the one whose rows are ranked against each other."""
    found = words(name)
    return bool(found) and (found[0] in PEOPLE and (len(found) == 1 or found[1:] == ["id"]))


def is_id(name: str) -> bool:
    """The last word says id."""
    return bool(IDS & set(words(name)[-1:])) or words(name)[-1:] == ["no"]


def is_quantity(name: str) -> bool:
    """A word says count or measure, and the last one does not say id."""
    return bool(QUANTITIES & set(words(name))) and not is_id(name)


def is_past(name: str) -> bool:
    """Something that a person did before, in order."""
    return bool(PASTS & set(words(name)))


def subject(name: str) -> tuple[str, ...]:
    """What ids are of, so that equal subjects may share a table: `history_movie_id`, `movie_ids` and `movie` agree."""
    rest = [word for word in words(name) if word not in PASTS | {"id", "ids", "list"}]
    return tuple(word.removesuffix("s") for word in rest)
