"""What clients see when a worker is hit, on the scripted engine; `scripts/faults.py` has the whole table.

Each case has a model of its own, so that no breaker and no quarantine of one decides the next.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.error
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.faults import (
    OUTSIDE,
    Bystander,
    Client,
    Seen,
    is_loading,
    is_prefilling,
    ready_spare,
    wait_for,
    worker_of,
)

_sizes = count(512, 8)
FATAL = ("SIGKILL", "SIGSEGV", "garbage frames")
KIND = {"SIGKILL": "killed", "SIGSEGV": "segmentation_fault", "garbage frames": "protocol_fault"}
TOO_MUCH = 8000
"""MiB; the cap of such a small model lies a little above one GiB."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        package(running, files, "bystander")
        running.post("/control/v1/start", {"model": "bystander", "keep_alive": -1})
        yield running


@pytest.fixture
def others(daemon: RunningDaemon) -> Iterator[Bystander]:
    """Somebody who uses another model all the while, and notices nothing."""
    with Bystander(daemon, "bystander") as bystander:
        yield bystander
    assert bystander.failures == []
    assert bystander.answers
    assert bystander.longest_s < 5.0


def package(daemon: RunningDaemon, files: Path, name: str, *wishes: str) -> str:
    """A model that no other test has, with these directives for its load."""
    size = next(_sizes)
    path = files / f"{name}-{size}.gguf"
    write_tiny_gguf(path, TinyModel(name=" ".join(("Tiny", *wishes)), context_length=8192))
    daemon.package(name, path, "--context-size", str(size))
    path.unlink()
    return f"ai/{name}"


def hit_while_loading(daemon: RunningDaemon, model: str, fault: str) -> Seen:
    pid = wait_for(lambda: ready_spare(daemon))
    client = Client(daemon, model, "hello")
    wait_for(lambda: is_loading(daemon, model), pause_s=0.0)
    OUTSIDE[fault](pid)
    return client.seen()


def latest_report(daemon: RunningDaemon, model: str) -> dict[str, Any]:
    """Once the process is gone, which a client may learn before."""
    reports: list[dict[str, Any]] = wait_for(
        lambda: daemon.get(f"/control/v1/crashes?model={model}"), within_s=20
    )
    return reports[0]


