"""`plan` and `why`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from runner.domain.explained import (
    PlannedDevice,
    PlannedObstacle,
    PlannedPart,
    PlannedVictim,
    ToldDecision,
    ToldRequest,
    ToldWait,
    WhyReport,
)
from tests.support.control import ID, Cli
from tests.support.fake_handles import plan_report
from tests.support.scripted_server import Request, refusal

MIB = 2**20
DEVICE = PlannedDevice(
    device="cpu",
    needed_bytes=700 * MIB,
    free_bytes=300 * MIB,
    leaving_bytes=0,
    reserved_bytes=1700 * MIB,
    budget_bytes=2000 * MIB,
    missing_bytes=400 * MIB,
    parts=(
        PlannedPart(part="weights", size_bytes=94 * MIB),
        PlannedPart(part="KV cache", size_bytes=606 * MIB),
    ),
)
VICTIM = PlannedVictim(
    model="ai/old",
    model_id=ID,
    when="at once",
    freed_bytes=800 * MIB,
    cost_s=0.9,
    reload_s=1.8,
    idle_s=61.0,
    running=0,
    waiting=0,
)
OBSTACLE = PlannedObstacle(
    model="ai/busy",
    model_id=ID,
    why="it is pinned",
    held_bytes=900 * MIB,
    running=2,
    waiting=1,
    stays_for_s=None,
)
NAME = "ai%2Fa"


def test_a_plan_is_the_whole_decision(cli: Cli) -> None:
    cli.routes[f"GET /control/v1/plan?model={NAME}"] = plan_report(
        model="ai/a",
        verdict="evict",
        why="ai/old would make room, whose absence is expected to cost 0.9 s of waiting",
        devices=(DEVICE,),
        victims=(VICTIM,),
        expected_wait_s=2.0,
    )
    ended = cli("ctl", "plan", "ai/a")
    assert ended.status == 0
    assert ended.stdout.splitlines() == [
        "ai/a is not loaded: ai/old would make room, whose absence is expected to cost 0.9 s of waiting",
        "Context 8192 tokens, sizes measured by a simulated load",
        "Loading takes about 1.50s (estimated); a request waits about 2.00s",
        "",
        "DEVICE  NEEDED     FREE       ENDING  RESERVED  BUDGET   MISSING",
        "cpu     700.0 MiB  300.0 MiB  0 B     1.7 GiB   2.0 GiB  400.0 MiB",
        "cpu: weights 94.0 MiB + KV cache 606.0 MiB",
        "",
        "WOULD GO  WHEN     FREES      IDLE  REQUESTS  RELOAD  COST",
        "ai/old    at once  800.0 MiB  1m1s  0         1.80s   0.90s",
    ]


def test_a_plan_says_who_stays_and_why(cli: Cli) -> None:
    cli.routes[f"GET /control/v1/plan?model={NAME}&context_size=4096"] = plan_report(
        model="ai/a",
        verdict="wait",
        why="everything else is in use",
        obstacles=(OBSTACLE,),
        expected_wait_s=None,
        position=2,
        is_load_measured=True,
    )
    lines = cli("ctl", "plan", "ai/a", "--ctx", "4096").stdout.splitlines()
    assert lines[2] == (
        "Loading takes about 1.50s (measured); how long a request waits depends on the models that stay; "
        "it would be number 2 in line"
    )
    assert lines[-1] == "ai/busy  900.0 MiB  3                  it is pinned"


def test_what_is_served_or_refused_at_once_says_so(cli: Cli) -> None:
    route = f"GET /control/v1/plan?model={NAME}"
    cli.routes[route] = plan_report(verdict="ready", state="ready", why="it is loaded and has a free place")
    assert "is loaded: it is loaded and has a free place\n" in cli("ctl", "plan", "ai/a").stdout
    assert "\nA request is served at once\n" in cli("ctl", "plan", "ai/a").stdout
    cli.routes[route] = plan_report(verdict="refuse", expected_wait_s=None)
    assert "\nA request is refused at once\n" in cli("ctl", "plan", "ai/a").stdout


def test_a_plan_for_programs_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes[f"GET /control/v1/plan?model={NAME}"] = plan_report(devices=(DEVICE,))
    document = json.loads(cli("ctl", "plan", "ai/a", "--json").stdout)
    assert document["devices"][0]["parts"][0] == {"part": "weights", "size_bytes": 94 * MIB}


def test_a_context_that_is_no_size_is_wrong_usage(cli: Cli) -> None:
    assert cli("ctl", "plan", "ai/a", "--ctx", "0").status == 2


# why


def why_report(**changes: Any) -> WhyReport:
    values: dict[str, Any] = {
        "model": "ai/a",
        "model_id": ID,
        "state": "ready",
        "decisions": (),
        "requests": (),
        **changes,
    }
    return WhyReport(**values)


def decision(**changes: Any) -> ToldDecision:
    values: dict[str, Any] = {
        "ago_s": 65.0,
        "model": "ai/a",
        "action": "evict",
        "why": "makes room for ai/b",
        "numbers": {"freed_bytes": 700 * MIB, "needed_bytes_CUDA0": 2**30, "idle_s": 61.0, "waiting": 3},
        "others": ("ai/b",),
        "times": 1,
        **changes,
    }
    return ToldDecision(**values)


def request(**changes: Any) -> ToldRequest:
    values: dict[str, Any] = {
        "request_id": "chatcmpl-1",
        "label": "mine",
        "model": "ai/a",
        "model_id": ID,
        "asked_ago_s": 30.0,
        "outcome": "ended",
        "ahead": 2,
        "waited_s": 6.5,
        "waits": (ToldWait(state="queued", waited_s=2.5), ToldWait(state="loading", waited_s=4.0)),
        "ran_s": 12.0,
        "refusal": None,
        **changes,
    }
    return ToldRequest(**values)


def no_request(_: Request) -> Iterable[bytes]:
    return refusal(404, "request_not_found", "no such request is remembered")


def test_why_tells_decisions_about_a_model_with_their_numbers(cli: Cli) -> None:
    cli.routes[f"GET /control/v1/why?request={NAME}"] = no_request
    cli.routes[f"GET /control/v1/why?model={NAME}"] = why_report(
        decisions=(decision(), decision(action="refuse", why="its line is full", numbers={}, times=28))
    )
    ended = cli("ctl", "why", "ai/a")
    assert ended.stdout.splitlines() == [
        "ai/a is loaded",
        "1m5s ago  evict ai/a: makes room for ai/b",
        "    freed 700.0 MiB, needed on CUDA0 1.0 GiB, idle 1m1s, waiting 3",
        "1m5s ago  refuse ai/a: its line is full, 28 times",
    ]


def test_why_tells_what_a_request_waited_for(cli: Cli) -> None:
    cli.routes["GET /control/v1/why?request=chatcmpl-1"] = why_report(requests=(request(),))
    assert cli("ctl", "why", "chatcmpl-1").stdout.splitlines() == [
        "ai/a is loaded",
        "30s ago  request chatcmpl-1 (mine) for ai/a: waited 6.50s, 2 before it, ran 12s",
        "    2.50s for room",
        "    4.00s while it loaded",
    ]


def test_why_tells_where_a_request_stands(cli: Cli) -> None:
    cases = [
        (request(outcome="waiting", ran_s=None, ahead=0), "has waited 6.50s"),
        (request(outcome="running", ahead=0), "runs since 12s, after 6.50s of waiting"),
        (request(outcome="refused", ran_s=None, refusal="no room"), "refused after 6.50s: no room"),
        (request(outcome="left", ran_s=None, ahead=1), "its client left after 6.50s, 1 before it"),
    ]
    for told, expected in cases:
        cli.routes["GET /control/v1/why?request=chatcmpl-1"] = why_report(requests=(told,))
        assert f"for ai/a: {expected}\n" in cli("ctl", "why", "chatcmpl-1").stdout


def test_why_of_a_model_about_which_nothing_is_known_says_so(cli: Cli) -> None:
    cli.routes[f"GET /control/v1/why?request={NAME}"] = no_request
    cli.routes[f"GET /control/v1/why?model={NAME}"] = why_report(state="not loaded")
    assert cli("ctl", "why", "ai/a").stdout.splitlines() == [
        "ai/a is not loaded",
        "nothing was decided about it since the daemon started",
    ]


def no_model(_: Request) -> Iterable[bytes]:
    return refusal(404, "model_not_found", "no such model")


def test_what_is_neither_is_told_as_what_it_looks_like(cli: Cli) -> None:
    for subject, status in (("req_9", 1), ("nothing", 4)):
        cli.routes[f"GET /control/v1/why?request={subject}"] = no_request
        cli.routes[f"GET /control/v1/why?model={subject}"] = no_model
        ended = cli("ctl", "why", subject)
        assert (ended.status, ended.stdout) == (status, "")


def test_K06_names_from_elsewhere_are_shown_harmlessly(cli: Cli) -> None:
    cli.routes["GET /control/v1/why?request=chatcmpl-1"] = why_report(
        model="ai/\x1b[31m", requests=(request(label="\x1b]0;x\x07"),), decisions=(decision(why="\x9b\n"),)
    )
    text = cli("ctl", "why", "chatcmpl-1").stdout
    assert "\x1b" not in text and "\x9b" not in text and "\\x1b" in text


def test_why_for_programs_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes["GET /control/v1/why?request=chatcmpl-1"] = why_report(requests=(request(),))
    document = json.loads(cli("ctl", "why", "chatcmpl-1", "--json").stdout)
    assert document["requests"][0]["waits"][1] == {"state": "loading", "waited_s": 4.0}
