"""Handles of a daemon that has no actors behind them: real code with everything in memory.

`FakeWorker` answers through the real `GenerationStream`. What was taken and not given back is counted, so
that a test can say that nothing was left.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import trio
import trio.testing

from actors.stream import GenerationStream
from runner.domain.disk import (
    BlobFinding,
    DiskReport,
    GcReport,
    ModelDisk,
    VerifyProgress,
    VerifyReport,
)
from runner.domain.events import Accepted, Finished, FinishReason, GenerationEvent, TextDelta, Timings, Usage
from runner.domain.explained import PlanReport, WhyReport
from runner.domain.generation import GenerationRequest
from runner.domain.model import Model
from runner.domain.quarantine import FailedLoads
from runner.domain.settings import ModelSettings
from runner.domain.status import (
    CrashReport,
    DaemonStatus,
    LayerSummary,
    ModelReport,
    ModelSummary,
    Removal,
    SchedulerStatus,
    UnloadReport,
    UnquarantineReport,
    UploadedBlob,
    VersionInfo,
    WorkerStatus,
)
from runner.errors import BlobNotFound, ModelInUse, ModelNotFound, RunnerError, WorkerCrashed
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import StoredBlob
from runner.store.package import PackageSpec
from tests.support.fake_transfers import FakeRemote, FakeTransfers

Script = Callable[[GenerationRequest], list[GenerationEvent]]


def fake_model(name: str = "ai/smollm2:135M-Q4_1", *, digest_of: bytes = b"manifest") -> Model:
    return Model(
        id=Digest.of(digest_of),
        tags=(Reference.parse(name),) if name else (),
        created_s=1745777589,
        size_bytes=98_000_000,
        format="gguf",
        architecture="llama",
        quantization="MOSTLY_Q4_1",
        parameters="134.52M",
        context_size=None,
        trained_context_size=8192,
    )


def spoken(*texts: str, prompt_tokens: int = 7, cached_tokens: int = 0) -> list[GenerationEvent]:
    """Everything of a generation that says `texts`, one token each."""
    return [
        Accepted(prompt_tokens=prompt_tokens),
        *(TextDelta(text, 1) for text in texts),
        finished(completion_tokens=len(texts), prompt_tokens=prompt_tokens, cached_tokens=cached_tokens),
    ]


def finished(
    *,
    reason: FinishReason = FinishReason.STOP,
    prompt_tokens: int = 7,
    completion_tokens: int = 0,
    cached_tokens: int = 0,
    reasoning_tokens: int = 0,
) -> Finished:
    return Finished(
        reason=reason,
        usage=Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens,
            reasoning_tokens=reasoning_tokens,
        ),
        timings=Timings(queued_s=0.001, prefill_s=0.014, decode_s=0.02),
    )


@attrs.frozen
class FakeLoaded:
    engine_version: str = "scripted-1"


class FakeWorker:
    """Answers each request with what `script` makes of it; an empty list leaves the stream to the test."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.streams: list[GenerationStream] = []
        self.cancelled: list[str] = []
        self.refusal: RunnerError | None = None

    def open_stream(self, request: GenerationRequest) -> GenerationStream:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        stream = GenerationStream(request.request_id, self.cancelled.append)
        self.streams.append(stream)
        stream.deliver(self.script(request))
        return stream

    def die(self, cause: str = "signal SIGSEGV") -> None:
        for stream in self.streams:
            stream.fail(WorkerCrashed(model="ai/smollm2:135M-Q4_1", cause=cause))


class FakeLease:
    def __init__(self, scheduler: FakeScheduler, worker: FakeWorker) -> None:
        self.worker = worker
        self.loaded = FakeLoaded()
        self._scheduler: FakeScheduler | None = scheduler

    def release(self) -> None:
        if self._scheduler is not None:
            self._scheduler.outstanding -= 1
            self._scheduler = None


