from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import CredentialsFailed, InvalidParameter
from runner.registry.credentials import HUB_SERVER, CredentialSource, docker_config_path, server_of
from runner.registry.docker_config import CONFIG_BYTES_MAX
from tests.support.scripted_http import SteppingClock

LOGIN = RemoteCredentials(username="ada", password="canary")


def auth(username: str = "ada", password: str = "canary") -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return tmp_path / "docker" / "config.json"


def write(path: Path, document: object, mode: int = 0o600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)


@pytest.fixture
def source(config_path: Path) -> CredentialSource:
    return CredentialSource({}, config_path)


Program = Callable[[str], Mapping[str, str]]


@pytest.fixture
def helper(tmp_path: Path) -> Program:
    """Install `docker-credential-keys` with this body; the environment to find it in."""

    def install(body: str) -> Mapping[str, str]:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        program = directory / "docker-credential-keys"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return {"PATH": f"{directory}:/usr/bin:/bin", "SECRET_CANARY": "canary-of-the-environment"}

    return install


# The environment


def test_environment_credentials_serve_only_the_registry_they_name(config_path: Path) -> None:
    environment = {
        "RUNNER_REGISTRY": "Reg.example:5000",
        "RUNNER_REGISTRY_USERNAME": "ada",
        "RUNNER_REGISTRY_PASSWORD": "canary",
        "DOCKER_USERNAME": "hub",
        "DOCKER_PASSWORD": "other",
    }
    source = CredentialSource(environment, config_path)
    assert source.find("reg.example:5000") == LOGIN
    assert source.find("docker.io") == RemoteCredentials(username="hub", password="other")
    assert source.find("reg.example") is None
    assert source.find("ghcr.io") is None


def test_credentials_without_a_registry_serve_none_but_docker_hub(config_path: Path) -> None:
    pair = {"RUNNER_REGISTRY_USERNAME": "ada", "RUNNER_REGISTRY_PASSWORD": "canary"}
    assert CredentialSource(pair, config_path).find("reg.example") is None
    hub = {"DOCKER_HUB_USER": "ada", "DOCKER_HUB_PASSWORD": "canary"}
    assert CredentialSource(hub, config_path).find("docker.io") == LOGIN
    assert CredentialSource({"DOCKER_USERNAME": "ada"}, config_path).find("docker.io") is None


def test_the_environment_may_name_docker_hub_by_runners_variables(config_path: Path) -> None:
    environment = {
        "RUNNER_REGISTRY": "docker.io",
        "RUNNER_REGISTRY_USERNAME": "ada",
        "RUNNER_REGISTRY_PASSWORD": "canary",
    }
    assert CredentialSource(environment, config_path).find("docker.io") == LOGIN


# The file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": auth()}, LOGIN),
        ({"auth": auth(password="a:b")}, RemoteCredentials(username="ada", password="a:b")),
        ({"auth": base64.b64encode(b"ada:canary\0\0").decode()}, LOGIN),
        ({"username": "ada", "password": "canary"}, LOGIN),
        ({"identitytoken": "canary", "auth": auth()}, RemoteCredentials(identity_token="canary")),
        ({"identitytoken": "", "auth": auth()}, LOGIN),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": "no base64"}, None),
        ({"auth": base64.b64encode(b"no colon").decode()}, None),
        ({"auth": base64.b64encode(b"\xff:\xff").decode()}, None),
        ({"auth": 5}, None),
        ("text", None),
    ],
)
def test_each_form_of_an_entry_is_read(
    source: CredentialSource, config_path: Path, entry: object, expected: RemoteCredentials | None
) -> None:
    write(config_path, {"auths": {"reg.example": entry}})
    assert source.find("reg.example") == expected


@pytest.mark.parametrize(
    "name",
    [
        "reg.example",
        "https://reg.example",
        "https://reg.example/",
        "http://reg.example/v1/",
        "REG.example/v2/",
    ],
)
def test_a_server_is_found_however_the_file_spells_it(
    source: CredentialSource, config_path: Path, name: str
) -> None:
    write(config_path, {"auths": {name: {"auth": auth()}}})
    assert source.find("reg.example") == LOGIN
    assert source.find("reg.example:5000") is None
    assert source.find("sub.reg.example") is None


def test_docker_hub_has_a_name_of_its_own_in_the_file(source: CredentialSource, config_path: Path) -> None:
    write(config_path, {"auths": {HUB_SERVER: {"auth": auth()}}})
    assert source.find("docker.io") == LOGIN
    assert server_of("docker.io") == HUB_SERVER
    assert server_of("reg.example:5000") == "reg.example:5000"


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "{", '{"auths": []}', '{"auths": {"reg.example": null}}']
)
def test_a_file_that_says_nothing_logs_in_nowhere(
    source: CredentialSource, config_path: Path, content: str
) -> None:
    write(config_path, content)
    assert source.find("reg.example") is None


