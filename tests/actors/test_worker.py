"""The keeper with real processes: serving, and every way a worker can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from actors.deaths import DeathKind
from actors.process import StopTimes
from actors.watchdog import WatchdogRules
from actors.worker import (
    KeeperEvent,
    WorkerEnded,
    WorkerFailing,
    WorkerLoadFailed,
    WorkerLoadProgress,
    WorkerReady,
    run_keeper,
)
from runner.domain.events import Accepted, Finished, GenerationEvent, TextDelta
from runner.errors import (
    InvalidModelFile,
    LoadingFailed,
    LoadTimeout,
    ReaderTooSlow,
    RunnerError,
    TemplateFailed,
    Unavailable,
    WorkerCrashed,
)
from runner.wire.codec import MESSAGE_LIMIT_BYTES
from runner.wire.messages import PROTOCOL_VERSION
from tests.support.kept_worker import (
    DEAF,
    PATIENT,
    STUBBORN,
    KeptWorker,
    kept_worker,
    scripted_command,
    text_request,
    wait_gone,
    worker_spec,
)

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
REAL = "real"
"""Not a scripted worker but our own, on the scripted engine."""


async def crash_of(kept: KeptWorker, prompt: str) -> tuple[list[GenerationEvent], RunnerError]:
    """What one generation received, and the error that ended it."""
    received: list[GenerationEvent] = []
    with (await kept.handle()).open_stream(text_request(prompt)) as stream:
        try:
            while events := await stream.receive():
                received += events
        except RunnerError as error:
            return received, error
    raise AssertionError(f"it ended as if nothing had happened: {received}")


# ---- serving


async def test_a_load_is_reported_from_progress_to_ready() -> None:
    async with kept_worker() as kept:
        ready = await kept.first(WorkerReady)
        assert kept.events[:3] == [WorkerLoadProgress(0.0), WorkerLoadProgress(0.5), WorkerLoadProgress(1.0)]
        assert ready.loaded.engine_version == "scripted 1"
        assert ready.handle.loaded is ready.loaded
        assert ready.handle.status().resident_bytes > 1_000_000


async def test_generations_run_beside_each_other_and_each_gets_its_own_events() -> None:
    texts: dict[str, str] = {}

    async def generate(kept: KeptWorker, name: str) -> None:
        texts[name] = await kept.generate(f"say {name} {name}!", name)

    async with kept_worker() as kept:
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(generate, kept, name)
        assert texts == {name: f"{name}{name}!" for name in ("one", "two", "three")}
        events = await kept.events_of("say a")
        assert [type(event) for event in events] == [Accepted, TextDelta, Finished]


async def test_closing_a_stream_cancels_its_sequence_in_the_worker() -> None:
    async with kept_worker() as kept:
        handle = await kept.handle()
        with handle.open_stream(text_request("hold")) as stream:
            while not any(isinstance(event, TextDelta) for event in await stream.receive()):
                pass
            assert handle.status().running_sequences == 1
        await kept.generate("say a", "r2")
        assert handle.status().running_sequences == 0


async def test_a_request_of_almost_32_mib_arrives_whole() -> None:
    size = MESSAGE_LIMIT_BYTES - 1000
    async with kept_worker() as kept:
        assert await kept.generate("length " + "x" * (size - 7)) == str(size)


async def test_N24_a_reader_that_does_not_read_loses_its_stream_and_nobody_else() -> None:
    async with kept_worker() as kept:
        handle = await kept.handle()
        with handle.open_stream(text_request("burst 1200", "slow")) as slow:
            assert await kept.generate("say quick", "quick") == "quick"
            with pytest.raises(ReaderTooSlow):
                await slow.receive()


async def test_W11_a_worker_that_prints_8_mib_in_a_generation_still_finishes_it() -> None:
    async with kept_worker() as kept:
        assert isinstance((await kept.events_of("noise"))[-1], Finished)
        kept.scope.cancel()
        report = await kept.death()
    assert report.stderr_tail.endswith("the last line")
    assert len(report.stderr_tail) <= 64 * 1024
    assert "\x1b" not in report.stderr_tail
    assert "\x07" not in report.stderr_tail


# ---- stops


async def test_L08_cancelling_the_keeper_ends_the_worker_politely() -> None:
    async with kept_worker() as kept:
        await kept.handle()
        kept.scope.cancel()
        report = await kept.death()
    assert (report.cause, report.exit_code, report.signal) == ("stopped", 0, None)
    assert report.was_requested
    assert (report.model, report.engine_version) == ("ai/tiny", "scripted 1")
    assert report.model_id == "sha256:" + "ab" * 32


async def test_L08_streams_that_are_open_at_a_stop_end_with_an_error_of_their_own() -> None:
    async with kept_worker() as kept:
        with (await kept.handle()).open_stream(text_request("hold")) as stream:
            await stream.receive()
            kept.scope.cancel()
            report = await kept.death()
            with pytest.raises(Unavailable, match="was stopped"):
                while await stream.receive():
                    pass
    assert report.request_ids == ("r1",)


@pytest.mark.parametrize(
    ("behaviours", "stop", "ended_by"),
    [
        (["normal"], PATIENT, None),
        (["ignore-shutdown"], DEAF, "SIGTERM"),
        (["ignore-shutdown", "ignore-sigterm"], STUBBORN, "SIGKILL"),
        (["busy", "ignore-sigterm"], STUBBORN, "SIGKILL"),
    ],
)
async def test_L08_whatever_a_worker_ignores_it_is_gone_afterwards(
    behaviours: list[str], stop: StopTimes, ended_by: str | None
) -> None:
    async with kept_worker(*behaviours, stop=stop) as kept:
        pid = (await kept.handle()).pid
        kept.scope.cancel()
        report = await kept.death()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert report.signal == ended_by
    assert report.cause == "stopped"


async def test_L08_a_stop_during_a_load_reports_no_failed_load() -> None:
    async with kept_worker("load-hangs", stop=DEAF) as kept:
        await kept.first(WorkerLoadProgress)
        kept.scope.cancel()
        report = await kept.death()
    assert report.was_requested
    assert not any(isinstance(event, WorkerLoadFailed | WorkerReady) for event in kept.events)
    assert report.engine_version is None


async def test_L08_a_stop_before_the_handshake_ends_the_process_too() -> None:
    async with kept_worker("slow-hello", stop=DEAF) as kept:
        kept.scope.cancel()
        assert (await kept.death()).was_requested


async def test_L08_a_stop_in_the_middle_of_a_large_request_needs_no_whole_frame() -> None:
    async with kept_worker("busy", stop=DEAF) as kept:
        handle = await kept.handle()
        with handle.open_stream(text_request("x" * 10_000_000)):
            await trio.testing.wait_all_tasks_blocked()
            kept.scope.cancel()
            report = await kept.death()
    assert report.signal == "SIGTERM"


async def test_L08_no_descendant_outlives_a_stopped_worker() -> None:
    async with kept_worker("fork") as kept:
        await kept.handle()
        kept.scope.cancel()
        report = await kept.death()
        await wait_gone(int(report.stderr_tail.removeprefix("descendant ")))
    assert report.exit_code == 0


# ---- deaths


@pytest.mark.parametrize(
    ("prompt", "kind", "cause", "exit_code", "died_of"),
    [
        ("die SIGSEGV", "segmentation_fault", "signal SIGSEGV", None, "SIGSEGV"),
        ("die SIGABRT", "abort", "signal SIGABRT", None, "SIGABRT"),
        ("die SIGBUS", "bus_error", "signal SIGBUS", None, "SIGBUS"),
        ("die SIGKILL", "killed", "signal SIGKILL, out of memory?", None, "SIGKILL"),
        ("die SIGTERM", "signal", "signal SIGTERM", None, "SIGTERM"),
        ("exit 3", "exit", "exit code 3", 3, None),
        ("exit 0", "exit", "exit code 0", 0, None),
        ("raise me", "python_exception", "exit code 1, Python exception ValueError", 1, None),
    ],
)
async def test_L01_L02_a_death_in_mid_stream_is_an_error_that_says_how(
    prompt: str, kind: str, cause: str, exit_code: int | None, died_of: str | None
) -> None:
    async with kept_worker() as kept:
        received, error = await crash_of(kept, prompt)
        report = await kept.death()
    assert received == [Accepted(prompt_tokens=len(prompt)), TextDelta("before", 1)]
    assert isinstance(error, WorkerCrashed)
    assert (error.model, error.cause) == ("ai/tiny", cause)
    assert (report.kind.value, report.cause) == (kind, cause)
    assert (report.exit_code, report.signal, report.phase) == (exit_code, died_of, "serving")
    assert report.request_ids == ("r1",)
    assert not report.was_requested
    assert "secret" not in str(error)


async def test_L01_a_death_before_the_first_event_is_an_error() -> None:
    async with kept_worker() as kept:
        received, error = await crash_of(kept, "early exit 3")
    assert received == []
    assert isinstance(error, WorkerCrashed)


async def test_L01_a_death_is_told_with_the_error_of_its_streams_and_a_stop_is_not() -> None:
    async with kept_worker() as kept:
        await crash_of(kept, "die SIGKILL")
        assert WorkerFailing("signal SIGKILL, out of memory?") in kept.events
        await kept.death()
    assert [type(event) for event in kept.events[-2:]] == [WorkerFailing, WorkerEnded]
    async with kept_worker() as kept:
        await kept.handle()
        kept.scope.cancel()
        await kept.death()
    assert not any(isinstance(event, WorkerFailing) for event in kept.events)


async def test_L01_everything_that_was_sent_before_a_death_is_delivered() -> None:
    async with kept_worker() as kept:
        received, error = await crash_of(kept, "last 150")  # as much as the socket holds
    assert sum(isinstance(event, TextDelta) for event in received) == 150
    assert isinstance(error, WorkerCrashed)


async def test_L02_what_a_worker_last_printed_is_in_the_report() -> None:
    async with kept_worker() as kept:
        await crash_of(kept, "raise me")
        report = await kept.death()
    assert "ValueError: a secret: me" in report.stderr_tail


async def test_a_worker_that_dies_while_it_is_idle_is_reported() -> None:
    async with kept_worker() as kept:
        handle = await kept.handle()
        os.kill(handle.pid, signal.SIGKILL)
        report = await kept.death()
        with pytest.raises(Unavailable):
            handle.open_stream(text_request("say a"))
    assert report.cause == "signal SIGKILL, out of memory?"
    assert report.request_ids == ()


async def test_every_open_stream_learns_of_a_death() -> None:
    async with kept_worker() as kept:
        handle = await kept.handle()
        with handle.open_stream(text_request("hold", "r1")) as held:
            await crash_of_second(kept)
            with pytest.raises(WorkerCrashed, match="SIGSEGV"):
                while await held.receive():
                    pass
        assert set((await kept.death()).request_ids) == {"r1", "r2"}


async def crash_of_second(kept: KeptWorker) -> None:
    with (await kept.handle()).open_stream(text_request("die SIGSEGV", "r2")) as stream:
        with pytest.raises(WorkerCrashed):
            while await stream.receive():
                pass


async def test_a_descendant_that_holds_the_channel_does_not_hide_a_death() -> None:
    async with kept_worker() as kept:
        _, error = await crash_of(kept, "descendant")
        report = await kept.death()
        await wait_gone(int(report.stderr_tail.removeprefix("descendant ")))
    assert isinstance(error, WorkerCrashed)
    assert report.cause == "exit code 0"


async def test_a_descendant_that_left_the_group_delays_the_report_of_a_death_by_little() -> None:
    async with kept_worker() as kept:
        _, error = await crash_of(kept, "descendant apart")
        report = await kept.death()
        os.kill(int(report.stderr_tail.removeprefix("descendant ")), signal.SIGKILL)
    assert isinstance(error, WorkerCrashed)
    assert report.cause == "exit code 0"


# ---- hostile workers


@pytest.mark.parametrize(
    ("prompt", "cause"),
    [
        ("garbage", "protocol fault: undecodable payload"),
        ("oversized", "protocol fault: a frame of 1048577 bytes"),
    ],
)
async def test_W07_bytes_outside_the_protocol_end_the_worker_and_its_streams(prompt: str, cause: str) -> None:
    async with kept_worker("ignore-sigterm") as kept:
        received, error = await crash_of(kept, prompt)
        report = await kept.death()
    assert received[-1] == TextDelta("before", 1)  # what came whole before the fault counts
    assert isinstance(error, WorkerCrashed)
    assert error.cause.startswith(cause)
    assert report.cause == error.cause
    assert report.signal == "SIGKILL"


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (
            "wrong-version",
            f"protocol fault: version {PROTOCOL_VERSION + 1} where {PROTOCOL_VERSION} is spoken",
        ),
        ("two-hellos", "protocol fault: Hello from a worker that is loading"),
        ("step-too-early", "protocol fault: Step from a worker that is starting"),
    ],
)
async def test_W07_messages_out_of_turn_end_the_worker(behaviour: str, cause: str) -> None:
    async with kept_worker(behaviour) as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert isinstance(failed.error, LoadingFailed)
    assert cause in str(failed.error)
    assert (report.cause, report.signal) == (cause, "SIGKILL")


async def test_W07_a_worker_that_closes_its_channel_and_lives_on_is_ended() -> None:
    async with kept_worker("ignore-sigterm", stop=STUBBORN) as kept:
        _, error = await crash_of(kept, "close")
        report = await kept.death()
    assert isinstance(error, WorkerCrashed)
    assert report.cause == "protocol fault: it closed its channel"
    assert report.signal == "SIGKILL"


async def test_W07_a_worker_that_never_says_hello_is_ended_at_its_deadline() -> None:
    async with kept_worker("slow-hello", watchdog=WatchdogRules(start_s=0.2, grace_s=0)) as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert isinstance(failed.error, LoadTimeout)
    assert report.cause == "not started within 0.2 s"


@pytest.mark.parametrize("prompt", ["stop", "early stop"])
async def test_L07_a_worker_without_counted_work_is_ended_when_somebody_waits(prompt: str) -> None:
    rules = WatchdogRules(step_s=0.3, judgement_s=0.3, step_bytes_per_s=1e9, grace_s=0.1)
    async with kept_worker(watchdog=rules) as kept:
        _, error = await crash_of(kept, prompt)
        report = await kept.death()
    assert isinstance(error, WorkerCrashed)
    assert report.cause.startswith("no progress for 0.3")
    assert (report.kind, report.phase, report.signal) == (DeathKind.NO_PROGRESS, "serving", "SIGKILL")


async def test_L07_frames_without_counted_work_keep_no_worker_alive() -> None:
    rules = WatchdogRules(step_s=0.3, step_bytes_per_s=1e9, grace_s=0.1)
    async with kept_worker(watchdog=rules) as kept:
        _, error = await crash_of(kept, "heartbeat")
        report = await kept.death()
    assert isinstance(error, WorkerCrashed)
    assert report.kind is DeathKind.NO_PROGRESS


async def test_L07_a_worker_that_nobody_uses_may_be_silent() -> None:
    rules = WatchdogRules(step_s=0.1, judgement_s=0.1, step_bytes_per_s=1e9, grace_s=0)
    async with kept_worker(watchdog=rules) as kept:
        await kept.generate("say a")
        with trio.move_on_after(0.4):
            await kept.death()
        assert await kept.generate("say b", "r2") == "b"


# ---- the death of the daemon


@pytest.mark.parametrize(
    "behaviours", ["normal", "ignore-shutdown,ignore-sigterm", "busy,ignore-sigterm", REAL]
)
async def test_W10_a_worker_ends_with_a_daemon_that_was_killed(behaviours: str, tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with trio.fail_after(30):
        daemon = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.support.worker_parent", behaviours, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert daemon.stdout is not None
        async with daemon.stdout:
            worker_pid = int(await daemon.stdout.receive_some())
        daemon.kill()
        await daemon.wait()
    with trio.fail_after(2):
        await wait_gone(worker_pid)


# ---- loads that fail


async def test_L07_a_load_that_stops_rising_is_a_timeout() -> None:
    async with kept_worker("load-hangs", watchdog=WatchdogRules(load_rise_s=0.2, grace_s=0.1)) as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert isinstance(failed.error, LoadTimeout)
    assert str(failed.error) == "ai/tiny could not be loaded: no progress for 0.2 s"
    assert (report.cause, report.kind) == ("no progress for 0.2 s", DeathKind.NO_PROGRESS)
    assert report.phase == "loading"
    assert not report.was_requested


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("invalid_model_file", InvalidModelFile),
        ("template_failed", TemplateFailed),
        ("loading_failed", LoadingFailed),
        ("something_new", LoadingFailed),
    ],
)
async def test_a_load_that_the_worker_refuses_is_reported_without_our_paths(
    code: str, error_class: type[RunnerError]
) -> None:
    async with kept_worker(f"load-fails:{code}:no \x1b[31mtensors in /models/blobs/weights") as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert type(failed.error) is error_class
    assert str(failed.error) == "no tensors in the model file"
    assert (report.cause, report.exit_code) == ("loading failed", 0)
    assert [type(event) for event in kept.events] == [WorkerLoadFailed, WorkerEnded]


async def test_L02_a_load_that_fails_by_an_exception_is_no_orderly_failure() -> None:
    async with kept_worker(
        "load-fails:loading_failed:the engine failed: MemoryError", "raise-at-end"
    ) as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert str(failed.error) == "the engine failed: MemoryError"
    assert (report.kind, report.exit_code) == (DeathKind.OUT_OF_MEMORY, 1)
    assert report.is_crash and report.is_load_crash


async def test_a_death_while_loading_is_a_failed_load_that_says_how() -> None:
    async with kept_worker("exit-while-loading:7") as kept:
        failed = await kept.first(WorkerLoadFailed)
        report = await kept.death()
    assert isinstance(failed.error, LoadingFailed)
    assert "exit code 7" in str(failed.error)
    assert report.exit_code == 7


async def test_a_worker_that_cannot_be_started_is_a_failed_load_and_an_end() -> None:
    events: list[KeeperEvent] = []
    with trio.fail_after(10):
        await run_keeper(worker_spec(), events.append, command=lambda fd, pid: ["/does/not/exist"])
    failed, ended = events
    assert isinstance(failed, WorkerLoadFailed)
    assert str(failed.error) == "the worker of ai/tiny could not be started: No such file or directory"
    assert isinstance(ended, WorkerEnded)
    assert ended.report.pid is None


async def test_a_template_too_large_for_the_channel_is_a_failed_load() -> None:
    events: list[KeeperEvent] = []
    spec = worker_spec(chat_template="x" * (MESSAGE_LIMIT_BYTES + 1))
    with trio.fail_after(10):
        await run_keeper(spec, events.append, command=scripted_command())
    assert [type(event) for event in events] == [WorkerLoadFailed, WorkerEnded]


async def test_a_fault_in_the_report_still_ends_the_worker() -> None:
    pids: list[int] = []

    def report(event: KeeperEvent) -> None:
        if isinstance(event, WorkerReady):
            pids.append(event.handle.pid)
            raise ValueError("a fault of ours")

    with trio.fail_after(20), pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        await run_keeper(worker_spec(), report, command=scripted_command())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