@attrs.define
class FakeScheduler:
    """Grants every lease at once, or when `gate` opens. `workers` are used in turn, the last one for ever."""

    workers: list[FakeWorker]
    outstanding: int = 0
    acquired: list[tuple[str, float | None]] = attrs.field(factory=list)
    calls: list[tuple[str, object]] = attrs.field(factory=list)
    pins: list[bool | None] = attrs.field(factory=list)
    with_annex: list[bool] = attrs.field(factory=list)
    gate: trio.Event | None = None
    refusal: RunnerError | None = None
    cancelled_acquires: int = 0
    known_as: list[tuple[str | None, str | None]] = attrs.field(factory=list)
    failed_loads: tuple[FailedLoads, ...] = ()
    on_unload: Callable[[], None] = lambda: None
    unload_report: UnloadReport = attrs.field(
        factory=lambda: UnloadReport(unloaded=("ai/smollm2:135M-Q4_1",), in_use=())
    )

    async def acquire(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        pin: bool | None = None,
        request_id: str | None = None,
        label: str | None = None,
        has_annex: bool = False,
    ) -> FakeLease:
        self.acquired.append((model.name, keep_alive_s))
        self.known_as.append((request_id, label))
        self.pins.append(pin)
        self.with_annex.append(has_annex)
        await self._wait()
        self.outstanding += 1
        worker = self.workers.pop(0) if len(self.workers) > 1 else self.workers[0]
        return FakeLease(self, worker)

    async def _wait(self) -> None:
        try:
            if self.gate is None:
                await trio.lowlevel.checkpoint()
            else:
                await self.gate.wait()
        except trio.Cancelled:
            self.cancelled_acquires += 1
            raise
        if self.refusal is not None:
            raise self.refusal

    async def plan(self, model: Model, *, context_size: int | None = None) -> PlanReport:
        await self._wait()
        self.calls.append(("plan", (model.name, context_size)))
        return plan_report(model=model.name, context_size=context_size or 8192)

    async def why_model(self, model_id: Digest, name: str) -> WhyReport:
        await self._wait()
        self.calls.append(("why_model", (model_id, name)))
        return WhyReport(model=name, model_id=str(model_id), state="ready", decisions=(), requests=())

    async def why_request(self, request_id: str) -> WhyReport:
        await self._wait()
        self.calls.append(("why_request", request_id))
        return WhyReport(model="m", model_id="sha256:0", state="ready", decisions=(), requests=())

    async def start(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        context_size: int | None = None,
        pin: bool | None = None,
    ) -> WorkerStatus:
        self.calls.append(("start", (model.name, keep_alive_s)))
        self.pins.append(pin)
        await self._wait()
        return worker_status(model)

    async def unload(self, model_ids: tuple[Digest, ...] | None) -> UnloadReport:
        self.calls.append(("unload", model_ids))
        self.on_unload()
        await trio.lowlevel.checkpoint()
        return self.unload_report

    async def unquarantine(self, model: Model) -> UnquarantineReport:
        self.calls.append(("unquarantine", model.name))
        await trio.lowlevel.checkpoint()
        return UnquarantineReport(model=model.name, was_quarantined=True, crashes=2)

    def quarantined(self) -> tuple[FailedLoads, ...]:
        return self.failed_loads

    def snapshot(self) -> SchedulerStatus:
        return SchedulerStatus(workers=(worker_status(fake_model()),))


def plan_report(**changes: Any) -> PlanReport:
    """A model that fits."""
    values: dict[str, Any] = {
        "model": "ai/smollm2:135M-Q4_1",
        "model_id": str(Digest.of(b"manifest")),
        "state": "not loaded",
        "verdict": "load",
        "why": "it fits into what is free",
        "context_size": 8192,
        "basis": "measured by a simulated load",
        "devices": (),
        "victims": (),
        "obstacles": (),
        "expected_load_s": 1.5,
        "is_load_measured": False,
        "expected_wait_s": 1.5,
        "position": 0,
        "waiting": 0,
        "swap_wait_s": 30.0,
    }
    return PlanReport(**{**values, **changes})


