"""`serve`: flags become settings. Daemons themselves are under `tests/integration`."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from runner.cli.serve import serve
from runner.config import OPTIONS
from tests.support.control import Cli


def test_every_setting_has_a_flag_and_names_its_variable() -> None:
    text = " ".join(serve.get_help(click.Context(serve, info_name="serve")).split())
    for option in OPTIONS:
        assert f"--{option.name.replace('_', '-')} VALUE" in text
        assert f"[{option.environment}]" in text


def test_every_value_is_shown_with_its_origin(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('allowed_hosts = ["a.example", "b.example"]\nkeep_alive = "90s"\n')
    monkeypatch.setenv("RUNNER_PORT", "99")
    ended = cli("serve", "--show-config", "--config", str(tmp_path / "config.toml"), "--idle-exit", "never")
    assert ended.status == 0
    rows = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()[1:]}
    assert set(rows) == {option.name for option in OPTIONS}
    assert rows["port"] == ["99", "environment"]
    assert rows["allowed_hosts"] == ["a.example,b.example", "file"]
    assert rows["keep_alive"] == ["90", "s", "file"]
    assert rows["idle_exit"] == ["never", "flag"]
    assert rows["host"] == ["127.0.0.1", "default"]
    assert rows["memory_budget"] == ["default"]


def test_faults_of_all_sources_are_told_together(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_LOG_LEVEL", "loud")
    ended = cli("serve", "--port", "70000")
    assert ended.status == 1
    assert ended.stderr.splitlines() == [
        "error: the settings are not usable:",
        "  --port: 70000 is outside 0 to 65535",
        "  RUNNER_LOG_LEVEL: 'loud' is not one of debug, info, warning, error",
    ]
