"""Refusals of the core as errors: what the caller is told, and of which kind."""

from __future__ import annotations

import pytest

from actors.refusals import error_of
from runner.domain.device_bytes import DeviceBytes
from runner.errors import (
    BreakerOpen,
    DiskFull,
    Draining,
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
    TemplateFailed,
    Unavailable,
    UnsupportedModel,
)
from runner.scheduling.effects import CannotLoad, ContextTooLarge, LineFull, NoNewWork, NoRoom
from runner.scheduling.events import Failure
from runner.scheduling.protection import InQuarantine, LeftAlone

MIB = 1024**2


def test_a_full_line_tells_when_to_come_back() -> None:
    error = error_of(LineFull(model="m", waiting=64, retry_after_s=7.0))
    assert isinstance(error, QueueFull)
    assert (str(error), error.retry_after_s) == ("64 requests are waiting for m already", 7.0)


def test_O01_missing_room_tells_the_numbers() -> None:
    error = error_of(
        NoRoom(
            model="m",
            needed=DeviceBytes({"cpu": 5 * MIB, "CUDA0": 90 * MIB}),
            free=DeviceBytes({"cpu": 3 * MIB, "CUDA0": 80 * MIB}),
            in_use=DeviceBytes({"cpu": 1 * MIB, "CUDA0": 20 * MIB}),
            retry_after_s=9.0,
        )
    )
    assert isinstance(error, InsufficientMemory)
    assert (error.model, error.device, error.retry_after_s) == ("m", "CUDA0", 9.0)
    assert (error.needed_bytes, error.free_bytes, error.reserved_bytes) == (90 * MIB, 80 * MIB, 20 * MIB)
    assert str(error) == (
        "loading m needs 90.0 MiB of CUDA0; 80.0 MiB can be had and 20.0 MiB are held by models in use"
    )


def test_a_context_that_a_model_cannot_have_is_the_callers_to_change() -> None:
    error = error_of(ContextTooLarge(model="m", wanted=32_768, most=8192))
    assert isinstance(error, InvalidParameter)
    assert str(error) == "context_size: must be at most 8192 for m, and is 32768"


def test_L04_an_open_breaker_tells_when_to_come_back() -> None:
    error = error_of(LeftAlone(model="m", retry_after_s=29.5))
    assert isinstance(error, BreakerOpen)
    assert (error.model, error.retry_after_s) == ("m", 29.5)


def test_L06_quarantine_tells_why_and_the_way_out() -> None:
    error = error_of(InQuarantine(model="m", crashes=2, cause="signal SIGSEGV"))
    assert isinstance(error, ModelQuarantined)
    assert "2 times, last by signal SIGSEGV" in str(error)
    assert "unquarantine" in str(error)


def test_a_drain_is_told() -> None:
    assert isinstance(error_of(NoNewWork()), Draining)


@pytest.mark.parametrize(
    "kind",
    [
        DiskFull,
        InvalidModelFile,
        LoadTimeout,
        LoadingFailed,
        StoreDamaged,
        TemplateFailed,
        Unavailable,
        UnsupportedModel,
    ],
)
def test_a_failure_keeps_its_kind_and_its_sentence(kind: type[RunnerError]) -> None:
    error = error_of(CannotLoad(model="m", failure=Failure(kind.code, "why")))
    assert type(error) is kind and str(error) == "why"


def test_a_model_that_is_gone_is_named_and_anything_else_is_a_failed_load() -> None:
    gone = error_of(CannotLoad(model="m", failure=Failure("model_not_found", "sha256:…")))
    assert isinstance(gone, ModelNotFound) and gone.name == "m"
    assert type(error_of(CannotLoad(model="m", failure=Failure("internal_error", "x")))) is LoadingFailed
