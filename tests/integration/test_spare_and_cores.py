"""The spare worker and the division of cores in a real daemon."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.sse import post_stream

T = TypeVar("T")

PATIENCE_S = 60.0


def eventually(look: Callable[[], T | None]) -> T:
    """What `look` finds, once it finds something."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)
    return found


def started_as_spares(daemon: RunningDaemon) -> list[psutil.Process]:
    """Also those that have a model by now."""
    found = []
    for process in map(psutil.Process, daemon.worker_pids()):
        with contextlib.suppress(psutil.Error):  # it has ended
            if "--ahead" in process.cmdline():
                found.append(process)
    return found


def spare_of(daemon: RunningDaemon, *, other_than: int | None = None) -> psutil.Process:
    """The child that waits for a model, once it has imported everything and has its reader's thread."""

    def look() -> psutil.Process | None:
        loaded = {worker["pid"] for worker in daemon.get("/control/v1/ps")["workers"]}
        ready = [
            process
            for process in started_as_spares(daemon)
            if process.pid not in loaded | {other_than} and process.num_threads() >= 3
        ]
        return ready[0] if ready else None

    return eventually(look)


def chat(text: str, model: str = "one") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}


def answer(daemon: RunningDaemon, text: str, model: str = "one") -> str:
    reply = daemon.post("/v1/chat/completions", {**chat(text, model), "stream": False})
    content: str = reply["choices"][0]["message"]["content"]
    return content


@pytest.fixture
def threaded_daemon(tmp_path: Path, tiny_model: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path, "--threads", "4") as daemon:
        daemon.package("one", tiny_model)
        daemon.package("two", tiny_model, "--context-size", "512")
        yield daemon


# ---- the spare


def test_the_spare_takes_the_next_load_and_another_one_waits_then(own_daemon: RunningDaemon) -> None:
    first = spare_of(own_daemon)
    assert answer(own_daemon, "hello") == "hello"
    (worker,) = own_daemon.get("/control/v1/ps")["workers"]
    assert worker["pid"] == first.pid
    second = spare_of(own_daemon)
    assert set(started_as_spares(own_daemon)) == {first, second}


def test_L01_no_client_sees_the_death_of_a_spare(own_daemon: RunningDaemon) -> None:
    spare = spare_of(own_daemon)
    spare.send_signal(signal.SIGKILL)
    assert answer(own_daemon, "hello") == "hello"
    eventually(lambda: True if "a spare worker ended" in own_daemon.log else None)
    spare_of(own_daemon, other_than=spare.pid)


def test_W10_the_spare_ends_with_a_daemon_that_was_killed(own_daemon: RunningDaemon) -> None:
    spare = spare_of(own_daemon)
    own_daemon.process.kill()
    own_daemon.process.wait()
    _, alive = psutil.wait_procs([spare], timeout=2)
    assert not alive


def test_L09_no_spare_is_left_after_a_shutdown(own_daemon: RunningDaemon) -> None:
    spare = spare_of(own_daemon)
    os.kill(own_daemon.process.pid, signal.SIGTERM)
    assert own_daemon.wait_for_end() == 0
    assert not psutil.pid_exists(spare.pid)


def test_without_a_spare_every_load_has_a_process_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path, "--spare-worker", "no") as daemon:
        daemon.package("one", tiny_model)
        assert answer(daemon, "hello") == "hello"
        assert started_as_spares(daemon) == []


# ---- cores


def digits(stream: Iterator[str]) -> Iterator[int]:
    return (int(digit) for text in stream for digit in text)


def test_two_models_that_generate_share_the_cores(threaded_daemon: RunningDaemon) -> None:
    """Of four; other programs on this machine may take two of them, never more."""
    port, path = threaded_daemon.port, "/v1/chat/completions"
    with post_stream(port, path, chat("[[slow 10]][[threads 9000]]")) as one:
        alone = digits(one.text_deltas())
        assert next(alone) >= 2
        with post_stream(port, path, chat("[[slow 10]][[threads 9000]]", "two")) as two:
            other = digits(two.text_deltas())
            assert next(other) <= 2
            assert next(number for number in alone if number <= 2)
            shares = [next(other), next(itertools.islice(alone, 5, None))]
            assert sum(shares) <= 4
