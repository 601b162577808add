"""The folder of an export: whole or as it was, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_run import values

from distrec import dist
from distrec.checkpoint import Manifest
from distrec.config.load import parse
from distrec.errors import UserError
from distrec.export import write
from distrec.recall.vectors import EXPORT
from distrec.seal import seal, unseal


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An older export."""
    (tmp_path / "export").mkdir()
    seal(tmp_path / "export", EXPORT, {"model": "old"}, {})
    return tmp_path / "export"


def export_to(target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch, tables: Any) -> None:
    """An export without a model, whose tables are written by `tables`."""
    engine = SimpleNamespace(items=None, ranks=ranks, numbering=SimpleNamespace(numbers={}))
    manifest = Manifest(step=3, world=1, model={}, data="", position={}, progress={})
    for name, value in {
        "restored": lambda *_: (engine, manifest),
        "_config_hash": lambda _: "of the config",
        "inputs_of": lambda _: {},
        "scoring": lambda _: None,
        "_write_tables": tables,
    }.items():
        monkeypatch.setattr(write, name, value)
    config = parse(values(target, target))
    write.export(config, ranks, target, target, None, "fp32", "none")


def test_a_full_disk_is_said_and_leaves_the_older_export(
    target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: Any) -> None:
        (folder / "part").write_text("as far as it went")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; name another folder"):
        export_to(target, ranks, monkeypatch, full)
    assert unseal(target, EXPORT, "")["model"] == "old"
    assert [path.name for path in target.parent.iterdir()] == ["export"]  # the room is free again


def test_two_exports_at_once_do_not_meet_and_the_last_one_stays(
    target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(folder: Path, *_: Any) -> dict:
        (folder / "part").write_text("of the one")
        export_to(target, ranks, monkeypatch, lambda other, *_: (other / "part").write_text("of the other") and {"other": {}})
        assert unseal(target, EXPORT, "")["tables"] == {"other": {}}
        return {"one": {}}

    export_to(target, ranks, monkeypatch, meanwhile)
    facts = unseal(target, EXPORT, "")
    assert (facts["tables"], facts["files"]["part"]) == ({"one": {}}, [10, zlib.crc32(b"of the one")])
    assert (target / "part").read_text() == "of the one"
    assert [path.name for path in target.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_an_export_that_fails_leaves_nothing(
    target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(folder: Path, *_: Any) -> None:
        (folder / "part").write_text("as far as it went")
        raise error

    with pytest.raises(error):
        export_to(target, ranks, monkeypatch, fail)
    assert unseal(target, EXPORT, "")["model"] == "old"
    assert [path.name for path in target.parent.iterdir()] == ["export"]


def test_the_older_export_makes_room_at_once(target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its removal may take long, or fail: until then a reader must find the one or the other."""
    found: list[list[str]] = []

    def remove(folder: Path, ignore_errors: bool) -> None:
        found.append([path.name for path in target.parent.glob("export/manifest.json")])
        remove_really(folder, ignore_errors=ignore_errors)

    remove_really = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    export_to(target, ranks, monkeypatch, lambda *_: {})
    assert found
    assert all(names == ["manifest.json"] for names in found)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    export_to(target, ranks, monkeypatch, lambda *_: {"t": {}})
    assert json.loads((target / "manifest.json").read_text())["tables"] == {"t": {}}


def test_the_folder_that_one_stands_in_is_a_folder(tmp_path: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    export_to(Path(), ranks, monkeypatch, lambda *_: {})
    assert unseal(tmp_path / "mine", EXPORT, "")["tables"] == {}


def test_a_link_stays_a_link(target: Path, ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a larger disk, say."""
    (target.parent / "link").symlink_to(target)
    export_to(target.parent / "link", ranks, monkeypatch, lambda *_: {})
    assert (target.parent / "link").is_symlink()
    assert unseal(target, EXPORT, "")["tables"] == {}
