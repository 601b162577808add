"""What a machine may refuse: room on a disk, a folder, a library. Each is one message, and nothing that stands is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import command_line
from single_rank import alone
from small_run import values, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toml_text import to_toml
from torch.utils.tensorboard.writer import SummaryWriter

from distrec import log, run_folder
from distrec.config.load import parse
from distrec.data import open_dataset
from distrec.errors import UserError
from distrec.metrics.events import BUCKETS
from distrec.metrics.writer import Writer

NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    hog = disk / "hog"
    with hog.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return hog


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shown(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("train/loss")]


def test_numbers_wait_for_room_in_both_files(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Writer(small_disk / "run") as writer:
        writer.scalars(1, {"train/loss": 1.0})
        hog = fill(small_disk)
        for step in range(2, 200):
            writer.scalars(step, {"train/loss": 1.0, "note": float(step)} | {f"x{i}": 0.0 for i in range(20)})
        for name in ("metrics.jsonl", "events.out.tfevents"):
            assert sum(f"{name}" in line and "No space left on device" in line for line in caplog.text.splitlines()) == 1
        whole = steps(small_disk / "run")
        assert whole == list(range(1, len(whole) + 1)), "and no line is torn"
        assert len(whole) < 199
        assert shown(small_disk / "run") == list(range(1, len(shown(small_disk / "run")) + 1))
        hog.unlink()
        writer.scalars(200, {"train/loss": 0.5})
    assert steps(small_disk / "run") == shown(small_disk / "run") == list(range(1, 201))


def test_numbers_that_still_wait_at_the_end_are_an_error(small_disk: Path) -> None:
    writer = Writer(small_disk / "run")
    fill(small_disk)
    for step in range(200):
        writer.scalars(step, {"train/loss": 1.0} | {f"x{i}": 0.0 for i in range(20)})
    with pytest.raises(
        UserError, match=r"the last [\d,]+ bytes of .* could not be written: No space left on device; make room"
    ):
        writer.close()


def test_why_a_run_ended_is_not_hidden_by_what_waits(small_disk: Path) -> None:
    def fail() -> None:
        with Writer(small_disk / "run") as writer:
            fill(small_disk)
            for step in range(200):
                writer.scalars(step, {"train/loss": 1.0} | {f"x{i}": 0.0 for i in range(20)})
            raise UserError("an id is out of range")

    with pytest.raises(UserError, match="an id is out of range"):
        fail()


def test_histograms_have_tensorboards_buckets(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as theirs:
        assert BUCKETS.tolist() == pytest.approx(theirs.default_bins, rel=1e-9)


def test_a_log_that_cannot_be_written_is_said_once(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = log.logger.handlers
    log.setup(0, small_disk)
    try:
        fill(small_disk)
        for number in range(2000):
            log.logger.warning("message %d", number)
        said = capsys.readouterr().err
        assert said.count("rank-0.log: No space left on device; messages are shown here alone") == 1
        assert "Traceback" not in said
        assert said.count("message ") == 2000
    finally:
        (small_disk / "hog").unlink()
        for handler in log.logger.handlers:
            handler.close()
        log.logger.handlers, log.logger.propagate = handlers, True


def test_a_run_on_a_disk_that_fills_ends_in_messages_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.toml"
    rows = write_rows(tmp_path / "rows")
    tables = {"user": {"rows": 50, "dim": 8}, "item": {"rows": 4000, "dim": 32}}  # two checkpoints fit, three do not
    sections = {"tables": tables, "checkpoint": {"every_steps": 4, "keep": 9}}
    config.write_text(to_toml(values(rows, small_disk / "run", model={"name": "din", "params": DIN}, **sections)))
    with command_line(capsys) as distrec:
        ended = distrec("train", config)
        assert ended.code == 2
        assert "could not be written" in ended.err
        assert "stands. Make room, then go on with --resume newest" in ended.err
        standing = sorted((small_disk / "run" / "checkpoints").glob("step-*/manifest.json"))
        assert standing
        shutil.move(small_disk / "run", tmp_path / "run")
        ended = distrec("train", config, "--resume", "newest", f"folder={tmp_path / 'run'}")
        assert ended.code == 0, ended.err
        assert f"resuming after step {int(standing[-1].parent.name.removeprefix('step-'))}" in ended.out


DIN = {"targets": ["item"], "histories": ["history"], "attention_mlp": [8], "top_mlp": [8]}


# -- a folder that may not be used -----------------------------------------------------------------------------------


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """Rows in a folder that every user reaches, while this process is one that owns nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user for a while")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield write_rows(Path(folder) / "in" / "rows")


