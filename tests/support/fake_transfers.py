"""Transfers without a network: feeds that tell what a test wrote, step by step, and are told who leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing

from runner.domain.status import LayerSummary, ModelReport, ModelSummary
from runner.domain.transfer import (
    LayerProgress,
    PullRequest,
    PushRequest,
    TransferDirection,
    TransferPhase,
    TransferProgress,
    TransferResult,
    TransferStatus,
)
from runner.errors import RunnerError
from runner.oci.digest import Digest
from runner.oci.reference import ModelName

MIB = 1 << 20
WEIGHTS, LICENSE = Digest.of(b"weights"), Digest.of(b"license")


def moment(
    *done: int,
    phase: TransferPhase = TransferPhase.TRANSFERRING,
    position: int | None = None,
    notes: tuple[str, ...] = (),
    direction: TransferDirection = TransferDirection.PULL,
) -> TransferProgress:
    """Weights of 10 MiB and a licence of 1 MiB, as far as `done` says anything of them."""
    parts = ((WEIGHTS, "gguf", "m.gguf", 10 * MIB), (LICENSE, "license", "LICENSE", MIB))
    layers = tuple(
        LayerProgress(digest=str(digest), kind=kind, title=title, size_bytes=size, done_bytes=there)
        for (digest, kind, title, size), there in zip(parts, done, strict=False)
    )
    return TransferProgress(
        direction=direction,
        phase=phase,
        queue_position=position,
        layers=layers,
        total_bytes=sum(layer.size_bytes for layer in layers),
        done_bytes=sum(layer.done_bytes for layer in layers),
        notes=notes,
    )


def ended(**changes: Any) -> TransferResult:
    values: dict[str, Any] = {
        "model_id": Digest.of(b"manifest"),
        "reference": "docker.io/ai/m:latest",
        "size_bytes": 11 * MIB,
        "transferred_bytes": 11 * MIB,
        "was_cached": False,
    }
    return TransferResult(**{**values, **changes})


class FakeFeed:
    """Tells each moment when it is asked for one; `None` among them waits until somebody leaves."""

    def __init__(
        self, moments: Iterable[TransferProgress | None], outcome: TransferResult | Exception
    ) -> None:
        self._moments = moments
        self._outcome = outcome

    async def __aiter__(self) -> AsyncIterator[TransferProgress]:
        for told in self._moments:
            if told is None:
                await trio.sleep_forever()
            else:
                yield told
            await trio.testing.wait_all_tasks_blocked()  # who reads it has read it

    def result(self) -> TransferResult:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@attrs.define
class FakeTransfers:
    """What a puller is asked of transfers. `moments` and `outcome` are of every one of them."""

    moments: list[TransferProgress | None] = attrs.field(factory=list)
    outcome: TransferResult | Exception = attrs.field(factory=ended)
    refusal: RunnerError | None = None
    asked: list[PullRequest | PushRequest | ModelName] = attrs.field(factory=list)
    running: int = 0
    left_early: int = 0
    rows: tuple[TransferStatus, ...] = ()

    def pull(self, asked: PullRequest) -> Any:
        return self._feed(asked)

    def push(self, asked: PushRequest) -> Any:
        return self._feed(asked)

    def repair(self, name: ModelName, given: Any = None) -> Any:
        return self._feed(name)

    def status(self) -> tuple[TransferStatus, ...]:
        return self.rows

    @asynccontextmanager
    async def _feed(self, asked: Any) -> AsyncIterator[FakeFeed]:
        self.asked.append(asked)
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.running += 1
        try:
            yield FakeFeed(self.moments, self.outcome)
        except trio.Cancelled:
            self.left_early += 1
            raise
        finally:
            self.running -= 1


def remote_report(name: str = "ai/m") -> ModelReport:
    """What a registry says of a model."""
    return ModelReport(
        model=ModelSummary(
            id=str(Digest.of(b"manifest")),
            name=name,
            tags=(),
            created_s=1745777589,
            size_bytes=11 * MIB,
            format="gguf",
            architecture="llama",
            quantization="MOSTLY_Q4_1",
            parameters="134.52M",
            context_size=8192,
            trained_context_size=8192,
        ),
        manifest_digest=str(Digest.of(b"manifest")),
        config_digest=str(Digest.of(b"config")),
        layers=(LayerSummary(media_type="m", digest=str(WEIGHTS), size_bytes=1, filename="m.gguf"),),
        licenses=(),
        metadata={"general.name": "Smol"},
        described_size="11MiB",
    )


@attrs.define
class FakeRemote:
    """Registries that have one model each."""

    report: ModelReport = attrs.field(factory=remote_report)
    refusal: RunnerError | None = None
    asked: list[PullRequest] = attrs.field(factory=list)

    async def inspect(self, asked: PullRequest) -> ModelReport:
        self.asked.append(asked)
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        return self.report
