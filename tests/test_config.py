"""A config file: read, overridden, checked, and refused in words that name the fault and the fix."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small_config import SMALL, small
from toml_text import to_toml

from distrec.config.check import check
from distrec.config.load import dump, load, nearest, parse, structure, validate
from distrec.config.words import Section
from distrec.errors import UserError


def refusal(*overrides: str, **sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(small(**sections), overrides)
    return str(caught.value)


# -- the schema ------------------------------------------------------------------------------------------------------


def test_every_default_survives_a_round_trip_through_toml(tmp_path: Path) -> None:
    first = parse(small(optimizer={"schedule": {"decay": "linear", "decay_steps": 5}}))
    every_key = first.model_dump(mode="json")
    assert every_key["train"].keys() >= {"epochs", "seed", "timeout_s"}
    file = tmp_path / "every.toml"
    file.write_text(to_toml(every_key), encoding="utf-8")
    assert load(file) == first


def test_the_saved_form_reads_back_as_the_same_config() -> None:
    config = parse(small(embedding={"memory": "1.5 GB", "sharding": "row_wise"}, data={"train": ["a", "b"], "valid": "c"}))
    assert parse(json.loads(dump(config))) == config


def test_every_default_is_what_the_documentation_says() -> None:
    """Defaults that decide what is learned or lost, by hand: changing one is a decision, not a slip."""
    config = parse(small())
    assert (config.data.batch_size, config.data.shuffle, config.data.verify_checksums) == (1024, True, True)
    assert (config.optimizer.dense.name, config.optimizer.dense.lr) == ("adam", 1e-3)
    assert (config.optimizer.sparse.name, config.optimizer.sparse.lr) == ("rowwise_adagrad", 1e-2)
    assert (config.train.non_finite, config.train.precision, config.train.device) == ("stop", "fp32", "auto")
    assert config.features.sparse[0].out_of_range == "error"
    assert config.features.dense[0].null == "error"
    assert config.run_folder == "runs/small"
    assert parse(small(folder="elsewhere")).run_folder == "elsewhere"


def test_a_config_is_frozen() -> None:
    config = parse(small())
    with pytest.raises(ValidationError, match="frozen"):
        config.train.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.tables["user"].rows = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tables.user.dim=6", "tables.user.dim: dim must be a multiple of 4 (FBGEMM's kernels need it); the next one is 8"),
        ("tables.user.rows=0", "tables.user.rows: Input should be greater than 0 (it is 0)"),
        ("data.batch_size=many", "data.batch_size: Input should be a valid integer"),
        ("data.train=", "data.train: this key is required"),
        ("data.train=[]", "data.train: Tuple should have at least 1 item"),
        ('data.valid=["a",""]', "data.valid.1: String should have at least 1 character (it is '')"),
        ("data.test=0", "data.test: Input should be a list, in square brackets (it is 0)"),
        ("train.clip_norm=inf", "train.clip_norm: Input should be a finite number (it is inf)"),
        ('features.dense=[{"name"="x",null=nan}]', "features.dense.0.null.float: Input should be a finite number (it is nan)"),
        ('features.dense=[{"name"="x",shift=-inf}]', "features.dense.0.shift: Input should be a finite number (it is -inf)"),
        ("optimizer.sparse.lr=nan", "optimizer.sparse.lr: Input should be"),
        ("optimizer.schedule.decay=cosine", 'decay = "cosine" needs decay_steps'),
        ('optimizer.sparse={"name"="adagrad",weight_decay=0.1}', "FBGEMM has no L2 penalty for adagrad"),
        ('optimizer.sparse={"name"="adam",weight_decay=0.1}', "FBGEMM has no L2 penalty for adam"),
        ("optimizer.sparse.every_row=true", "rowwise_adagrad has no momentum to move a row by that no one looks up; remove"),
        ("embedding.memory=12", "embedding.memory: 12 is no size; write it as '12GB', with one of KB, MB, GB, TB"),
        ('embedding.memory="-1GB"', "is no size"),
        ("embedding.memory=infGB", "is no size"),
        ("name=a/b", "name: String should match pattern"),
        ("tasks=[]", "tasks: "),
        ("train.seed=4294967296", "train.seed: Input should be less than 4294967296"),
        ("embedding.sharding=rowwise", "embedding.sharding.0: Input should be 'data_parallel', 'table_wise'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(override: str, words: str) -> None:
    assert words in refusal(override)


def test_a_key_without_a_value_is_as_if_it_stood_nowhere() -> None:
    values = small(data={"train": "rows", "valid": "v", "group": "u"}, folder="elsewhere")
    config = parse(values, ["data.valid=", "data.group= ", "folder=", "features.sequence=", "tables.item=", "train.steps="])
    assert (config.data.valid, config.data.group, config.folder, config.features.sequence) == ((), None, None, ())
    assert [*config.tables] == ["user"]
    assert config.data.train == ("rows",)
    assert parse(values | {"folder": None}, ["folder="]).folder is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.moniter=", "override 'evaluate.moniter=': no such key; did you mean 'monitor'?"),
        ("tables.itme=", "override 'tables.itme=': no such key; did you mean 'item'?"),
        ("nmae=", "override 'nmae=': no such key; did you mean 'name'?"),
        ("features.sparse.0.polling=", "no such key; did you mean 'pooling'?"),
        ("evaluat.monitor=", "evaluat: no such key; did you mean 'evaluate'?"),
    ],
)
def test_a_misspelt_key_is_not_unset_in_silence(override: str, words: str) -> None:
    assert words in refusal(override)


def test_what_is_wrong_on_the_command_line_is_not_said_of_the_file() -> None:
    blamed = "what the command line sets is not valid:\n  trian: no such key; did you mean 'train'?"
    with pytest.raises(UserError) as caught:
        parse(small(), ["trian.epochs=3"], source="runs/x/config.json")
    assert str(caught.value) == blamed
    with pytest.raises(UserError, match=r"runs/x/config\.json is not valid:"):
        parse(small(trian=3), ["train.epochs=3"], source="runs/x/config.json")


def test_a_missing_key_is_named() -> None:
    values = small()
    del values["data"]["train"], values["model"]
    with pytest.raises(UserError) as caught:
        parse(values)
    assert "  data.train: this key is required" in str(caught.value).splitlines()
    assert "  model: this key is required" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trian.epochs=1", "  trian: no such key; did you mean 'train'?"),
        ("data.batch_sise=1", "  data.batch_sise: no such key; did you mean 'batch_size'?"),
        ("tables.user.dims=8", "  tables.user.dims: no such key; did you mean 'dim'?"),
        ("tables.user.optimizer.rl=1", "  tables.user.optimizer.rl: no such key; did you mean 'lr'?"),
        ("features.sparse.0.tabel=user", "  features.sparse.0.tabel: no such key; did you mean 'table'?"),
        ("features.sequence.0.sum=sum", "  features.sequence.0.sum: no such key; known: name, column, table, ids"),
        ("optimizer.schedule.warm_up=3", "  optimizer.schedule.warm_up: no such key; did you mean 'warmup_steps'?"),
        ("tasks=[{ weigth = 2.0 }]", "  tasks.0.weigth: no such key; did you mean 'weight'?"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(override: str, line: str) -> None:
    assert any(found.startswith(line) for found in refusal(override).splitlines()), refusal(override)


def test_a_table_named_like_a_key_does_not_confuse_the_suggestion() -> None:
    values = small()
    values["tables"]["optimizer"] = {"rows": 5, "dimm": 8, "dim": 8}
    with pytest.raises(UserError, match=r"tables\.optimizer\.dimm: no such key; did you mean 'dim'\?"):
        parse(values)


def test_all_faults_of_a_file_are_told_at_once() -> None:
    told = refusal("data.batch_sise=1", "tables.user.dim=3", "train.device=tpu")
    assert [line.split(":")[0] for line in told.splitlines()[1:]] == [
        "  data.batch_sise",
        "  tables.user.dim",
        "  train.device",
    ]


class Params(Section):
    """A model's parameters, as a user would write them."""

    width: int = 8


