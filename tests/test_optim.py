"""What moves parameters, by hand-computed updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Kernel
from small_run import values, write_rows
from torch import nn

from distrec import dist, optim
from distrec.config.load import parse
from distrec.config.schema import DenseOptimizer, Schedule, SparseOptimizer
from distrec.embeddings import shard
from distrec.engine import Engine, open_reader
from distrec.optim import ReplicatedTables, dense_optimizer, schedule_factor

# -- the schedule ----------------------------------------------------------------------------------------------------

WARM = {"warmup_steps": 4}
LINEAR = {"decay": "linear", "decay_steps": 10, "final_factor": 0.2}
HELD = {"hold_steps": 10} | LINEAR
COSINE = {"decay": "cosine", "decay_steps": 10, "final_factor": 0.2}


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ({}, 0, 1.0),
        ({}, 10**6, 1.0),
        (WARM, 0, 0.25),
        (WARM, 2, 0.75),
        (WARM, 3, 1.0),
        (WARM, 4, 1.0),
        (LINEAR, 0, 1.0),
        (LINEAR, 5, 0.6),
        (LINEAR, 10, 0.2),
        (LINEAR, 11, 0.2),
        (WARM | LINEAR, 1, 0.5),
        (WARM | LINEAR, 4, 1.0),
        (WARM | LINEAR, 9, 0.6),
        (WARM | LINEAR, 99, 0.2),
        (COSINE, 0, 1.0),
        (COSINE, 5, 0.6),
        (COSINE, 10, 0.2),
        (COSINE, 2, 0.2 + 0.8 * (1 + 0.8090169943749475) / 2),  # cos 36°
        ({"decay": "linear", "decay_steps": 4}, 4, 0.0),
        (HELD, 5, 1.0),
        (HELD, 10, 1.0),
        (HELD, 15, 0.6),
        (HELD, 20, 0.2),
        (WARM | HELD, 0, 0.25),
        (WARM | HELD, 14, 1.0),
        (WARM | HELD, 19, 0.6),
    ],
)
def test_the_factor_of_a_step(schedule: dict[str, Any], step: int, factor: float) -> None:
    assert schedule_factor(Schedule(**schedule), step) == pytest.approx(factor, abs=1e-12)


# -- the dense optimizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gradients", "after"),
    [
        ({"name": "sgd"}, [2.0], 0.8),
        ({"name": "sgd", "momentum": 0.9}, [1.0, 1.0], 1 - 0.1 - 0.19),
        ({"name": "sgd", "weight_decay": 0.5}, [0.0], 0.95),
        ({"name": "adagrad"}, [2.0], 0.9),
        ({"name": "adagrad"}, [3.0, 4.0], 0.9 - 0.1 * 4 / 5),
        ({"name": "adam"}, [7.0], 0.9),
        ({"name": "adam", "eps": 1.0}, [1.0], 0.95),
        ({"name": "adam", "betas": (0.5, 0.5)}, [1.0, 0.0], 0.9 - 0.1 * math.sqrt(1 / 3)),
        ({"name": "adam", "weight_decay": 0.5}, [0.0], 0.9),  # in the gradient: a full step of lr
        ({"name": "adamw", "weight_decay": 0.5}, [0.0], 0.95),  # beside the gradient: lr x decay
        ({"name": "adamw", "weight_decay": 0.5}, [3.0], 0.85),
    ],
)
def test_the_named_dense_optimizer_moves_as_it_should(config: dict[str, Any], gradients: list[float], after: float) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = dense_optimizer({"w": weight}, DenseOptimizer(lr=0.1, **config))
    for gradient in gradients:
        weight.grad = torch.full((1,), gradient)
        optimizer.step()
    assert weight.item() == pytest.approx(after, abs=1e-6)


# -- replicated tables -----------------------------------------------------------------------------------------------

TWO_STEPS: dict[str, Callable[[float, float], tuple[float, dict[str, float]]]] = {
    "sgd": lambda a, b: (-0.1 * (a + b), {}),
    "adagrad": lambda a, b: (-0.1 * (1 + b / math.sqrt(a * a + b * b)), {"momentum1": a * a + b * b}),
    "adam": lambda a, b: (
        -0.1 * (1 + ((0.09 * a + 0.1 * b) / 0.19) / math.sqrt((0.000999 * a * a + 0.001 * b * b) / 0.001999)),
        {"momentum1": 0.09 * a + 0.1 * b, "exp_avg_sq": 0.000999 * a * a + 0.001 * b * b},
    ),
}


@pytest.fixture(params=["rows with a gradient", "all rows"])
def rows_given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows an update is given: as on CPU, and as on a GPU."""
    if request.param == "all rows":
        monkeypatch.setattr(optim, "rows_to_update", lambda grad: torch.arange(len(grad)))


