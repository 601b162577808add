"""A model without its tables, as programs that run without distrec: torch.export's, and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as tracing

from distrec.errors import UserError
from distrec.models.inputs import Embedded, InputSpec, Jagged

TOLERANCE = 1e-5  # largest difference between ONNX and the model, absolute and relative
EXAMPLES = ((3, 5, 0), (1, 1, 1), (4, 0, 2), (70, 900, 3))  # rows, ids of each history, seed; the first is traced


class Graph(nn.Module):
    """A function of looked-up vectors, with one flat list of inputs.

    In order: `dense` (B, num_dense) where there is any; each pooled feature (B, D); of each history `NAME.values` (N, D),
    oldest first, and `NAME.offsets` (B + 1,) int64: row i owns the values from its offset up to the next one.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, score: Callable[[Embedded], Tensor]):
        """`score` is a method of `model`, whose parameters become part of the graph."""
        super().__init__()
        self.model = model
        self.spec, self._score = spec, score
        self.eval()
        self.kinds = self._kinds()

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        dense = ["dense"] if self.spec.num_dense else []
        return [
            *dense,
            *self.spec.pooled,
            *(f"{name}.{part}" for name in self.spec.sequences for part in ("values", "offsets")),
        ]

    @property
    def types(self) -> dict[str, dict[str, Any]]:
        """The dtype and the shape of each input; a dimension that varies has a name, and those of one name are of one size."""
        kinds = dict(zip(self.spec.sequences, self.kinds, strict=True))
        found = {"dense": _type("float32", "rows", self.spec.num_dense)} if self.spec.num_dense else {}
        found |= {name: _type("float32", "rows", dim) for name, dim in self.spec.pooled.items()}
        for name, dim in self.spec.sequences.items():
            found |= {
                f"{name}.values": _type("float32", f"ids{kinds[name]}", dim),
                f"{name}.offsets": _type("int64", "rows + 1"),
            }
        return found

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the model makes of them: logits (B, num_tasks), or vectors (B, D)."""
        given = dict(zip(self.names, inputs, strict=True))
        histories = {name: Jagged(given[f"{name}.values"], given[f"{name}.offsets"]) for name in self.spec.sequences}
        pooled = {name: given[name] for name in self.spec.pooled}
        dense = given.get("dense")
        if dense is None:
            rows = next(iter(pooled.values())).shape[0] if pooled else next(iter(histories.values())).offsets.shape[0] - 1
            dense = inputs[0].new_zeros(rows, 0)
        result = self._score(Embedded(dense, pooled, histories))
        return result[0] if isinstance(result, tuple) else result

    def example(self, rows: int, ids: int, seed: int) -> list[Tensor]:
        """Random inputs: histories of about `ids` ids in all, each kind another number, some rows maybe without any."""
        return self._example(rows, ids, seed, self.kinds)

    def shapes(self) -> tuple[dict[int, Any], ...]:
        """Which dimensions vary: the rows, and the ids of each history."""
        rows, ids = Dim("rows"), {kind: Dim(f"ids{kind}") for kind in self.kinds}
        plain = len(self.names) - 2 * len(self.spec.sequences)
        return ({0: rows},) * plain + tuple(part for kind in self.kinds for part in ({0: ids[kind]}, {0: rows + 1}))

    def _example(self, rows: int, ids: int, seed: int, kinds: Sequence[int]) -> list[Tensor]:
        draw = torch.Generator().manual_seed(seed)
        flat = [torch.randn(rows, self.spec.num_dense, generator=draw)] if self.spec.num_dense else []
        flat += [torch.randn(rows, dim, generator=draw) for dim in self.spec.pooled.values()]
        offsets = {kind: _offsets(rows, max(0, ids + (-kind if seed % 2 else kind)), draw) for kind in sorted(set(kinds))}
        for kind, dim in zip(kinds, self.spec.sequences.values(), strict=True):
            flat += [torch.randn(int(offsets[kind][-1]), dim, generator=draw), offsets[kind].clone()]
        return flat

    def _kinds(self) -> list[int]:
        """A number for each history, the same for those that must have as many ids as each other in every row.

        The model is asked: one that stands histories side by side stops at one that is longer than the others.
        """
        places = range(len(self.spec.sequences))
        free = [self._takes([int(other == place) for other in places]) for place in places]
        numbers = count(0 if all(free) else 1)
        return [next(numbers) if own else 0 for own in free]

    def _takes(self, kinds: Sequence[int]) -> bool:
        try:
            with torch.no_grad():
                self(*self._example(*EXAMPLES[0], kinds))
        except Exception:  # whatever a model of the user's own raises
            return False
        return True


def _type(dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape}


def _offsets(rows: int, ids: int, draw: torch.Generator) -> Tensor:
    inner = torch.randint(0, ids + 1, (rows - 1,), generator=draw).sort().values
    return torch.cat([torch.tensor([0]), inner, torch.tensor([ids])])


def export_program(graph: Graph, path: Path) -> ExportedProgram:
    """Write torch.export's program of the graph. Rows and ids are dynamic: one row too, and no id at all.

    torch takes a dimension of 1 for another kind of thing than one of 2, unless it is told that no size is special.

    Raises:
        OSError: it cannot be written.
    """
    with _quiet(), tracing.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(graph, tuple(graph.example(*EXAMPLES[0])), dynamic_shapes=(graph.shapes(),), strict=False)
        packed = BytesIO()
        torch.export.save(program, packed)
    path.write_bytes(packed.getvalue())  # torch's own writer ends the process where the disk is full
    return program


def export_onnx(graph: Graph, program: ExportedProgram, path: Path) -> float:
    """Write the program as ONNX, and run it beside the model: returns their largest difference.

    Raises:
        UserError: the packages of distrec[export] are missing, or the two differ by more than `TOLERANCE`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch writes ONNX with
    except ImportError as error:
        raise UserError(
            f"ONNX needs {error.name}: pip install 'distrec[export]', or leave it out with --program torch"
        ) from None
    with _quiet():
        written = torch.onnx.export(program, dynamo=True, input_names=graph.names, output_names=["output"], verbose=False)
        assert written is not None, "with dynamo, torch.onnx.export returns a program"
        written.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = max(_difference(graph, session, graph.example(*shape)) for shape in EXAMPLES)
    if not worst <= TOLERANCE:
        raise UserError(f"{path}: what onnxruntime computes differs from the model by {worst:.2g}, more than {TOLERANCE:g}")
    return worst


def _difference(graph: Graph, session: Any, inputs: Sequence[Tensor]) -> float:
    names = {given.name for given in session.get_inputs()}  # one that the model ignores is none of them
    fed = {name: tensor.numpy() for name, tensor in zip(graph.names, inputs, strict=True) if name in names}
    with torch.no_grad():
        expected = graph(*inputs)
    found = torch.from_numpy(session.run(None, fed)[0])
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of their own deprecations and of packages that are not needed."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("torch.onnx").setLevel(level)
