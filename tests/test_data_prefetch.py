"""The background thread: bounded, in order, and gone when it should be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from distrec.data.prefetch import Prefetch


def numbers(made: list[int], stop: int, closed: list[bool], error: Exception | None = None):
    try:
        for i in range(stop):
            made.append(i)
            yield i
        if error:
            raise error
    finally:
        closed.append(True)


def settle(made: list[int]) -> int:
    """How many items are made when nobody asks for more."""
    while True:
        before = len(made)
        time.sleep(0.05)
        if len(made) == before:
            return before


@pytest.mark.parametrize("depth", [1, 3])
def test_it_runs_ahead_by_depth_and_no_further(depth):
    made: list[int] = []
    ahead = Prefetch(numbers(made, 100, []), depth, "t")
    assert settle(made) == depth
    assert [next(ahead), next(ahead)] == [0, 1]
    assert settle(made) == depth + 2
    ahead.close()


def test_all_items_come_in_order_and_the_end_stays_the_end():
    closed: list[bool] = []
    ahead = Prefetch(numbers([], 20, closed), 2, "t")
    assert list(ahead) == list(range(20))
    assert list(ahead) == []
    assert closed == [True]


def test_an_error_comes_after_the_items_before_it():
    ahead = Prefetch(numbers([], 3, [], ValueError("broken")), 8, "t")
    time.sleep(0.05)  # long enough for the error to be there before the first item is asked for
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert list(ahead) == []


def test_close_ends_a_thread_that_waits_for_room_and_closes_its_source():
    closed: list[bool] = []
    ahead = Prefetch(numbers([], 100, closed), 1, "prefetch-under-test")
    next(ahead)
    began = time.perf_counter()
    ahead.close()
    ahead.close()
    assert time.perf_counter() - began < 1
    assert closed == [True]
    assert "prefetch-under-test" not in {t.name for t in threading.enumerate()}


def test_one_that_is_never_closed_does_not_abort_the_program():
    """A thread that PyTorch's C++ returns to an interpreter that has ended calls std::terminate, every time."""
    program = """
import torch
from distrec.data.prefetch import Prefetch
x = torch.rand(300, 300)
ahead = Prefetch((x.mm(x) for _ in iter(int, 1)), 10**9, "t")
next(ahead)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("code", [0, 3])
def test_a_rank_that_is_done_does_not_wait_for_what_still_runs(code):
    program = f"""
import os
import subprocess
import sys
import threading
import torch
from distrec.__main__ import _leave
x = torch.rand(300, 300)
threading.Thread(target=lambda: [x.mm(x) for _ in iter(int, 1)], daemon=True).start()
print("done")
_leave({code})
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"RANK": "0"}
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "done\n", "")
