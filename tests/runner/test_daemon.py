"""The composition root: what it refuses, and that its parts come back. Whole daemons: tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import runner.daemon
from actors.supervisor import ChildCrashed
from runner.api.server import Server
from runner.config import Settings, resolve
from runner.daemon import Daemon, leaves, setting_layers
from runner.domain.settings import SETTING_BY_NAME, write_settings
from runner.domain.settings import resolve as resolve_settings
from runner.errors import StartRefused

pytestmark = pytest.mark.anyio

LIMIT_S = 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    environment = {
        "RUNNER_ENGINE": "scripted",
        "RUNNER_PORT": "0",
        "RUNNER_SOCKET": str(tmp_path / "run" / "r.sock"),
        "RUNNER_STORE": str(tmp_path / "store"),
    }
    return resolve({}, environment, None).settings


def server_that_fails(starts: trio.MemorySendChannel[trio.Event]) -> type[Server]:
    """A server that tells of each start with the event that makes it fail."""

    class ServerThatFails(Server):
        async def run(
            self, *, task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED
        ) -> None:
            fail = trio.Event()

            async def fail_when_told() -> None:
                await fail.wait()
                raise OSError("the network has gone")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_when_told)
                starts.send_nowait(fail)
                await super().run(task_status=task_status)
                nursery.cancel_scope.cancel()

    return ServerThatFails


async def health(socket: Path) -> bytes:
    """What the server says, once it listens."""
    while not await trio.Path(socket).exists():
        pass
    async with await trio.open_unix_socket(str(socket)) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: runner\r\n\r\n")
        return bytes(await stream.receive_some(1000))


async def test_a_server_that_failed_serves_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    send_starts, starts = trio.open_memory_channel[trio.Event](9)
    crashes: list[ChildCrashed] = []
    monkeypatch.setattr(runner.daemon, "Server", server_that_fails(send_starts))
    monkeypatch.setattr(runner.daemon, "log_crash", crashes.append)
    daemon = Daemon(settings)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run)
            for _ in range(3):
                fail = await starts.receive()
                assert (await health(settings.socket)).startswith(b"HTTP/1.1 200")
                fail.set()
            await starts.receive()
            assert (await health(settings.socket)).startswith(b"HTTP/1.1 200")
            nursery.cancel_scope.cancel()
    assert [str(crash.error) for crash in crashes] == ["the network has gone"] * 3


async def test_a_directory_for_workers_that_cannot_be_made_is_a_refusal(settings: Settings) -> None:
    settings.socket.parent.mkdir(mode=0o700)
    (settings.socket.parent / "workers").write_text("")
    with pytest.raises(StartRefused, match="--socket"):
        await Daemon(settings).run()
    settings.socket.parent.joinpath("workers").unlink()
    settings.socket.parent.rmdir()
    settings.socket.parent.write_text("")
    with pytest.raises(StartRefused, match="--socket"):
        await Daemon(settings).run()


async def test_what_fails_at_the_first_start_comes_out(settings: Settings) -> None:
    settings.store.write_text("")
    with pytest.raises(ExceptionGroup) as group:
        await Daemon(settings).run()
    assert [type(error) for error in leaves(group.value)] == [StartRefused]


def test_what_holds_for_all_models_is_the_daemons_word_where_somebody_set_it(tmp_path: Path) -> None:
    flags = {"store": str(tmp_path), "context_size": "2048", "keep_alive": "-1", "threads": "3"}
    settings = resolve(flags, {}, None).settings
    resolved = resolve_settings(*setting_layers(settings, {"context_size", "keep_alive", "store"}))
    told = {
        name: (write_settings(resolved.values)[name], resolved.origins[name].value)
        for name in resolved.origins
    }
    assert told["context_size"] == (2048, "daemon")
    assert told["keep_alive"] == (-1, "daemon")
    assert told["threads"] == (3, "built-in")
    assert told["max_sequences"] == (8, "built-in")
    assert told["temperature"] == (0.8, "built-in")
    assert SETTING_BY_NAME.keys() - told.keys() == {"seed", "chat_template"}
