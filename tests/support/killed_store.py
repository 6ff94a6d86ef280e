"""Commands of a real store, each ended by SIGKILL at every system call that changes the disk, in turn.

Run as a program; it prints one line for each kind of call, `[fault, call, outcomes]`:

    python -m tests.support.killed_store DIRECTORY COMMAND REFERENCE

For every point a fork of this process (which has imported everything) carries the command out with the real
actors, and strace kills it as it enters the N-th call. Then the store must be consistent and the command
must succeed when it is repeated. All disk work of the fork runs in one thread, so that the calls have one
order and `when=N` covers each of them; strace counts them for every thread separately.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import outcome
import trio
import trio._threads

from actors.puller import Network
from runner.domain.settings import ModelSettings
from runner.domain.transfer import PullRequest
from runner.errors import ModelNotFound, RunnerError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import Reference
from runner.registry.huggingface import Hub
from runner.registry.transfer import RangeRules
from tests.support import models
from tests.support.models import RunningStore, name, reference, running_store
from tests.support.registry_client import open_door, registry_client
from tests.support.registry_server import RegistryServer

KILLED = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink")
FAILING = (
    ("fsync", "EIO", "{}"),
    ("fdatasync", "EIO", "{}"),
    ("write", "ENOSPC", "{}+"),
    ("pwrite64", "ENOSPC", "{}+"),
)
OLD, NEW, LICENSE = models.tiny_gguf("Old"), models.tiny_gguf("New"), models.LICENSE
LEFTOVER, HALF = b"never packaged", b"x" * 30_000
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
_ATTACH_S = 20.0


Step = Callable[[RunningStore], Awaitable[object]]


@attrs.frozen(kw_only=True)
class Command:
    """`prepare` makes the state before, `run` is it; `check` looks at the store after it has succeeded."""

    prepare: Step
    run: Step
    check: Callable[[Path], None] = lambda root: None


async def _one_model(running: RunningStore) -> None:
    await running.package("old:1", OLD, LICENSE)


async def _tag(running: RunningStore) -> None:
    await running.store.tag(name("old:1"), reference("old:2"))


async def _configure(running: RunningStore) -> None:
    await running.store.configure(name("old:1"), ModelSettings(context_size=512, keep_alive_s=9.0))


async def _two_models(running: RunningStore) -> None:
    await _one_model(running)
    await running.package("new:1", NEW, LICENSE)


async def _remove(running: RunningStore) -> None:
    with contextlib.suppress(ModelNotFound):  # repeated, it finds nothing left
        await running.store.remove(name("new:1"))


async def _much_garbage(running: RunningStore) -> None:
    await _two_models(running)
    await running.store.untag(reference("new:1"))
    await running.upload(LEFTOVER)
    running.store.abandon_uploads((Digest.of(LEFTOVER),))
    partial = await running.store.begin_download(Descriptor.of(HALF, media_types.GGUF))
    partial.write_at(0, HALF[:20_000])
    partial.close()


async def _collect(running: RunningStore) -> None:
    await running.store.gc(prune_untagged=True)


def _nothing_is_left(root: Path) -> None:
    assert not any((root / "partial").iterdir())
    with models.opened(root, now_s=0.0) as store:
        needed = {model.id.hex for model in store.catalog.models()}
        for model in store.catalog.models():
            needed |= {part.digest.hex for part in store.catalog.usable(model.id).manifest.descriptors()}
    assert {path.name for path in (root / "blobs" / "sha256").iterdir()} == needed


async def _pull(running: RunningStore) -> None:
    async with running.puller.pull(PullRequest(reference=Reference.parse(sys.argv[3]))) as feed:
        async for _ in feed:
            pass
        feed.result()


def serve(registry: RegistryServer) -> str:
    """Put the model that `pull` pulls into this registry; its reference."""
    package = models.built(NEW, LICENSE)
    for content in (NEW, LICENSE, package.config):
        registry.add_blob(content)
    registry.add_manifest(package.manifest, media_types.IMAGE_MANIFEST, "1")
    return str(registry.reference())


COMMANDS = {
    "pull": Command(prepare=_one_model, run=_pull, check=_nothing_is_left),
    "tag": Command(prepare=_one_model, run=_tag),
    "configure": Command(prepare=_one_model, run=_configure),
    "rm": Command(prepare=_two_models, run=_remove, check=_nothing_is_left),
    "gc": Command(prepare=_much_garbage, run=_collect, check=_nothing_is_left),
}


def play(directory: Path, command: Command, call: str) -> list[str]:
    """`old` or `new` for every point: which state the store showed after the kill."""
    before, after = _before_and_after(directory, command)
    states: list[str] = []
    while _is_killed(root := _fresh(directory), command, call, len(states) + 1):
        found = _shown(root)
        assert found in (before, after), f"neither the old nor the new state: {found}"
        _in_this_process(root, command.run)
        assert _shown(root) == after
        command.check(root)
        states.append("new" if found == after else "old")
    assert _shown(root) == after
    return states


def _before_and_after(directory: Path, command: Command) -> tuple[dict[str, str], dict[str, str]]:
    before = directory / "before"
    if not before.exists():
        _in_this_process(before, command.prepare)
    root = _fresh(directory)
    _in_this_process(root, command.run)
    return _shown(before), _shown(root)


def _fresh(directory: Path) -> Path:
    root = directory / "now"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(directory / "before", root)
    return root


def _shown(root: Path) -> dict[str, str]:
    with models.opened(root, now_s=time.time()) as store:
        assert not any("rebuilt" in notice for notice in store.notices), store.notices
        found: dict[str, str] = models.shown(store)
        return found


def _in_this_process(root: Path, run: Step) -> None:
    async def main() -> None:
        async with _running(root) as running:
            await run(running)

    trio.run(main)


@contextlib.asynccontextmanager
async def _running(root: Path) -> AsyncIterator[RunningStore]:
    """As the daemon starts them. A file comes in several ranges, one after another."""
    rules = RangeRules(connections=1, piece_bytes_min=2000, piece_bytes_max=2000)
    with registry_client() as client, open_door() as door:
        network = Network(client=client, hub=Hub(door, endpoint="http://127.0.0.1:1"), rules=rules)
        async with running_store(root, now_s=time.time, network=network, chance=lambda: 0.0) as running:
            yield running


# killing


def _is_killed(root: Path, command: Command, call: str, number: int) -> bool:
    """Whether a process that carries out the command was killed before its end."""
    with _traced(root, command, f"{call}:signal=KILL:when={number}") as process:
        process.go_on()
        process.hear()
        process.leave()
        status = process.wait()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the command failed before it was killed"
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFSIGNALED(status)


def _fails(root: Path, command: Command, call: str, code: str, when: str) -> str:
    """What a process told whose calls failed: the name of the error, or nothing. Once the calls succeed
    again, the command has succeeded in the same process."""
    with _traced(root, command, f"{call}:error={code}:when={when}") as process:
        process.go_on()
        told = process.hear()
        process.release()
        process.go_on()
        status = process.wait()
    assert status == 0, "the command does not succeed once the disk is well again"
    return told


@attrs.define
class _Traced:
    """A fork that carries out a command under strace."""

    process_id: int
    tracer: subprocess.Popen[bytes]
    line: socket.socket

    def go_on(self) -> None:
        self.line.send(b".")

    def hear(self) -> str:
        """How the command ended; empty when it was killed."""
        try:
            return self.line.recv(100).decode()
        except ConnectionResetError:  # killed before it had read
            return ""

    def leave(self) -> None:
        """There is nothing more to do for it."""
        self.line.close()

    def release(self) -> None:
        """From here on every call is carried out."""
        self.tracer.terminate()
        self.tracer.wait()

    def wait(self) -> int:
        return os.waitpid(self.process_id, 0)[1]


@contextlib.contextmanager
def _traced(root: Path, command: Command, injection: str) -> Iterator[_Traced]:
    ours, theirs = socket.socketpair()
    process_id = os.fork()
    if process_id == 0:
        ours.close()
        _obey(root, command, theirs)
    theirs.close()
    assert ours.recv(1), "the store did not open"
    trace = ["strace", "-f", "-qqq", "-o", os.devnull, "-e", f"trace={injection.split(':')[0]}"]
    tracer = subprocess.Popen(
        [*trace, "-e", f"inject={injection}", "-p", str(process_id)], stderr=subprocess.PIPE
    )
    try:
        _wait_until_traced(process_id, tracer)
        yield _Traced(process_id, tracer, ours)
    finally:
        ours.close()
        said = tracer.communicate()[1].decode()
    assert not said, said


def _obey(root: Path, command: Command, line: socket.socket) -> None:
    """What the fork does; it never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
        _use_one_thread()
        trio.run(_run_when_told, root, command, line)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