def test_the_parameters_of_a_model_are_checked_in_the_same_words() -> None:
    assert validate(Params, {"width": 3}, "model.params").width == 3
    with pytest.raises(UserError, match=r"model\.params is not valid:\n  widht: no such key; did you mean 'width'\?"):
        validate(Params, {"widht": 3}, "model.params")


# -- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=3", ("train", "epochs"), 3),
        ("optimizer.dense.lr=1e-4", ("optimizer", "dense", "lr"), 1e-4),
        ("data.shuffle=false", ("data", "shuffle"), False),
        ("train.device=cpu", ("train", "device"), "cpu"),
        ('train.device="cpu"', ("train", "device"), "cpu"),
        (" train.seed = 7", ("train", "seed"), 7),
        ("data.train=other/rows", ("data", "train"), ("other/rows",)),
        ('data.train=["a", "b"]', ("data", "train"), ("a", "b")),
        ("data.train=s3://b/x=1/part", ("data", "train"), ("s3://b/x=1/part",)),
        ("features.sequence.0.max_length=9", ("features", "sequence", 0, "max_length"), 9),
        ("optimizer.dense.betas=[0.8, 0.9]", ("optimizer", "dense", "betas"), (0.8, 0.9)),
        ("model.params.top_mlp=[4]", ("model", "params", "top_mlp"), [4]),
        ("tables.item.sharding=row_wise", ("tables", "item", "sharding"), ("row_wise",)),
    ],
)
def test_an_override_reaches_its_place(override: str, path: tuple[str | int, ...], value: Any) -> None:
    found: Any = parse(small(), [override])
    for part in path:
        found = found[part] if isinstance(found, dict | tuple) else getattr(found, str(part))
    assert found == value
    assert type(found) is type(value)


