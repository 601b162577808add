"""The TorchX component: what each scheduler would run, by value; what a user's mistake gives; and one real launch."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

ROOT = Path(__file__).parents[1]
COMPONENT = f"{ROOT / 'launch' / 'component.py'}:train"
CONFIG = """
name = "tiny"
data = { train = "rows", batch_size = 4 }
features = { dense = ["x"] }
model = { name = "dlrm" }
"""
SCRIPTS = {  # stand-ins on PATH that print, one JSON line each, what they were called with
    "python": "print(json.dumps(sys.argv[1:]))",
    "scontrol": "print(json.dumps(['scontrol', *sys.argv[1:]]))",
    "srun": """
        groups = [[]]
        for word in sys.argv[1:]:
            groups.append([]) if word == ":" else groups[-1].append(word)
        for group in groups:
            subprocess.run([word for word in group if not word.startswith("--")], check=True)
        sys.exit(int(os.environ["SRUN_EXIT"]))
    """,
}


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def path_of_stand_ins(tmp_path) -> str:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in SCRIPTS.items():
        body = f"#!{sys.executable}\nimport json, os, subprocess, sys\n{textwrap.dedent(script)}"
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def app(*words: str):
    return materialize_appdef(get_component(COMPONENT).fn, list(words))


def request(scheduler: str, made, **cfg):
    with get_runner() as runner:
        return runner.dryrun(made, scheduler, cfg=cfg).request


def executed(script: str, path: str, **environment: str) -> list:
    """What the stand-ins were called with when bash runs `script`."""
    done = subprocess.run(["bash", "-c", script], env={"PATH": path, **environment}, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_one_machine(config):
    role = app("--config", config, "-j", "1x2", "train.epochs=3").roles[0]
    agent = "exec python -m distrec.agent --nnodes=1 --nproc-per-node=2 --max-restarts=0"
    assert (role.name, role.entrypoint, role.num_replicas, role.max_retries) == ("train", "bash", 1, 0)
    assert role.args == ["-c", f"{agent} -m distrec train {shlex.quote(config)} train.epochs=3"]
    assert role.env == {"PYTHONUNBUFFERED": "1"}
    assert (role.resource.gpu, role.resource.cpu, role.resource.memMB) == (0, 0, 0)


def test_many_machines(config):
    flags = "-j 2x8 --gpu 8 --cpu 64 --memMB 500000 --max_retries 3 --image registry/distrec --rdzv_port 29777"
    made = app("--config", config, *flags.split(), "--env", "NCCL_DEBUG=WARN")
    role = made.roles[0]
    assert made.name == "tiny"
    assert (role.num_replicas, role.max_retries, role.image) == (2, 3, "registry/distrec")
    assert (role.resource.gpu, role.resource.cpu, role.resource.memMB) == (8, 64, 500000)
    assert role.env == {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "8", "NCCL_DEBUG": "WARN"}
    assert role.port_map == {"c10d": 29777}


def test_few_cores_still_give_a_rank_a_thread(config):
    assert app("--config", config, "-j", "1x8", "--cpu", "4").roles[0].env["OMP_NUM_THREADS"] == "1"


def test_a_name_replaces_the_one_in_the_config(config):
    assert app("--config", config, "--name", "other").name == "other"
    assert app("--config", config, "name=third").name == "third"


def test_an_environment_that_torchx_has_written_into_is_not_used_again(config):
    request("local_cwd", app("--config", config))
    assert app("--config", config).roles[0].env == {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("flags", "tail"),
    [
        ([], []),
        (["--max_retries", "2"], ["--resume", "auto"]),
        (["--resume", "auto"], ["--resume", "auto"]),
        (["--resume", "newest", "--max_retries", "2"], ["--resume", "newest"]),
    ],
)
def test_a_job_that_may_restart_resumes(config, flags, tail):
    words = shlex.split(app("--config", config, *flags).roles[0].args[1])
    assert words[words.index(config) + 1 :] == tail


def test_local_cwd_runs_it_here(config):
    made = request("local_cwd", app("--config", config, "-j", "2x1"))
    first, second = made.role_params["train"]
    assert first.args == second.args
    assert '--rdzv-endpoint="${TORCHX_RANK0_HOST:-localhost}:29500"' in first.args[2]
    assert f"--rdzv-id={made.app_id}" in first.args[2]


FLAGS = ["-j", "2x8", "--gpu", "8", "--cpu", "64", "--memMB", "500000", "--max_retries", "3"]
HARD_WORD = "data.train=/d/$$x/$replica_id 'y'"


def agent_words(config: str, endpoint: str, job: str) -> list[str]:
    """The two nodes' command after `python`, written out."""
    size = ["--nnodes=2", "--nproc-per-node=8", "--max-restarts=3"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}:29500", f"--rdzv-id={job}"]
    return ["-m", "distrec.agent", *size, *meet, "-m", "distrec", "train", config, HARD_WORD, "--resume", "auto"]


