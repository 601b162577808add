"""Models as programs: torch.export's and ONNX say what the model says, for any number of rows and any histories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distrec.errors import UserError
from distrec.export.graph import TOLERANCE, Graph, export_onnx, export_program
from distrec.models import build, build_retriever
from distrec.models.inputs import Embedded, InputSpec, RetrieverSpec
from distrec.models.jagged import repeat_rows, segment_softmax, segment_sum

RANKER = InputSpec(3, {"a": 8, "b": 8}, {"h": 8})
QUERY = InputSpec(0, {"user": 8}, {"h": 8})
TWO = {"h": 8, "seen": 8}  # histories
SHAPES = [[3, 0, 2], [0], [1], [5, 0, 0, 9], [0, 0]]  # ids of each row's history; the first is not what was traced


def ranker(name: str, params: dict[str, Any], **differing: Any) -> Graph:
    torch.manual_seed(0)
    spec = replace(RANKER, **differing)
    model = build(name, params, spec).eval()
    return Graph(model, spec, model)


def query_tower(sequences: dict[str, int] = QUERY.sequences, **params: Any) -> Graph:
    return retriever("two_tower", {"query_mlp": [16], "item_mlp": [16], "dim": 8, **params}, sequences)


def retriever(name: str, params: dict[str, Any], sequences: dict[str, int] = QUERY.sequences) -> Graph:
    torch.manual_seed(0)
    query = replace(QUERY, sequences=sequences)
    model = build_retriever(name, params, RetrieverSpec(query, InputSpec(0, {"item": 8}, {}))).eval()
    return Graph(model, query, model.query)  # type: ignore[arg-type]


GRAPHS = {
    "dlrm": lambda: ranker("dlrm", {"bottom_mlp": [8]}),
    "din": lambda: ranker("din", {"targets": ["a"], "histories": ["h"], "softmax": True}),
    "dcn": lambda: ranker("dcn", {"cross_rank": 4, "experts": 2}),
    "mmoe": lambda: ranker("mmoe", {"experts": 2, "task_experts": 1}, num_tasks=2),
    "two_tower": lambda: query_tower(),
    "two_tower-attention": lambda: query_tower(history="attention"),
    "two_tower-two": lambda: query_tower(TWO),
    "dssm": lambda: retriever("dssm", {"dim": 8}),
    "youtube_dnn": lambda: retriever("youtube_dnn", {"mlp": [16]}),
    "simplex": lambda: retriever("simplex", {"history": "user_attention", "padded_to": 4}),
    "deepfm": lambda: ranker("deepfm", {}),
    "dlrm-two": lambda: ranker("dlrm", {"bottom_mlp": [8]}, sequences=TWO),
    "din-three": lambda: ranker("din", {"targets": ["a", "b"], "histories": ["h", "g"]}, sequences={**TWO, "g": 8}),
}


def inputs(graph: Graph, lengths: list[int], seed: int = 7) -> list[Tensor]:
    """Made here and not by the graph, so that they are not those it was traced with."""
    draw = torch.Generator().manual_seed(seed)
    spec = graph.spec
    offsets = {
        kind: torch.tensor([0, *(length + kind * (3 - row % 4) for row, length in enumerate(lengths))]).cumsum(0)
        for kind in graph.kinds
    }
    dense = [torch.randn(len(lengths), spec.num_dense, generator=draw)] if spec.num_dense else []
    pooled = [torch.randn(len(lengths), dim, generator=draw) for dim in spec.pooled.values()]
    histories: list[Tensor] = []
    for kind, dim in zip(graph.kinds, spec.sequences.values(), strict=True):
        histories += [torch.randn(int(offsets[kind][-1]), dim, generator=draw), offsets[kind]]
    return [*dense, *pooled, *histories]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.11's own loader
@pytest.mark.parametrize("name", GRAPHS)
def test_the_program_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]()
    export_program(graph, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for lengths in SHAPES:
        given = inputs(graph, lengths)
        with torch.no_grad():
            torch.testing.assert_close(loaded(*given), graph(*given), rtol=1e-5, atol=1e-6)


def test_histories_have_as_many_ids_as_each_other_where_the_model_wants_them_to_alone() -> None:
    kinds = {name: GRAPHS[name]().kinds for name in GRAPHS}
    assert kinds["din-three"] == [0, 1, 0]  # "seen" is no part of the pair
    assert kinds["two_tower-two"] == kinds["dlrm-two"] == [0, 1]
    assert kinds["din"] == kinds["two_tower"] == [0]


def test_types_are_those_of_inputs_that_the_program_takes() -> None:
    graph = GRAPHS["din-three"]()
    types, sizes = graph.types, dict[str, int]()
    for name, given in zip(graph.names, inputs(graph, [3, 0, 2]), strict=True):
        assert types[name]["dtype"] == str(given.dtype).removeprefix("torch.")
        for said, size in zip(types[name]["shape"], given.shape, strict=True):
            assert (sizes.setdefault(said, size) if isinstance(said, str) else said) == size
    assert sizes == {"rows": 3, "rows + 1": 4, "ids0": 5, "ids1": 11}


@pytest.mark.parametrize("name", ["dlrm", "dcn", "mmoe", "two_tower-attention", "two_tower-two", "din-three"])
def test_onnx_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs distrec[export]")
    pytest.importorskip("onnxscript", reason="needs distrec[export]")
    graph = GRAPHS[name]()
    difference = export_onnx(graph, export_program(graph, tmp_path / "model.pt2"), tmp_path / "model.onnx")
    assert difference <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [given.name for given in session.get_inputs()] == graph.names
    for lengths in SHAPES:
        given = inputs(graph, lengths)
        found = session.run(None, dict(zip(graph.names, (part.numpy() for part in given), strict=True)))[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), graph(*given), rtol=1e-5, atol=1e-5)


def test_onnx_that_differs_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs distrec[export]")
    pytest.importorskip("onnxscript", reason="needs distrec[export]")
    graph = GRAPHS["two_tower"]()
    program = export_program(GRAPHS["two_tower"](), tmp_path / "model.pt2")
    with torch.no_grad():
        next(graph.parameters()).add_(0.01)
    with pytest.raises(UserError, match="what onnxruntime computes differs from the model by"):
        export_onnx(graph, program, tmp_path / "model.onnx")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_not_taken_for_a_model_that_cannot_be_traced() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        export_program(GRAPHS["two_tower"](), Path("/dev/full"))


def test_without_the_packages_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    graph = GRAPHS["two_tower"]()
    with pytest.raises(UserError, match=r"ONNX needs onnxruntime: pip install 'distrec\[export\]', or .* --program torch"):
        export_onnx(graph, export_program(graph, tmp_path / "model.pt2"), tmp_path / "model.onnx")


class Jagged(nn.Module):
    """What models do with histories, by itself."""

    def forward(self, inputs: Embedded) -> Tensor:
        history, rows = inputs.sequences["h"], inputs.pooled["user"]
        scores = (history.values * repeat_rows(rows, history.offsets, history.values.shape[0])).sum(1, keepdim=True)
        return segment_sum(segment_softmax(scores, history.offsets) * history.values, history.offsets)


def test_histories_in_a_program_are_what_loops_make_of_them(tmp_path: Path) -> None:
    model = Jagged()
    graph = Graph(model, QUERY, model)
    loaded = export_program(graph, tmp_path / "model.pt2").module()
    for lengths in SHAPES:
        user, values, offsets = inputs(graph, lengths)
        expected = torch.zeros(len(lengths), 8)
        for row in range(len(lengths)):
            own = values[offsets[row] : offsets[row + 1]]
            expected[row] = (own @ user[row]).softmax(0) @ own
        torch.testing.assert_close(loaded(user, values, offsets), expected, rtol=1e-5, atol=1e-6)
