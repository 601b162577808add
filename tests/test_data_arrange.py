"""The compiled loops, against NumPy and plain Python; where compiled code is kept; and the threads that share out jobs."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.data.arrange import arrange_lists, arrange_scalars, cut, fill, hide, stack, within
from distrec.data.compiled import compiled
from distrec.data.crew import Crew

LISTS = st.lists(st.lists(st.integers(-5, 5), max_size=25), min_size=1, max_size=12)


def shuffled(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows).astype(np.uint32)


@settings(deadline=None)  # the first call compiles
@given(LISTS, st.integers(1, 30), st.integers(0, 99))
def test_lists_are_arranged_and_keep_their_last(rows, longest, seed):
    """Lists are copied eight words at a time; what is beyond their ends, of the row and of both arrays, must not show."""
    words = np.array([word for row in rows for word in row], np.int64)
    bounds = np.cumsum([0, *map(len, rows)])
    for order in (None, shuffled(len(rows), seed)):
        values, lengths = np.full(len(words) + 1, 99), np.zeros(len(rows), np.int32)
        filled = arrange_lists(words, bounds, order, longest, values[:-1], lengths)
        expected = [rows[i][-longest:] for i in (range(len(rows)) if order is None else order)]
        assert values[:filled].tolist() == [word for row in expected for word in row]
        assert lengths.tolist() == list(map(len, expected))
        assert values[-1] == 99


@settings(deadline=None)
@given(st.lists(st.integers(-1, 9), min_size=1, max_size=40), st.integers(0, 99))
def test_scalars_are_arranged_without_those_that_are_missing(rows, seed):
    found, order = np.array(rows, np.int32), shuffled(len(rows), seed)
    for way in (None, order):
        values, lengths = np.empty_like(found), np.empty(len(found), np.uint8)
        filled = arrange_scalars(found, way, values, lengths)
        arranged = found if way is None else found[way]
        assert values[:filled].tolist() == arranged[arranged >= 0].tolist()
        assert lengths.tolist() == (arranged >= 0).tolist()


@pytest.mark.parametrize("order", [None, shuffled(2500, 1)], ids=["as they stand", "shuffled"])
def test_scalars_of_many_blocks_are_arranged_like_those_of_one(order):
    found = np.arange(-1, 2499, dtype=np.int32)
    found[::7] = -1
    values, lengths = np.full(2501, 99, np.int32), np.empty(2500, np.uint8)
    filled = arrange_scalars(found, order, values[:-1], lengths)
    arranged = found if order is None else found[order]
    assert values[:filled].tolist() == arranged[arranged >= 0].tolist()
    assert lengths.tolist() == (arranged >= 0).tolist()
    assert values[-1] == 99


def test_ids_within_a_table_stay_and_others_are_marked_and_told():
    words = np.array([0, 9, 10, (1 << 64) - 1], np.uint64)
    found = np.empty(4, np.int32)
    assert within(words, np.uint64(10), found)
    assert found.tolist() == [0, 9, -1, -1]
    assert not within(words[:2], np.uint64(10), found[:2])


def test_what_is_not_valid_is_hidden():
    found = np.arange(5, dtype=np.int32)
    hide(np.array([True, False, True, True, False]), found)
    assert found.tolist() == [0, -1, 2, 3, -1]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_null_and_nan_are_filled(kind):
    values = np.array([1.0, np.nan, 3.0], kind)
    fill(values, np.array([False, True, True]), kind(7))
    assert values.tolist() == [7.0, 7.0, 3.0]
    values[0] = np.nan
    fill(values, None, kind(5))
    assert values.tolist() == [5.0, 7.0, 3.0]


def test_columns_are_stacked_from_a_row_on():
    columns = np.arange(40, dtype=np.float32).reshape(2, 20)
    order, stacked = shuffled(17, 0), np.empty((6, 2), np.float32)
    stack(columns, order, 11, stacked)
    assert stacked.tolist() == columns[:, order[11:]].T.tolist()
    stack(columns, None, 3, stacked)
    assert stacked.tolist() == columns[:, 3:9].T.tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_batches_begin_where_the_values_before_them_end(kind):
    starts = np.empty(4, np.int64)
    cut(np.full(700, 1, kind), 300, starts)  # more than a byte holds
    assert starts.tolist() == [0, 300, 600, 700]


def test_code_is_compiled_where_it_cannot_be_kept(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])  # as in a container that is read-only

    def double(number: int) -> int:
        return 2 * number

    assert compiled(double)(21) == 42


def test_compiled_code_is_kept_for_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    def double(number: int) -> int:
        return 2 * number

    assert compiled(double)(21) == 42
    assert list(tmp_path.rglob("*double*.nbc"))


def test_jobs_are_shared_out_and_all_are_done():
    crew, done, both = Crew(2, "distrec-test"), [], threading.Barrier(2)

    def meet() -> None:
        both.wait(timeout=20)  # only two threads at once get past it
        done.append(threading.current_thread().name)

    crew.do([meet, meet])
    assert len(set(done)) == 2
    assert threading.current_thread().name in done  # the caller does its part
    crew.do([])
    crew.close()


def test_the_first_of_the_jobs_that_fail_tells_why_whichever_is_quicker():
    crew, late = Crew(2, "distrec-test"), threading.Event()

    def slow() -> None:
        late.wait(timeout=20)
        raise ValueError("first")

    def quick() -> None:
        late.set()
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        crew.do([slow, quick])
    crew.close()