def worker_status(model: Model) -> WorkerStatus:
    return WorkerStatus(
        model=model.name,
        model_id=str(model.id),
        state="ready",
        pid=4711,
        engine="scripted",
        context_size=8192,
        reserved_bytes=1,
        resident_bytes=2,
        leases=0,
        waiting=0,
        running_sequences=0,
        waiting_sequences=0,
        cells_used=0,
        n_cells=8192,
        host_cells=8192,
        keep_alive_s=float("inf"),
        expires_in_s=None,
        loaded_for_s=1.5,
        load_s=0.4,
        load_progress=1.0,
    )


@attrs.define
class FakeStore:
    """Models in a list, `unreadable` ones as well. `changes` records what was asked to change."""

    models: list[Model]
    in_use: bool = False
    refusal: RunnerError | None = None
    unreadable: list[Model] = attrs.field(factory=list)
    verified: list[tuple[ModelName, ...] | None] = attrs.field(factory=list)
    changes: list[tuple[object, ...]] = attrs.field(factory=list)
    received: list[bytes] = attrs.field(factory=list)

    async def list(self) -> tuple[Model, ...]:
        await trio.lowlevel.checkpoint()
        return (*self.models, *self.unreadable)

    async def resolve(self, name: ModelName) -> Model:
        await trio.lowlevel.checkpoint()
        for model in self.models:
            if name.reference in model.tags or name.digest == model.id:
                return model
        raise ModelNotFound(name.text)

    async def inspect(self, name: ModelName) -> ModelReport:
        model = await self.resolve(name)
        return ModelReport(
            model=ModelSummary(
                id=str(model.id),
                name=model.name,
                tags=tuple(str(tag) for tag in model.tags),
                created_s=model.created_s,
                size_bytes=model.size_bytes,
                format=model.format,
                architecture=model.architecture,
                quantization=model.quantization,
                parameters=model.parameters,
                context_size=None,
                trained_context_size=8192,
            ),
            manifest_digest=str(model.id),
            config_digest=str(Digest.of(b"config")),
            layers=(LayerSummary(media_type="m", digest="d", size_bytes=1, filename="model.gguf"),),
            licenses=("MIT",),
            metadata={"general.name": "Smol"},
        )

    async def tag(self, source: ModelName, target: Reference) -> Model:
        model = await self.resolve(source)
        self.changes.append(("tag", source.text, str(target)))
        return model

    async def untag(self, target: Reference) -> Model:
        model = await self.resolve(ModelName.of(target))
        self.changes.append(("untag", str(target)))
        return model

    async def configure(
        self, name: ModelName, changes: ModelSettings, *, unset: Collection[str] = ()
    ) -> Model:
        model = await self.resolve(name)
        settings = model.settings.changed(changes, unset)
        self.models = [attrs.evolve(one, settings=settings) if one is model else one for one in self.models]
        return await self.resolve(name)

    async def remove(self, name: ModelName, *, force: bool = False) -> tuple[Removal, ...]:
        model = await self.resolve(name)
        if self.in_use:
            raise ModelInUse(model.name)
        if self.refusal is not None:
            raise self.refusal
        self.changes.append(("remove", name.text, force))
        return (Removal(untagged=str(model.tags[0])), Removal(deleted=str(model.id)))

    async def receive_blob(
        self, chunks: AsyncIterable[bytes], *, size_bytes: int | None = None, digest: Digest | None = None
    ) -> UploadedBlob:
        content = b"".join([chunk async for chunk in chunks])
        self.changes.append(("blob", size_bytes, digest))
        self.received.append(content)
        return UploadedBlob(digest=str(Digest.of(content)), size_bytes=len(content))

    def holding(self, digests: Iterable[Digest]) -> AbstractContextManager[None]:
        """There is no content to keep."""
        return nullcontext()

    async def hold_blobs(self, digests: tuple[Digest, ...]) -> tuple[StoredBlob, ...]:
        await trio.lowlevel.checkpoint()
        raise BlobNotFound(str(digests[0]))

    async def df(self) -> DiskReport:
        await trio.lowlevel.checkpoint()
        models = tuple(
            ModelDisk(
                id=str(model.id),
                name=model.name,
                tags=tuple(str(tag) for tag in model.tags),
                size_bytes=model.size_bytes,
                own_bytes=model.size_bytes,
            )
            for model in self.models
        )
        return DiskReport(
            models=models,
            total_bytes=sum(model.size_bytes for model in models),
            shared_bytes=0,
            partial_bytes=0,
            leftover_bytes=0,
            free_bytes=2**40,
            reserve_bytes=2**30,
        )

    async def gc(self, *, prune_untagged: bool = False, dry_run: bool = False) -> GcReport:
        await trio.lowlevel.checkpoint()
        self.changes.append(("gc", prune_untagged, dry_run))
        return GcReport(is_dry_run=dry_run)

    async def verify(
        self,
        names: tuple[ModelName, ...] | None = None,
        *,
        on_progress: Callable[[VerifyProgress], None] = lambda progress: None,
    ) -> VerifyReport:
        """Finds one fault, whatever it is asked to check."""
        self.verified.append(names)
        digest = str(Digest.of(b"weights"))
        on_progress(VerifyProgress(digest=digest, done_bytes=1, total_bytes=2))
        await trio.testing.wait_all_tasks_blocked()
        finding = BlobFinding(digest=digest, kind="wrong_content", models=("m",), message="other bytes")
        return VerifyReport(models=1, blobs=2, size_bytes=2, findings=(finding,))


