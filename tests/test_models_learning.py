"""Each model learns a planted signal that needs its structure, and beats itself with that structure taken out."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from distrec.losses import ranking_loss
from distrec.models import build
from distrec.models.inputs import Embedded, InputSpec, Jagged
from distrec.models.jagged import segment_mean

DIM = 8


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small train faster on one thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Ranker(nn.Module):
    """A model over embedding tables that are trained with it."""

    def __init__(self, model, tables):
        super().__init__()
        self.model = model
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, DIM) for name, rows in tables.items()})
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.3)


def held_out_auc(ranker, embed, train, test, steps, lr=0.02, batch=512):
    """Train on random batches of `train` = (ids, labels); AUC on `test`, of several tasks the lowest."""
    optimizer = torch.optim.Adam(ranker.parameters(), lr=lr)
    (ids, labels), generator = train, torch.Generator().manual_seed(0)
    tasks = labels[0].numel()
    for _ in range(steps):
        rows = torch.randint(len(labels), (batch,), generator=generator)
        logits = ranker.model(embed(ranker.tables, ids[rows]))
        loss, _ = ranking_loss(
            logits, labels[rows].view(batch, -1), torch.ones(batch), torch.tensor(batch), ["binary"] * tasks, [1.0] * tasks
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ranker.eval()
    with torch.no_grad():
        logits, labels = ranker.model(embed(ranker.tables, test[0])), test[1].view(-1, tasks)
        return min(roc_auc_score(labels[:, task], logits[:, task]) for task in range(tasks))


# The label is the sign of the inner product of two hidden vectors: no sum of one-id effects can tell it.


def inner_product_data(users=60, items=60):
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    pairs = torch.from_numpy(rng.permutation(np.stack(np.meshgrid(range(users), range(items)), -1).reshape(-1, 2)))
    labels = torch.from_numpy((np.einsum("nd,nd->n", u[pairs[:, 0]], v[pairs[:, 1]]) > 0).astype(np.float32))
    cut = len(pairs) * 3 // 4
    return (pairs[:cut], labels[:cut]), (pairs[cut:], labels[cut:])


def embed_pair(tables, ids):
    pooled = {"user": tables["user"](ids[:, 0]), "item": tables["item"](ids[:, 1])}
    return Embedded(torch.empty(len(ids), 0), pooled)


class Zero(nn.Module):
    """Stands in for an interaction: no signal, in the same shape."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, vectors):
        return vectors.new_zeros(len(vectors), self.width)


def without_fm(model):
    model.fm = Zero(DIM)


def without_cross(model):
    model.interaction.cross = nn.Identity()


def without_cross_network(model):
    model.cross = nn.Identity()


def without_dots(model):
    model.interaction.pairs = Zero(model.interaction.pairs.out_width)


@pytest.mark.parametrize(
    ("name", "params", "ablate"),
    [
        ("deepfm", {"mlp": []}, without_fm),
        ("dlrm", {"interaction": "dcn", "top_mlp": [], "cross_layers": 1}, without_cross),
        ("dlrm", {"interaction": "dcn", "top_mlp": [], "cross_layers": 1, "cross_rank": 6}, without_cross),
        ("dlrm", {"top_mlp": []}, without_dots),
        ("dcn", {"mlp": [], "cross_layers": 1}, without_cross_network),
        ("dcn", {"mlp": [], "cross_layers": 1, "cross_rank": 6, "structure": "parallel"}, without_cross_network),
        ("dcn", {"mlp": [], "cross_layers": 1, "cross_rank": 6, "experts": 2}, without_cross_network),
    ],
    ids=["deepfm", "dlrm-dcn", "dlrm-dcn-low-rank", "dot", "dcn", "dcn-parallel-low-rank", "dcn-experts"],
)
def test_interaction_is_learned_and_needed(name, params, ablate):
    train, test = inner_product_data()
    auc = {}
    for whole in (True, False):
        torch.manual_seed(0)
        model = build(name, params, InputSpec(0, {"user": DIM, "item": DIM}, {}))
        if not whole:
            ablate(model)
        auc[whole] = held_out_auc(Ranker(model, {"user": 60, "item": 60}), embed_pair, train, test, steps=150)
    assert auc[True] > 0.93
    assert auc[False] < 0.75


# The label is whether the target stands in the history, which has 1 to 12 items: the mean of a history blurs it.

ITEMS, LONGEST = 40, 12


def membership_data(rows=6000):
    rng = np.random.default_rng(5)
    history = rng.integers(0, ITEMS, (rows, LONGEST))
    history[np.arange(LONGEST) >= rng.integers(1, LONGEST + 1, rows)[:, None]] = -1
    lengths = (history >= 0).sum(1)
    labels = rng.random(rows) < 0.5
    members = history[np.arange(rows), rng.integers(0, lengths)]
    target = np.where(labels, members, rng.integers(0, ITEMS, rows))
    labels = (history == target[:, None]).any(1)
    ids = torch.from_numpy(np.concatenate([target[:, None], history], axis=1))
    labels = torch.from_numpy(labels.astype(np.float32))
    return (ids[:5000], labels[:5000]), (ids[5000:], labels[5000:])