def test_slurm_asks_for_the_nodes_and_starts_an_agent_on_each(config, path_of_stand_ins):
    script = request("slurm", app("--config", config, *FLAGS, HARD_WORD), partition="gpu", time="1:00:00").materialize()
    asked = [set(line.split()[1:]) for line in script.splitlines() if line.startswith("#SBATCH --")]
    needs = {"--requeue", "--partition=gpu", "--time=1:00:00", "--ntasks-per-node=1"}
    needs |= {"--cpus-per-task=64", "--gpus-per-task=8", "--mem=500000"}
    assert asked == [{"--job-name=train-0", *needs}, {"--job-name=train-1", *needs}]
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST_HET_GROUP_0": "node-a", "SRUN_EXIT": "0"}
    assert executed(script, path_of_stand_ins, **job) == [agent_words(config, "node-a", "77")] * 2
    assert script.count("--export=ALL,PYTHONUNBUFFERED=1,OMP_NUM_THREADS=8,") == 2


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("2", True), ("3", False)])
def test_slurm_requeues_a_failed_job_as_often_as_asked(config, path_of_stand_ins, restarts, requeued):
    script = request("slurm", app("--config", config, "--max_retries", "3")).materialize()
    calls = executed(script, path_of_stand_ins, SLURM_JOB_ID="77", SRUN_EXIT="137", SLURM_RESTART_COUNT=restarts)
    assert (["scontrol", "requeue", "77"] in calls) is requeued


def test_kubernetes_makes_a_pod_a_node(config, path_of_stand_ins):
    made = app("--config", config, *FLAGS, "--mounts", "type=volume,src=claim,dst=/data", HARD_WORD)
    with pytest.warns(UserWarning, match="Volcano"):
        job = request("kubernetes", made, queue="training").resource
    spec = job["spec"]
    assert (spec["queue"], spec["maxRetry"], [task["name"] for task in spec["tasks"]]) == (
        "training",
        3,
        ["train-0", "train-1"],
    )
    for task, endpoint in zip(spec["tasks"], ("localhost", "train-0.svc"), strict=True):
        [container] = task["template"].spec.containers
        assert container.resources.limits == {"cpu": "64000m", "memory": "500000M", "nvidia.com/gpu": "8"}
        assert [(mount.name, mount.mount_path) for mount in container.volume_mounts][1:] == [("mount-0", "/data")]
        assert {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "8"}.items() <= {e.name: e.value for e in container.env}.items()
        [called] = executed(shlex.join(container.command), path_of_stand_ins, VC_TRAIN_0_HOSTS="train-0.svc")
        assert called == agent_words(config, endpoint, job["metadata"]["name"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "absent.toml"], "no config file at absent.toml"),
        (["--config", "{broken}"], "is not valid TOML"),
        (["--config", "{config}", "train.epocs=3"], "train.epocs: no such key; did you mean 'epochs'?"),
        (["--config", "{config}", "--name", "other", "train.epocs=3"], "did you mean 'epochs'?"),
        (["--config", "{config}", "tables.t={rows=8, dim=4}"], "table 't' is used by no feature"),
        (["--config", "{config}", "train.epochs=3", "-j", "1x2"], "-j stands after the overrides"),
        (["--config", "{config}", "-j", "1:2x4"], "-j 1:2x4 is not NODESxRANKS"),
        (["--config", "{config}", "-j", "0x4"], "-j 0x4 is not NODESxRANKS"),
        (["--config", "{config}", "-j", "1x4", "--gpu", "2"], "--gpu 2 gives it fewer GPUs"),
        (["--config", "{config}", "--resume", "true"], "--resume true: it is newest, or auto"),
        (["--config", "{config}", "--mounts", "dst=/data"], "--mounts dst=/data: type must be specified first"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(config, tmp_path, capsys, words, said):
    (tmp_path / "broken.toml").write_text("name = ")
    places = {"{config}": config, "{broken}": str(tmp_path / "broken.toml")}
    with pytest.raises(SystemExit) as end:
        app(*(places.get(word, word) for word in words))
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("distrec: ")
    assert said in error


@pytest.mark.parametrize(("given", "shown"), [({}, "Bar"), ({"SLURM_UNBUFFEREDIO": "1"}, "Lines")])
def test_a_terminal_that_ends_in_a_file_gets_lines(given, shown):
    """TorchX's batch script sets the variable, and srun then gives each task a pseudo-terminal."""
    script = "from distrec.screen import console, progress_for; print(type(progress_for(True)).__name__, console.color_system)"
    reader, terminal = os.openpty()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | {"TERM": "xterm"} | given
    subprocess.run([sys.executable, "-c", script], stdout=terminal, env=environment, cwd=ROOT, check=True)
    os.close(terminal)
    progress, colors = os.read(reader, 1000).decode().split()
    os.close(reader)
    assert (progress, colors == "None") == (shown, bool(given))


PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(dist.get_rank() + 1)
dist.all_reduce(total)
print(f"sum {int(total)} {sys.argv[1:]}", flush=True)
dist.destroy_process_group()
print(f"rank {os.environ['RANK']} has no column y", file=sys.stderr, flush=True)
os._exit(2)
"""


def torchx_run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """`torchx run -s local_cwd` where `distrec train` is PROGRAM and all else of distrec is itself."""
    package = folder / "distrec"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'distrec')!r})")
    (package / "__main__.py").write_text(PROGRAM)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["torchx", "run", "-s", "local_cwd", COMPONENT, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_two_local_nodes_meet_and_a_failure_is_shown(config, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    done = torchx_run(tmp_path, "--config", config, "-j", "2x1", "--rdzv_port", port, "train.epochs=3")
    said = done.stderr
    for node in (0, 1):
        assert f"train/{node} sum 3 ['train', {config!r}, 'train.epochs=3']" in said
    assert " rank 0 has no column y" in said
    assert " rank 1 has no column y" in said
    assert re.search(r"train/[01] distrec: rank [01] failed with exit code 2; see the message above", said)
    assert "Traceback" not in said
    assert done.returncode == 1


def test_torchx_itself_stops_at_a_mistake_without_a_traceback(tmp_path):
    done = torchx_run(tmp_path, "--config", "absent.toml")
    assert (done.returncode, done.stderr) == (2, "distrec: no config file at absent.toml\n")
