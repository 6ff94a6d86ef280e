"""Where files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import places


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_everything_is_below_the_home_directory(home: Path) -> None:
    assert places.config_file() == home / ".config/runner/config.toml"
    assert places.state_directory() == home / ".local/state/runner"
    assert places.default_store() == home / ".local/share/runner/store"
    assert places.default_socket() == home / ".local/state/runner/run/runner.sock"


def test_the_socket_is_in_the_runtime_directory_when_it_is_ours(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "runtime"))
    assert places.default_socket() == home / "runtime/runner/runner.sock"
    monkeypatch.setattr(
        "os.getuid", lambda: 12345
    )  # after `su`, the variable is still that of the other user
    assert places.default_socket() == home / ".local/state/runner/run/runner.sock"


def test_a_runtime_directory_that_does_not_exist_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "nowhere"))
    assert places.default_socket() == home / ".local/state/runner/run/runner.sock"