def test_a_missing_file_logs_in_nowhere(source: CredentialSource) -> None:
    assert source.find("reg.example") is None
    assert CredentialSource({}, None).find("reg.example") is None


def test_a_damaged_file_is_told_without_its_content(
    source: CredentialSource, config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(config_path, '{"auths": {"reg.example": {"auth": "canary')
    assert source.find("reg.example") is None
    assert "config.json is not JSON" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_K03_a_file_that_others_may_read_is_warned_of(
    source: CredentialSource, config_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    write(config_path, {"auths": {"reg.example": {"auth": auth()}}}, mode)
    assert source.find("reg.example") == LOGIN
    assert ("may be read by other users" in caplog.text) is warns


def test_a_file_that_changes_is_read_again_at_once(source: CredentialSource, config_path: Path) -> None:
    assert source.find("reg.example") is None
    write(config_path, {"auths": {"reg.example": {"auth": auth()}}})
    assert source.find("reg.example") == LOGIN
    write(config_path, {"auths": {"reg.example": {"auth": auth(password="new one")}}})
    assert source.find("reg.example") == RemoteCredentials(username="ada", password="new one")


def test_DOCKER_CONFIG_moves_the_file(tmp_path: Path) -> None:
    assert docker_config_path({}, tmp_path) == tmp_path / ".docker" / "config.json"
    assert docker_config_path({"DOCKER_CONFIG": "/else"}, tmp_path) == Path("/else/config.json")


# Logging in and out


def test_K03_a_login_is_written_for_its_owner_only(source: CredentialSource, config_path: Path) -> None:
    assert source.store("reg.example", LOGIN) == str(config_path)
    assert stat.S_IMODE(config_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(config_path.parent.stat().st_mode) == 0o700
    assert json.loads(config_path.read_text()) == {"auths": {"reg.example": {"auth": auth()}}}
    assert source.find("reg.example") == LOGIN


def test_K03_a_login_file_is_replaced_whole_and_narrowed(source: CredentialSource, config_path: Path) -> None:
    write(config_path, {"auths": {"other.example": {"auth": auth("eve")}}, "HttpHeaders": {"a": "b"}}, 0o644)
    before = config_path.open()
    with before:
        source.store("reg.example", LOGIN)
        assert "reg.example" not in before.read()
    document = json.loads(config_path.read_text())
    assert document["HttpHeaders"] == {"a": "b"}
    assert set(document["auths"]) == {"other.example", "reg.example"}
    assert stat.S_IMODE(config_path.stat().st_mode) == 0o600
    assert list(config_path.parent.iterdir()) == [config_path]


def test_K03_a_login_file_behind_a_link_stays_behind_it(
    source: CredentialSource, config_path: Path, tmp_path: Path
) -> None:
    config_path.parent.mkdir()
    config_path.symlink_to(tmp_path / "dotfiles.json")
    source.store("reg.example", LOGIN)
    assert config_path.is_symlink()
    assert "reg.example" in (tmp_path / "dotfiles.json").read_text()


def test_a_new_login_takes_the_place_of_every_spelling_of_the_old(
    source: CredentialSource, config_path: Path
) -> None:
    write(config_path, {"auths": {"https://reg.example/v2/": {"auth": auth("old")}}})
    source.store("reg.example", LOGIN)
    assert json.loads(config_path.read_text())["auths"] == {"reg.example": {"auth": auth()}}


def test_a_login_is_erased_with_every_spelling(source: CredentialSource, config_path: Path) -> None:
    write(
        config_path, {"auths": {"https://reg.example": {"auth": auth()}, "other.example": {"auth": auth()}}}
    )
    assert source.erase("reg.example")
    assert not source.erase("reg.example")
    assert source.find("reg.example") is None
    assert source.find("other.example") == LOGIN


def test_a_damaged_login_file_is_not_written_over(source: CredentialSource, config_path: Path) -> None:
    write(config_path, '{"auths": canary')
    for change in (lambda: source.store("reg.example", LOGIN), lambda: source.erase("reg.example")):
        with pytest.raises(CredentialsFailed, match="is not JSON") as caught:
            change()
        assert "canary" not in str(caught.value)
    assert config_path.read_text() == '{"auths": canary'


def test_a_login_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = CredentialSource({}, tmp_path / "file" / "config.json")
    with pytest.raises(CredentialsFailed, match="cannot be"):
        source.store("reg.example", LOGIN)


@pytest.mark.parametrize(("excess", "is_refused"), [(-1, False), (0, False), (1, True)])
def test_a_login_file_above_1_mib_is_not_read(
    source: CredentialSource, config_path: Path, excess: int, is_refused: bool
) -> None:
    document = json.dumps({"auths": {"reg.example": {"auth": auth()}}})
    write(config_path, document + " " * (CONFIG_BYTES_MAX + excess - len(document)))
    assert source.find("reg.example") == (None if is_refused else LOGIN)


def test_a_login_that_could_not_be_synced_leaves_the_old_file(
    source: CredentialSource, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config_path, {"auths": {}})

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CredentialsFailed, match="cannot be written: Input/output error"):
        source.store("reg.example", LOGIN)
    assert json.loads(config_path.read_text()) == {"auths": {}}
    assert list(config_path.parent.iterdir()) == [config_path]


@pytest.mark.parametrize("login", [RemoteCredentials(), RemoteCredentials(username="a:b", password="c")])
def test_what_is_no_login_is_refused(source: CredentialSource, login: RemoteCredentials) -> None:
    with pytest.raises(InvalidParameter):
        source.store("reg.example", login)


def test_an_identity_token_is_kept_as_one(source: CredentialSource) -> None:
    source.store("reg.example", RemoteCredentials(identity_token="canary"))
    assert source.find("reg.example") == RemoteCredentials(identity_token="canary")


# Helpers

ANSWER = """echo '{"ServerURL":"x","Username":"ada","Secret":"canary"}'"""


def helped(helper: Program, config_path: Path, body: str, **document: object) -> CredentialSource:
    write(config_path, document or {"credsStore": "keys"})
    return CredentialSource(helper(body), config_path)


def test_a_helper_is_asked_for_the_server_by_name(helper: Program, config_path: Path) -> None:
    body = f'test "$1" = get && test "$(cat)" = reg.example && {ANSWER}'
    source = helped(helper, config_path, body)
    assert source.find("reg.example") == LOGIN
    assert source.find("other.example") is None


def test_a_helper_of_one_server_is_asked_for_that_one_only(helper: Program, config_path: Path) -> None:
    source = helped(helper, config_path, ANSWER, credHelpers={"reg.example": "keys"})
    assert source.find("reg.example") == LOGIN
    assert source.find("other.example") is None


def test_a_helper_knows_docker_hub_by_dockers_name(helper: Program, config_path: Path) -> None:
    source = helped(helper, config_path, f'test "$(cat)" = {HUB_SERVER} && {ANSWER}')
    assert source.find("docker.io") == LOGIN


def test_what_a_helper_lacks_may_stand_in_the_file(helper: Program, config_path: Path) -> None:
    body = "echo 'credentials not found in native keychain'; exit 1"
    source = helped(helper, config_path, body, credsStore="keys", auths={"reg.example": {"auth": auth()}})
    assert source.find("reg.example") == LOGIN


def test_a_helper_that_fails_is_told_and_logs_in_nowhere(
    helper: Program, config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = helped(helper, config_path, "echo canary; echo canary >&2; exit 3")
    assert source.find("reg.example") is None
    assert "docker-credential-keys failed with exit code 3" in caplog.text
    assert "canary" not in caplog.text


def test_a_helper_is_not_started_for_every_request(
    helper: Program, config_path: Path, tmp_path: Path
) -> None:
    write(config_path, {"credsStore": "keys"})
    clock = SteppingClock()
    environment = helper(f"echo started >> {tmp_path}/starts; {ANSWER}")
    source = CredentialSource(environment, config_path, clock=clock)

    def starts() -> int:
        return len((tmp_path / "starts").read_text().splitlines())

    for _ in range(3):
        source.find("reg.example")
    assert starts() == 1
    clock.now_s += 61
    source.find("reg.example")
    assert starts() == 2
    os.utime(config_path, (1, 1))
    source.find("reg.example")
    assert starts() == 3


def test_a_login_goes_to_the_helper_and_not_into_the_file(
    helper: Program, config_path: Path, tmp_path: Path
) -> None:
    source = helped(helper, config_path, f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/given')
    assert source.store("reg.example", LOGIN) == "docker-credential-keys"
    assert json.loads((tmp_path / "given").read_text()) == {
        "ServerURL": "reg.example",
        "Username": "ada",
        "Secret": "canary",
    }
    assert (tmp_path / "arguments").read_text() == "store\n"
    assert json.loads(config_path.read_text()) == {"credsStore": "keys", "auths": {"reg.example": {}}}


def test_logging_out_erases_what_the_helper_has(helper: Program, config_path: Path, tmp_path: Path) -> None:
    body = f'echo "$1 $(cat)" > {tmp_path}/erased'
    source = helped(helper, config_path, body, credsStore="keys", auths={"reg.example": {}})
    assert source.erase("reg.example")
    assert (tmp_path / "erased").read_text() == "erase reg.example\n"
    assert json.loads(config_path.read_text()) == {"credsStore": "keys", "auths": {}}


def test_a_helper_that_cannot_store_leaves_the_file_as_it_was(helper: Program, config_path: Path) -> None:
    source = helped(helper, config_path, "exit 1")
    with pytest.raises(CredentialsFailed, match="could not store"):
        source.store("reg.example", LOGIN)
    assert json.loads(config_path.read_text()) == {"credsStore": "keys"}
