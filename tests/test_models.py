"""What holds for every model, whatever its structure, and how models are found and built."""

from dataclasses import replace

import pytest
import torch
from model_cases import (
    ALIGNED,
    CASES,
    LEAST_TASKS,
    LENGTHS,
    PAIRS,
    SPEC,
    fitting,
    positions,
    random_inputs,
    random_model,
    take_rows,
)
from torch import nn

from distrec.errors import UserError
from distrec.models import MODELS, build, find
from distrec.models.inputs import Embedded, InputSpec, Jagged

every_case = pytest.mark.parametrize("case", CASES)


def test_cases_cover_every_model():
    assert {name for name, _ in CASES.values()} == set(MODELS)


@every_case
@pytest.mark.parametrize("tasks", [1, 3])
def test_logits_have_one_column_a_task(case, tasks):
    model = random_model(case, replace(SPEC, num_tasks=tasks))
    least = LEAST_TASKS.get(CASES[case][0], 1)
    assert model(random_inputs()).shape == (len(LENGTHS), max(tasks, least))


@every_case
def test_defaults_stand_in_params_alone(case):
    name, _ = CASES[case]
    required = PAIRS if name == "din" else {"bottom_mlp": [4]} if name == "dlrm" else {}
    spec = fitting(name)
    assert build(name, required, spec).double()(random_inputs()).shape == (len(LENGTHS), spec.num_tasks)


@every_case
@pytest.mark.parametrize("extra", [{}, {"batch_norm": True, "dropout": 0.2}], ids=["plain", "regularized"])
def test_gradient_reaches_every_parameter_and_every_input(case, extra):
    torch.manual_seed(0)
    name, params = CASES[case]
    model, inputs = build(name, params | extra, replace(SPEC, num_tasks=2)).double(), random_inputs()
    leaves = {"dense": inputs.dense, **inputs.pooled, **{n: j.values for n, j in inputs.sequences.items()}}
    for leaf in leaves.values():
        leaf.requires_grad_()
    model(inputs).square().sum().backward()
    for key, tensor in [*model.named_parameters(), *leaves.items()]:
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.abs().max() > 1e-9, key  # rounding is no gradient


@every_case
def test_dropout_and_batch_norm_act_in_training_and_rest_in_evaluation(case):
    name, params = CASES[case]
    model, inputs = build(name, params | {"dropout": 0.5, "batch_norm": True}, fitting(name)).double(), random_inputs()
    assert any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@every_case
def test_rows_do_not_depend_on_the_rows_beside_them(case):
    model, inputs = random_model(case).eval(), random_inputs()
    logits, order = model(inputs), [5, 1, 7, 0, 3]
    torch.testing.assert_close(model(take_rows(inputs, order)), logits[order])
    torch.testing.assert_close(model(take_rows(inputs, [4])), logits[[4]])


@every_case
@pytest.mark.parametrize("name", SPEC.sequences)
def test_a_history_changes_its_own_row_and_no_other(case, name):
    model, inputs = random_model(case).eval(), random_inputs()
    before = model(inputs)
    for i in positions(inputs.sequences[name], 3):
        inputs.sequences[name].values[i] += 1.0
    changed = (model(inputs) - before).abs().amax(1) > 1e-9
    assert changed.nonzero().flatten().tolist() == [3]


@every_case
def test_order_within_a_history_does_not_matter(case):
    model, inputs = random_model(case).eval(), random_inputs()

    def backwards(history: Jagged) -> Jagged:
        order = [i for row in range(len(LENGTHS)) for i in reversed(positions(history, row))]
        return Jagged(history.values[order], history.offsets)

    turned = replace(inputs, sequences={n: backwards(h) for n, h in inputs.sequences.items()})
    assert not torch.equal(turned.sequences["item_history"].values, inputs.sequences["item_history"].values)
    torch.testing.assert_close(model(turned), model(inputs))


@pytest.mark.parametrize("case", ["din", "din-softmax"])
def test_aligned_histories_belong_together_position_by_position(case):
    model, inputs = random_model(case).eval(), random_inputs()
    history = inputs.sequences["genre_history"]
    a, b = list(positions(history, 3))[:2]
    values = history.values.clone()
    values[[a, b]] = values[[b, a]]
    other = replace(inputs, sequences=inputs.sequences | {"genre_history": Jagged(values, history.offsets)})
    changed = (model(other) - model(inputs)).abs().flatten() > 1e-9
    assert changed.nonzero().flatten().tolist() == [3]


@every_case
def test_a_batch_without_a_single_history_trains_and_keeps_running_statistics(case):
    model, inputs = random_model(case), random_inputs(lengths=[0, 0, 0])
    before = {
        k: v.clone() for k, v in model.state_dict().items() if k.startswith("attention") and k.endswith((".mean", ".var"))
    }
    logits = model(inputs)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


@every_case
def test_autocast_to_bf16_stays_close(case):
    def single(x):
        return Jagged(x.values.float(), x.offsets) if isinstance(x, Jagged) else x.float()

    model, inputs = random_model(case).float().eval(), random_inputs()
    inputs = Embedded(
        single(inputs.dense),
        {n: single(v) for n, v in inputs.pooled.items()},
        {n: single(v) for n, v in inputs.sequences.items()},
    )
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(inputs)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


