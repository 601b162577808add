"""The synthetic dataset: its shape, its signal against a slow reference, and that the signal needs what it claims to need."""

import json
import math
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from distrec.errors import UserError
from distrec.prepare import planted
from distrec.prepare.planted import Planted
from distrec.prepare.synthetic import synthetic
from distrec.prepare.synthetic_rows import Rows
from distrec.prepare.zipf import Zipf, standardised

SEED = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("synthetic"), rows=12_000, valid_rows=6_000, seed=SEED)


@pytest.fixture(scope="module")
def description(made):
    return json.loads(made.description.read_text())


@pytest.fixture(scope="module")
def splits(made):
    return {name: pq.read_table(made.folder / name) for name in made.rows}


def reference_logit(signal, row):
    """The formula of `Planted`, one row at a time, from what the files hold."""
    logit = planted.BIAS
    for f, effects in enumerate(signal.id_effects):
        value = row[f"c{f + 1}"]
        logit += 0.0 if value is None else effects[value]
    for name in ("tags", "topics"):
        effects = [signal.tag_effects[name][tag] for tag in row[name]]
        logit += sum(effects) / len(effects) if effects else 0.0
    for d, weight in enumerate(signal.dense_weights):
        logit += weight * (math.log1p(row[f"i{d + 1}"] or 0.0) - planted.DENSE_CENTRE)
    inner = sum(a * b for a, b in zip(signal.left[row["c1"]], signal.right[row["c2"]], strict=True))
    logit += planted.INTERACTION_STRENGTH / math.sqrt(planted.RANK) * inner
    dots = [sum(a * b for a, b in zip(signal.items[row["item"]], signal.items[h], strict=True)) for h in row["history_item"]]
    return logit + (planted.HISTORY_STRENGTH * sum(dots) / len(dots) if dots else 0.0)


@pytest.fixture(scope="module")
def valid_logit(splits):
    signal = Planted(SEED)
    return np.array([reference_logit(signal, row) for row in splits["valid"].to_pylist()])


@pytest.fixture(scope="module")
def liked_logit(splits):
    """The same with the numbers and the interaction subtracted instead of added."""
    signal = Planted(SEED)
    for turned in (signal.left, signal.dense_weights):
        turned *= -1
    return np.array([reference_logit(signal, row) for row in splits["valid"].to_pylist()])


def test_rows_are_counted_and_lie_in_time_order(made, splits, description):
    assert made.rows == description["rows"] == {"train": 12_000, "valid": 6_000}
    assert {name: table.num_rows for name, table in splits.items()} == made.rows
    times = np.concatenate([splits[name]["timestamp"].to_numpy() for name in ("train", "valid")])
    assert (np.diff(times) > 0).all()
    assert [path.relative_to(made.folder).as_posix() for path in made.files] == ["train/part-0.parquet", "valid/part-0.parquet"]


def test_columns_are_described_and_ids_lie_below_their_cardinality(splits, description):
    columns = description["columns"]
    for table in splits.values():
        assert [(c["name"], c["type"]) for c in columns] == [(f.name, str(f.type)) for f in table.schema]
    for column in (c for c in columns if "cardinality" in c):
        values = (
            pc.list_flatten(splits["train"][column["name"]]) if "list" in column["type"] else splits["train"][column["name"]]
        )
        assert pc.min(values).as_py() >= 0
        assert pc.max(values).as_py() < column["cardinality"]
    roles = [c["role"] for c in columns]
    assert (roles.count("dense"), roles.count("sparse"), roles.count("sequence")) == (13, 19, 1)
    assert {c["cardinality"] for c in columns if c["role"] == "sparse"} >= {10, 100_000}


def test_nulls_are_where_a_reader_must_cope_with_them(splits):
    nulls = {f.name: splits["train"][f.name].null_count for f in splits["train"].schema}
    assert {name for name, count in nulls.items() if count} == {"i4", "i12", "c9", "c16"}
    assert all(0.02 < count / 12_000 < 0.04 for count in nulls.values() if count)


@pytest.mark.parametrize("name", ["label", "liked"])
def test_labels_follow_the_documented_logit(splits, name, request):
    p = 1 / (1 + np.exp(-request.getfixturevalue("valid_logit" if name == "label" else "liked_logit")))
    label = splits["valid"][name].to_numpy()
    for low, high in pairwise((0.0, 0.1, 0.3, 0.6, 1.0)):
        bin_ = (p >= low) & (p < high)
        deviation = math.sqrt((p[bin_] * (1 - p[bin_])).sum())
        assert abs((label[bin_] - p[bin_]).sum()) < 4 * deviation
    assert 0.15 < label.mean() < 0.35


def test_the_realised_auc_is_that_of_the_logit_on_the_labels(splits, valid_logit, description):
    measured = roc_auc_score(splits["valid"]["label"].to_numpy(), valid_logit)
    assert description["realised_auc"] == pytest.approx(measured, abs=1e-6)  # the files hold float32
    assert description["bayes_auc"] == pytest.approx(measured, abs=0.02)
    assert description["bayes_auc"] > 0.8


