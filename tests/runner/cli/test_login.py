"""`login` and `logout` against a registry in memory, with a login file of their own."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import Cli
from tests.support.registry_server import RegistryServer
from tests.support.terminal import on_terminal

ROOT = Path(__file__).parents[3]


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer(password="s3cret-canary") as server:
        yield server


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where docker's tools would look, for commands of this test."""
    for name in (
        "DOCKER_USERNAME",
        "DOCKER_PASSWORD",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


def test_K03_a_login_that_works_is_kept_as_docker_keeps_it(
    cli: Cli, registry: RegistryServer, docker_config: Path
) -> None:
    ended = cli(
        "ctl", "login", registry.netloc, "--username", "user", "--password-stdin", stdin="s3cret-canary\n"
    )
    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr == f"logged in to {registry.netloc} as user; kept in {docker_config}\n"
    assert stat.S_IMODE(docker_config.stat().st_mode) == 0o600
    assert list(json.loads(docker_config.read_text())["auths"]) == [registry.netloc]
    ended = cli("ctl", "logout", registry.netloc)
    assert ended.stderr == f"logged out of {registry.netloc}\n"
    assert registry.netloc not in docker_config.read_text()
    assert cli("ctl", "logout", registry.netloc).stderr == f"there was no login of {registry.netloc}\n"


def test_a_login_that_does_not_work_is_not_kept(
    cli: Cli, registry: RegistryServer, docker_config: Path
) -> None:
    ended = cli("ctl", "login", registry.netloc, "-u", "user", "--password-stdin", stdin="wrong")
    assert ended.status == 1
    assert registry.netloc in ended.stderr
    assert "wrong" not in ended.stderr
    assert not docker_config.exists()


def test_a_registry_that_cannot_be_reached_is_an_error(cli: Cli, docker_config: Path) -> None:
    with RegistryServer() as gone:
        netloc = gone.netloc
    ended = cli("ctl", "login", netloc, "-u", "user", "--password-stdin", stdin="p")
    assert ended.status == 1
    assert netloc in ended.stderr
    assert not docker_config.exists()


@pytest.mark.parametrize("written", ["http://{}", "http://{}/v2/", "{}/"])
def test_a_registry_may_be_written_as_a_url(cli: Cli, registry: RegistryServer, written: str) -> None:
    ended = cli(
        "ctl", "login", written.format(registry.netloc), "-u", "user", "--password-stdin",
        stdin="s3cret-canary",
    )  # fmt: skip
    assert f"logged in to {registry.netloc} " in ended.stderr


@pytest.mark.parametrize("name", ["registry", "a b", "", "../x", "hf.co", "huggingface.co"])
def test_what_is_no_registry_is_wrong_usage(cli: Cli, name: str) -> None:
    assert cli("ctl", "login", name, "-u", "u", "--password-stdin", stdin="p").status == 2


@pytest.mark.parametrize("stdin", ["", "\n", b"\xff"])
def test_a_password_is_due(cli: Cli, registry: RegistryServer, stdin: str | bytes) -> None:
    ended = cli("ctl", "login", registry.netloc, "-u", "user", "--password-stdin", stdin=stdin)
    assert ended.status == 2
    assert cli("ctl", "login", registry.netloc, "-u", "user", stdin=stdin).status == 2
    assert registry.requests == []


def test_K01_a_password_that_is_typed_is_not_shown(
    registry: RegistryServer, docker_config: Path, tmp_path: Path
) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "DOCKER_CONFIG": str(docker_config.parent),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "runner", "ctl", "login", registry.netloc]
    with on_terminal(command, environment, cwd=tmp_path) as terminal:
        terminal.wait_for("Username: ")
        terminal.type("user\n")
        terminal.wait_for("Password or token: ")
        terminal.type("s3cret-canary\n")
        terminal.wait_for("logged in to")
        assert terminal.wait_for_end() == 0
    assert "canary" not in terminal.screen


def test_logging_in_imports_the_network_only_when_it_is_used() -> None:
    code = (
        "import sys, runner.cli.login\n"
        "print(*{'requests', 'oras', 'attr', 'runner.network', 'runner.oci', 'trio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