class Flat(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, dense, pooled, values, offsets):
        return self.model(Embedded(dense, pooled, {n: Jagged(v, offsets[n]) for n, v in values.items()}))


@pytest.mark.parametrize("case", CASES)
def test_exported_graph_takes_batches_of_other_shapes(case):
    model = random_model(case).eval()

    def flat(inputs):
        offsets = {n: s.offsets for n, s in inputs.sequences.items()}
        return inputs.dense, inputs.pooled, {n: s.values for n, s in inputs.sequences.items()}, offsets

    rows, ids, searches = torch.export.Dim("rows", min=2), torch.export.Dim("ids"), torch.export.Dim("searches")
    shapes = (
        {0: rows},
        {n: {0: rows} for n in SPEC.pooled},
        {n: {0: ids if n in ALIGNED else searches} for n in SPEC.sequences},
        {n: {0: rows + 1} for n in SPEC.sequences},
    )
    exported = torch.export.export(Flat(model), flat(random_inputs()), dynamic_shapes=shapes)
    other = random_inputs(lengths=[0, 9, 2], seed=5)
    torch.testing.assert_close(exported.module()(*flat(other)), model(other))


# Faults a user can make


def error_of(name, params, spec=SPEC):
    with pytest.raises(UserError) as caught:
        build(name, params, spec)
    return str(caught.value)


def test_unknown_model_names_the_nearest():
    assert "'dlmr'" in error_of("dlmr", {})
    assert "did you mean 'dlrm'" in error_of("dlmr", {})


@pytest.mark.parametrize("name", MODELS)
def test_unknown_parameter_names_itself(name):
    message = error_of(name, {"banana": 1})
    assert "model.params" in message
    assert "banana" in message


def test_parameter_faults_are_all_named():
    message = error_of("dlrm", {"botom_mlp": [4], "dropout": 1.5, "interaction": "dots", "top_mlp": [0]})
    assert "did you mean 'bottom_mlp'" in message
    assert all(key in message for key in ("dropout", "interaction", "top_mlp.0"))


def test_params_are_frozen_and_strict():
    for model in MODELS.values():
        assert model.Params.model_config["frozen"]
        assert model.Params.model_config["extra"] == "forbid"


def test_dlrm_has_the_cross_layers_it_is_asked_for():
    params = {"interaction": "dcn", "cross_layers": 4, "cross_rank": 3, "bottom_mlp": [5], "top_mlp": [2]}
    matrices = [tuple(p.shape) for key, p in build("dlrm", params, SPEC).named_parameters() if "cross" in key and p.ndim == 2]
    assert matrices == [(3, 29), (29, 3)] * 4  # 6 id features of 4 dims and a bottom MLP of 5


UNEQUAL = InputSpec(num_dense=1, pooled={"user": 8, "item": 4}, sequences={"clicks": 4})


@pytest.mark.parametrize(("name", "params"), [("dlrm", {"bottom_mlp": [4]}), ("deepfm", {})])
def test_unequal_dims_name_the_features(name, params):
    message = error_of(name, params, UNEQUAL)
    assert "dim 4: item, clicks" in message
    assert "dim 8: user" in message


def test_dcn_takes_unequal_dims():
    params = {"interaction": "dcn", "bottom_mlp": [3]}
    assert build("dlrm", params, UNEQUAL)(
        Embedded(
            torch.ones(2, 1),
            {"user": torch.ones(2, 8), "item": torch.ones(2, 4)},
            {"clicks": Jagged(torch.ones(3, 4), torch.tensor([0, 1, 3]))},
        )
    ).shape == (2, 1)


@pytest.mark.parametrize(("bottom", "found"), [([16, 8], "ends in 8"), ([], "it is empty")])
def test_bottom_mlp_must_end_in_the_embedding_dim(bottom, found):
    message = error_of("dlrm", {"bottom_mlp": bottom}, replace(SPEC, num_dense=4))
    assert "model.params.bottom_mlp must end in 4" in message
    assert found in message


@pytest.mark.parametrize(
    ("name", "params", "spec", "words"),
    [
        ("dlrm", {}, InputSpec(0, {"item": 4}, {}), "nothing to interact with feature 'item'"),
        ("dlrm", {"bottom_mlp": [4]}, InputSpec(2, {}, {}), "name at least one in features.sparse"),
        ("dlrm", {"interaction": "dcn"}, InputSpec(0, {}, {}), "no features"),
        ("deepfm", {}, InputSpec(2, {}, {}), "name at least one in features.sparse"),
        ("dcn", {}, InputSpec(0, {}, {}), "no features"),
        ("mmoe", {}, InputSpec(0, {}, {}, num_tasks=2), "no features"),
        ("wide_deep", {}, InputSpec(0, {}, {}), "the wide part of model wide_deep has no features"),
        ("wide_deep", {"wide_only": ["item"]}, InputSpec(0, {"item": 4}, {}), "the deep part of model wide_deep"),
    ],
)
def test_too_few_features(name, params, spec, words):
    assert words in error_of(name, params, spec)


