"""What the parts of the daemon report, as lines of its log.

Owns the words and fields of these lines. Imports the reports of actors, for their types.
"""

from __future__ import annotations

from typing import assert_never

import structlog

from actors.footprints import FootprintNotice, ProbeFault
from actors.load import LoadFault
from actors.puller import TransferFault
from actors.quarantine import QuarantineTrouble
from actors.saved_states import StateNotice
from actors.scheduler_messages import SchedulerNotice
from actors.spare import SpareEnded
from actors.store_messages import StoreNotice
from actors.supervisor import ChildCrashed
from actors.worker import DeathReport
from runner.scheduling.decisions import Decision

log = structlog.get_logger("runner.daemon")


def log_states(notice: StateNotice) -> None:
    log.warning(notice.message)


def log_store(notice: StoreNotice) -> None:
    log.warning(notice.message)


def log_spare(ended: SpareEnded) -> None:
    log.warning(
        "a spare worker ended; loads go on without",
        pid=ended.pid,
        exit_code=ended.status.exit_code if ended.status is not None else None,
        signal=ended.status.signal if ended.status is not None else None,
        error=ended.error,
        delay_s=round(ended.delay_s, 1),
        tail=ended.stderr_tail[-2000:],
    )


def log_transfer(fault: TransferFault) -> None:
    log.error("a transfer failed by a fault of ours", model=fault.reference, exc_info=fault.error)


def log_crash(crash: ChildCrashed) -> None:
    log.error(
        "a part of the daemon ended",
        part=crash.name,
        restarts=crash.restarts,
        delay_s=crash.delay_s,
        exc_info=crash.error,
    )


def log_scheduler(notice: SchedulerNotice) -> None:
    match notice:
        case DeathReport():
            _log_death(notice)
        case LoadFault():
            log.error(
                "a load failed by a fault of ours", model_id=str(notice.model_id), exc_info=notice.error
            )
        case QuarantineTrouble():
            log.warning(notice.message)
        case Decision():
            log.info(f"{notice.action.value} {notice.model}: {notice.why}", **notice.numbers)
        case _:
            assert_never(notice)


def log_footprints(notice: FootprintNotice) -> None:
    if isinstance(notice, ProbeFault):
        report = notice.report
        log.warning(
            "a model could not be measured; its size is estimated from its header",
            model=report.model,
            cause=report.cause,
            tail=report.stderr_tail[-2000:],
        )
    else:
        log.info(f"learned what {notice.model} takes", expected=str(notice.expected), found=str(notice.found))


def log_measurements(message: str) -> None:
    log.warning(message)


def _log_death(report: DeathReport) -> None:
    if report.was_requested:
        log.debug("a worker ended", model=report.model, pid=report.pid)
        return
    log.error(
        "a worker ended unexpectedly",
        model=report.model,
        model_id=report.model_id,
        engine=report.engine_version,
        pid=report.pid,
        cause=report.cause,
        phase=report.phase,
        requests=" ".join(report.request_ids),
        tail=report.stderr_tail[-2000:],
    )
