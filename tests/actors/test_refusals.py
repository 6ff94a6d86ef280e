"""Refusals of the core as errors: what the caller is told, and of which kind."""

from __future__ import annotations

import pytest

from actors.refusals import error_of
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
    TemplateFailed,
    Unavailable,
)
from runner.scheduling.effects import CannotLoad, LineFull, NoNewWork, NoRoom
from runner.scheduling.events import Failure


def test_a_full_line_tells_when_to_come_back() -> None:
    error = error_of(LineFull(model="m", waiting=64, retry_after_s=7.0))
    assert isinstance(error, QueueFull)
    assert (str(error), error.retry_after_s) == ("64 requests are waiting for m already", 7.0)


def test_O01_missing_room_tells_the_numbers() -> None:
    error = error_of(NoRoom(model="m", needed_bytes=5, free_bytes=3, in_use_bytes=1))
    assert isinstance(error, InsufficientMemory)
    assert (error.model, error.needed_bytes, error.free_bytes, error.reserved_bytes) == ("m", 5, 3, 1)


def test_a_drain_is_told() -> None:
    assert isinstance(error_of(NoNewWork()), Draining)


@pytest.mark.parametrize(
    "kind",
    [DiskFull, InvalidModelFile, LoadTimeout, LoadingFailed, StoreDamaged, TemplateFailed, Unavailable],
)
def test_a_failure_keeps_its_kind_and_its_sentence(kind: type[RunnerError]) -> None:
    error = error_of(CannotLoad(model="m", failure=Failure(kind.code, "why")))
    assert type(error) is kind and str(error) == "why"


def test_a_model_that_is_gone_is_named_and_anything_else_is_a_failed_load() -> None:
    gone = error_of(CannotLoad(model="m", failure=Failure("model_not_found", "sha256:…")))
    assert isinstance(gone, ModelNotFound) and gone.name == "m"
    assert type(error_of(CannotLoad(model="m", failure=Failure("internal_error", "x")))) is LoadingFailed
