"""The doctor's self-test: real ranks, of which one exits, lies or hangs."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import pytest

from distrec.doctor import ranks
from distrec.doctor.ranks import self_test

ROOT = Path(__file__).parents[1]


@pytest.fixture
def on_rank_1(tmp_path, monkeypatch):
    """Source that rank 1 executes before anything else."""

    def put(source: str) -> None:
        indented = textwrap.indent(textwrap.dedent(source), "    ")
        (tmp_path / "sitecustomize.py").write_text(f'import os\nif os.environ.get("RANK") == "1":\n{indented}')
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    return put


def test_a_rank_that_dies_is_named(on_rank_1):
    on_rank_1("os._exit(7)")
    found = self_test(2, "cpu", timeout_s=30)
    assert found.state == "fault"
    assert found.found.startswith("Gloo: rank 1 failed with exit code 7; ")
    assert "rank 1 did not start" in found.found


def test_a_rank_that_gets_wrong_values_is_named_with_the_sender(on_rank_1):
    on_rank_1(
        """
        import torch.distributed as dist
        whole = dist.all_to_all_single
        def broken(output, *words):
            whole(output, *words)
            output[-1] += 1  # the last number of the last sender
        dist.all_to_all_single = broken
        """
    )
    found = self_test(3, "cpu", timeout_s=30)
    assert found.state == "fault"
    assert found.found == "Gloo: rank 1 failed with exit code 3; rank 1 got wrong values from rank 2"


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_exchange_at_the_timeout(on_rank_1):
    on_rank_1(
        """
        import time
        import torch.distributed as dist
        dist.all_to_all_single = lambda *words: time.sleep(1000)
        """
    )
    began = time.monotonic()
    found = self_test(2, "cpu", timeout_s=4)
    assert time.monotonic() - began < 60
    assert "rank 1 joined the process group and did not finish the exchange" in found.found
    assert "rank 0 failed with exit code 1" in found.found


@pytest.mark.slow
def test_ranks_that_do_not_end_are_ended(tmp_path, monkeypatch):
    """None of them joins, so that no collective's timeout ends them."""
    monkeypatch.setattr(ranks, "START_S", 14)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, pathlib, time\nif rank := os.environ.get('RANK'):\n"
        f"    (pathlib.Path({str(tmp_path)!r}) / rank).write_text(str(os.getpid()))\n    time.sleep(1000)\n"
    )
    began = time.monotonic()
    found = self_test(2, "cpu", timeout_s=1)
    assert time.monotonic() - began < 50
    assert found.found.startswith("Gloo: ended after 15 s; ")
    assert "rank 0 did not start; rank 1 did not start" in found.found
    assert not any(Path(f"/proc/{(tmp_path / rank).read_text()}").exists() for rank in "01")


def test_a_gpu_a_rank_is_needed_for_cuda():
    found = self_test(2, "cuda", gpus=1)
    assert (found.state, found.found) == ("fault", "needs 2 GPUs, and torch sees 1")
    found = self_test(1, "cuda", gpus=0)
    assert (found.name, found.found) == ("all-to-all, 1 rank", "needs 1 GPU, and torch sees 0")