@pytest.mark.usefixtures("rows_given")
@pytest.mark.parametrize("name", TWO_STEPS)
def test_a_replicated_row_moves_by_the_formula(name: str) -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = ReplicatedTables([weight], SparseOptimizer(name=name, lr=0.1))  # type: ignore[arg-type]
    for gradient in (2.0, 3.0):
        weight.grad = torch.zeros(3, 4)
        weight.grad[1] = gradient
        optimizer.step()
    moved, slots = TWO_STEPS[name](2.0, 3.0)
    assert weight[1].tolist() == pytest.approx([moved] * 4, abs=1e-6)
    assert optimizer.state[weight].keys() == slots.keys()
    for slot, value in slots.items():
        assert optimizer.state[weight][slot][1].tolist() == pytest.approx([value] * 4, rel=1e-5)


@pytest.mark.usefixtures("rows_given")
def test_rowwise_adagrad_keeps_one_number_a_row() -> None:
    weight = nn.Parameter(torch.zeros(2, 4))
    optimizer = ReplicatedTables([weight], SparseOptimizer(name="rowwise_adagrad", lr=0.1))
    weight.grad = torch.tensor([[0.0] * 4, [1.0, 1.0, 1.0, 5.0]])
    optimizer.step()
    assert optimizer.state[weight]["momentum1"].tolist() == [0.0, 7.0]  # (1 + 1 + 1 + 25) / 4
    assert weight[1].tolist() == pytest.approx([-0.1 / math.sqrt(7)] * 3 + [-0.5 / math.sqrt(7)], abs=1e-6)


@pytest.mark.usefixtures("rows_given")
def test_weight_decay_is_in_the_gradient_of_rows_that_have_one_and_in_no_other() -> None:
    weight = nn.Parameter(torch.full((2, 4), 2.0))
    optimizer = ReplicatedTables([weight], SparseOptimizer(name="rowwise_adagrad", lr=0.1, weight_decay=0.5))
    weight.grad = torch.tensor([[0.0] * 4, [0.0, 0.0, 0.0, 4.0]])  # and with the decay 1, 1, 1 and 5
    optimizer.step()
    assert optimizer.state[weight]["momentum1"].tolist() == [0.0, 7.0]
    assert weight[0].tolist() == [2.0] * 4
    assert weight[1].tolist() == pytest.approx([2 - 0.1 / math.sqrt(7)] * 3 + [2 - 0.5 / math.sqrt(7)], abs=1e-6)


@pytest.mark.usefixtures("rows_given")
@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_rows_without_gradient_keep_weights_and_moments(name: str) -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = ReplicatedTables([weight], SparseOptimizer(name=name, lr=0.1))  # type: ignore[arg-type]
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    before, slots = weight.detach().clone(), {slot: value.clone() for slot, value in optimizer.state[weight].items()}
    weight.grad = torch.zeros(4, 4)
    weight.grad[2, 3] = -1.0
    optimizer.step()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(weight[others], before[others])
    assert not torch.equal(weight[2], before[2])
    assert slots
    for slot, value in slots.items():
        assert torch.equal(optimizer.state[weight][slot][others], value[others]), slot


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_every_row_moves_as_torch_s_adam_moves_it(decay: float) -> None:
    torch.manual_seed(0)
    weight, expected = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.empty(5, 4))
    expected.data.copy_(weight.data)
    ours = ReplicatedTables([weight], SparseOptimizer(name="adam", lr=0.1, every_row=True, weight_decay=decay))
    torchs = torch.optim.Adam([expected], lr=0.1, weight_decay=decay, foreach=False)
    for looked_up in ([0, 1, 2], [1], [], [4]):
        before = weight.detach().clone()
        weight.grad = torch.zeros(5, 4)
        weight.grad[looked_up] = torch.randn(len(looked_up), 4)
        expected.grad = weight.grad.clone()
        ours.step()
        torchs.step()
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    assert bool((weight != before).all(dim=1)[:3].all())  # by momentum alone
    assert ours.state[weight].keys() == {"momentum1", "exp_avg_sq"}
    torch.testing.assert_close(ours.state[weight]["exp_avg_sq"], torchs.state[expected]["exp_avg_sq"])


