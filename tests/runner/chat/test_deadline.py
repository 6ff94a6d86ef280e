"""Deadlines by asynchronous exceptions."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from runner.chat.deadline import DeadlinePassed, call_before


class Big:
    """Stands for much memory."""

    def __init__(self, name: str) -> None:
        self.name = name


def _spin() -> None:
    while True:
        pass


def test_what_returns_in_time_returns() -> None:
    assert call_before(5, lambda: "done") == "done"


def test_what_raises_in_time_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        call_before(5, lambda: 1 // 0)


def test_G07_what_does_not_return_is_cut() -> None:
    start = time.monotonic()
    with pytest.raises(DeadlinePassed, match=r"0\.05 s"):
        call_before(0.05, _spin)
    assert time.monotonic() - start >= 0.05


def test_no_handler_of_exceptions_can_swallow_the_cut() -> None:
    def stubborn() -> None:
        while True:
            try:
                _spin()
            except Exception:
                continue

    with pytest.raises(DeadlinePassed):
        call_before(0.05, stubborn)


def test_a_cut_in_one_thread_leaves_the_others_alone() -> None:
    outcome: list[str] = []

    def other() -> None:
        outcome.append(call_before(20, lambda: "done"))

    with pytest.raises(DeadlinePassed):
        call_before(0.05, _spin)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join(20)
    assert outcome == ["done"]


def _hoard_and_fail(held: Big) -> None:
    raise ValueError(held.name)


def _hoard_and_spin(held: Big) -> None:
    while held.name:
        pass


@pytest.mark.parametrize("function", [_hoard_and_fail, _hoard_and_spin])
def test_what_was_held_by_code_that_failed_or_was_cut_is_free_without_a_collection(
    function: Callable[[Big], None],
) -> None:
    gc.disable()
    try:
        held = Big("x")
        watched = weakref.ref(held)
        call = partial(function, held)
        del held
        with contextlib.suppress(DeadlinePassed, ValueError):
            call_before(0.05, call)
        del call
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("function", [lambda: "done", _spin])
def test_nothing_stays_pending_in_the_interpreter(function: Callable[[], object]) -> None:
    """What does stops a tracer (coverage, a debugger) for ever at the next call, on Python 3.11."""
    seen: list[str] = []

    def traced() -> int:
        return 1

    with contextlib.suppress(DeadlinePassed):
        call_before(0.05, function)
    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: seen.append(frame.f_code.co_name))
    traced()
    sys.settrace(before)
    assert "traced" in seen


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads change places so often that the watch keeps its time beside a thread that computes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00002)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_switching")
def test_what_ends_about_at_the_deadline_either_returns_or_is_cut_and_nothing_comes_later() -> None:
    """The race that the watch is built for, at many offsets around the deadline."""
    outcomes = set()
    for index in range(400):
        end = time.perf_counter() + 0.002 + (index % 40 - 10) * 0.00003

        def work(end: float = end) -> str:
            while time.perf_counter() < end:
                pass
            return "returned"

        try:
            outcomes.add(call_before(0.002, work))
        except DeadlinePassed:
            outcomes.add("cut")
        sum(range(100))  # where a late interruption would arrive
    assert outcomes == {"returned", "cut"}
    assert not any(thread.name == "deadline" for thread in threading.enumerate())