async def _run_when_told(root: Path, command: Command, line: socket.socket) -> None:
    """Only the command itself meets kills and errors: the store is open when strace attaches."""
    async with _running(root) as running:
        line.send(b".")
        line.recv(1)
        try:
            await command.run(running)
            line.send(b"done")
        except RunnerError as error:
            line.send(type(error).__name__.encode())
        if line.recv(1):
            await command.run(running)
            with trio.CancelScope(shield=True):
                models_now = {model.id: model.tags for model in await running.store.list()}
        else:
            os._exit(0)
    with models.opened(root, now_s=time.time()) as store:
        assert models_now == {model.id: model.tags for model in store.catalog.models()}


def _wait_until_traced(process_id: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _ATTACH_S
    tasks = Path(f"/proc/{process_id}/task")
    while not all(_is_traced(task) for task in tasks.iterdir()):
        if tracer.poll() is not None:
            return  # it says why on its error output
        assert time.monotonic() < deadline_s, "strace did not attach"


def _is_traced(task: Path) -> bool:
    return "TracerPid:\t0\n" not in (task / "status").read_text()


def _use_one_thread() -> None:
    """Give trio one thread for all its jobs, from here to the end of the process."""
    jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], object]]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            job, deliver = jobs.get()
            deliver(outcome.capture(job))

    def start_thread_soon(
        job: Callable[[], Any], deliver: Callable[[Any], object], name: str | None = None
    ) -> None:
        jobs.put((job, deliver))

    threading.Thread(target=work, daemon=True).start()
    vars(trio._threads)["start_thread_soon"] = start_thread_soon


def play_errors(directory: Path, command: Command, call: str, code: str, when: str) -> list[str]:
    """The error of the command for every point; `when` is `{}`, or `{}+` for all calls that follow."""
    _, after = _before_and_after(directory, command)
    errors: list[str] = []
    while True:
        root = _fresh(directory)
        told = _fails(root, command, call, code, when.format(len(errors) + 1))
        assert _shown(root) == after
        command.check(root)
        if told == "done":
            return errors
        errors.append(told)


def main(directory: Path, command_name: str) -> None:
    command = COMMANDS[command_name]
    for call in KILLED:
        states = play(directory, command, call)
        print(json.dumps(["KILL", call, states]), flush=True)
    for call, code, when in FAILING:
        errors = play_errors(directory, command, call, code, when)
        print(json.dumps([code, call, errors]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
