"""How a worker ended: kinds of death told apart (L02), the report, and the words for it.

Pure but for one look at a kernel counter. A cause is a phrase for people that clients may see, so of what the
worker printed it takes a class name at most. Imports the domain and `actors/process.py`. Read on in
`actors/worker.py`.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Final

import attrs

from actors.process import ExitStatus
from runner.domain.status import CrashReport

_VMSTAT = Path("/proc/vmstat")


class DeathKind(enum.Enum):
    """What a worker died of; the values are part of the control API."""

    STOPPED = "stopped"
    """Asked to."""
    LOADING_FAILED = "loading_failed"
    """It said in order why it cannot load the model."""
    NOT_STARTED = "not_started"
    """No process, or no greeting in time."""
    SEGMENTATION_FAULT = "segmentation_fault"
    ABORT = "abort"
    BUS_ERROR = "bus_error"
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel's choice when memory ran out, or an allocation beyond the worker's own limit."""
    KILLED = "killed"
    """SIGKILL from somebody else, as far as one can tell."""
    OTHER_SIGNAL = "signal"
    PYTHON_EXCEPTION = "python_exception"
    EXIT = "exit"
    """Without a word."""
    PROTOCOL_FAULT = "protocol_fault"
    NO_PROGRESS = "no_progress"
    """The watchdog ended it."""
    DAEMON_FAULT = "daemon_fault"


@attrs.frozen
class Cause:
    """`text` is a phrase for people and safe to send to clients."""

    kind: DeathKind
    text: str


@attrs.frozen(kw_only=True)
class DeathReport:
    """How a worker ended.

    `cause` is `signal SIGSEGV`, `exit code 3`, `protocol fault: …`, `no progress for 19 s`, `stopped`. At
    most one of `exit_code` and `signal` (`SIGKILL`) is set, none when the process never started; the signal
    may be our own. `phase` is `starting`, `loading` or `serving`. `stderr_tail` is cleaned text of at most
    64 KiB. `request_ids` are the generations that were running. `was_requested`: the keeper was asked to
    stop.
    """

    model: str
    model_id: str
    engine_version: str | None
    pid: int | None
    kind: DeathKind
    cause: str
    exit_code: int | None
    signal: str | None
    phase: str
    lived_s: float
    stderr_tail: str
    request_ids: tuple[str, ...]
    was_requested: bool

    @classmethod
    def of_no_process(
        cls, *, model: str, model_id: str, engine_version: str | None, cause: str
    ) -> DeathReport:
        """For one that could not even be started."""
        return cls(
            model=model,
            model_id=model_id,
            engine_version=engine_version,
            pid=None,
            kind=DeathKind.NOT_STARTED,
            cause=cause,
            exit_code=None,
            signal=None,
            phase="starting",
            lived_s=0.0,
            stderr_tail="",
            request_ids=(),
            was_requested=False,
        )

    @property
    def is_crash(self) -> bool:
        """Neither asked to end, nor ended in order after it said why it cannot load the model."""
        is_orderly = self.kind is DeathKind.LOADING_FAILED and self.exit_code == 0
        return not self.was_requested and not is_orderly

    @property
    def is_load_crash(self) -> bool:
        """It died by itself, with the model not in memory yet; slow disks make the watchdog end loads."""
        return self.is_crash and self.phase == "loading" and self.kind not in _ENDED_BY_US

    def as_crash(self, at_s: float) -> CrashReport:
        """For people and programs; `at_s` is Unix time."""
        return CrashReport(
            at_s=at_s,
            model=self.model,
            model_id=self.model_id,
            engine_version=self.engine_version,
            pid=self.pid,
            kind=self.kind.value,
            cause=self.cause,
            exit_code=self.exit_code,
            signal=self.signal,
            phase=self.phase,
            lived_s=self.lived_s,
            request_ids=self.request_ids,
            output_tail=self.stderr_tail,
        )


def cause_of_exit(status: ExitStatus, stderr_tail: str, *, was_out_of_memory: bool = False) -> Cause:
    """How a process ended by itself.

    1. SIGKILL that was not ours, while the kernel killed something for lack of memory.  2. SIGKILL otherwise.
    3. SIGABRT after C++ could not allocate.  4. Another signal.
    5. Exit code after a traceback: a Python exception.  6. Another exit code.
    """
    if status.signal == "SIGKILL":
        if was_out_of_memory:  # 1
            return Cause(DeathKind.OUT_OF_MEMORY, "signal SIGKILL, out of memory")
        return Cause(DeathKind.KILLED, "signal SIGKILL, out of memory?")  # 2
    if status.signal == "SIGABRT" and "std::bad_alloc" in stderr_tail:  # 3
        return Cause(DeathKind.OUT_OF_MEMORY, "signal SIGABRT, beyond its memory limit")
    if status.signal is not None:  # 4
        return Cause(_KIND_OF_SIGNAL.get(status.signal, DeathKind.OTHER_SIGNAL), f"signal {status.signal}")
    raised = _RAISED.findall(stderr_tail)
    if status.exit_code and raised:  # 5
        kind = DeathKind.OUT_OF_MEMORY if raised[-1] == "MemoryError" else DeathKind.PYTHON_EXCEPTION
        return Cause(kind, f"exit code {status.exit_code}, Python exception {raised[-1]}")
    return Cause(DeathKind.EXIT, f"exit code {status.exit_code}")  # 6


def kernel_memory_kills(vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has killed for lack of memory since it started; 0 where nobody counts.

    Of the whole machine and all its control groups: a process cannot see more of its own case.
    """
    try:
        found = _OOM_KILLS.search(vmstat.read_bytes())
    except OSError:
        return 0
    return int(found[1]) if found else 0


_OOM_KILLS: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)
_ENDED_BY_US: Final = frozenset({DeathKind.NO_PROGRESS, DeathKind.NOT_STARTED, DeathKind.DAEMON_FAULT})
_KIND_OF_SIGNAL: Final = {
    "SIGSEGV": DeathKind.SEGMENTATION_FAULT,
    "SIGABRT": DeathKind.ABORT,
    "SIGBUS": DeathKind.BUS_ERROR,
}
_RAISED: Final = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)+([A-Za-z_][\w.]{0,80})(?::|$)",
    re.MULTILINE | re.ASCII,
)
