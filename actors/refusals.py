"""The core's refusals as errors that callers are given: one table, and a new error for every caller.

Imports the error tree and the core's effects. Read on in `runner/scheduling/effects.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

from runner.errors import (
    DiskFull,
    Draining,
    InsufficientMemory,
    InvalidModelFile,
    LoadingFailed,
    LoadTimeout,
    ModelNotFound,
    QueueFull,
    RunnerError,
    StoreDamaged,
    StoreError,
    TemplateFailed,
    Unavailable,
)
from runner.scheduling.effects import CannotLoad, LineFull, NoNewWork, NoRoom, Refusal

_FAILURES: Mapping[str, Callable[[str], RunnerError]] = MappingProxyType(
    {
        kind.code: kind
        for kind in (
            DiskFull,
            InvalidModelFile,
            LoadTimeout,
            StoreDamaged,
            StoreError,
            TemplateFailed,
            Unavailable,
        )
    }
)
"""Failures that reach the caller as what they were; all others are `LoadingFailed`."""


def error_of(refusal: Refusal) -> RunnerError:
    match refusal:
        case LineFull():
            message = f"{refusal.waiting} requests are waiting for {refusal.model} already"
            return QueueFull(message, retry_after_s=refusal.retry_after_s)
        case NoRoom():
            return InsufficientMemory(
                model=refusal.model,
                needed_bytes=refusal.needed_bytes,
                free_bytes=refusal.free_bytes,
                reserved_bytes=refusal.in_use_bytes,
            )
        case CannotLoad():
            if refusal.failure.code == ModelNotFound.code:
                return ModelNotFound(refusal.model)
            return _FAILURES.get(refusal.failure.code, LoadingFailed)(refusal.failure.message)
        case NoNewWork():
            return Draining()
        case _:
            assert_never(refusal)
