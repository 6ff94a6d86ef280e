"""What people are told when a command fails: one line, at most one hint, an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import click

from runner.cli.output import message
from runner.client import ApiError, DaemonUnreachable
from runner.errors import ModelNotFound, RunnerError

EXIT_ERROR = 1
EXIT_UNREACHABLE = 3
EXIT_MODEL_NOT_FOUND = 4

_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "ambiguous": "write more digits of the id",
        "context_length_exceeded": "shorten the prompt; in a chat, /clear forgets what was said",
        "content_mismatch": "nothing of it was kept; whoever offers it has to put it right",
        "disk_full": "`runner ctl df` tells what takes how much; `runner ctl rm` and `prune` make room",
        "incomplete": "`runner ctl status` tells whether the daemon still runs, and where its log is",
        "insufficient_memory": "`runner ctl ps` lists what is loaded, `runner ctl unload` makes room",
        "internal_error": "`runner ctl status` names the daemon's log, which tells more",
        "loading_failed": "`runner ctl status` names the daemon's log, which tells more",
        "model_in_use": "`runner ctl unload` unloads a model when its requests have ended",
        "model_not_found": "`runner ctl ls` lists the models; `runner ctl pull NAME` fetches one",
        "registry_address_refused": "`private_registries` in the settings allows hosts at private addresses",
        "registry_unavailable": "check the name and the network",
        "request_not_found": "the latest thousand requests are remembered, until the daemon ends",
        "store_damaged": "`runner ctl verify` finds what is damaged, `runner ctl repair` fetches it again",
        "unknown": "another program may listen at this address; --host names the daemon's",
        "worker_crashed": "`runner ctl status` names the daemon's log, which tells more",
    }
)


_NO_SUCH_MODEL = frozenset({ModelNotFound.code, "remote_model_not_found"})


@dataclass(frozen=True)
class Failure:
    message: str
    hint: str | None = None
    exit_status: int = EXIT_ERROR


def report(error: Exception) -> int:
    """Print it on stderr; the exit status. Raises nothing."""
    failure = failure_of(error)
    with suppress(OSError, ValueError):  # stderr may be gone as well
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            return failure.exit_status
        message(f"error: {failure.message}")
        if failure.hint is not None:
            message(f"hint: {failure.hint}")
    if isinstance(error, OSError):
        _drop_output()
    return failure.exit_status


def is_model_missing(error: ApiError) -> bool:
    """The store has no such model."""
    return error.error_code == ModelNotFound.code


def failure_of(error: Exception) -> Failure:
    match error:
        case DaemonUnreachable():
            return Failure(str(error), _unreachable_hint(error), EXIT_UNREACHABLE)
        case ApiError():
            is_missing = error.error_code in _NO_SUCH_MODEL
            return Failure(str(error), _api_hint(error), EXIT_MODEL_NOT_FOUND if is_missing else EXIT_ERROR)
        case RunnerError():
            return Failure(str(error), _HINTS.get(error.code))
        case click.UsageError():
            command = error.ctx.command_path if error.ctx is not None else "runner"
            return Failure(
                _uncapitalised(error.format_message()), f"`{command} --help` tells the usage", error.exit_code
            )
        case click.ClickException():
            return Failure(_uncapitalised(error.format_message()), None, error.exit_code)
        case OSError():
            reason = error.strerror or str(error)
            return Failure(f"{error.filename}: {reason}" if error.filename else reason)
    return Failure(
        f"a fault of this program: {type(error).__name__}: {error}", "with RUNNER_TRACEBACK=1 it tells where"
    )


def _unreachable_hint(error: DaemonUnreachable) -> str:
    if error.target.is_explicit:
        return "without --host, RUNNER_HOST and MODEL_RUNNER_HOST the daemon of this machine is found"
    if error.is_absent:
        return "`runner serve` starts one; `runner run`, `runner ctl pull` and others start one by themselves"
    return "stop what is there, or name another daemon with --host"


def _api_hint(error: ApiError) -> str | None:
    hint = _HINTS.get(error.error_code)
    if hint is None and error.retry_after_s is not None:
        return f"try again in {error.retry_after_s:.0f} s"
    return hint


def _uncapitalised(text: str) -> str:
    """Click's sentences in the form of ours."""
    if text[1:2].islower():
        text = text[0].lower() + text[1:]
    return text.removesuffix(".")


def _drop_output() -> None:
    """What could not be written would be tried, and complained about, once more when Python ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
        os.close(nowhere)