def test_an_override_may_replace_an_item_or_add_a_table() -> None:
    config = parse(small(), ['features.dense.0={ name = "y" }', "tables.new={ rows = 3, dim = 4 }"])
    assert config.features.dense[0].name == "y"
    assert config.tables["new"].rows == 3


def test_the_last_override_of_a_key_wins_and_values_are_not_changed() -> None:
    values = small()
    assert parse(values, ["train.seed=1", "train.seed=2"]).train.seed == 2
    assert values == SMALL


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "'train.epochs' is not of the form key=value, such as train.epochs=3"),
        ("=3", "not of the form key=value"),
        ("name.first=x", "name is 'small', which has no keys"),
        ("features.sparse.1.pooling=mean", "features.sparse.1 must be an index below 1"),
        ("features.sparse.one.pooling=mean", "features.sparse.one must be an index"),
        ("features.sparse.-1.pooling=mean", "features.sparse.-1 must be an index"),
        ("features.sparse.²=mean", "features.sparse.² must be an index"),
        ("features.dense.0.null=0.0", "features.dense.0 is 'x', which has no keys"),
        ("..=1", "no such key"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(override: str, words: str) -> None:
    assert words in refusal(override)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_gets_its_neighbours(tmp_path: Path) -> None:
    for name in ("dlrm_movielens.toml", "din.toml", "notes.md"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        load(tmp_path / "dlrm_movilens.toml")
    assert str(caught.value).startswith(
        f"no config file at {tmp_path / 'dlrm_movilens.toml'}; in {tmp_path} there is: dlrm_movi"
    )
    assert "notes.md" not in str(caught.value)
    with pytest.raises(UserError, match="no config file at"):
        load(tmp_path / "no" / "such" / "folder.toml")


def test_a_folder_names_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "one.toml").touch()
    with pytest.raises(UserError, match=r"is a folder; name one config file in it.*one\.toml"):
        load(tmp_path)


def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "x"\n[data\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML: .*line 2"):
        load(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = " + b"[" * 20_000, b"x = " + b"9" * 9_000, b"", b"x = 1979-05-27"])
def test_what_no_reader_takes_is_a_users_mistake(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.toml"):
        load(file)


def test_a_path_through_a_file_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "file" / "x.toml")


WORDS = ["name", "data", "tables", "features", "dense", "sparse", "train", "rows", "dim", "optimizer", "x", "0", "item"]
SCALARS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.sampled_from(["row_wise", "cpu", "user", "12GB"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_load_raises_nothing_but_user_errors(tmp_path: Path, data: st.DataObject) -> None:
    """A good file with one place replaced by anything, one override of anything, and sometimes a torn text."""
    values = small()
    *path, last = data.draw(st.sampled_from(list(places(values))))
    at: Any = values
    for part in path:
        at = at[part]
    at[last] = data.draw(TREES)
    key, value = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)), data.draw(st.text(max_size=8))
    text = json_as_toml(values)
    torn = data.draw(st.none() | st.integers(0, len(text)))
    (tmp_path / "any.toml").write_text(text[:torn], encoding="utf-8")
    overrides = [f"{'.'.join(key)}={value}"] if data.draw(st.booleans()) else []
    with suppress(UserError):
        check(load(tmp_path / "any.toml", overrides))


def json_as_toml(values: dict[str, Any]) -> str:
    text = to_toml(values)
    try:
        tomllib.loads(text)
    except ValueError:  # surrogates and the like, which JSON's escapes write and TOML's do not
        return text.replace("\\u", "u")
    return text


def places(values: Any, at: tuple = ()) -> Iterator[tuple]:
    for key, inner in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


# -- what a checkpoint depends on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("optimizer.dense.lr=0.5", True),
        ("data.batch_size=7", True),
        ("train.epochs=9", True),
        ("tables.user.sharding=row_wise", True),
        ("features.sparse.0.out_of_range=null", True),
        ("tables.user.dim=12", False),
        ("tables.user.rows=51", False),
        ("tables.user.precision=fp16", False),
        ("tables.user.optimizer.name=adam", False),
        ("optimizer.sparse.name=adam", False),
        ("optimizer.dense.name=sgd", False),
        ("model.params.top_mlp=[3]", False),
        ("features.sparse.0.pooling=mean", False),
        ('tasks=[{}, { name = "two" }]', False),
    ],
)
def test_the_structure_changes_with_what_the_tensors_depend_on(override: str, same: bool) -> None:
    assert (structure(parse(small(), [override])) == structure(parse(small()))) is same


def test_nearest_lists_what_there_is_when_nothing_is_near() -> None:
    assert nearest("zzz", ["auc", "ne"]) == "; known: auc, ne"
    assert nearest("zzz", []) == ""
