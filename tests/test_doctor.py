"""The doctor finds what is broken for real: libraries that raise, crash and hang, wrong versions, low limits, bad folders."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from distrec.doctor import gpu, libraries, machine, versions
from distrec.doctor.finding import Finding, exit_code

ROOT = Path(__file__).parents[1]
TORCH_FACTS = {"cuda": "13.0", "gpus": ["H100", "H100"], "nccl": "2.29.7", "cuda_error": None}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a module of that name before the real one, for processes that are started from here on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def put(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    return put


def library(name: str) -> libraries.Library:
    return next(lib for lib in libraries.LIBRARIES if lib.name == name)


CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "OSError: libcudart.so.13: cannot open"),
        (CRASH, "kills the process with SIGSEGV"),
        ("import os\nos._exit(5)", "ends the process with exit code 5"),
        ("import time\ntime.sleep(60)", "hangs: no answer in 2 s"),
    ],
)
def test_a_library_may_raise_crash_or_hang(fake, source, problem):
    fake("torchx", source)
    began = time.monotonic()
    assert problem in libraries.run(library("torchx").program, timeout_s=2).problem
    assert time.monotonic() - began < 30


def test_fbgemm_that_imports_and_computes_nothing_is_found(fake):
    fake("fbgemm_gpu", "")
    assert "fbgemm_gpu" in libraries.run(library("fbgemm_gpu").program).problem


def test_a_broken_library_is_put_back_with_the_closures_version():
    outcomes = {"fbgemm_gpu": libraries.Outcome("OSError: undefined symbol"), "torch": libraries.Outcome()}
    for has_gpu, file, build in ((False, "cpu.txt", "fbgemm_gpu-cpu"), (True, "cuda.txt", "fbgemm_gpu")):
        line = re.search(rf"^{build}==.*$", (ROOT / "requirements" / file).read_text(), re.MULTILINE)
        found = libraries.judge(library("fbgemm_gpu"), outcomes, has_gpu)
        assert (found.state, "OSError: undefined symbol" in found.found) == ("fault", True)
        assert found.fix == f"{sys.executable} -m pip install --no-deps --force-reinstall {line[0]}"


def test_a_library_on_a_broken_one_points_there():
    outcomes = {
        "torch": libraries.Outcome("killed"),
        "fbgemm_gpu": libraries.Outcome("killed"),
        "torchrec": libraries.Outcome("x"),
    }
    assert libraries.judge(library("torchrec"), outcomes, False).fix == "mend torch first"


def test_faiss_may_be_absent_but_not_broken(monkeypatch):
    broken = {"faiss": libraries.Outcome("ModuleNotFoundError: No module named 'faiss'")}
    monkeypatch.setattr(libraries, "installed", lambda *_: {})
    assert libraries.judge(library("faiss"), broken, False).state == "note"
    monkeypatch.setattr(libraries, "installed", lambda *_: {"faiss-cpu": "1.15.1"})
    assert libraries.judge(library("faiss"), broken, False).state == "fault"


@pytest.mark.parametrize(
    ("there", "works", "state"),
    [
        (["faiss-cpu"], True, "ok"),
        (["faiss-gpu"], True, "ok"),
        (["faiss"], True, "ok"),  # conda's
        (["faiss-cpu"], False, "fault"),
        (["faiss-gpu"], False, "fault"),
        (["faiss-cpu", "faiss-gpu"], True, "warning"),
        (["faiss-cpu", "faiss-gpu"], False, "fault"),
    ],
)
def test_another_faiss_may_stand_in_the_place_of_the_pinned_one_but_not_beside_it(monkeypatch, there, works, state):
    monkeypatch.setattr(libraries, "installed", lambda *names: {name: "1.15.1" for name in names if name in there})
    outcomes = {"faiss": libraries.Outcome("" if works else "RuntimeError: faiss-gpu: failed to load libcudart.so.12")}
    found = libraries.judge(library("faiss"), outcomes, True)
    assert (found.state, all(f"{name} 1.15.1" in found.found for name in there)) == (state, True)
    line = re.search(r"^faiss-cpu==.*$", (ROOT / "requirements/cuda.txt").read_text(), re.MULTILINE)
    removed = "" if there == ["faiss-cpu"] else f"{sys.executable} -m pip uninstall --yes {' '.join(there)} && "
    back = f"{removed}{sys.executable} -m pip install --no-deps --force-reinstall {line[0]}"
    assert found.fix == ("" if state == "ok" else back)


def doctor(*words: str) -> tuple[int, dict[str, dict]]:
    command = [sys.executable, "-m", "distrec", "doctor", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout, done.stderr
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_the_doctor_runs_where_torch_kills_the_process(fake):
    fake("torch", CRASH)
    code, found = doctor("--ranks=1")
    assert code == 2
    assert {name: found[name]["state"] for name in ("torch", "fbgemm_gpu", "torchrec", "all-to-all", "pyarrow")} == {
        **dict.fromkeys(("torch", "fbgemm_gpu", "torchrec", "all-to-all"), "fault"),
        "pyarrow": "ok",
    }
    assert "SIGSEGV" in found["torch"]["found"]
    assert "-r" in found["torch"]["fix"].split()
    assert found["torchrec"]["fix"] == "mend torch first"


def test_this_environment_is_sound(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    _, found = doctor("--ranks=2", "--device=cpu")
    sound = ("Python", "torch", "fbgemm_gpu", "torchrec", "torchx", "versions", "all-to-all, 2 ranks")
    assert {name: (found[name]["state"], found[name]["fix"]) for name in sound} == dict.fromkeys(sound, ("ok", ""))


def test_the_doctor_itself_imports_nothing_that_can_fail():
    heavy = ("torch", "torchrec", "fbgemm_gpu", "pyarrow", "polars", "pydantic", "faiss", "numpy")
    program = f"import distrec.doctor.examine, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_exit_codes():
    fine, odd, bad = (Finding("x", state, "") for state in ("note", "warning", "fault"))
    assert [exit_code([fine]), exit_code([fine, odd]), exit_code([odd, bad])] == [0, 0, 2]
    assert [exit_code([fine], strict=True), exit_code([fine, odd], strict=True)] == [0, 2]


def pair(torch: str, torchrec: str, cuda: str | None = None, has_gpu: bool = False, **fbgemm: str) -> dict[str, Finding]:
    found = {"torch": torch, "torchrec": torchrec} | {name.replace("_", "-"): release for name, release in fbgemm.items()}
    return {finding.name: finding for finding in versions.pairs(found, cuda, has_gpu)}


@pytest.mark.parametrize(("torch", "rest"), [("2.13.0+cpu", ("1.8.0", "1.8.0")), ("2.11.0", ("1.6.1", "1.6.0"))])
def test_versions_that_fit(torch, rest):
    assert pair(torch, rest[0], fbgemm_gpu_cpu=rest[1])["versions"].state == "ok"


@pytest.mark.parametrize(
    ("torch", "torchrec", "fbgemm", "state", "words"),
    [
        ("2.13.0+cpu", "1.8.0", "1.7.0", "fault", "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"),
        ("2.13.0", "1.6.1", "1.8.0", "fault", "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"),
        ("2.11.0+cu130", "1.8.0", "1.8.0", "fault", "torchrec==1.6.1 fbgemm-gpu-cpu==1.6.0"),
        ("2.12.1", "1.7.0", "1.7.0", "warning", "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"),
        ("2.12.1", "1.7.0", "1.8.0", "fault", "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"),
    ],
)
def test_versions_that_do_not_fit(torch, torchrec, fbgemm, state, words):
    found = pair(torch, torchrec, fbgemm_gpu_cpu=fbgemm)["versions"]
    assert found.state == state
    assert found.fix.endswith(f"-m pip install --no-deps {words}")
    assert torch in found.found


def test_builds_that_do_not_go_together():
    assert set(pair("2.13.0", "1.8.0", "13.0", True, fbgemm_gpu="1.8.0")) == {"versions"}
    assert set(pair("2.13.0", "1.8.0", "13.0", False, fbgemm_gpu_cpu="1.8.0")) == {"versions"}
    no_kernels = pair("2.13.0", "1.8.0", "13.0", True, fbgemm_gpu_cpu="1.8.0")["builds"]
    assert (no_kernels.state, no_kernels.fix.split()[-1]) == ("fault", "fbgemm-gpu==1.8.0")
    no_cuda = pair("2.13.0+cpu", "1.8.0", None, False, fbgemm_gpu="1.8.0")["builds"]
    assert (no_cuda.state, no_cuda.fix.split()[-1]) == ("fault", "fbgemm-gpu-cpu==1.8.0")
    both = pair("2.13.0", "1.8.0", None, False, fbgemm_gpu="1.8.0", fbgemm_gpu_cpu="1.8.0")["versions"]
    assert (both.state, "uninstall --yes fbgemm-gpu fbgemm-gpu-cpu &&" in both.fix) == ("fault", True)


def test_versions_come_from_metadata_not_from_imports(tmp_path, monkeypatch):
    for name, release in (("torchrec", "1.7.0"), ("fbgemm_gpu", "1.6.0")):
        folder = tmp_path / f"{name}-{release}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.installed("torchrec", "fbgemm-gpu", "no-such") == {"torchrec": "1.7.0", "fbgemm-gpu": "1.6.0"}


def test_the_newest_fit_is_what_the_closures_pin():
    pins = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("torch-cpu", "torch-cuda", "cpu", "cuda")}
    newest = versions.FITS[0]
    for file, line in (
        ("torch-cpu", f"torch=={newest.torch}+cpu"),
        ("torch-cuda", f"torch=={newest.torch}"),
        ("cpu", f"fbgemm_gpu-cpu=={newest.fbgemm}"),
        ("cuda", f"fbgemm_gpu=={newest.fbgemm}"),
        ("cuda", f"torchrec=={newest.torchrec}"),
    ):
        assert line in pins[file].splitlines()


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def put(script: str) -> gpu.Driver:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return gpu.driver()

    return put


def test_a_driver_is_asked_for_its_version(nvidia_smi):
    found = nvidia_smi('[ "$1" = --query-gpu=driver_version,name ] && echo "580.65.06, H100" && echo "580.65.06, H100"')
    assert found == gpu.Driver("580.65.06", ("H100", "H100"))
    assert gpu.check_driver(found, "13.0") == Finding("CUDA driver", "ok", "580.65.06; 2 x H100")


def test_a_driver_that_fails_or_is_too_old_is_a_fault(nvidia_smi):
    failing = nvidia_smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert gpu.check_driver(failing, "13.0").state == "fault"
    assert "version mismatch" in gpu.check_driver(failing, "13.0").found
    old = nvidia_smi("echo '550.90.07, H100'")
    assert gpu.check_driver(old, "12.8").state == "ok"
    assert gpu.check_driver(old, "13.0").state == "fault"
    assert "nvidia-driver-580" in gpu.check_driver(old, "13.0").fix


def test_no_driver_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver() == gpu.Driver()
    assert gpu.check_driver(gpu.Driver(), None).state == "note"


@pytest.mark.parametrize(
    ("changed", "states"),
    [
        ({}, ["ok", "ok"]),
        ({"cuda": None, "gpus": [], "nccl": None}, ["warning", "note"]),
        ({"gpus": [], "cuda_error": "no kernel image is available"}, ["fault", "ok"]),
        ({"nccl": None}, ["ok", "fault"]),
        ({"gpus": []}, ["note", "ok"]),
    ],
)
def test_torch_must_compute_on_the_gpus_that_are_there(changed, states):
    found = list(gpu.check_runtime(gpu.Driver("580.65.06", ("H100", "H100")), TORCH_FACTS | changed))
    assert [finding.state for finding in found] == states
    assert all(finding.fix for finding in found if finding.state in ("warning", "fault"))


def test_torch_tells_its_build():
    import torch

    facts = libraries.run(library("torch").program).facts
    assert (facts["cuda"], len(facts["gpus"])) == (torch.version.cuda, torch.cuda.device_count())


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 9), "fault"), ((3, 11, 0), "ok"), ((3, 12, 4), "ok"), ((3, 13, 0), "fault")]
)
def test_python(version, state):
    assert machine.python(version).state == state


@pytest.mark.parametrize(
    ("text", "state"),
    [("always [madvise] never", "ok"), ("[always] madvise never", "ok"), ("always madvise [never]", "warning")],
)
def test_huge_pages(tmp_path, text, state):
    (tmp_path / "enabled").write_text(text)
    found = machine.huge_pages(tmp_path / "enabled")
    assert found.state == state
    assert ("tee" in found.fix) == (state == "warning")
    assert machine.huge_pages(tmp_path / "absent").state == "note"


@pytest.mark.parametrize(("mode", "state"), [("madvise", "note"), ("always", "ok")])
def test_huge_pages_that_the_environment_turns_off(tmp_path, monkeypatch, mode, state):
    (tmp_path / "enabled").write_text(f"[{mode}] never")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    found = machine.huge_pages(tmp_path / "enabled")
    assert found.state == state
    assert found.fix == ("unset THP_MEM_ALLOC_ENABLE" if state == "note" else "")


def test_shared_memory_that_is_small_or_absent(tmp_path):
    assert machine.shared_memory(tmp_path, least=1).state == "ok"
    assert machine.shared_memory(tmp_path, least=1 << 60).state == "warning"
    (tmp_path / "file").write_text("")
    assert machine.shared_memory(tmp_path / "file").state == "fault"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("soft", "hard", "state", "fix"),
    [
        (100, 4096, "fault", "ulimit -n 4096"),
        (512, 4096, "warning", "ulimit -n 4096"),
        (100, 200, "fault", "limits.d"),
        (2048, 4096, "ok", ""),
    ],
)
def test_open_files(soft, hard, state, fix):
    program = "from distrec.doctor.machine import open_files; f = open_files(); print(f.state, f.fix, sep=chr(10))"
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip(f"this machine allows fewer than {hard} open files")
    shell = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec {sys.executable} -c "{program}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, cwd=ROOT)
    found_state, found_fix = done.stdout.split("\n")[:2]
    assert found_state == state
    assert fix in found_fix if fix else not found_fix


def test_cards_between_nodes_need_memory_that_may_be_locked(tmp_path, monkeypatch):
    limits = {"soft": 8 << 20}
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (limits["soft"], limits["soft"]))
    assert list(machine.locked_memory(tmp_path / "absent")) == list(machine.locked_memory(tmp_path)) == []
    (tmp_path / "mlx5_0").mkdir()
    [found] = machine.locked_memory(tmp_path)
    assert (found.state, "8 MiB" in found.found, "mlx5_0" in found.found, "memlock" in found.fix) == ("fault", True, True, True)
    limits["soft"] = resource.RLIM_INFINITY
    assert [found.state for found in machine.locked_memory(tmp_path)] == ["ok"]


def test_a_disk_is_timed_and_left_clean(tmp_path):
    [found] = machine.disk(tmp_path, sample=4 << 20)
    assert found.state in ("ok", "warning")
    assert re.search(r"writes [\d,]+ MB/s, reads [\d,]+ MB/s, [\d.,]+ .iB free", found.found)
    assert not list(tmp_path.iterdir())


def test_a_slow_or_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LEAST_FREE", 0)
    monkeypatch.setattr(machine, "SLOW", 1e15)
    assert [f.state for f in machine.disk(tmp_path, sample=1 << 20)] == ["warning"]
    monkeypatch.setattr(machine, "SLOW", 0)
    assert [f.state for f in machine.disk(tmp_path, sample=1 << 20)] == ["ok"]
    monkeypatch.setattr(machine, "LEAST_FREE", 1 << 60)
    assert [f.state for f in machine.disk(tmp_path, sample=1 << 20)] == ["warning"]


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        [found] = machine.disk(folder)
        assert (found.state, str(folder) in found.found, "--folder" in found.fix) == ("fault", True, True)
        assert ("mkdir" in found.fix) == (folder.name == "absent")  # no command makes a folder of a file