def refusal(daemon: RunningDaemon, model: str, text: str) -> tuple[int, str, str | None]:
    """Status, code and Retry-After."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        daemon.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}]})
    code = json.loads(refused.value.read())["error"]["code"]
    return refused.value.code, code, refused.value.headers["Retry-After"]


# a fault from outside


@pytest.mark.parametrize("fault", FATAL)
def test_L01_L02_at_load_all_who_wait_get_an_error_and_the_next_request_is_served(
    daemon: RunningDaemon, files: Path, others: Bystander, fault: str
) -> None:
    model = package(daemon, files, f"load-{fault.split()[0].lower()}", "[[load slow 2000]]")
    seen = hit_while_loading(daemon, model, fault)
    assert (seen.status, seen.code) == (503, "loading_failed")
    report = latest_report(daemon, model)
    assert (report["kind"], report["phase"]) == (KIND[fault], "loading")
    assert Client(daemon, model, "again").seen().text == "again"


@pytest.mark.parametrize("fault", FATAL)
def test_L01_before_the_first_byte_the_request_runs_once_more(
    daemon: RunningDaemon, files: Path, others: Bystander, fault: str
) -> None:
    model = package(daemon, files, f"prefill-{fault.split()[0].lower()}")
    daemon.post("/control/v1/start", {"model": model})
    client = Client(daemon, model, "[[slow 20]][[count 30]]")
    wait_for(lambda: is_prefilling(daemon, model))
    pid = wait_for(lambda: worker_of(daemon, model))
    OUTSIDE[fault](pid)
    seen = client.seen()
    assert (seen.status, seen.is_whole) == (200, True)
    assert seen.text.endswith("30")
    report = latest_report(daemon, model)
    assert (report["kind"], report["phase"], report["pid"]) == (KIND[fault], "serving", pid)
    assert len(report["request_ids"]) == 1


@pytest.mark.parametrize("fault", FATAL)
def test_L01_L03_in_mid_stream_there_is_an_error_event_and_the_next_request_is_served(
    daemon: RunningDaemon, files: Path, others: Bystander, fault: str
) -> None:
    model = package(daemon, files, f"decode-{fault.split()[0].lower()}")
    daemon.post("/control/v1/start", {"model": model})
    client = Client(daemon, model, "[[slow 20]][[forever]]", is_streamed=True)
    assert client.began.wait(30)
    OUTSIDE[fault](wait_for(lambda: worker_of(daemon, model)))
    seen = client.seen()
    assert (seen.status, seen.code, seen.is_whole) == (200, "worker_crashed", False)
    assert latest_report(daemon, model)["kind"] == KIND[fault]
    assert Client(daemon, model, "again").seen().text == "again"


def test_W11_a_flood_on_its_log_disturbs_no_answer(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "flood", "[[load slow 1000]]")
    assert hit_while_loading(daemon, model, "stderr flood").text == "hello"
    client = Client(daemon, model, "[[slow 10]][[count 100]]", is_streamed=True)
    assert client.began.wait(30)
    OUTSIDE["stderr flood"](wait_for(lambda: worker_of(daemon, model)))
    assert client.seen().is_whole
    assert daemon.get(f"/control/v1/crashes?model={model}") == []


def test_a_spare_that_was_killed_is_missed_by_nobody(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "after-spare")
    os.kill(wait_for(lambda: ready_spare(daemon)), signal.SIGKILL)
    assert Client(daemon, model, "hello").seen().text == "hello"


# memory


def test_W08_a_worker_beyond_its_memory_ends_alone(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "hungry")
    client = Client(daemon, model, f"[[slow 5]][[count 50]][[grow {TOO_MUCH} after 20]]", is_streamed=True)
    seen = client.seen()
    assert (seen.status, seen.code) == (200, "worker_crashed")
    assert latest_report(daemon, model)["kind"] == "out_of_memory"
    assert Client(daemon, model, "[[grow 100]][[say fine]]").seen().text == "fine"


def test_W08_a_load_beyond_its_memory_ends_alone(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "hungry-load", f"[[load grow {TOO_MUCH}]]")
    seen = Client(daemon, model, "hello").seen()
    assert (seen.status, seen.code) == (503, "loading_failed")
    assert latest_report(daemon, model)["kind"] == "out_of_memory"


def test_W09_the_kernel_is_told_to_take_workers_first(daemon: RunningDaemon) -> None:
    ours, *workers = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (daemon.process.pid, *daemon.worker_pids())
    )
    assert workers and all(theirs == min(ours + 500, 1000) for theirs in workers)


# stops


def test_L08_unloading_a_stopped_process_delays_nobody_and_its_memory_counts_until_it_is_gone(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "frozen")
    fresh = package(daemon, files, "fresh")
    daemon.post("/control/v1/start", {"model": model})
    pid = wait_for(lambda: worker_of(daemon, model))
    os.kill(pid, signal.SIGSTOP)
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    body = json.dumps({"models": [model]})
    connection.request("POST", "/control/v1/unload", body, {"Content-Type": "application/json"})
    started_s = time.monotonic()
    assert Client(daemon, fresh, "hello").seen().text == "hello"  # not even another load waits for it
    assert time.monotonic() - started_s < 3.0
    [row] = [one for one in daemon.get("/control/v1/ps")["workers"] if one["model"] == model]
    assert (row["state"], psutil.pid_exists(pid)) == ("stopping", True)
    assert row["reserved_bytes"] > 0
    response = connection.getresponse()
    assert json.loads(response.read())["unloaded"] == [model]
    connection.close()
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - started_s < 10.0


# those that keep crashing


def test_L05_a_request_that_ended_two_workers_is_refused_and_others_are_served(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "killed-twice")
    assert refusal(daemon, model, "[[crash segv]]")[:2] == (502, "worker_crashed")
    started_s = time.monotonic()
    assert refusal(daemon, model, "[[crash segv]]") == (422, "request_quarantined", None)
    assert time.monotonic() - started_s < 0.5
    assert Client(daemon, model, "hello").seen().text == "hello"
    assert len(daemon.get(f"/control/v1/crashes?model={model}")) == 2


def test_L04_three_crashes_within_a_minute_open_the_breaker_of_that_model(
    daemon: RunningDaemon, files: Path, others: Bystander
) -> None:
    model = package(daemon, files, "breaker")
    assert refusal(daemon, model, "[[crash segv]]")[0] == 502
    assert Client(daemon, model, "[[say x]][[crash abort after 1]]", is_streamed=True).seen().code
    status, code, retry_after = refusal(daemon, model, "hello")
    assert (status, code) == (503, "breaker_open")
    assert retry_after is not None and 25 <= int(retry_after) <= 30


def test_L06_a_model_that_crashes_the_engine_twice_is_quarantined_across_restarts(
    tmp_path: Path, files: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        model = package(daemon, files, "bad", "[[load crash segv]]")
        package(daemon, files, "good")
        for _ in range(2):
            assert refusal(daemon, model, "hello")[:2] == (503, "loading_failed")
        assert refusal(daemon, model, "hello") == (409, "model_quarantined", None)
        assert Client(daemon, "ai/good", "hello").seen().text == "hello"
    with running_daemon(tmp_path) as daemon:
        assert refusal(daemon, model, "hello")[:2] == (409, "model_quarantined")
        listed = daemon.runner("ctl", "ls").stdout.splitlines()
        assert [line.split()[0] for line in listed if line.endswith("quarantined")] == [model]
        assert "may be loaded again" in daemon.runner("ctl", "unquarantine", model).stderr
        assert refusal(daemon, model, "hello")[:2] == (503, "loading_failed")
        assert "signal SIGSEGV" in daemon.runner("ctl", "crashes", model).stdout