@attrs.define
class FakePuller(FakeTransfers):
    packaged: list[PackageSpec] = attrs.field(factory=list)
    missing: str | None = None

    async def package(self, spec: PackageSpec) -> Model:
        await trio.lowlevel.checkpoint()
        spec.check()
        if self.missing is not None:
            raise BlobNotFound(self.missing)
        self.packaged.append(spec)
        return fake_model(spec.target.familiar())


@attrs.define
class FakeDaemon:
    is_draining: bool = False
    shutdowns: int = 0
    crash_reports: list[CrashReport] = attrs.field(factory=list)
    bounds: list[int | None] = attrs.field(factory=list)

    async def bound_memory(self, size_bytes: int | None) -> None:
        await trio.lowlevel.checkpoint()
        self.bounds.append(size_bytes)

    def status(self) -> DaemonStatus:
        return DaemonStatus(
            version="0.1.0",
            engine="scripted",
            pid=1,
            uptime_s=2.0,
            listeners=("http://127.0.0.1:12434",),
            store="store",
            log_file=None,
            is_draining=self.is_draining,
            open_connections=0,
            idle_exit_in_s=None,
            budgets=(),
            actors=(),
        )

    def crashes(self, model_id: str | None = None) -> tuple[CrashReport, ...]:
        return tuple(one for one in self.crash_reports if model_id in (None, one.model_id))

    def version(self) -> VersionInfo:
        return VersionInfo(
            version="0.1.0", api="1", python="3.11", engine="scripted", engine_version="scripted-1"
        )

    def request_shutdown(self) -> None:
        self.shutdowns += 1


@attrs.define
class FakeParts:
    """One of each, joined."""

    store: FakeStore
    puller: FakePuller
    scheduler: FakeScheduler
    daemon: FakeDaemon
    remote: FakeRemote = attrs.field(factory=FakeRemote)

    @classmethod
    def make(cls, *scripts: Script) -> FakeParts:
        """A worker for each script; without any, one whose streams the test feeds."""
        workers = [FakeWorker(script) for script in scripts] or [FakeWorker(lambda _: [])]
        return cls(FakeStore([fake_model()]), FakePuller(), FakeScheduler(workers), FakeDaemon())


def crashing(*events: GenerationEvent) -> FakeWorker:
    """A worker that says `events` and dies."""
    worker = FakeWorker(lambda _: list(events))
    open_stream = worker.open_stream

    def open_and_die(request: GenerationRequest) -> object:
        stream = open_stream(request)
        worker.die()
        return stream

    worker.open_stream = open_and_die  # type: ignore[method-assign,assignment]
    return worker
