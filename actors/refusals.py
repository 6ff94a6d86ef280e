"""The core's refusals as errors that callers are given: one table, and a new error for every caller.

Imports the error tree and the core's effects. Read on in `runner/scheduling/effects.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

from runner.domain.device_bytes import HOST_MEMORY
from runner.errors import (
    BreakerOpen,
    DiskFull,
    Draining,
    FieldFault,
    InsufficientMemory,
    InvalidModelFile,
    InvalidParameter,
    LoadingFailed,
    LoadTimeout,
    ModelNotFound,
    ModelQuarantined,
    QueueFull,
    RunnerError,
    StoreDamaged,
    StoreError,
    TemplateFailed,
    Unavailable,
    UnsupportedModel,
)
from runner.scheduling.effects import (
    CannotLoad,
    ContextTooLarge,
    LineFull,
    NoNewWork,
    NoRoom,
    Refusal,
)
from runner.scheduling.protection import InQuarantine, LeftAlone

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
            UnsupportedModel,
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
            return _insufficient_memory(refusal)
        case ContextTooLarge():
            fault = f"must be at most {refusal.most} for {refusal.model}, and is {refusal.wanted}"
            return InvalidParameter(FieldFault("context_size", fault))
        case CannotLoad():
            if refusal.failure.code == ModelNotFound.code:
                return ModelNotFound(refusal.model)
            return _FAILURES.get(refusal.failure.code, LoadingFailed)(refusal.failure.message)
        case NoNewWork():
            return Draining()
        case LeftAlone():
            return BreakerOpen(model=refusal.model, retry_after_s=refusal.retry_after_s)
        case InQuarantine():
            return ModelQuarantined(model=refusal.model, crashes=refusal.crashes, cause=refusal.cause)
        case _:
            assert_never(refusal)


def _insufficient_memory(refusal: NoRoom) -> InsufficientMemory:
    """With the numbers of the device that lacks most."""
    devices = refusal.needed.devices or (HOST_MEMORY,)
    device = max(devices, key=lambda one: refusal.needed[one] - refusal.free[one])
    return InsufficientMemory(
        model=refusal.model,
        needed_bytes=refusal.needed[device],
        free_bytes=refusal.free[device],
        reserved_bytes=refusal.in_use[device],
        device=device,
        retry_after_s=refusal.retry_after_s,
    )
