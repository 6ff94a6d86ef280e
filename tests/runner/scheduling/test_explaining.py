"""Why: decisions and requests as they are told."""

from __future__ import annotations

from runner.domain.explained import ToldWait
from runner.scheduling.explaining import DECISIONS_TOLD
from tests.support.scheduling import World, model_id


def test_a_model_is_told_with_its_decisions_those_that_name_it_and_its_requests() -> None:
    world = World(budget=100)
    ticket = world.want("a", request_id="req_a", label="mine")
    world.advance(1)
    world.size("a", 60)
    world.advance(4)
    world.ready("a")
    world.advance(2)
    world.release(ticket)
    world.want("b")
    world.size("b", 60)
    world.advance(3)
    why = world.core.why_model(model_id("a"), "a", world.now_s)
    assert (why.model, why.model_id, why.state) == ("a", str(model_id("a")), "stopping")
    assert [(one.model, one.action, one.ago_s) for one in why.decisions] == [
        ("a", "load", 9.0),
        ("a", "ready", 5.0),
        ("a", "evict", 3.0),
    ]
    assert why.decisions[-1].others == ("b",) and why.decisions[-1].numbers["shortage_bytes"] == 20
    [request] = why.requests
    assert (request.request_id, request.label, request.outcome) == ("req_a", "mine", "ended")
    assert (request.asked_ago_s, request.waited_s, request.ran_s) == (10.0, 5.0, 2.0)
    assert request.waits == (ToldWait(state="sizing", waited_s=1.0), ToldWait(state="loading", waited_s=4.0))
    of_b = world.core.why_model(model_id("b"), "b", world.now_s)
    assert ("a", "evict") in [(one.model, one.action) for one in of_b.decisions]


def test_a_model_nobody_loaded_is_told_as_not_loaded() -> None:
    why = World().core.why_model(model_id("a"), "ai/a", 0.0)
    assert (why.model, why.state, why.decisions, why.requests) == ("ai/a", "not loaded", (), ())


def test_a_request_is_found_by_its_id_and_by_what_its_client_calls_it() -> None:
    world = World(leases_per_model=1)
    world.load("a", 60)
    world.advance(10)
    world.want("a", request_id="req_1", label="batch")
    world.want("a", request_id="req_2", label="batch")
    world.advance(3)
    why = world.core.why_request("req_2", world.now_s)
    assert why is not None
    [request] = why.requests
    assert (request.outcome, request.ahead, request.waited_s, request.ran_s) == ("waiting", 1, 3.0, None)
    assert request.waits == (ToldWait(state="ready", waited_s=3.0),)
    assert why.decisions == (), "nothing was decided while it waited"
    both = world.core.why_request("batch", world.now_s)
    assert both is not None and [one.request_id for one in both.requests] == ["req_1", "req_2"]
    assert world.core.why_request("req_3", world.now_s) is None


def test_a_refused_request_is_told_why_and_what_was_decided() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.advance(5)
    world.want("a", request_id="req_1")
    world.size("a", 60)
    world.advance(120)
    world.advance(10)
    why = world.core.why_request("req_1", world.now_s)
    assert why is not None
    [request] = why.requests
    assert (request.outcome, request.refusal) == ("refused", "models in use made no room in time")
    assert request.waits == (ToldWait(state="queued", waited_s=120.0),)
    assert [one.action for one in why.decisions] == ["queue", "refuse"]
    assert why.decisions[-1].others == ("busy",)


def test_O08_so_much_is_told_and_no_more() -> None:
    world = World()
    for number in range(2 * DECISIONS_TOLD):
        world.load_idle("a", 60)
        world.unload("a")
        world.end("a")
        world.want("a", request_id=f"req_{number}")
        world.leave(next(iter(world.waiting)))
    why = world.core.why_model(model_id("a"), "a", world.now_s)
    assert len(why.decisions) == DECISIONS_TOLD and len(why.requests) == 20
    assert why.requests[-1].request_id == f"req_{2 * DECISIONS_TOLD - 1}"
    assert why.requests[-1].outcome == "left"
