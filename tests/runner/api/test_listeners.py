from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from runner.api.listeners import Listener, listen_tcp, listen_unix
from runner.api.server import ServerSettings
from runner.errors import StartRefused

pytestmark = pytest.mark.anyio


def test_N01_the_default_address_is_a_port_of_this_machine_only() -> None:
    assert (ServerSettings().host, ServerSettings().port) == ("127.0.0.1", 12434)


def test_N01_a_loopback_address_is_listened_on_and_known_by_its_names() -> None:
    listener = listen_tcp("127.0.0.2", 0, allowed_hosts=("GPU.lan",))
    try:
        port = listener.socket.getsockname()[1]
        assert listener.address == f"http://127.0.0.2:{port}"
        names = ("localhost", "127.0.0.1", "[::1]", "127.0.0.2", "gpu.lan")
        assert listener.hosts == {*names, *(f"{name}:{port}" for name in names)}
    finally:
        listener.close()


def test_N01_localhost_is_the_address_of_version_4() -> None:
    listener = listen_tcp("localhost", 0)
    assert listener.address.startswith("http://127.0.0.1:")
    listener.close()


def test_N01_any_other_address_is_refused_with_the_reason() -> None:
    for host in ("0.0.0.0", "::", "[::]", "192.168.1.5", "8.8.8.8", "fe80::1", "::ffff:8.8.8.8"):
        with pytest.raises(StartRefused, match="without an API key"):
            listen_tcp(host, 0)
    for host in ("", "example.org", "127.0.0.1.nip.example", "127.1", "localhost."):
        with pytest.raises(StartRefused, match="is not an address"):
            listen_tcp(host, 0)


def test_a_port_in_use_is_named() -> None:
    first = listen_tcp("127.0.0.1", 0)
    port = first.socket.getsockname()[1]
    try:
        with pytest.raises(StartRefused, match=f"127.0.0.1:{port} is in use .* --port"):
            listen_tcp("127.0.0.1", port)
    finally:
        first.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "runner.sock"


def exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def remove(path: Path) -> None:
    path.unlink()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_N01_the_socket_is_0600_in_a_directory_0700_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        listener = await listen_unix(path)
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert (listener.address, listener.hosts) == (f"unix:{path}", None)
    listener.close()


async def test_N01_a_directory_that_others_can_enter_is_refused(path: Path) -> None:
    for bits in (0o755, 0o750, 0o701):
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(bits)
        with pytest.raises(StartRefused, match="chmod 700"):
            await listen_unix(path)
    assert not exists(path)


async def test_L10_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = await listen_unix(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


async def test_L10_a_socket_that_somebody_listens_on_is_never_taken_over(path: Path) -> None:
    first = await listen_unix(path, backlog=1)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    try:
        for client in clients:  # the second round meets a full backlog
            with pytest.raises(StartRefused, match="another daemon"):
                await listen_unix(path)
            client.setblocking(False)
            client.connect_ex(str(path))
        first.socket.accept()[0].close()  # still reachable
    finally:
        for client in clients:
            client.close()
        first.close()


async def test_L10_of_daemons_that_start_together_one_gets_the_socket(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    winners: list[Listener] = []
    refused: list[StartRefused] = []

    async def start() -> None:
        try:
            winners.append(await listen_unix(path))
        except StartRefused as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    assert (len(winners), len(refused)) == (1, 3)
    winners[0].close()


async def test_a_directory_locked_for_long_is_a_reason_not_to_start(
    path: Path, virtual_clock: trio.testing.MockClock
) -> None:
    path.parent.mkdir(mode=0o700)
    held = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StartRefused, match="locked"):
            await listen_unix(path)
    finally:
        os.close(held)


@pytest.fixture
def file_at_path(path: Path) -> Path:
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    return path


@pytest.fixture
def link_at_path(path: Path) -> Path:
    path.parent.mkdir(mode=0o700)
    path.symlink_to("/nowhere")
    return path


@pytest.mark.parametrize("kind", ["file_at_path", "link_at_path"])
async def test_what_is_no_socket_is_left_alone(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    with pytest.raises(StartRefused, match="not a socket"):
        await listen_unix(path)
    assert exists(path)


async def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    longest = directory / ("s" * (107 - len(os.fsencode(directory)) - 1))
    (await listen_unix(longest)).close()
    with pytest.raises(StartRefused, match="107 bytes"):
        await listen_unix(directory / (longest.name + "s"))


async def test_closing_removes_the_socket_once_and_only_its_own(path: Path) -> None:
    listener = await listen_unix(path)
    remove(path)
    other = await listen_unix(path)
    listener.close()
    assert exists(path)
    other.close()
    assert not exists(path)
    other.close()
