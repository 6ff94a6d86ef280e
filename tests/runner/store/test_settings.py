"""The files that keep what was configured; what a kill leaves of them is tested in test_crash.py."""

from __future__ import annotations

import math
import stat

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import CacheType
from runner.domain.settings import NOTHING, ModelSettings
from runner.errors import StartRefused, StoreDamaged
from runner.oci.digest import Digest
from runner.store.opening import open_store
from runner.store.settings import FILE_BYTES_MAX, FORMAT_VERSION, encode, parse
from tests.support import models
from tests.support.cut_disk import CountingDisk, fail_at

WEIGHTS = models.tiny_gguf()
MODEL_ID = Digest.of(b"manifest")
SETTINGS = ModelSettings(
    context_size=512, key_type=CacheType.Q8_0, chat_template="{{ 'ä' }}\n", keep_alive_s=math.inf, seed=7
)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "store"
    with models.opened(root) as store:
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
    return root


def configured(root, **changes):
    """The only file of settings, after the model was configured."""
    with models.opened(root) as store:
        models.configure(store, "a:1", **changes)
    [path] = (root / "settings").iterdir()
    return path


def settings_in(root):
    with models.opened(root) as store:
        return store.catalog.resolve(models.name("a:1")).model.settings


# the format


def test_what_is_encoded_is_parsed_again():
    assert parse(MODEL_ID, encode(MODEL_ID, SETTINGS)) == SETTINGS
    assert orjson.loads(encode(MODEL_ID, SETTINGS)) == {
        "version": FORMAT_VERSION,
        "model": str(MODEL_ID),
        "settings": {
            "context_size": 512,
            "key_type": "q8_0",
            "chat_template": "{{ 'ä' }}\n",
            "keep_alive": -1,
            "seed": 7,
        },
    }


def document(**changes):
    values = {"version": FORMAT_VERSION, "model": str(MODEL_ID), "settings": {}}
    return orjson.dumps({**values, **changes})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        document(version=0),
        document(version=-1),
        document(version=True),
        document(version="1"),
        document(version=None),
        document(model=str(Digest.of(b"other"))),
        document(model=None),
        document(settings=[]),
        document(settings={"temperature": 3}),
        document(settings={"colour": "red"}),
        document(more=1),
        encode(MODEL_ID, SETTINGS)[:-10],
    ],
)
def test_anything_else_is_damage(content):
    with pytest.raises(StoreDamaged):
        parse(MODEL_ID, content)


@given(st.binary() | st.builds(lambda cut: encode(MODEL_ID, SETTINGS)[:cut], st.integers(0, 200)))
def test_any_bytes_give_settings_or_one_kind_of_error(content):
    try:
        parse(MODEL_ID, content)
    except StoreDamaged:
        pass


# files


def test_what_was_configured_survives_a_restart_in_a_file_of_its_owner(root):
    path = configured(root, context_size=512, temperature=0.5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert settings_in(root) == ModelSettings(context_size=512, temperature=0.5)


def test_nothing_else_is_lost_when_one_value_changes(root):
    configured(root, context_size=512, temperature=0.5)
    configured(root, keep_alive_s=9.0)
    assert settings_in(root) == ModelSettings(context_size=512, temperature=0.5, keep_alive_s=9.0)


def test_nothing_configured_is_no_file(root):
    configured(root, pin=True)
    with models.opened(root) as store:
        models.configure(store, "a:1", "pin")
    assert settings_in(root) == NOTHING
    assert not any((root / "settings").iterdir())


def test_settings_go_with_their_model_and_do_not_come_back(root):
    configured(root, pin=True)
    with models.opened(root) as store:
        models.remove(store, "a:1")
        assert not any((root / "settings").iterdir())
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
    assert settings_in(root) == NOTHING


def test_settings_that_a_failed_removal_left_are_not_those_of_the_same_model_later(root):
    configured(root, pin=True)
    disk = CountingDisk()
    with models.opened(root, disk=disk) as store:
        disk.arm(fail_at(lambda number, operation: operation == "unlink"))
        with pytest.raises(Exception, match="unlink"):
            models.remove(store, "a:1")
        disk.arm(lambda number, operation: None)
        store.catalog = store.directory.load().catalog
        assert any((root / "settings").iterdir())
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
        assert store.directory.load().catalog.models()[0].settings == NOTHING


def test_S27_a_file_of_a_newer_version_keeps_the_store_from_being_opened(root):
    path = configured(root, pin=True)
    newer = orjson.loads(path.read_bytes()) | {"version": FORMAT_VERSION + 1, "settings": {"colour": "red"}}
    path.write_bytes(orjson.dumps(newer))
    before = path.read_bytes()
    with pytest.raises(StartRefused, match="newer version") as caught:
        open_store(root, now_s=models.NOW_S)
    assert str(root) not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "link", "long"])
def test_a_damaged_file_is_named_kept_aside_and_costs_only_itself(root, damage):
    path = configured(root, temperature=0.5)
    with models.opened(root) as store:
        models.publish(store, "b:1", models.tiny_gguf("Other"))
        models.configure(store, "b:1", pin=True)
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(content[:20])
        case "link":
            path.symlink_to(root / "index.json")
        case "long":
            path.write_bytes(b" " * (FILE_BYTES_MAX + 1))
    with models.opened(root) as store:
        assert store.catalog.resolve(models.name("a:1")).model.settings == NOTHING
        [notice] = store.notices
        kept = path.with_name(f"{path.stem}.damaged.json")
        assert f"settings/{kept.name}" in notice
        assert store.catalog.resolve(models.name("b:1")).model.settings == ModelSettings(pin=True)
    before = kept.lstat()
    with models.opened(root) as store:
        assert store.notices == ()
        models.configure(store, "a:1", seed=1)
    assert kept.lstat() == before
    assert path.is_file()
    assert settings_in(root) == ModelSettings(seed=1)


def test_a_damaged_file_goes_with_its_model(root):
    configured(root, pin=True).write_bytes(b"?")
    with models.opened(root) as store:
        assert len(store.notices) == 1
        models.remove(store, "a:1")
    assert not any((root / "settings").iterdir())


def test_what_is_not_ours_is_left_alone(root):
    configured(root, pin=True)
    (root / "settings" / "notes.txt").write_text("mine")
    (root / "settings" / f"{MODEL_ID.hex}.json").mkdir()
    with models.opened(root) as store:
        assert store.notices == ()
        models.remove(store, "a:1")
    assert {path.name for path in (root / "settings").iterdir()} == {"notes.txt", f"{MODEL_ID.hex}.json"}


def test_settings_outlive_a_damaged_index(root):
    configured(root, pin=True)
    (root / "index.json").write_bytes(b"{")
    with models.opened(root) as store:
        assert any("rebuilt" in notice for notice in store.notices)
    assert settings_in(root) == ModelSettings(pin=True)


def test_a_store_of_before_there_were_settings_is_opened(root):
    (root / "settings").rmdir()
    assert settings_in(root) == NOTHING
