"""Shapes, parameters and random inputs that the tests of models share."""

from dataclasses import replace

import torch

from distrec.models import build
from distrec.models.inputs import Embedded, InputSpec, Jagged

# Two aligned histories of the two targets, and one more history of its own lengths.
SPEC = InputSpec(
    num_dense=3,
    pooled={"user": 4, "item": 4, "genre": 4},
    sequences={"item_history": 4, "genre_history": 4, "searches": 4},
)
LENGTHS = [3, 0, 1, 5, 2, 4, 0, 2]
ALIGNED = ("item_history", "genre_history")
PAIRS = {"targets": ["item", "genre"], "histories": list(ALIGNED)}

CASES = {
    "dlrm-dot": ("dlrm", {"bottom_mlp": [6, 4], "top_mlp": [7, 5]}),
    "dlrm-dcn": ("dlrm", {"interaction": "dcn", "bottom_mlp": [6], "top_mlp": [7], "cross_layers": 2}),
    "dlrm-dcn-low-rank": ("dlrm", {"interaction": "dcn", "bottom_mlp": [5], "top_mlp": [7], "cross_rank": 3}),
    "dcn": ("dcn", {"mlp": [7, 5], "cross_layers": 2}),
    "dcn-parallel-low-rank": ("dcn", {"mlp": [7], "structure": "parallel", "cross_layers": 2, "cross_rank": 3}),
    "dcn-experts": ("dcn", {"mlp": [7], "structure": "parallel", "cross_layers": 2, "cross_rank": 3, "experts": 2}),
    "deepfm": ("deepfm", {"mlp": [7, 5]}),
    "din": ("din", {**PAIRS, "attention_mlp": [6, 5], "top_mlp": [7]}),
    "din-softmax": ("din", {**PAIRS, "softmax": True, "attention_activation": "sigmoid", "top_activation": "relu"}),
    "mmoe": ("mmoe", {"experts": 3, "expert_mlp": [7, 5], "tower_mlp": [4]}),
    "mmoe-extraction": ("mmoe", {"experts": 2, "task_experts": 2, "expert_mlp": [6], "tower_mlp": []}),
    "wide-deep": ("wide_deep", {"mlp": [7, 5]}),
    "wide-deep-parts": ("wide_deep", {"mlp": [7], "wide_only": ["genre", "searches"], "deep_only": ["user", "item_history"]}),
}
LEAST_TASKS = {"mmoe": 2}


def jagged(lengths: list[int], dim: int, generator: torch.Generator) -> Jagged:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Jagged(torch.randn(sum(lengths), dim, generator=generator, dtype=torch.float64), offsets)


def random_inputs(spec: InputSpec = SPEC, lengths: list[int] = LENGTHS, seed: int = 0) -> Embedded:
    """Double precision. `searches` is one longer than the other histories in every row but the first."""
    g = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    longer = [lengths[0], *(n + 1 for n in lengths[1:])] if any(lengths) else lengths
    return Embedded(
        dense=torch.randn(rows, spec.num_dense, generator=g, dtype=torch.float64),
        pooled={n: torch.randn(rows, d, generator=g, dtype=torch.float64) for n, d in spec.pooled.items()},
        sequences={n: jagged(longer if n == "searches" else lengths, d, g) for n, d in spec.sequences.items()},
    )


def fitting(name: str, spec: InputSpec = SPEC) -> InputSpec:
    """`spec`, with as many tasks as the model needs."""
    return replace(spec, num_tasks=max(spec.num_tasks, LEAST_TASKS.get(name, 1)))


def random_model(case: str, spec: InputSpec = SPEC, seed: int = 1) -> torch.nn.Module:
    """A model in double precision with no parameter and no running statistic left at its initial value."""
    name, params = CASES[case]
    model = build(name, params, fitting(name, spec)).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
        for key, buffer in model.state_dict().items():
            if key.endswith((".mean", ".var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=g, dtype=torch.float64))
    return model


def positions(x: Jagged, row: int) -> range:
    return range(int(x.offsets[row]), int(x.offsets[row + 1]))


def take_rows(inputs: Embedded, rows: list[int]) -> Embedded:
    """The given rows, in the given order."""

    def pick(x: Jagged) -> Jagged:
        chosen = [i for row in rows for i in positions(x, row)]
        lengths = [len(positions(x, row)) for row in rows]
        return Jagged(x.values[chosen], torch.tensor([0, *lengths]).cumsum(0))

    return Embedded(
        dense=inputs.dense[rows],
        pooled={n: v[rows] for n, v in inputs.pooled.items()},
        sequences={n: pick(v) for n, v in inputs.sequences.items()},
    )
