"""Models that compete for memory, in a real daemon: swaps, evictions, plans and reasons."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runner.memory.footprint import ANNEX_OVERHEAD_BYTES
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.sse import post_stream

HOLDS_TWO = "600MiB"
"""Under the scripted engine a tiny model takes a little more than 256 MiB."""


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningDaemon]:
    """A daemon with three models, `one`, `two` and `three`, that may hold two of them."""
    directory = tmp_path_factory.mktemp("tight")
    flags = ("--memory-budget", HOLDS_TWO, "--min-residency", "0.2s", "--swap-wait", "20s")
    with running_daemon(directory, *flags) as running:
        for name, context_size in (("one", 1024), ("two", 512), ("three", 768)):  # else they were one model
            running.package(name, tiny_model, "--context-size", str(context_size))
        yield running


@pytest.fixture
def empty(tight: RunningDaemon) -> RunningDaemon:
    """Nothing is loaded."""
    tight.runner("ctl", "unload", "--all", check=False)
    return tight


def ask(daemon: RunningDaemon, model: str, text: str = "hello") -> str:
    answer = daemon.post("/v1/chat/completions", body(model, text))
    return str(answer["choices"][0]["message"]["content"])


def body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def loaded(daemon: RunningDaemon) -> set[str]:
    rows = daemon.get("/control/v1/ps")["workers"]
    return {row["model"].removeprefix("ai/") for row in rows if row["state"] == "ready"}


def reserved_bytes(daemon: RunningDaemon) -> tuple[int, int]:
    [budget] = [one for one in daemon.get("/control/v1/ps")["budgets"] if one["device"] == "cpu"]
    return budget["reserved_bytes"], budget["budget_bytes"]


def test_O01_a_plan_names_the_victim_and_then_it_goes_and_why_says_so(empty: RunningDaemon) -> None:
    daemon = empty
    ask(daemon, "one")
    ask(daemon, "two")
    plan = json.loads(daemon.runner("ctl", "plan", "three", "--json").stdout)
    assert plan["verdict"] == "evict" and loaded(daemon) == {"one", "two"}, "nothing was done"
    [victim] = [one["model"] for one in plan["victims"]]
    [device] = plan["devices"]
    assert device["needed_bytes"] > 256 * 2**20 and device["missing_bytes"] > 0
    ask(daemon, "three")
    assert victim.removeprefix("ai/") not in loaded(daemon) and "three" in loaded(daemon)
    told = daemon.runner("ctl", "why", victim).stdout
    assert f"evict {victim}: makes room for ai/three" in told
    answer = daemon.get(f"/control/v1/why?model={victim}")
    evicted = [one for one in answer["decisions"] if one["action"] == "evict" and one["model"] == victim]
    assert evicted[-1]["others"] == ["ai/three"] and evicted[-1]["numbers"]["freed_bytes"] > 256 * 2**20


def test_O03_a_model_in_use_stays_and_the_idle_one_goes(empty: RunningDaemon) -> None:
    daemon = empty
    ask(daemon, "two")
    with post_stream(
        daemon.port, "/v1/chat/completions", {**body("one", "[[slow 20]][[forever]]"), "stream": True}
    ) as stream:
        next(stream.text_deltas())
        assert ask(daemon, "three", "here") == "here"
        assert loaded(daemon) == {"one", "three"}


def test_interleaved_requests_for_three_models_all_succeed_within_the_budget(empty: RunningDaemon) -> None:
    daemon, names = empty, ("one", "two", "three")
    most_bytes, stop = 0, threading.Event()

    def watch() -> int:
        most = 0
        while not stop.wait(0.05):
            held_bytes, budget_bytes = reserved_bytes(daemon)
            assert held_bytes <= budget_bytes
            most = max(most, held_bytes)
        return most

    with ThreadPoolExecutor(13) as pool:
        watching = pool.submit(watch)
        asked = [pool.submit(ask, daemon, names[number % 3], f"answer {number}") for number in range(60)]
        answers = [one.result(timeout=90) for one in asked]
        stop.set()
        most_bytes = watching.result()
    assert answers == [f"answer {number}" for number in range(60)]
    assert 2 * 256 * 2**20 < most_bytes <= 600 * 2**20
    reasons = [
        one
        for name in names
        for one in daemon.get(f"/control/v1/why?model={name}")["decisions"]
        if one["action"] == "evict"
    ]
    for_others = [one for one in reasons if one["why"].startswith("makes room for")]
    assert for_others and all(one["others"] for one in for_others), "every victim has its reason"


def test_a_request_is_explained_by_the_id_of_its_answer_and_by_its_header(empty: RunningDaemon) -> None:
    daemon = empty
    answer = daemon.post("/v1/chat/completions", body("one", "x"))
    told = daemon.runner("ctl", "why", answer["id"]).stdout
    assert f"request {answer['id']}" in told and "for ai/one: waited" in told and "while it loaded" in told
    missing = daemon.runner("ctl", "why", "req_nobody_sent_this", check=False)
    assert missing.returncode == 1 and "no request 'req_nobody_sent_this' is remembered" in missing.stderr


def test_a_larger_context_reloads_an_idle_model_and_a_smaller_one_does_not(empty: RunningDaemon) -> None:
    daemon = empty
    assert daemon.post("/control/v1/start", {"model": "two"})["context_size"] == 512
    first = daemon.get("/control/v1/ps")["workers"][0]["pid"]
    assert daemon.post("/control/v1/start", {"model": "two", "context_size": 300})["pid"] == first
    larger = daemon.post("/control/v1/start", {"model": "two", "context_size": 2048})
    assert larger["context_size"] == 2048 and larger["pid"] != first
    assert daemon.post("/control/v1/start", {"model": "two"})["pid"] == larger["pid"]
    actions = [one["action"] for one in daemon.get("/control/v1/why?model=two")["decisions"]]
    assert actions[-4:] == ["reload", "queue", "load", "ready"]


def test_O01_a_budget_that_shrinks_unloads_idle_models_and_refusals_carry_numbers(
    empty: RunningDaemon,
) -> None:
    daemon = empty
    ask(daemon, "one")
    ask(daemon, "two")
    try:
        [budget] = daemon.post("/control/v1/budget", {"memory_budget": 300 * 2**20})
        assert budget["budget_bytes"] == 300 * 2**20
        assert len(loaded(daemon)) == 1
        daemon.post("/control/v1/budget", {"memory_budget": 2**20})
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(daemon, "three")
        assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) >= 1
        error = json.loads(refused.value.read())["error"]
        assert error["code"] == "insufficient_memory" and "MiB of memory" in error["message"]
        plan = json.loads(daemon.runner("ctl", "plan", "three", "--json").stdout)
        assert (plan["verdict"], plan["why"]) == ("refuse", "it is larger than the whole budget")
    finally:
        daemon.post("/control/v1/budget", {"memory_budget": 600 * 2**20})


def test_O04_O05_of_a_hundred_first_requests_those_beyond_places_and_line_are_refused_and_one_load_serves(
    empty: RunningDaemon,
) -> None:
    daemon = empty
    barrier = threading.Barrier(100)

    def first() -> int:
        barrier.wait(timeout=60)
        try:
            ask(daemon, "three", "hi")
        except urllib.error.HTTPError as error:
            assert int(error.headers["Retry-After"]) >= 1
            return error.code
        return 200

    before = _loads(daemon)
    with ThreadPoolExecutor(100) as pool:
        codes = [one.result(timeout=90) for one in [pool.submit(first) for _ in range(100)]]
    assert set(codes) <= {200, 429} and codes.count(200) >= 72
    assert _loads(daemon) == before + 1


def _loads(daemon: RunningDaemon) -> int:
    decisions = daemon.get("/control/v1/why?model=three")["decisions"]
    return sum(one["action"] == "load" and one["model"] == "ai/three" for one in decisions)


def test_O01_what_embeddings_take_is_reserved_and_goes_before_a_model_does(empty: RunningDaemon) -> None:
    daemon = empty
    assert ask(daemon, "one")
    alone, _ = reserved_bytes(daemon)
    for _ in range(2):
        assert daemon.post("/v1/embeddings", {"model": "one", "input": "hello"})["data"]
        assert reserved_bytes(daemon)[0] > alone + ANNEX_OVERHEAD_BYTES
        assert ask(daemon, "two")
        assert loaded(daemon) == {"one", "two"}
        assert reserved_bytes(daemon)[0] < 2 * alone + ANNEX_OVERHEAD_BYTES
        daemon.runner("ctl", "unload", "two")


def test_O01_embeddings_that_a_model_leaves_no_room_for_are_refused_and_it_goes_on(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_daemon(tmp_path, "--memory-budget", "320MiB") as daemon:
        daemon.package("one", tiny_model, "--context-size", "512")
        with pytest.raises(urllib.error.HTTPError) as caught:
            daemon.post("/v1/embeddings", {"model": "one", "input": "hello"})
        error = json.loads(caught.value.read())["error"]
        assert (caught.value.code, error["code"]) == (503, "insufficient_memory")
        assert "one (embeddings)" in error["message"]
        assert ask(daemon, "one")
