"""Settings as rules, credentials and clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.config import Settings, resolve
from runner.errors import StartRefused
from runner.network import credential_source, hub, network_rules, registry_client
from runner.registry.transport import Door


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


def settings(file: Path, **flags: str) -> Settings:
    return resolve(flags, {}, file).settings


def test_settings_become_rules(file: Path) -> None:
    rules = network_rules(
        settings(
            file,
            insecure_registries="plain.example",
            unverified_registries="odd.example",
            private_registries="10.1.2.3",
            registry_ca_files="reg.example=/ca.pem",
            registry_mirrors="docker.io=a.example,docker.io=https://b.example/path",
            registry_realms="reg.example=tokens.example",
        ),
        {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "reg.example"},
    )
    assert rules.insecure == {"plain.example"}
    assert rules.unverified == {"odd.example"}
    assert rules.allowed_private == {"10.1.2.3"}
    assert rules.ca_files == {"reg.example": Path("/ca.pem")}
    assert rules.mirrors == {"docker.io": ("a.example", "https://b.example/path")}
    assert rules.realms == {"reg.example": ("tokens.example",)}
    assert rules.proxies.for_target("https", "docker.io", 443) == "http://proxy.example:3128"
    assert rules.proxies.for_target("https", "reg.example", 443) is None
    assert rules.user_agent.startswith("runner/")


def test_by_default_nothing_is_allowed(file: Path) -> None:
    rules = network_rules(settings(file), {})
    assert not rules.insecure | rules.unverified | rules.allowed_private
    assert not {**rules.ca_files, **rules.mirrors, **rules.realms}


@pytest.mark.parametrize("variable", ["DOCKER_CONFIG", "HOME"])
def test_logins_are_those_of_docker(tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path if variable == "DOCKER_CONFIG" else tmp_path / ".docker"
    directory.mkdir(exist_ok=True)
    login = directory / "config.json"
    login.write_text(json.dumps({"auths": {"reg.example": {"username": "u", "password": "p"}}}))
    login.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path if variable == "HOME" else "/nonexistent"))
    environment = {"DOCKER_CONFIG": str(tmp_path)} if variable == "DOCKER_CONFIG" else {}
    found = credential_source(environment).find("reg.example")
    assert found is not None
    assert (found.username, found.password) == ("u", "p")


def test_a_hub_may_be_elsewhere(file: Path) -> None:
    door = Door(network_rules(settings(file), {}))
    try:
        assert hub(settings(file), door, {}).endpoint == "https://huggingface.co"
        elsewhere = settings(file, hub_endpoint="http://127.0.0.1:8080/base/")
        assert hub(elsewhere, door, {"HF_TOKEN": "hf_x"}).endpoint == "http://127.0.0.1:8080/base"
        assert registry_client(door, {}) is not None
    finally:
        door.close()


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        ({"hub_endpoint": "https://hub.example:99999"}, {}, "hub_endpoint"),
        ({}, {"HF_TOKEN": "canary\r\nHost: evil"}, "HF_TOKEN"),
    ],
)
def test_L14_a_hub_that_cannot_be_used_is_told_at_the_start(
    file: Path, flags: dict[str, str], environment: dict[str, str], text: str
) -> None:
    door = Door(network_rules(settings(file), {}))
    try:
        with pytest.raises(StartRefused, match=text) as refused:
            hub(settings(file, **flags), door, environment)
    finally:
        door.close()
    assert "canary" not in str(refused.value)
