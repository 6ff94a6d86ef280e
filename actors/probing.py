"""One probe: a short-lived process that is asked what a load would take, and answers.

Started, limited and ended as a worker is, and trusted as little: its answer passes the codec, then the checks
of whoever asked. Imports the wire and `actors/process.py`. Read on in `actors/footprints.py`, which remembers
the answers, and in `runner/worker/probe.py`, the other end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import attrs
import trio

from actors.deaths import Cause, DeathKind, DeathReport, cause_of_exit
from actors.output import clean_text
from actors.process import Command, StopTimes, WorkerProcess, probe_command
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.errors import ProtocolFault
from runner.wire.codec import FromProbeDecoder, encode
from runner.wire.messages import FromProbe, LoadFailed, Probed, ProbeModel

PROBE_TIMEOUT_S: Final = 20.0
"""From the start to the answer. A vocabulary of 262,144 tokens takes 2 s, and 6 s beside busy neighbours."""

MEMORY_LIMIT_BYTES: Final = 4 * 1024**3
"""Private memory of a probe. A simulated load with a large vocabulary takes a twentieth of it."""

_READ_BYTES: Final = 65_536
_EXIT_WAIT_S: Final = 2.0


@attrs.frozen
class ProbeFailed:
    """No answer, or that the model cannot be loaded so. `report` says how the process ended."""

    report: DeathReport


ProbeOutcome = Probed | ProbeFailed

Prober = Callable[[ModelFiles, EngineOptions], Awaitable[ProbeOutcome]]
"""What footprints are measured with: `functools.partial(run_probe, directory=…)`, or a fake."""


async def run_probe(
    files: ModelFiles,
    options: EngineOptions,
    *,
    directory: Path | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
    command: Command = probe_command,
) -> ProbeOutcome:
    """What loading `files` with `options` takes. Returns, or is cancelled, when the process is gone.

    `files` must stay leased meanwhile. Raises nothing for what the process does.
    """
    started_s = trio.current_time()
    try:
        process = WorkerProcess.start(command, directory=directory)
    except OSError as error:
        await trio.lowlevel.checkpoint()
        cause = Cause(DeathKind.NOT_STARTED, f"could not be started: {error.strerror}")
        return ProbeFailed(_report(files, None, cause, 0.0))
    process.limit_private_memory(MEMORY_LIMIT_BYTES)
    answer: Probed | None = None
    cause = Cause(DeathKind.NO_PROGRESS, f"no answer within {timeout_s:g} s")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.supervise)
        try:
            with trio.move_on_after(timeout_s):
                weights_paths = tuple(map(str, files.weights))
                question = ProbeModel(weights_paths=weights_paths, options=options)
                answer, cause = await _ask(process, question)
        finally:
            await process.stop(None, StopTimes())  # at once: it has nothing to finish
    if answer is not None:
        return answer
    return ProbeFailed(_report(files, process, cause, trio.current_time() - started_s))


def refused(files: ModelFiles, reason: str) -> ProbeFailed:
    """An answer that came, and is not taken."""
    return ProbeFailed(
        _report(files, None, Cause(DeathKind.PROTOCOL_FAULT, f"protocol fault: {reason}"), 0.0)
    )


async def _ask(process: WorkerProcess, question: ProbeModel) -> tuple[Probed | None, Cause]:
    """The answer, or why there is none."""
    try:
        answer = await _exchange(process, question)
    except ProtocolFault as fault:
        return None, Cause(DeathKind.PROTOCOL_FAULT, str(fault))
    match answer:
        case Probed():
            return answer, Cause(DeathKind.STOPPED, "stopped")
        case LoadFailed():
            return None, Cause(DeathKind.LOADING_FAILED, clean_text(answer.message))
        case None:
            return None, await _cause_of_end(process)


async def _exchange(process: WorkerProcess, question: ProbeModel) -> FromProbe | None:
    """None when the channel ended without an answer. Raises ProtocolFault for anything but one message."""
    decoder = FromProbeDecoder()
    try:
        await process.channel.send_all(encode(question))
        while data := await process.channel.receive_some(_READ_BYTES):
            messages = decoder.feed(data)
            if len(messages) > 1 or (messages and not decoder.is_between_messages):
                raise ProtocolFault("more than an answer")
            if messages:
                return messages[0]
    except trio.BrokenResourceError:
        pass  # it died instead; how, its exit tells
    return None


async def _cause_of_end(process: WorkerProcess) -> Cause:
    with trio.move_on_after(_EXIT_WAIT_S):
        await process.exited.wait()
    if process.status is None:
        return Cause(DeathKind.PROTOCOL_FAULT, "protocol fault: it closed its channel")
    return cause_of_exit(process.status, process.output.text())


def _report(files: ModelFiles, process: WorkerProcess | None, cause: Cause, lived_s: float) -> DeathReport:
    status = process.status if process is not None else None
    return DeathReport(
        model=files.model.name,
        model_id=str(files.model.id),
        engine_version=None,
        pid=process.pid if process is not None else None,
        kind=cause.kind,
        cause=cause.text,
        exit_code=status.exit_code if status is not None else None,
        signal=status.signal if status is not None else None,
        phase="measuring",
        lived_s=lived_s,
        stderr_tail=process.output.text() if process is not None else "",
        request_ids=(),
        was_requested=False,
    )
