"""TorchX components: how a run becomes processes on machines. No training logic.

torchx run -s local_cwd launch/component.py:train --config configs/dlrm_movielens.toml -j 1x2
torchx run -s slurm -cfg partition=gpu,time=12:00:00 launch/component.py:train --config C.toml -j 2x8 --gpu 8 train.epochs=3
torchx run -s kubernetes -cfg queue=default launch/component.py:train --config C.toml -j 2x8 --gpu 8 --image REGISTRY/distrec

Each node runs one `distrec.agent`, which starts the node's ranks with torchrun's environment; a rank learns from nothing
else who it is. The config is checked here, before anything is queued, and the ranks read it again by the same path.

TorchX executes this file inside its own module and reads the signature of `train` with `ast` and `inspect`. Hence the
`Optional` and `Dict` below, no `from __future__ import annotations`, and no module-level name that TorchX uses itself.
"""
# ruff: noqa: UP006, UP035, UP045

import re
import shlex
import sys
from typing import Dict, List, Optional

from torchx import specs

from distrec.config.check import check as check_config
from distrec.config.load import load as load_config
from distrec.errors import UserError


def train(
    *overrides: str,
    config: str,
    j: str = "1x1",
    gpu: int = 0,
    cpu: int = 0,
    memMB: int = 0,
    image: str = "distrec:latest",
    name: str = "",
    max_retries: int = 0,
    resume: str = "",
    rdzv_port: int = 29500,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Run `distrec train CONFIG [KEY=VALUE ...]` on NODES x RANKS.

    Args:
        overrides: KEY=VALUE words for the config, after all flags: train.epochs=3
        config: the run's TOML file; the same path must hold on the nodes, or in the image
        j: NODESxRANKS, ranks a node: 1x2 on a laptop, 2x8 for two nodes of 8 GPUs
        gpu: GPUs to ask the scheduler for, a node; at least one a rank, or 0 to ask for none
        cpu: CPU cores to ask for, a node; 0: the scheduler's default
        memMB: memory to ask for, a node; 0: the scheduler's default
        image: container image; Slurm and local_cwd run in the current environment and folder
        name: name of the job; default: the config's name
        max_retries: restarts by the agent when a rank dies, and by the scheduler when a node does; turns on --resume auto
        resume: newest: go on from the run's newest checkpoint; auto: or start, when there is none
        rdzv_port: port on the first node where agents meet; not used by one node
        env: environment of the ranks: NAME=VALUE,NAME=VALUE
        mounts: what to mount into the container: type=volume,src=CLAIM,dst=/data
    """
    try:
        nodes, ranks = _shape(j, gpu)
        run_name = _run_name(config, _words_only(overrides))
        words = [config, *overrides, *_resume(resume, max_retries)]
        return specs.AppDef(
            name=name or run_name,
            roles=[
                specs.Role(
                    name="train",
                    image=image,
                    entrypoint="bash",  # the first node's address is a variable that only the node's shell can expand
                    args=["-c", _command(nodes, ranks, max_retries, rdzv_port, words)],
                    env=_environment(cpu, ranks, env or {}),
                    num_replicas=nodes,
                    max_retries=max_retries,
                    resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB),
                    port_map={"c10d": rdzv_port},
                    mounts=_mounts(mounts or []),
                )
            ],
        )
    except UserError as error:  # an exception would reach the user as TorchX's own traceback
        print(f"distrec: {error}", file=sys.stderr)
        raise SystemExit(UserError.exit_code) from None


def _shape(j: str, gpu: int) -> tuple[int, int]:
    """Nodes and ranks a node."""
    if not (parts := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", j)):
        raise UserError(f"-j {j} is not NODESxRANKS, such as 1x2 for two ranks here or 2x8 for two nodes of eight")
    nodes, ranks = int(parts[1]), int(parts[2])
    if 0 < gpu < ranks:
        raise UserError(f"-j {j} puts {ranks} ranks on a node and --gpu {gpu} gives it fewer GPUs; a rank needs one of its own")
    return nodes, ranks


def _words_only(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides, none of which is a flag that TorchX's parser has left among them."""
    for word in overrides:
        if word.startswith("-"):
            raise UserError(f"{word} stands after the overrides, where it is not read; put flags before the first KEY=VALUE")
    return overrides


def _run_name(config: str, overrides: tuple[str, ...]) -> str:
    """The run's name, from a config that has passed every check that needs no GPU and no data."""
    run = load_config(config, overrides)
    check_config(run)
    return run.name


def _resume(resume: str, max_retries: int) -> list[str]:
    if resume not in ("", "newest", "auto"):
        raise UserError(f"--resume {resume}: it is newest, or auto to start where there is no checkpoint yet")
    return ["--resume", resume or "auto"] if resume or max_retries else []


def _command(nodes: int, ranks: int, max_retries: int, rdzv_port: int, words: list[str]) -> str:
    """The shell command of a node. `exec` makes the agent the process that the scheduler's signals reach.

    TorchX substitutes `${macro}` in it and turns `$$` into `$`, so a dollar of the user's is doubled.
    """
    agent = f"exec python -m distrec.agent --nnodes={nodes} --nproc-per-node={ranks} --max-restarts={max_retries}"
    endpoint = f'"$${{{specs.macros.rank0_env}:-localhost}}:{rdzv_port}"'
    meet = f" --rdzv-backend=c10d --rdzv-endpoint={endpoint} --rdzv-id={specs.macros.app_id}" if nodes > 1 else ""
    return f"{agent}{meet} -m distrec train {shlex.join(words).replace('$', '$$')}"


def _environment(cpu: int, ranks: int, env: Dict[str, str]) -> Dict[str, str]:
    """A new dict, for TorchX writes into the one it gets.

    On Kubernetes `--cpu` is a quota that the agent cannot see from inside, so the threads a rank may use are set here;
    otherwise the agent shares out the cores of its node.
    """
    ours = {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": str(max(1, cpu // ranks))} if cpu else {})
    return ours | {key: value.replace("$", "$$") for key, value in env.items()}


def _mounts(options: List[str]) -> list:
    try:
        return specs.parse_mounts(options)
    except (KeyError, ValueError) as error:
        raise UserError(f"--mounts {','.join(options)}: {error.args[0]}") from None
