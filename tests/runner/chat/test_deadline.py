"""Deadlines by asynchronous exceptions."""

from __future__ import annotations

import threading
import time

import pytest

from runner.chat.deadline import DeadlinePassed, call_before


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


def test_what_ends_about_at_the_deadline_either_returns_or_is_cut_and_nothing_comes_later() -> None:
    """The race that the watch is built for, at many offsets around the deadline."""
    outcomes = set()
    for index in range(300):
        end = time.perf_counter() + 0.002 + (index % 30 - 5) * 0.00002

        def work(end: float = end) -> str:
            while time.perf_counter() < end:
                pass
            return "returned"

        try:
            outcomes.add(call_before(0.002, work))
        except DeadlinePassed:
            outcomes.add("cut")
        sum(range(100))  # where a late interruption would arrive
    assert outcomes <= {"returned", "cut"}
    assert not any(thread.name == "deadline" for thread in threading.enumerate())