def test_adam_s_state_has_one_form_whether_a_table_is_replicated_or_sharded(
    engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FBGEMM has Adam for sharded tables on GPUs only, and the names of its state everywhere."""
    names = Kernel.get_optimizer_state

    def as_adam(kernel: Kernel) -> list[dict[str, torch.Tensor]]:
        states = [[torch.zeros_like(weight), torch.ones_like(weight)] for weight in kernel.split_embedding_weights()]
        adam = {"optimizer": EmbOptimType.ADAM, "use_rowwise_bias_correction": False}
        return names(SimpleNamespace(**adam, split_optimizer_states=lambda: states))  # type: ignore[arg-type]

    monkeypatch.setattr(Kernel, "get_optimizer_state", as_adam)
    adam, sharded = {"name": "adam", "lr": 0.1}, {"name": "sgd", "lr": 0.1}
    tables = {
        "user": {"rows": 50, "dim": 8, "sharding": "data_parallel", "optimizer": adam},
        "item": {"rows": 40, "dim": 8, "optimizer": sharded},
    }
    found = engine(tables=tables).optimizers.state_dict()["tables"]
    assert found["user"].keys() == found["item"].keys()
    assert len(found["user"]) == 2


# -- all of them, on one rank ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("optim") / "rows", rows=128)


@pytest.fixture
def engine(rows: Path, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """An engine with a replicated table, `user`, and a fused one, `item`."""
    ranks = dist.start("cpu")

    def make(**sections: Any) -> Engine:
        tables = {"user": {"rows": 50, "dim": 8, "sharding": "data_parallel"}, "item": {"rows": 40, "dim": 8}}
        dense = {"name": "sgd", "lr": 1.0}
        optimizer = {"dense": dense, "sparse": {"name": "sgd", "lr": 0.5}} | sections.pop("optimizer", {})
        sections = {"tables": tables, "optimizer": optimizer} | sections
        return Engine.build(parse(values(rows, tmp_path / "run", **sections)), ranks)

    yield make
    dist.stop()


def state(engine: Engine) -> dict[str, torch.Tensor]:
    """Every parameter, whole."""
    found = engine.model.state_dict()
    return {
        key: (value.local_shards()[0].tensor if hasattr(value, "local_shards") else value).clone()
        for key, value in found.items()
    }


def moved(engine: Engine, skip: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """How far one step on the first batch moved the dense part, and each table."""
    engine.model.eval()  # no dropout
    before = state(engine)
    batch = next(open_reader(engine, "train").batches())
    engine.optimizers.zero_grad()
    engine.model(batch)[0].backward()
    engine.optimizers.skip = skip
    engine.optimizers.step()
    change = {key: value - before[key] for key, value in state(engine).items()}
    tables = {key.split(".")[-2]: value for key, value in change.items() if "embeddings" in key}
    return {key: value for key, value in change.items() if "embeddings" not in key}, tables


def tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """Every parameter and every slot of the tables, as they stand: what a checkpoint is loaded into."""
    slots = engine.optimizers.state_dict()["tables"]
    found = engine.model.state_dict() | {f"{name}.{slot}": v for name, own in slots.items() for slot, v in own.items()}
    return {key: value.local_shards()[0].tensor if hasattr(value, "local_shards") else value for key, value in found.items()}


def norm(changes: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(change.double().square().sum()) for change in changes.values()))


def test_clip_norm_bounds_the_dense_gradient_and_leaves_tables_alone(engine: Callable[..., Engine]) -> None:
    dense, tables = moved(engine(train={"device": "cpu"}))
    clipped, same_tables = moved(engine(train={"device": "cpu", "clip_norm": 0.001}))
    loose, _ = moved(engine(train={"device": "cpu", "clip_norm": 1e6}))
    assert norm(dense) > 0.01
    assert norm(clipped) == pytest.approx(0.001, rel=1e-3)
    for key, change in dense.items():
        torch.testing.assert_close(clipped[key] / 0.001, change / norm(dense), atol=2e-3, rtol=0)
        torch.testing.assert_close(loose[key], change)
    for name, change in tables.items():
        assert change.abs().sum() > 0, name
        torch.testing.assert_close(same_tables[name], change)


def test_tables_of_which_every_row_moves_are_clipped_with_the_dense_part(engine: Callable[..., Engine]) -> None:
    adam = {"name": "adam", "lr": 0.1, "every_row": True}
    tables = {name: {"rows": rows, "dim": 8, "optimizer": adam} for name, rows in (("user", 50), ("item", 40))}

    def gradient(clip_norm: float | None) -> dict[str, torch.Tensor]:
        built = engine(tables=tables, train={"device": "cpu", "clip_norm": clip_norm})
        dense, _ = moved(built)
        slots = built.optimizers.state_dict()["tables"]
        return dense | {name: own["momentum1"] / 0.1 for name, own in slots.items()}  # after one step

    whole, clipped = gradient(None), gradient(0.001)
    assert norm(clipped) == pytest.approx(0.001, rel=1e-3)
    for key, part in whole.items():
        assert part.ne(0).any(), key
        torch.testing.assert_close(clipped[key] * norm(whole) / 0.001, part, atol=1e-5, rtol=1e-3)  # weights are rounded


def test_a_skipped_step_moves_nothing_and_counts(engine: Callable[..., Engine]) -> None:
    built = engine()
    dense, tables = moved(built, skip=True)
    assert norm(dense) == 0
    assert norm({"user": tables["user"]}) == 0
    assert built.optimizers.steps == 1


def test_the_schedule_scales_every_rate(engine: Callable[..., Engine]) -> None:
    whole_dense, whole_tables = moved(engine())
    warming = engine(optimizer={"schedule": {"warmup_steps": 4}})
    assert warming.optimizers.learning_rates() == {"dense": 0.25, "sparse": 0.125}
    dense, tables = moved(warming)
    assert warming.optimizers.learning_rates() == {"dense": 0.5, "sparse": 0.25}
    for part, whole in ((dense, whole_dense), (tables, whole_tables)):
        for key, change in whole.items():
            torch.testing.assert_close(part[key], change / 4, atol=1e-6, rtol=1e-3)


def test_a_table_may_have_a_rate_of_its_own(engine: Callable[..., Engine], rows: Path, tmp_path: Path) -> None:
    _, whole = moved(engine())
    config = values(rows, tmp_path / "run", optimizer={"dense": {"name": "sgd"}, "sparse": {"name": "sgd", "lr": 0.5}})
    config["tables"] = {
        "user": {"rows": 50, "dim": 8, "sharding": "data_parallel", "optimizer": {"name": "sgd", "lr": 0.25}},
        "item": {"rows": 40, "dim": 8, "optimizer": {"name": "sgd", "lr": 1.0}},
    }
    own = Engine.build(parse(config), dist.Ranks(0, 1, 0, 1, torch.device("cpu")))
    _, tables = moved(own)
    torch.testing.assert_close(tables["user"], whole["user"] / 2, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(tables["item"], whole["item"] * 2, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("every_row", [False, True])
def test_a_skipped_step_is_counted_alike_by_a_run_and_by_one_that_resumes_it(
    engine: Callable[..., Engine], every_row: bool
) -> None:
    adam = {"name": "adam", "lr": 0.1, "every_row": every_row}
    tables = {"user": {"rows": 50, "dim": 8, "optimizer": adam}, "item": {"rows": 40, "dim": 8}}
    straight, resumed = engine(tables=tables), engine(tables=tables)
    for skip in (False, True, False):
        moved(straight, skip)
    with torch.no_grad():
        for key, value in tensors(straight).items():
            tensors(resumed)[key].copy_(value)
    resumed.optimizers.load_state_dict(straight.optimizers.state_dict(), straight.optimizers.steps)
    [_, straight_tables], [_, resumed_tables] = moved(straight), moved(resumed)
    for name, change in straight_tables.items():
        assert change.abs().sum() > 0, name
        assert torch.equal(change, resumed_tables[name]), name


def test_a_kernel_that_counts_its_forwards_is_told_the_step(
    engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Adam's on a GPU do, with those of evaluations. There is no such kernel on CPU, so another one is taken for it."""
    monkeypatch.setattr(shard, "EmbOptimType", SimpleNamespace(ADAM=EmbOptimType.EXACT_SGD))
    built = engine()
    [kernel] = shard.fused_kernels(built.model)
    moved(built)
    kernel.iter_cpu.add_(7)
    kernel.iter.add_(7)
    built.optimizers.zero_grad()
    assert (kernel.iter_cpu.item(), kernel.iter.item()) == (1, 1)
