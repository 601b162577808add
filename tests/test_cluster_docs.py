"""docs/cluster.md: each of its commands is run, and what it shows of their output is what they print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", TEXT, flags=re.S | re.M)
CONFIG = "configs/dlrm_synthetic.toml"
SAYS = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'
STAND_INS = {  # of what only a cluster has; each notes how it was called
    "docker": SAYS,
    "kubectl": SAYS,
    "squeue": SAYS,
    "sacct": SAYS + "echo 'JobID|JobName|State'\n",
    "sinfo": SAYS,
    "sbatch": SAYS + 'for script; do :; done; cp "$script" "$CALLS.sh"\nenv | grep "^S[A-Z]*_" >> "$CALLS"; echo 77\n',
}
# Nodes on this machine: every group's command at once.
SRUN = """#!/usr/bin/env python
import subprocess, sys
from itertools import dropwhile
groups = [[]]
for word in sys.argv[1:]:
    groups.append([]) if word == ":" else groups[-1].append(word)
running = [subprocess.Popen(list(dropwhile(lambda word: word.startswith("--"), group))) for group in groups]
sys.exit(max(process.wait() for process in running))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's files with a small dataset, and stand-ins for what a login node has."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    distrec = f'#!/bin/sh\nexec "{sys.executable}" -m distrec "$@"\n'
    for name, script in (STAND_INS | {"srun": SRUN, "distrec": distrec}).items():
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    shell(folder, "distrec prepare synthetic --out data/synthetic --rows 2000 --valid-rows 500")
    return folder


def shell(folder: Path, script: str, **more: str) -> str:
    """What a login shell prints, where `distrec` is this checkout's."""
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN", "RANK"))}
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "CALLS": str(folder / "calls"), "COLUMNS": "200"} | more
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def block(containing: str) -> tuple[str, str]:
    """The commands of the one block with this in it, and the output that is shown below."""
    [found] = [pair for pair in BLOCKS if containing in pair[0]]
    return found


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


TESTED = ("distrec check", "--dryrun -s slurm", "SRUN_CPUS_PER_TASK=", "--dryrun -s kubernetes", "kubectl", "-j 4x8")


def test_there_is_a_test_for_every_block() -> None:
    assert [block(containing)[0] for containing in TESTED] == [commands for commands, _ in BLOCKS]


def test_what_to_look_at_first(cluster: Path) -> None:
    check, plan, _ = block("distrec check")[0].splitlines()
    assert "dlrm_synthetic.toml is sound" in shell(cluster, check)
    assert "dlrm-synthetic on 2x8 cuda ranks of 80.0 GB" in shell(cluster, plan)


@pytest.mark.slow
def test_the_doctor_is_asked_here_and_on_a_node(cluster: Path) -> None:
    [on_node] = re.findall(r"`(srun [^`]+)`", TEXT)
    for command, ranks in ((block("distrec check")[0].splitlines()[2], 2), (on_node.replace("8", "1"), 1)):
        assert f"all-to-all, {ranks} rank" in shell(cluster, f"{command} --device cpu || true")


def test_the_environment_is_made_where_it_is_then_activated() -> None:
    [install], [activate] = re.findall(r"`make ([^`]+)`", TEXT), re.findall(r"`\. ([^`]+)/bin/activate`", TEXT)
    done = subprocess.run(["make", "-n", *install.split()], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"python3.12 -m venv {activate}\n" in done.stdout
    files = re.findall(r"-r (\S+)", done.stdout)
    assert files == ["requirements/torch-cuda.txt", *(f"requirements/{name}.txt" for name in ("cuda", "s3", "dev"))]
    assert set(re.findall(r"pip install --no-deps -r (\S+\.txt)", TEXT)) <= set(files)


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_dry_runs_print_what_is_shown(cluster: Path, scheduler: str) -> None:
    commands, shown = block(f"--dryrun -s {scheduler}")
    said = shell(cluster, commands)
    assert len(shown.splitlines()) >= 8
    at = 0
    for part in re.split(r"\s*…\s*", shown.strip()):
        found = said.find(part, at)
        assert found >= 0, f"not printed, or not here:\n{part}\n\n{said}"
        at = found + len(part)
    if scheduler == "kubernetes":
        image = "registry.example.org/distrec:1"
        assert calls(cluster)[:2] == [f"docker build -t {image} --build-arg DEVICE=cuda .", f"docker push {image}"]


def test_a_submission_hands_slurm_the_variables_and_the_script(cluster: Path) -> None:
    shell(cluster, block("SRUN_CPUS_PER_TASK=")[0])
    called = calls(cluster)
    assert called[0].startswith("sinfo") or called[0].startswith("sbatch --parsable")
    assert {"SRUN_CPUS_PER_TASK=96", "SBATCH_SIGNAL=TERM@120"} <= set(called)
    assert called[-1] == "squeue --me"
    assert "--max-restarts=3" in (cluster / "calls.sh").read_text()


def test_another_number_of_nodes_is_another_submission(cluster: Path) -> None:
    shell(cluster, block("-j 4x8")[0])
    script = (cluster / "calls.sh").read_text()
    assert script.count("#SBATCH --job-name=train-") == 4
    assert "--nnodes=4 --nproc-per-node=8" in script
    assert f"distrec train {CONFIG} --resume newest" in script


def test_pods_are_found_by_a_label_that_they_have(cluster: Path) -> None:
    shell(cluster, block("kubectl")[0])
    [label] = re.findall(r"--selector (\S+)=(\S+)", "\n".join(calls(cluster)))
    assert ": ".join(label) in shell(cluster, block("--dryrun -s kubernetes")[0])


def test_the_words_that_are_searched_for_in_a_log_are_those_of_the_code() -> None:
    code = " ".join((ROOT / "distrec" / name).read_text() for name in ("agent.py", "__main__.py"))
    for words in (
        "was killed by",
        "the kernel does that when memory runs out",
        "which failed, hangs or is stopped",
        "stopped by",
        "the nodes cannot meet at",
        "failed with exit code",
    ):
        assert words in TEXT
        assert words in code
    assert set(re.findall(r"TORCH_\w+", TEXT)) <= set(re.findall(r"TORCH_\w+", code))


@pytest.mark.slow
def test_the_batch_script_trains_on_two_nodes(cluster: Path) -> None:
    """With one CPU rank a node, both on this machine, started by a stand-in for srun."""
    command = block("SRUN_CPUS_PER_TASK=")[0].split("torchx", 1)[1].splitlines()[0]
    small = command.replace("-j 2x8 --gpu 8 --cpu 96 --memMB 1000000", "-j 2x1 --rdzv_port 29611")
    shell(cluster, f"torchx{small} train.device=cpu train.steps=6 data.batch_size=64")
    said = shell(cluster, "bash calls.sh", SLURM_JOB_ID="77", SLURM_JOB_NODELIST_HET_GROUP_0="localhost")
    assert "dlrm-synthetic: 6 of 6 steps" in said
    assert '"world": 2' in next((cluster / "runs" / "dlrm-synthetic" / "checkpoints").glob("*/manifest.json")).read_text()