def test_the_second_label_has_its_own_best(splits, valid_logit, liked_logit, description):
    liked = splits["valid"]["liked"].to_numpy()
    assert description["realised_auc_liked"] == pytest.approx(roc_auc_score(liked, liked_logit), abs=1e-6)
    assert description["bayes_auc_liked"] == pytest.approx(description["realised_auc_liked"], abs=0.02)
    assert roc_auc_score(liked, valid_logit) < description["bayes_auc_liked"] - 0.1  # a model of `label` is none of `liked`


def test_the_labels_of_a_row_are_drawn_apart(splits, valid_logit, liked_logit):
    p, q = (1 / (1 + np.exp(-logit)) for logit in (valid_logit, liked_logit))
    both = splits["valid"]["label"].to_numpy() * splits["valid"]["liked"].to_numpy()
    assert abs((both - p * q).sum()) < 4 * math.sqrt((p * q * (1 - p * q)).sum())


def test_a_sum_over_single_features_stays_far_below_the_best():
    signal = Planted(SEED)
    terms = signal.terms(Rows(signal, SEED).draw(0, 40_000))
    label = np.random.default_rng(0).random(40_000) < 1 / (1 + np.exp(-terms.logit))

    def auc(*columns):
        x = np.stack(columns, axis=1)
        fitted = LogisticRegression().fit(x[:20_000], label[:20_000])
        return roc_auc_score(label[20_000:], fitted.decision_function(x[20_000:]))

    best = auc(terms.ids, terms.tags, terms.dense, terms.interaction, terms.history)
    assert auc(terms.ids, terms.tags, terms.dense, terms.history) < best - 0.06
    assert auc(terms.ids, terms.tags, terms.dense, terms.interaction) < best - 0.03


def test_the_interaction_holds_nothing_that_either_feature_tells_alone():
    signal = Planted(SEED)
    for own, other, feature in ((signal.left, signal.right, 1), (signal.right, signal.left, 0)):
        zipf = Zipf(planted.CARDINALITIES[feature], planted.EXPONENT)
        by_id = np.empty(len(zipf.probabilities))
        by_id[signal.id_of_rank[feature]] = zipf.probabilities
        assert np.abs(own @ (other * by_id[:, None]).sum(axis=0)).max() < 1e-9
        assert ((other**2) * by_id[:, None]).sum(axis=0) == pytest.approx(1.0)


def test_a_history_grows_by_what_came_next_oldest_first(splits):
    longest, seen, checked = 0, {}, 0
    for row in (r for name in ("train", "valid") for r in splits[name].select(["user", "history_item"]).to_pylist()):
        history = row["history_item"]
        if (before := seen.get(row["user"])) is not None:
            assert history[:-1] == before[-49:]
            checked += 1
        seen[row["user"]] = history
        longest = max(longest, len(history))
    assert checked > 10_000
    assert longest <= 50
    assert any(not h for h in splits["train"]["history_item"].to_pylist())


def test_one_seed_gives_one_dataset_and_another_gives_another(tmp_path, splits):
    again = synthetic(tmp_path / "again", rows=12_000, valid_rows=6_000, seed=SEED)
    other = synthetic(tmp_path / "other", rows=12_000, valid_rows=6_000, seed=SEED + 1)
    assert pq.read_table(again.folder / "train").equals(splits["train"])
    assert pq.read_table(other.folder / "train")["c3"] != splits["train"]["c3"]


def test_blocks_of_one_stream_differ(splits):
    values = splits["train"]["c15"].to_numpy()
    assert not np.array_equal(values[:750], values[750:1500])


def test_progress_ends_at_the_total(tmp_path):
    calls = []
    synthetic(tmp_path, rows=100, valid_rows=50, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (150, 150)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize(("name", "value"), [("rows", 0), ("valid_rows", -1), ("seed", -1)])
def test_a_count_that_makes_no_sense_is_named(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name} = {value}"):
        synthetic(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_zipf_ranks_have_their_probabilities():
    zipf, rng = Zipf(50, 1.3), np.random.default_rng(0)
    counts = np.bincount(zipf.rank(rng.random(200_000)), minlength=50)
    weights = [1 / (k + 1) ** 1.3 for k in range(50)]
    expected = 200_000 * np.array(weights) / sum(weights)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert zipf.rank(np.array([0.0, 1 - 1e-16])).tolist() == [0, 49]


def test_standardised_values_have_mean_0_and_variance_1_under_the_weights():
    values = standardised(np.array([1.0, 2.0, 6.0]), np.array([0.5, 0.25, 0.25]))
    assert values == pytest.approx([-1.5 / math.sqrt(4.25), -0.5 / math.sqrt(4.25), 3.5 / math.sqrt(4.25)])
