from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import CredentialsFailed
from runner.registry.credential_programs import OUTPUT_BYTES_MAX, CredentialProgram
from tests.support.scripted_http import SteppingClock


@pytest.fixture
def bin_path(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    return path


def install(bin_path: Path, body: str, name: str = "docker-credential-keys") -> dict[str, str]:
    program = bin_path / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return {"PATH": f"{bin_path}:/usr/bin:/bin"}


def program(bin_path: Path, body: str, **changes: object) -> CredentialProgram:
    return CredentialProgram("keys", install(bin_path, body), **changes)


@pytest.mark.parametrize(
    "suffix",
    ["", "Keys", "../keys", "keys;id", "keys get", "$(id)", "keys\n", "kéys", "keys.exe", "a/b", "k" * 65],
)
def test_K02_no_other_program_is_started(bin_path: Path, tmp_path: Path, suffix: str) -> None:
    """The name is checked before anything is looked up, even when such a program exists."""
    ran = tmp_path / "ran"
    environment = install(bin_path, f"touch {ran}")
    for name in (f"docker-credential-{suffix}", suffix):
        if name and "/" not in name:
            install(bin_path, f"touch {ran}", name)
    with pytest.raises(CredentialsFailed, match="no name of a credential helper"):
        CredentialProgram(suffix, environment).get("reg.example")
    assert not ran.exists()


@pytest.mark.parametrize("suffix", ["keys", "ecr-login", "a1", "k" * 64])
def test_K02_a_proper_name_is_started(bin_path: Path, suffix: str) -> None:
    environment = install(bin_path, 'echo \'{"Username":"a","Secret":"b"}\'', f"docker-credential-{suffix}")
    found = CredentialProgram(suffix, environment).get("reg.example")
    assert found == RemoteCredentials(username="a", password="b")


def test_K02_the_server_stands_on_stdin_and_reaches_no_shell(bin_path: Path, tmp_path: Path) -> None:
    body = f'cat > {tmp_path}/stdin; echo "$#$@" > {tmp_path}/arguments; exit 1'
    with pytest.raises(CredentialsFailed):
        program(bin_path, body).get("$(touch canary); reg.example")
    assert (tmp_path / "stdin").read_text() == "$(touch canary); reg.example"
    assert (tmp_path / "arguments").read_text() == "1get\n"


def test_K02_secrets_stand_in_no_argument(bin_path: Path, tmp_path: Path) -> None:
    one = program(bin_path, f"cat /proc/$$/cmdline > {tmp_path}/cmdline; cat > /dev/null")
    one.store("reg.example", RemoteCredentials(username="ada", password="canary"))
    assert b"canary" not in (tmp_path / "cmdline").read_bytes()


def test_K02_a_helper_sees_only_what_helpers_need_of_the_environment(bin_path: Path, tmp_path: Path) -> None:
    environment = install(bin_path, f"env > {tmp_path}/env")
    environment |= {"HOME": "/home/ada", "AWS_PROFILE": "work", "HF_TOKEN": "canary", "RUNNER_KEY": "canary"}
    CredentialProgram("keys", environment).erase("reg.example")
    seen = (tmp_path / "env").read_text()
    assert "HOME=/home/ada" in seen
    assert "AWS_PROFILE=work" in seen
    assert "canary" not in seen


def test_K02_a_helper_that_takes_too_long_is_ended_with_all_it_started(
    bin_path: Path, tmp_path: Path
) -> None:
    one = program(
        bin_path, f"mkfifo {tmp_path}/never; cat {tmp_path}/never", clock=SteppingClock(step_s=11.0)
    )
    with pytest.raises(CredentialsFailed, match="longer than 10 s"):
        one.get("reg.example")


def test_K02_a_child_of_a_helper_that_takes_too_long_is_ended_as_well(bin_path: Path, tmp_path: Path) -> None:
    """It also holds the output open, which keeps nobody waiting."""
    for name in ("never", "ready", "alive"):
        os.mkfifo(tmp_path / name)
    ready = os.open(tmp_path / "ready", os.O_RDWR)
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    times = iter([0.0])

    def first_then_late() -> float:
        """The deadline passes when the child runs."""
        for _ in times:
            return 0.0
        if not is_late:
            is_late.append(os.read(ready, 1))
        return 100.0

    is_late: list[bytes] = []
    body = f"(exec 3>{tmp_path}/alive; echo > {tmp_path}/ready; cat {tmp_path}/never) & wait"
    try:
        with pytest.raises(CredentialsFailed, match="longer than 10 s"):
            program(bin_path, body, clock=first_then_late).get("reg.example")
        os.set_blocking(alive, True)
        assert os.read(alive, 1) == b""  # which comes when the last writer is gone
    finally:
        os.close(ready)
        os.close(alive)


@pytest.mark.parametrize(
    ("size_bytes", "is_refused"),
    [(OUTPUT_BYTES_MAX - 1, False), (OUTPUT_BYTES_MAX, False), (OUTPUT_BYTES_MAX + 1, True)],
)
def test_K02_more_output_than_the_cap_is_refused(bin_path: Path, size_bytes: int, is_refused: bool) -> None:
    answer = '{"Username":"a","Secret":"b"}'
    body = f"printf '%s%{size_bytes - len(answer)}s' '{answer}' ''"
    if is_refused:
        with pytest.raises(CredentialsFailed, match=f"more than {OUTPUT_BYTES_MAX} bytes"):
            program(bin_path, body).get("reg.example")
    else:
        assert program(bin_path, body).get("reg.example") == RemoteCredentials(username="a", password="b")


def test_K02_output_without_end_is_refused(bin_path: Path) -> None:
    with pytest.raises(CredentialsFailed, match="more than"):
        program(bin_path, "exec cat /dev/zero").get("reg.example")


def test_a_helper_that_does_not_listen_may_answer(bin_path: Path) -> None:
    one = program(bin_path, 'exec <&-; echo \'{"Username":"a","Secret":"b"}\'')
    assert one.get("x" * 200_000) == RemoteCredentials(username="a", password="b")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"Username":"<token>","Secret":"canary"}', RemoteCredentials(identity_token="canary")),
        ('{"Username":"","Secret":"canary"}', RemoteCredentials(username="", password="canary")),
        ('{"Username":"a","Secret":""}', None),
        ('{"Username":5,"Secret":"b"}', None),
    ],
)
def test_each_answer_of_a_helper_is_read(
    bin_path: Path, answer: str, expected: RemoteCredentials | None
) -> None:
    assert program(bin_path, f"echo '{answer}'").get("reg.example") == expected


@pytest.mark.parametrize("answer", ["", "canary", "[]", "{}", '{"Username":"canary"}'])
def test_an_answer_that_is_none_is_told_without_repeating_it(bin_path: Path, answer: str) -> None:
    with pytest.raises(CredentialsFailed) as caught:
        program(bin_path, f"echo '{answer}'").get("reg.example")
    assert "canary" not in str(caught.value)


def test_a_helper_that_is_not_there_is_told(bin_path: Path) -> None:
    with pytest.raises(CredentialsFailed, match="docker-credential-keys is not on the PATH"):
        CredentialProgram("keys", {"PATH": str(bin_path)}).get("reg.example")


def test_erasing_what_a_helper_does_not_have_is_no_failure(bin_path: Path) -> None:
    one = program(bin_path, "echo 'credentials not found in native keychain'; exit 1")
    assert not one.erase("reg.example")
    with pytest.raises(CredentialsFailed, match="could not erase"):
        program(bin_path, "exit 1").erase("reg.example")
