"""Completion scripts, and what a shell that uses them offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.control import Cli, model_summary

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(cli: Cli, shell: str) -> None:
    ended = cli("ctl", "completion", shell)
    assert ended.status == 0
    assert f"_RUNNER_COMPLETE={shell}_complete" in ended.stdout
    assert "%(" not in ended.stdout


def test_other_shells_are_refused(cli: Cli) -> None:
    assert cli("ctl", "completion", "tcsh").status == 2


@pytest.fixture
def bash(cli: Cli, tmp_path: Path) -> Path:
    """A file that Bash reads before it completes, and `runner` on the path."""
    (tmp_path / "script").write_text(cli("ctl", "completion", "bash").stdout)
    command = tmp_path / "bin" / "runner"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runner "$@"\n')
    command.chmod(0o700)
    cli.routes["GET /control/v1/models"] = [
        model_summary(tags=("docker.io/ai/smollm2:135M-Q4_1", "docker.io/ai/smollm2:latest")),
        model_summary(tags=("docker.io/ai/other:latest",)),
    ]
    return tmp_path / "script"


def offered(script: Path, line: str) -> list[str]:
    """What Bash would insert for the word at the end of `line`, by its own splitting of words."""
    code = (
        f"source {script}\n"
        "complete -p runner >/dev/null\n"
        "COMP_LINE=$1; COMP_POINT=${#1}\n"
        '_runner_completion runner "" ""\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", line],
        env={**os.environ, "PATH": f"{script.parent / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_commands_and_options_are_offered(bash: Path) -> None:
    assert offered(bash, "runner ") == ["run", "serve", "ctl"]
    assert offered(bash, "runner ctl shut") == ["shutdown"]
    assert "--json" in offered(bash, "runner ctl ps --")


def test_models_are_offered_by_name(bash: Path) -> None:
    assert offered(bash, "runner run ") == ["ai/smollm2:135M-Q4_1", "ai/smollm2", "ai/other"]
    assert offered(bash, "runner ctl inspect ai/o") == ["ai/other"]
    assert offered(bash, "runner ctl rm ai/other ai/s") == ["ai/smollm2:135M-Q4_1", "ai/smollm2"]


def test_after_a_colon_only_the_rest_of_a_name_is_offered(bash: Path) -> None:
    """Bash replaces what follows the colon."""
    assert offered(bash, "runner run ai/smollm2:1") == ["135M-Q4_1"]
    assert offered(bash, "runner run ai/smollm2:") == ["135M-Q4_1"]


def test_without_a_daemon_no_models_are_offered(
    bash: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_HOST", "unix:/nowhere/r.sock")
    assert offered(bash, "runner run a") == []
    monkeypatch.setenv("RUNNER_HOST", "https://nonsense")
    assert offered(bash, "runner run a") == []


def test_the_named_daemon_is_asked(bash: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_HOST", "unix:/nowhere/r.sock")
    assert offered(bash, f"runner ctl inspect --host {cli.server.target} ai/o") == ["ai/other"]
