"""Probe processes: honest ones, broken ones and hostile ones; real processes all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import psutil
import pytest
import trio

from actors.deaths import DeathKind
from actors.probing import ProbeFailed, ProbeOutcome, refused, run_probe
from actors.process import probe_command
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.wire.messages import Probed
from tests.support import scripted_probe
from tests.support.kept_worker import worker_spec

pytestmark = pytest.mark.anyio

OPTIONS = EngineOptions(context_size=256, n_cells=512)
FILES = worker_spec().files
SCRIPT = Path(scripted_probe.__file__)


def scripted(behaviour: str) -> Callable[[int, int], Sequence[str]]:
    def command(channel_fd: int, parent_pid: int) -> Sequence[str]:
        arguments = ["--channel-fd", str(channel_fd), "--parent-pid", str(parent_pid)]
        return [sys.executable, "-P", "-s", str(SCRIPT), behaviour, *arguments]

    return command


async def probe(behaviour: str, *, timeout_s: float = 20.0, files: ModelFiles = FILES) -> ProbeOutcome:
    with trio.fail_after(40):
        return await run_probe(files, OPTIONS, command=scripted(behaviour), timeout_s=timeout_s)


@pytest.mark.parametrize("behaviour", ["honest", "in-pieces", "noisy"])
async def test_an_answer_is_the_outcome(behaviour: str) -> None:
    outcome = await probe(behaviour)
    assert isinstance(outcome, Probed)
    assert outcome.sizes.devices == (scripted_probe.HONEST,)


@pytest.mark.parametrize(
    ("behaviour", "kind", "cause"),
    [
        ("failing", DeathKind.LOADING_FAILED, "cannot be loaded"),
        ("twice", DeathKind.PROTOCOL_FAULT, "protocol fault: more than an answer"),
        ("trailing", DeathKind.PROTOCOL_FAULT, "protocol fault: more than an answer"),
        ("greeting", DeathKind.PROTOCOL_FAULT, "protocol fault: unknown tag 16"),
        ("garbage", DeathKind.PROTOCOL_FAULT, "protocol fault: a frame of 4294967295 bytes"),
        ("huge", DeathKind.PROTOCOL_FAULT, "protocol fault: a frame of 1073741824 bytes"),
        ("cut", DeathKind.EXIT, "exit code 0"),
        ("closing", DeathKind.PROTOCOL_FAULT, "protocol fault: it closed its channel"),
        ("segv", DeathKind.SEGMENTATION_FAULT, "signal SIGSEGV"),
        ("hoarding", DeathKind.OUT_OF_MEMORY, "exit code 1, Python exception MemoryError"),
        ("raising", DeathKind.PYTHON_EXCEPTION, "exit code 1, Python exception RuntimeError"),
    ],
)
async def test_W07_W08_anything_else_is_a_failure_with_its_cause(
    behaviour: str, kind: DeathKind, cause: str
) -> None:
    outcome = await probe(behaviour)
    assert isinstance(outcome, ProbeFailed)
    report = outcome.report
    assert (report.kind, report.cause) == (kind, cause)
    assert (report.model, report.phase) == ("ai/tiny", "measuring")
    assert report.stderr_tail.startswith("asked")
    assert not psutil.pid_exists(report.pid)


@pytest.mark.parametrize("behaviour", ["silent", "deaf"])
async def test_a_probe_without_an_answer_is_ended_at_its_deadline(behaviour: str) -> None:
    outcome = await probe(behaviour, timeout_s=1.0)
    assert isinstance(outcome, ProbeFailed)
    assert (outcome.report.kind, outcome.report.cause) == (DeathKind.NO_PROGRESS, "no answer within 1 s")
    assert outcome.report.signal == "SIGKILL"
    assert outcome.report.lived_s >= 1


async def test_a_probe_that_is_cancelled_is_gone_when_the_cancelling_returns() -> None:
    before = set(psutil.Process().children())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_probe, FILES, OPTIONS, command=scripted("deaf")))
            while set(psutil.Process().children()) == before:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert set(psutil.Process().children()) == before


async def test_a_probe_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    with trio.fail_after(20):
        outcome = await run_probe(FILES, OPTIONS, command=lambda fd, pid: [str(tmp_path / "nothing")])
    assert isinstance(outcome, ProbeFailed)
    assert outcome.report.kind is DeathKind.NOT_STARTED
    assert outcome.report.pid is None


def test_an_answer_can_be_refused_afterwards() -> None:
    report = refused(FILES, "an answer that cannot be true").report
    assert (report.kind, report.cause) == (
        DeathKind.PROTOCOL_FAULT,
        "protocol fault: an answer that cannot be true",
    )


def test_W01_a_probe_is_started_as_a_worker_is() -> None:
    arguments = probe_command(7, 8)
    assert arguments[0] == sys.executable
    assert "-P" in arguments
    assert arguments[-6:] == ("-m", "runner.worker.probe", "--channel-fd", "7", "--parent-pid", "8")


@pytest.mark.real_model
async def test_a_real_probe_answers_about_a_real_model(default_model_file: Path) -> None:
    files = attrs.evolve(FILES, weights=(default_model_file,))
    with trio.fail_after(60):
        outcome = await run_probe(files, OPTIONS, timeout_s=50)
    assert isinstance(outcome, Probed)
    (host,) = outcome.sizes.devices
    assert host.device == "cpu"
    assert host.kv_cache_bytes == 30 * 3 * 64 * 2 * 2 * 512
    assert 90e6 < host.weights_bytes < 98_362_432
    assert 8 * 2**20 < outcome.sizes.process_bytes < 64 * 2**20


async def test_a_real_probe_of_no_model_says_so(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"GGUF" + bytes(100))
    with trio.fail_after(60):
        outcome = await run_probe(attrs.evolve(FILES, weights=(path,)), OPTIONS, timeout_s=50)
    assert isinstance(outcome, ProbeFailed)
    assert outcome.report.kind is DeathKind.LOADING_FAILED
    assert outcome.report.exit_code == 0 or outcome.report.signal == "SIGKILL"