def embed_history(tables, ids):
    history = ids[:, 1:]
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (history >= 0).sum(1).cumsum(0)])
    values = tables["item"](history[history >= 0])
    return Embedded(torch.empty(len(ids), 0), {"item": tables["item"](ids[:, 0])}, {"history": Jagged(values, offsets)})


class MeanPooling(nn.Module):
    """DIN's attention taken out: every position counts the same, whatever the target."""

    def forward(self, query, keys, offsets):
        return segment_mean(Jagged(keys, offsets))


@pytest.mark.parametrize("softmax", [False, True])
def test_attention_is_learned_and_needed(softmax):
    train, test = membership_data()
    auc = {}
    for whole in (True, False):
        torch.manual_seed(0)
        params = {"targets": ["item"], "histories": ["history"], "attention_mlp": [16], "top_mlp": [16], "softmax": softmax}
        model = build("din", params, InputSpec(0, {"item": DIM}, {"history": DIM}))
        if not whole:
            model.attention = MeanPooling()
        auc[whole] = held_out_auc(Ranker(model, {"item": ITEMS}), embed_history, train, test, steps=200)
    assert auc[True] > 0.95
    assert auc[True] > auc[False] + 0.1


# Two tasks that have nothing to do with each other, experts one number wide and linear towers: of one number that both
# tasks get, they rank the rows alike or the other way round, and one task at least is served badly.


def conflicting_data(rows=6000, width=8):
    rng = np.random.default_rng(11)
    x, (w, v) = rng.normal(size=(rows, width)), np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    labels = torch.from_numpy((np.stack([x @ w, x @ v], axis=1) > 0).astype(np.float32))
    x = torch.from_numpy(x.astype(np.float32))
    return (x[:5000], labels[:5000]), (x[5000:], labels[5000:])


def embed_numbers(tables, x):
    return Embedded(x)


def lower_auc(ablate, **params):
    torch.manual_seed(0)
    model = build("mmoe", {"expert_mlp": [16, 1], "tower_mlp": [], **params}, InputSpec(8, {}, {}, num_tasks=2))
    ablate(model)
    train, test = conflicting_data()
    return held_out_auc(Ranker(model, {}), embed_numbers, train, test, steps=200)


class Even(nn.Module):
    """Stands in for a gate: every expert counts the same, as in a shared bottom."""

    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def forward(self, x):
        return x.new_zeros(len(x), self.experts)


def without_gates(model):
    for task in model.tasks:
        task.gate = Even(task.gate.out_features)


def with_one_gate(model):
    model.tasks[1].gate = model.tasks[0].gate


def without_experts_of_its_own(model):
    without_gates(model)
    model.tasks[1].experts = model.tasks[0].experts


@pytest.mark.parametrize("ablate", [without_gates, with_one_gate])
def test_a_gate_a_task_is_learned_and_needed_where_tasks_conflict(ablate):
    assert lower_auc(lambda model: None, experts=8) > 0.95
    assert lower_auc(ablate, experts=8) < 0.75


def test_experts_of_one_task_alone_serve_it_where_tasks_conflict():
    assert lower_auc(without_gates, experts=4, task_experts=4) > 0.95
    assert lower_auc(without_experts_of_its_own, experts=4, task_experts=4) < 0.75


# The label adds up the inner product of two hidden vectors, a rule that an MLP learns, and an effect of its own for each
# cross of two other ids, which can only be learned by heart: the wide part gets the cross as a column.


def rule_and_exceptions(rows=8000, users=30, items=30, crosses=100):
    rng = np.random.default_rng(7)
    u, v, effects = rng.normal(size=(users, 2)), rng.normal(size=(items, 2)), rng.normal(size=crosses)
    ids = rng.integers(0, [users, items, crosses], size=(rows, 3))
    logit = np.einsum("nd,nd->n", u[ids[:, 0]], v[ids[:, 1]]) + 0.9 * effects[ids[:, 2]]
    ids, labels = torch.from_numpy(ids), torch.from_numpy((logit > 0).astype(np.float32))
    return (ids[:6000], labels[:6000]), (ids[6000:], labels[6000:])


def embed_crossed(tables, ids):
    names = ("user", "item", "country_x_genre")
    return Embedded(torch.empty(len(ids), 0), {name: tables[name](ids[:, i]) for i, name in enumerate(names)})


def without_wide(model):
    model.wide = Zero(1)


def without_deep(model):
    model.mlp_head = Zero(1)


def test_the_wide_part_and_the_deep_part_are_both_learned_and_needed():
    train, test = rule_and_exceptions()
    auc = {}
    for ablate in (None, without_wide, without_deep):
        torch.manual_seed(0)
        spec = InputSpec(0, {"user": DIM, "item": DIM, "country_x_genre": DIM}, {})
        model = build("wide_deep", {"mlp": [32, 16], "wide_only": ["country_x_genre"]}, spec)
        if ablate:
            ablate(model)
        tables = {"user": 30, "item": 30, "country_x_genre": 100}
        auc[ablate] = held_out_auc(Ranker(model, tables), embed_crossed, train, test, steps=200)
    assert auc[None] > 0.95
    assert max(auc[without_wide], auc[without_deep]) < 0.9