@pytest.mark.parametrize(
    ("locked", "said"),
    [
        ("rows", r"rows: may not be listed: .*Permission denied"),
        (".", r"rows: may not be listed: .*Permission denied"),
        ("rows/part-0.parquet", r"rows/part-0\.parquet: may not be read: Permission denied"),
        ("rows/day=1", r"rows: may not be listed: .*Permission denied.*day=1"),
    ],
)
def test_what_may_not_be_read_is_named(nobodys: Path, locked: str, said: str) -> None:
    (nobodys / "day=1").mkdir()
    (nobodys.parent / locked).chmod(0)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(UserError, match=said):
            open_dataset([str(nobodys)], [])
    finally:
        os.seteuid(0)


# -- two runs, one folder --------------------------------------------------------------------------------------------


def test_of_two_that_claim_a_folder_at_once_one_has_it(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from distrec import run_folder
from distrec.config.load import parse
from distrec.errors import UserError
import json
folder, config = Path(sys.argv[1]), parse(json.loads(sys.argv[2]))
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    with run_folder.given_back_if_unused(folder / "run"):
        run_folder.claim(config, None)
    print("mine")
except UserError as error:
    print("holds a run already" in str(error))
"""
    config = json.dumps(values(tmp_path / "rows", tmp_path / "run"))
    command = [sys.executable, "-c", program, str(tmp_path), config]
    claiming = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    (tmp_path / "go").touch()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in claiming)
    assert said == ["True"] * 3 + ["mine"]
    assert run_folder.saved_config(tmp_path / "run", []) == parse(json.loads(config))


HOLDER = """
import sys, time
from pathlib import Path
from distrec import dist, run_folder
dist.start("cpu", 60)
with run_folder.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_of_two_that_go_on_with_a_run_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    write_rows(tmp_path / "rows")
    small = values(tmp_path / "rows", tmp_path / "run", train={"device": "cpu", "steps": 2})
    (tmp_path / "small.toml").write_text(to_toml(small))
    with command_line(capsys) as distrec:
        words = ["train", tmp_path / "small.toml", "--resume", "auto"]
        assert distrec(*words).code == 0
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            kept = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
            refused = distrec(*words, "train.steps=3")
            assert refused.code == 2
            assert f"another process is training in {tmp_path / 'run'} (host " in refused.err
            assert f"process {other.pid})" in refused.err
            assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == kept
            assert distrec("evaluate", tmp_path / "run", f"data.valid={tmp_path / 'rows'}").code == 0
        finally:
            other.kill()  # however it ends, it lets go
            other.communicate()
        assert distrec(*words, "train.steps=3").code == 0


def test_where_a_filesystem_keeps_no_locks_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    with alone(), run_folder.held(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_loser_does_not_take_back_what_the_winner_has(tmp_path: Path) -> None:
    """The winner comes between the loser's look at the folder and its own claim."""
    config = parse(values(tmp_path / "rows", tmp_path / "run"))

    def lose() -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / run_folder.CONFIG).write_text("{}")  # by another process
        run_folder.claim(config, None)

    with pytest.raises(UserError, match="holds a run already"), run_folder.given_back_if_unused(tmp_path / "run"):
        lose()
    assert (tmp_path / "run" / run_folder.CONFIG).exists()


# -- a library that does not load ------------------------------------------------------------------------------------


def test_a_library_for_another_torch_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "fbgemm_gpu").mkdir()
    source = 'raise OSError("Could not load this library: fbgemm_gpu_config.so")'
    (tmp_path / "fbgemm_gpu" / "__init__.py").write_text(source)
    write_rows(tmp_path / "rows")
    (tmp_path / "small.toml").write_text(to_toml(values(tmp_path / "rows", tmp_path / "run")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "distrec", "train", str(tmp_path / "small.toml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "distrec: fbgemm_gpu does not load here: Could not load this library: fbgemm_gpu_config.so. `distrec doctor`"
        in done.stderr
    )
