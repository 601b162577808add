"""What the operating system gives a run: Python, huge pages, shared memory, open files, a disk."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from distrec import environment
from distrec.doctor.finding import Finding

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED = 1 << 30  # bytes; Docker's default of 64 MB is too little for NCCL's buffers of a few ranks
OLDEST, FIRST_UNTRIED = (3, 11), (3, 13)
RDMA_CARDS = Path("/sys/class/infiniband")
FEWEST_FILES, FEW_FILES = 256, 1024  # Gloo and NCCL hold a socket to each other rank, a process group
SAMPLE = 128 << 20  # bytes written and read to time the disk
SLOW = 100e6  # bytes/s; below, checkpoints and not the GPU set the pace
LEAST_FREE = 10 << 30  # bytes


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether distrec is tested on this Python."""
    said = ".".join(map(str, version))
    if OLDEST <= version[:2] < FIRST_UNTRIED:
        return Finding("Python", "ok", said)
    return Finding("Python", "fault", f"{said}; distrec needs 3.11 or 3.12", "make install PYTHON=python3.12 VENV=.venv312")


def huge_pages(setting: Path = HUGE_PAGES) -> Finding:
    """Whether embedding tables on CPU may lie in huge pages. Lookups are bound by TLB misses without."""
    try:
        chosen = re.search(r"\[(\w+)\]", setting.read_text(encoding="ascii"))
    except OSError:
        return Finding("huge pages", "note", "this kernel has no transparent huge pages")
    mode = chosen[1] if chosen else "unknown"
    if mode == "madvise" and os.environ.get(environment.HUGE_PAGES, "1") != "1":
        fix = f"unset {environment.HUGE_PAGES}"
        return Finding("huge pages", "note", f"{mode}, and {environment.HUGE_PAGES} turns them off for tables", fix)
    if mode in ("always", "madvise"):
        return Finding("huge pages", "ok", mode)
    fix = f"echo madvise | sudo tee {setting}"
    return Finding("huge pages", "warning", f"{mode}: lookups in large tables on CPU are slower", fix)


def shared_memory(folder: Path = SHARED_MEMORY, least: int = LEAST_SHARED) -> Finding:
    """Whether ranks of one machine can exchange through shared memory, as NCCL does."""
    try:
        _touch(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = f"sudo mount -t tmpfs -o size=16g tmpfs {folder}"
        return Finding("shared memory", "fault", f"{folder} cannot be written: {error.strerror}", fix)
    if free >= least:
        return Finding("shared memory", "ok", f"{_size(free)} free in {folder}")
    fix = f"sudo mount -o remount,size=16g {folder} (in Docker: docker run --shm-size=16g)"
    return Finding(
        "shared memory", "warning", f"{_size(free)} free in {folder}: several ranks on GPUs fail with bus errors", fix
    )


def open_files() -> Finding:
    """Whether this process may open enough files and sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return Finding("open files", "ok", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")
    raised = hard == resource.RLIM_INFINITY or hard >= FEW_FILES
    fix = "ulimit -n 65536" if hard in (resource.RLIM_INFINITY,) or hard >= 65536 else f"ulimit -n {hard}"
    if not raised:
        fix = f"echo '* - nofile 65536' | sudo tee /etc/security/limits.d/distrec.conf (then log in anew; here: {fix})"
    state = "fault" if soft < FEWEST_FILES else "warning"
    return Finding("open files", state, f"limit {soft}: each rank needs a file a shard and a socket a rank", fix)


def locked_memory(cards: Path = RDMA_CARDS) -> Iterator[Finding]:
    """Where there are InfiniBand or RoCE cards: whether NCCL may register its buffers with them."""
    if not cards.is_dir() or not (names := sorted(path.name for path in cards.iterdir())):
        return
    name, said = "locked memory", f"cards {', '.join(names)}"
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield Finding(name, "ok", f"no limit; {said}")
        return
    fix = "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/distrec-rdma.conf (then log in anew)"
    yield Finding(name, "fault", f"limit {_size(soft)}; {said}: NCCL cannot use them between nodes, and a run fails there", fix)


def disk(folder: Path, sample: int = SAMPLE) -> Iterator[Finding]:
    """Room and speed of the disk under a folder, where runs or data will lie."""
    try:
        written, read = _speed(folder, sample)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        place = shlex.quote(str(folder))
        able = "" if folder.is_file() else f"mkdir -p {place} && chmod u+rwx {place}, or "
        fix = f"{able}name another with --folder"
        yield Finding("disk", "fault", f"{folder} cannot be written: {error.strerror}", fix)
        return
    said = f"writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s, {_size(free)} free in {folder}"
    if free < LEAST_FREE:
        yield Finding("disk", "warning", said, f"du -xh --max-depth=2 {shlex.quote(str(folder))} | sort -h | tail")
    elif min(written, read) < SLOW:
        yield Finding(
            "disk", "warning", f"{said}: slow", "name a faster disk with `folder` in the config, and check it: --folder"
        )
    else:
        yield Finding("disk", "ok", said)


def _speed(folder: Path, sample: int) -> tuple[float, float]:
    """Bytes a second written through to the disk, and read back past the page cache where the system allows it."""
    path = folder / f".distrec-doctor-{uuid.uuid4().hex}"
    block = os.urandom(1 << 20)
    try:
        with path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(sample >> 20):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter() - began
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while file.read(1 << 20):
                pass
            return sample / written, sample / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def _touch(folder: Path) -> None:
    path = folder / f".distrec-doctor-{uuid.uuid4().hex}"
    path.touch()
    path.unlink()


def _size(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):,.0f} MiB"
