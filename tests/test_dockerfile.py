"""The Dockerfile: rules that it keeps, and what its commands make where no engine runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from dockerfile import ROOT, context, environment, instructions

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
TRAIN = "configs/dlrm_synthetic.toml train.steps=6 train.log_every=2 data.batch_size=64"


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint, which `make install` brings")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_device_installs_its_own_closure_and_nothing_that_a_resolver_would_add(device: str) -> None:
    installs = [words for name, words in instructions(DEVICE=device) if name == "RUN" and "pip install" in words]
    files = [file for words in installs for file in re.findall(r"--requirement (\S+)", words)]
    assert files == [f"requirements/{name}.txt" for name in (f"torch-{device}", device, "s3")]
    assert all((ROOT / file).is_file() for file in files)
    assert all("--no-deps" in words for words in installs)
    assert "--no-build-isolation" in installs[-1]


def test_a_change_of_the_source_moves_no_layer_of_a_dependency() -> None:
    steps = instructions()
    source = next(i for i, (name, words) in enumerate(steps) if name == "COPY" and words.startswith("distrec "))
    dependencies = [
        i for i, (name, words) in enumerate(steps) if name == "RUN" and ("apt-get" in words or "--requirement" in words)
    ]
    assert len(dependencies) == 3
    assert max(dependencies) < source
    before = [word for name, words in steps[:source] if name == "COPY" for word in words.split()[:-1]]
    assert not {"distrec", "configs", "."} & set(before)


def test_it_runs_as_nobody_in_particular() -> None:
    steps = instructions()
    users = [words for name, words in steps if name == "USER"]
    assert [user.split(":")[0].isdigit() and user.split(":")[0] != "0" for user in users] == [True]
    assert [name for name, _ in steps[-2:]] == ["USER", "CMD"]
    assert "ENTRYPOINT" not in {name for name, _ in steps}


def test_what_is_copied_is_sent_to_the_engine() -> None:
    names = {str(path) for path in context()} | {part.as_posix() for path in context() for part in path.parents}
    for device in ("cpu", "cuda"):
        sources = [word for name, words in instructions(DEVICE=device) if name == "COPY" for word in words.split()[:-1]]
        assert len(sources) >= 6
        assert [source for source in sources if source not in names] == []
    assert not {name for name in names if name.startswith((".git", "tests", "data/", "runs"))}


Shell = Callable[[str], str]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell where the Dockerfile's commands have run: in a fresh environment, on a copy of what an engine is sent.

    System packages and users are left to engines. `FROM` is the Python that runs the tests.
    """
    root = tmp_path_factory.mktemp("image")
    app, sent = root / "app", root / "context"
    for path in context():
        (sent / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, sent / path)
    venv.create(root / "python", with_pip=True)
    app.mkdir()
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_", "DISTREC"))}
    variables = ours | environment() | {"PATH": f"{root / 'python' / 'bin'}:/usr/bin:/bin"}

    def shell(command: str) -> str:
        done = subprocess.run(["bash", "-c", command], cwd=app, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    for name, words in instructions(DEVICE="cpu"):
        if name == "COPY":
            *sources, target = words.split()
            for source in sources:
                copy(sent / source, app / target)
        elif name == "RUN" and words.startswith("pip "):
            shell(words)
    return shell


def copy(source: Path, target: Path) -> None:
    """As COPY does: a folder's content into the target, a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_commands_make_an_environment_that_the_doctor_finds_sound(image: Shell) -> None:
    found = {finding["name"]: finding for finding in json.loads(image("distrec doctor --json --ranks 2 --device cpu || true"))}
    sound = ("torch", "fbgemm_gpu", "torchrec", "torchx", "pyarrow", "versions", "all-to-all, 2 ranks")
    assert {name: (found[name]["state"], found[name]["fix"]) for name in sound} == dict.fromkeys(sound, ("ok", ""))
    assert "app/distrec/__init__.py" in image("python -c 'import distrec; print(distrec.__file__)'")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_command_and_a_job_as_torchx_gives_it_run(image: Shell) -> None:
    [command] = [words for name, words in instructions() if name == "CMD"]
    assert "--nproc-per-node" in image(" ".join(json.loads(command)))
    image("distrec prepare synthetic --out data/synthetic --rows 1000 --valid-rows 200")
    image(f"exec python -m distrec.agent --nnodes=1 --nproc-per-node=2 --max-restarts=0 -m distrec train {TRAIN}")
    assert '"steps": 6' in image("cat runs/dlrm-synthetic/summary.json")
