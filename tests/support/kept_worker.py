"""A keeper run in a test's nursery with a scripted worker, and what it reported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from actors.process import StopTimes
from actors.worker import (
    DeathReport,
    KeeperEvent,
    KeeperSettings,
    WorkerEnded,
    WorkerHandle,
    WorkerReady,
    WorkerSpec,
    run_keeper,
)
from runner.domain.engine import EngineOptions
from runner.domain.events import GenerationEvent, TextDelta
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.domain.model import Model, ModelFiles
from runner.oci.digest import Digest
from runner.oci.reference import Reference

SCRIPT = Path(__file__).with_name("scripted_worker.py")
PATIENT = StopTimes(polite_s=20.0, terminate_s=20.0, kill_s=20.0)
"""For workers that do as they are told: room for a busy machine."""
DEAF = attrs.evolve(PATIENT, polite_s=0.1)
"""For workers that do not listen, and end at SIGTERM."""
STUBBORN = attrs.evolve(PATIENT, polite_s=0.1, terminate_s=0.1)
"""For workers that only SIGKILL ends."""

E = TypeVar("E", bound=KeeperEvent)


def scripted_command(*behaviours: str) -> Callable[[int, int], Sequence[str]]:
    def command(channel_fd: int, parent_pid: int) -> Sequence[str]:
        arguments = ["--channel-fd", str(channel_fd), "--parent-pid", str(parent_pid)]
        return [sys.executable, "-P", "-s", str(SCRIPT), ",".join(behaviours or ("normal",)), *arguments]

    return command


def worker_spec(**fields: Any) -> WorkerSpec:
    model = Model(
        id=Digest.parse("sha256:" + "ab" * 32),
        tags=(Reference.parse("ai/tiny"),),
        created_s=0,
        size_bytes=1000,
        format="gguf",
        architecture="llama",
        quantization="Q4_1",
        parameters="1M",
    )
    files = ModelFiles(
        model=model,
        weights=(Path("/models/blobs/weights"),),
        weights_bytes=1000,
        kv_bytes_per_cell=10,
        **fields,
    )
    return WorkerSpec(model=model, files=files, options=EngineOptions(context_size=100, n_cells=200))


def text_request(text: str, request_id: str = "r1") -> GenerationRequest:
    return GenerationRequest(request_id=request_id, prompt=TextPrompt(text))


@attrs.define
class KeptWorker:
    """`events` as they were reported; `scope` cancels the keeper."""

    scope: trio.CancelScope
    events: list[KeeperEvent] = attrs.field(factory=list)
    _news: trio.Event = attrs.field(factory=trio.Event)

    def report(self, event: KeeperEvent) -> None:
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    async def first(self, kind: type[E]) -> E:
        """The first event of that kind, waiting for it if it has not come."""
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            await self._news.wait()

    async def handle(self) -> WorkerHandle:
        return (await self.first(WorkerReady)).handle

    async def death(self) -> DeathReport:
        return (await self.first(WorkerEnded)).report

    async def generate(self, text: str, request_id: str = "r1") -> str:
        """The whole text of one generation."""
        return "".join(e.text for e in await self.events_of(text, request_id) if isinstance(e, TextDelta))

    async def events_of(self, text: str, request_id: str = "r1") -> list[GenerationEvent]:
        found: list[GenerationEvent] = []
        with (await self.handle()).open_stream(text_request(text, request_id)) as stream:
            while events := await stream.receive():
                found += events
        return found

    async def facts(self) -> dict[str, Any]:
        """What the worker says of its own process."""
        facts: dict[str, Any] = json.loads(await self.generate("report", "facts"))
        return facts


@asynccontextmanager
async def kept_worker(
    *behaviours: str, spec: WorkerSpec | None = None, limit_s: float = 30.0, **settings: Any
) -> AsyncIterator[KeptWorker]:
    """A keeper with a worker of these behaviours; leaving stops it. All of it within `limit_s`."""
    with trio.fail_after(limit_s):
        async with trio.open_nursery() as nursery:
            kept = KeptWorker(trio.CancelScope())
            keeper_settings = KeeperSettings(**({"stop": PATIENT} | settings))

            async def keep() -> None:
                with kept.scope:
                    await run_keeper(
                        spec or worker_spec(),
                        kept.report,
                        settings=keeper_settings,
                        command=scripted_command(*behaviours),
                    )

            nursery.start_soon(keep)
            yield kept
            kept.scope.cancel()


async def wait_gone(pid: int) -> None:
    """Until the process has ended; a zombie that somebody else has to reap counts as ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
