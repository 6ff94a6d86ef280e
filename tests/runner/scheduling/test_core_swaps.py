"""The core where models compete for room: giving way, larger contexts, pins, budgets that shrink, reasons."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling import effects, events
from runner.scheduling.decisions import Action, Decision
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.requests import Outcome
from tests.support.scheduling import World, model_id, on_host

S = InstanceState


def competing(**rules: Any) -> World:
    """Only one of two models fits. `a` is in use and has been for a while; loads and uses take some time."""
    rules = {"leases_per_model": 2, "swap_wait_s": 30.0, "min_residency_s": 5.0, "linger_s": 1.0, **rules}
    world = World(budget=100, **rules)
    for name in ("b", "a"):  # both loads, uses and ends were measured
        ticket = world.want(name)
        world.size(name, 60)
        world.advance(4)
        world.ready(name)
        world.advance(1)
        world.release(ticket)
        if name == "b":
            world.unload("b")
            world.end("b")
    world.advance(10)
    return world


def told(world: World, name: str, action: Action) -> list[Decision]:
    return [one for one in world.core.decisions(model_id(name)) if one.action is action]


# giving way


def test_a_model_in_use_goes_on_while_that_is_cheaper_and_gives_way_within_the_stated_wait() -> None:
    world = competing()
    first = world.want("a")
    waiting = world.want("b")
    world.size("b", 60)
    second = world.want("a")
    assert second in world.leases, "its requests are served meanwhile"
    asked_at_s = world.now_s
    while world.state("a") is S.READY:
        world.advance(0.5)
    assert world.now_s - asked_at_s == pytest.approx(30 - 4 - 2, abs=2.0)
    third = world.want("a")
    assert third not in world.answers, "those who come now wait for its return"
    world.release(first)
    assert world.state("a") is S.YIELDING
    world.release(second)
    assert world.state("a") is S.STOPPING
    world.end("a")
    world.advance(4)
    world.ready("b")
    assert waiting in world.leases and world.now_s - asked_at_s <= 30
    assert world.state("a") is S.SIZING


def test_many_who_wait_outweigh_one_who_uses() -> None:
    world = competing()
    world.want("a")
    world.want("b")
    world.size("b", 60)
    assert world.state("a") is S.READY
    for _ in range(8):
        world.want("b")
        if world.state("a") is S.YIELDING:
            break
    assert world.state("a") is S.YIELDING
    [decision] = told(world, "a", Action.YIELD)
    assert decision.numbers["drain_cost_s"] > decision.numbers["swap_cost_s"]
    assert decision.others == ("b",)


def test_when_those_who_waited_leave_the_model_is_used_again() -> None:
    world = competing(swap_wait_s=0.0)
    world.want("a")
    waiting = world.want("b")
    world.size("b", 60)
    assert world.state("a") is S.YIELDING
    held_back = world.want("a")
    assert held_back not in world.answers
    world.leave(waiting)
    assert world.state("a") is S.READY and held_back in world.leases
    assert told(world, "a", Action.RESUME)[-1].why == "its room is not needed any more"


def test_a_model_gives_way_at_most_until_its_room_has_waited_too_long() -> None:
    world = competing(swap_wait_s=0.0, room_wait_s=60.0)
    world.want("a")
    waiting = world.want("b")
    world.size("b", 60)
    world.advance(59.9)
    assert world.state("a") is S.YIELDING
    world.advance(0.1)
    refusal = world.refusal(waiting)
    assert isinstance(refusal, effects.NoRoom)
    assert refusal.in_use == on_host(60) and refusal.retry_after_s > 1.0
    assert world.state("a") is S.READY


def test_what_requests_waited_for_each_other_is_not_held_against_the_model_they_give_way_to() -> None:
    """They waited long for a place before their model gave way; they are not refused at once for that."""
    world = competing(swap_wait_s=0.0, room_wait_s=20.0, leases_per_model=1)
    lease = world.want("a")
    in_line = world.want("a")
    world.advance(100)
    world.want("b")
    world.size("b", 60)
    assert world.state("a") is S.YIELDING and in_line not in world.answers
    world.release(lease)
    world.end("a")
    world.ready("b")
    world.size("a", 60)
    assert world.state("a") is S.QUEUED and in_line not in world.answers


def test_a_worker_that_dies_while_it_gives_way_leaves_its_room() -> None:
    world = competing(swap_wait_s=0.0)
    world.want("a")
    world.want("b")
    world.size("b", 60)
    world.crash("a")
    assert world.state("b") is S.LOADING


def test_unload_reports_a_model_that_gives_way_as_in_use_and_a_drain_stops_it() -> None:
    world = competing(swap_wait_s=0.0)
    lease = world.want("a")
    world.want("b")
    world.size("b", 60)
    answer = world.answers[world.unload("a")]
    assert isinstance(answer, effects.ReportUnloaded) and answer.report.in_use == ("a",)
    world.drain(grace_s=30)
    assert world.state("a") is S.YIELDING or world.state("a") is S.READY
    world.release(lease)
    assert world.state("a") is S.STOPPING


def test_an_idle_model_lingers_for_requests_that_return_at_once() -> None:
    world = competing()
    for _ in range(30):  # each request comes 0.1 s after the last one has ended
        ticket = world.want("a")
        world.advance(1)
        world.release(ticket)
        world.advance(0.1)
    last = world.want("a")
    world.want("b")
    world.size("b", 60)
    world.advance(1)
    world.release(last)
    assert world.state("a") is S.READY
    world.advance(1.0)
    assert world.state("a") is S.STOPPING


# larger contexts


def test_a_larger_context_serves_smaller_demands_and_what_was_not_said_reloads_nothing() -> None:
    world = World()
    ticket = world.want("a", context_size=4000)
    world.size("a", 60)
    world.ready("a")
    assert ticket in world.leases and world.view("a").context_size == 4000
    for wish in ({}, {"context_size": 10}, {"context_size": 4000}):
        assert world.want("a", **wish) in world.leases
    assert not world.sizing


def test_a_larger_demand_waits_until_the_model_is_idle_and_is_then_loaded_for() -> None:
    world = World(budget=100, leases_per_model=2)
    first = world.load("a", 60)
    larger = world.want("a", context_size=4000)
    assert world.want("a") in world.leases, "a place is free, and for others the context suffices"
    world.size("a", 90)
    assert (world.state("a"), world.reserved) == (S.READY, on_host(60))
    world.release(first)
    assert world.state("a") is S.READY
    world.release(next(iter(world.leases)))
    assert world.state("a") is S.STOPPING
    assert told(world, "a", Action.RELOAD)[0].why == "somebody needs a larger context"
    world.end("a")
    assert (world.state("a"), world.reserved) == (S.LOADING, on_host(90))
    world.ready("a")
    assert larger in world.leases


def test_one_who_comes_for_more_before_the_load_began_has_it_sized_again() -> None:
    world = World()
    world.load("busy", 60)
    first = world.want("a")
    world.size("a", 50)
    assert world.state("a") is S.QUEUED
    second = world.want("a", context_size=2000)
    assert world.state("a") is S.SIZING and list(world.asked.values())[-1] == 2000
    world.size("a", 40)
    world.ready("a")
    assert {first, second} <= set(world.leases)


def test_one_who_comes_for_more_while_it_is_sized_has_it_sized_again() -> None:
    world = World()
    world.want("a")
    world.want("a", context_size=2000)
    world.size("a", 40)
    assert world.state("a") is S.SIZING and list(world.asked.values()) == [0, 2000]


def test_nothing_stops_for_a_context_that_could_never_fit() -> None:
    world = World(budget=100)
    lease = world.load("a", 60)
    larger = world.want("a", context_size=4000)
    world.release(lease)
    world.size("a", 101)
    refusal = world.refusal(larger)
    assert isinstance(refusal, effects.NoRoom) and refusal.needed == on_host(101)
    assert world.state("a") is S.READY


def test_nothing_stops_for_a_context_that_the_model_cannot_have() -> None:
    world = World()
    world.load_idle("a", 60)
    larger = world.want("a", context_size=4000)
    world.size("a", 70, context_size=2000)
    assert world.refusal(larger) == effects.ContextTooLarge(model="a", wanted=4000, most=2000)
    assert world.state("a") is S.READY and not world.sized


def test_of_those_who_wait_for_a_cold_model_only_they_are_refused_who_need_too_much() -> None:
    world = World(budget=100)
    small, middle, large = (world.want("a", context_size=size) for size in (0, 2000, 4000))
    world.size("a", 50)  # of the first attempt, which nobody had asked more of
    world.size("a", 140)
    assert isinstance(world.refusal(large), effects.NoRoom)
    world.size("a", 120)
    assert isinstance(world.refusal(middle), effects.NoRoom)
    world.size("a", 90)
    world.ready("a")
    assert small in world.leases


def test_when_those_who_need_more_leave_the_next_attempt_is_dropped() -> None:
    world = World()
    world.load("a", 60)
    larger = world.want("a", context_size=4000)
    growth = max(world.sizing)
    assert effects.DropLoad(growth) in world.leave(larger)
    assert world.state("a") is S.READY


def test_a_next_attempt_that_cannot_be_sized_fails_those_who_need_it_and_nobody_else() -> None:
    world = World(leases_per_model=1)
    world.load("a", 60)
    larger, plain = world.want("a", context_size=4000), world.want("a")
    failure = events.Failure("store_damaged", "a part is missing")
    world.send(events.SizingFailed(max(world.sizing), failure))
    assert world.refusal(larger) == effects.CannotLoad(model="a", failure=failure)
    assert plain not in world.answers and world.state("a") is S.READY


def test_a_model_that_was_unloaded_meanwhile_goes_on_with_the_attempt_that_was_sized() -> None:
    world = World(budget=100)
    world.load("a", 60)
    larger = world.want("a", context_size=4000)
    world.size("a", 80)
    world.fail_worker("a")
    world.end_load(world.load_id("a"))
    assert (world.state("a"), world.reserved) == (S.LOADING, on_host(80))
    world.ready("a")
    assert larger in world.leases


def test_a_larger_demand_beside_steady_use_has_its_turn_within_the_stated_wait() -> None:
    world = competing()
    lease = world.want("a")
    asked_at_s = world.now_s
    larger = world.want("a", context_size=4000)
    world.size("a", 70)
    while larger not in world.leases:
        assert world.now_s - asked_at_s < 31
        if world.state("a") is S.READY:
            following = world.want("a")
            world.release(lease)
            lease = following
            world.advance(0.5)
        elif world.state("a") is S.YIELDING:
            world.release(lease)
        elif world.state("a") is S.STOPPING:
            world.end("a")
        else:
            world.advance(4)
            world.ready("a")


# pins


def test_a_pinned_model_neither_idles_out_nor_makes_room_and_goes_by_command() -> None:
    world = World(budget=100)
    world.preload("a", pin=True)
    world.size("a", 60)
    world.ready("a")
    world.advance(1e6)
    assert world.state("a") is S.READY and world.view("a").is_pinned
    ticket = world.want("b")
    world.size("b", 41)
    refusal = world.refusal(ticket)
    assert isinstance(refusal, effects.NoRoom), "waiting would be in vain"
    assert told(world, "b", Action.REFUSE)[0].why == "larger than what pinned models leave"
    world.unload("a")
    assert world.state("a") is S.STOPPING


def test_a_pin_is_taken_away_as_it_was_set_and_silence_keeps_it() -> None:
    world = World()
    world.release(world.load("a", 60))
    world.preload("a", pin=True)
    world.release(world.want("a"))
    assert world.view("a").is_pinned and world.view("a").expires_at_s is None
    world.preload("a", pin=False)
    assert not world.view("a").is_pinned and world.view("a").expires_at_s is not None


# budgets


def test_a_budget_that_shrinks_below_what_is_reserved_stops_idle_models_and_says_so() -> None:
    world = World(budget=100)
    world.load("busy", 40)
    world.load_idle("small", 20)
    world.advance(50)
    world.load_idle("large", 30)
    world.set_budget(75)
    assert [world.state(name) for name in ("busy", "small", "large")] == [S.READY, S.STOPPING, S.READY]
    [decision] = told(world, "small", Action.EVICT)
    assert decision.why == "the budget shrank below what is reserved (cpu)"
    assert (decision.numbers["over_bytes"], decision.numbers["budget_bytes"]) == (15, 75)
    world.set_budget(30)
    assert [world.state(name) for name in ("busy", "large")] == [S.READY, S.STOPPING]


def test_between_budget_and_ceiling_nothing_is_admitted_and_nothing_goes() -> None:
    world = World(budget=100)
    world.load_idle("a", 80)
    world.set_budget(70, ceiling=80)
    assert world.state("a") is S.READY
    world.set_budget(70, ceiling=79)
    assert world.state("a") is S.STOPPING


def test_a_gpu_that_shrinks_stops_a_model_that_uses_it_and_no_other() -> None:
    world = World(budget=DeviceBytes({"cpu": 100, "CUDA0": 100}))
    world.load_idle("host", 60)
    ticket = world.want("gpu")
    world.size("gpu", DeviceBytes({"cpu": 5, "CUDA0": 80}))
    world.ready("gpu")
    world.release(ticket)
    world.set_budget(DeviceBytes({"cpu": 100, "CUDA0": 50}))
    assert (world.state("host"), world.state("gpu")) == (S.READY, S.STOPPING)


def test_O01_a_load_needs_room_on_each_of_its_devices() -> None:
    world = World(budget=DeviceBytes({"cpu": 100, "CUDA0": 100}))
    world.load("host", 90)
    ticket = world.want("gpu")
    world.size("gpu", DeviceBytes({"cpu": 20, "CUDA0": 80}))
    assert world.state("gpu") is S.QUEUED
    world.advance(120)
    refusal = world.refusal(ticket)
    assert isinstance(refusal, effects.NoRoom)
    assert refusal.free.missing_in(refusal.needed) is not None
    assert refusal.needed.missing_in(refusal.free) == on_host(10)


# reasons


def test_a_request_is_told_what_it_waited_for() -> None:
    world = World()
    ticket = world.want("a", request_id="req_1")
    world.advance(1)
    world.size("a", 60)
    world.advance(4)
    world.ready("a")
    world.advance(2)
    world.release(ticket)
    [record] = world.core.requests("req_1")
    assert dict(record.waits) == {S.SIZING: 1.0, S.LOADING: 4.0}
    assert (record.outcome, record.ended_at_s) == (Outcome.ENDED, world.now_s)
    assert world.core.requests("another") == ()


def test_a_request_in_line_and_one_that_left_and_one_that_was_refused_are_told_apart() -> None:
    world = World(leases_per_model=1, waiters_per_model=1)
    world.load("a", 60)
    world.want("a", request_id="waiting")
    world.want("a", request_id="refused")
    [waiting], [refused] = world.core.requests("waiting"), world.core.requests("refused")
    assert (waiting.outcome, waiting.ahead) == (Outcome.WAITING, 0)
    assert (refused.outcome, refused.refusal) == (Outcome.REFUSED, "its line is full")
    world.advance(3)
    world.leave(next(iter(world.waiting)))
    [left] = world.core.requests("waiting")
    assert (left.outcome, left.ended_at_s) == (Outcome.LEFT, world.now_s)


def test_the_reason_of_a_wait_is_noted_again_when_it_changes() -> None:
    world = competing()
    world.want("a")
    world.want("b")
    world.size("b", 60)
    while world.state("a") is S.READY:
        world.advance(1)
    world.release(next(iter(world.leases)))
    reasons = [one.why for one in told(world, "b", Action.QUEUE)]
    assert [reason.split(" (")[0] for reason in reasons] == [
        "everything else is in use",
        "models in use give way when their running requests end",
        "room is being made",
    ]
    assert "a: its own requests are served first" in reasons[0]


def test_an_infinite_keep_alive_is_no_pin() -> None:
    world = World(budget=100)
    world.load_idle("a", 60, keep_alive_s=math.inf)
    world.want("b")
    world.size("b", 60)
    assert world.state("a") is S.STOPPING


def test_one_who_was_overdue_while_its_model_gave_way_is_told_at_once_when_it_does_not_go() -> None:
    world = competing(swap_wait_s=0.0, room_wait_s=60.0)
    world.want("a")
    larger = world.want("a", context_size=4000)
    world.size("a", 95)
    world.advance(50)
    world.want("b")
    world.size("b", 60)
    assert world.state("a") is S.YIELDING
    world.advance(60)
    assert larger in world.answers or larger in world.leases


def test_an_annex_goes_before_any_model_however_quickly_that_would_load_again() -> None:
    world = World(budget=100)
    world.load_idle("a", 40)  # in no time at all
    ticket = world.want_annex("a")
    world.size("a+", 20)
    world.ready("a+")
    world.release(ticket)
    world.advance(1.0)
    world.want("b")
    world.size("b", 50)
    assert world.state("a+") is S.STOPPING
    assert world.state("a") is S.READY
    world.end("a+")
    assert world.state("b") is S.LOADING


def test_a_model_makes_no_room_for_its_own_annex_but_for_others() -> None:
    world = World(budget=100)
    world.load_idle("a", 60)
    world.load_idle("b", 30)
    lease = world.want("a")
    world.want_annex("a")
    world.size("a+", 40)
    assert world.state("b") is S.STOPPING
    assert world.state("a") is S.READY
    world.end("b")
    world.ready("a+")
    assert world.state("a+") is S.READY
    world.release(lease)