@pytest.mark.parametrize("name", ["dcn", "mmoe", "wide_deep"])
def test_numbers_alone_are_features_enough(name):
    spec = fitting(name, InputSpec(2, {}, {}))
    assert build(name, {}, spec)(Embedded(torch.ones(3, 2))).shape == (3, spec.num_tasks)


@pytest.mark.parametrize("params", [{}, {"task_experts": 2}])
def test_mmoe_refuses_a_single_task(params):
    message = error_of("mmoe", params, replace(SPEC, num_tasks=1))
    assert "there is 1" in message
    assert "at least two [[tasks]]" in message


def test_dcn_needs_a_rank_for_experts():
    assert "model.params.experts = 4 of dcn are of low rank: set model.params.cross_rank" in error_of("dcn", {"experts": 4})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"wide_only": ["genr"]}, "model.params.wide_only names 'genr', which is no feature"),
        ({"wide_only": ["genr"]}, "did you mean 'genre'"),
        ({"deep_only": ["clicks"]}, "model.params.deep_only names 'clicks'"),
        ({"wide_only": ["user", "item"], "deep_only": ["item"]}, "both name 'item'"),
    ],
)
def test_wide_deep_names_the_feature_that_does_not_fit(params, words):
    assert words in error_of("wide_deep", params)


@pytest.mark.parametrize(
    ("targets", "histories", "words"),
    [
        (["items"], ["item_history"], "'items', which is no feature in features.sparse; did you mean 'item'"),
        (["item"], ["item_histroy"], "no feature in features.sequence; did you mean 'item_history'"),
        (["searches"], ["item_history"], "'searches', which must be declared in features.sparse"),
        (["item"], ["genre"], "'genre', which must be declared in features.sequence"),
        (["item", "genre"], ["item_history"], "2 targets and 1 histories"),
        ([], [], "0 targets and 0 histories"),
    ],
)
def test_din_names_the_feature_that_does_not_fit(targets, histories, words):
    assert words in error_of("din", {"targets": targets, "histories": histories})


def test_din_needs_equal_dims_in_a_pair():
    message = error_of("din", {"targets": ["user"], "histories": ["clicks"]}, UNEQUAL)
    assert all(word in message for word in ("'user'", "dim 8", "'clicks'", "has 4"))


def test_din_may_compare_two_targets_with_one_history():
    params = {"targets": ["item", "user"], "histories": ["item_history", "item_history"]}
    assert build("din", params, SPEC).double()(random_inputs()).shape == (len(LENGTHS), 1)


@pytest.mark.parametrize("lengths", [[4, 0, 1, 5, 2, 4, 0, 2], [2, 1, 1, 5, 2, 4, 0, 2]], ids=["more-ids", "same-sum"])
def test_din_refuses_histories_of_unequal_lengths(lengths):
    inputs = random_inputs()
    inputs.sequences["genre_history"] = random_inputs(lengths=lengths).sequences["genre_history"]
    with pytest.raises(UserError, match="'item_history' and 'genre_history'"):
        random_model("din")(inputs)


# Models from elsewhere

OUTSIDE = """
from torch import nn
from distrec.config.words import Section

class Bias(nn.Module):
    class Params(Section):
        start: float = 0.5

    def __init__(self, spec, params):
        super().__init__()
        self.tasks, self.start = spec.num_tasks, params.start

    def forward(self, inputs):
        return inputs.dense.new_full((len(inputs.dense), self.tasks), self.start), {"zero": inputs.dense.sum() * 0}

class NoParams(nn.Module):
    pass

def function():
    pass
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    package = tmp_path / "outside_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(OUTSIDE)
    (package / "broken.py").write_text("import module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("outside")
def test_a_model_from_another_package():
    model = build("outside_package.models:Bias", {"start": 2.0}, replace(SPEC, num_tasks=2))
    logits, auxiliary = model(random_inputs())
    assert logits.tolist() == [[2.0, 2.0]] * len(LENGTHS)
    assert set(auxiliary) == {"zero"}
    assert "start" in error_of("outside_package.models:Bias", {"strat": 1})


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("outside_package.models:Bais", "has no 'Bais'; did you mean 'Bias'"),
        ("outside_package.models:NoParams", "needs a nested class Params that derives from distrec.config.words.Section"),
        ("outside_package.models:function", "not a subclass of torch.nn.Module"),
        ("outside_package.broken:Bias", "No module named 'module_that_is_not_there'"),
        ("outside_package.nowhere:Bias", "cannot import 'outside_package.nowhere'"),
        (":Bias", "cannot import ''"),
    ],
)
def test_a_model_from_another_package_that_cannot_be_used(name, words):
    with pytest.raises(UserError) as caught:
        find(name)
    assert words in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("width", [2**40, 2**62, 10**30])
def test_a_model_that_no_memory_holds_is_refused(width):
    spec = InputSpec(num_dense=2, pooled={"a": 8}, sequences={}, num_tasks=1)
    with pytest.raises(UserError, match=r"deepfm does not fit into memory: lower model\.params or the tables' dim"):
        build("deepfm", {"mlp": [8, width]}, spec)
