"""The core's decisions about models in memory: preload, keep_alive, unload, crash, drain, why."""

from __future__ import annotations

import math

import pytest

from runner.domain.status import UnloadReport
from runner.scheduling import effects, events
from runner.scheduling.decisions import Action
from runner.scheduling.eviction import LEAST_RELOAD_S
from runner.scheduling.lifecycle import InstanceState
from tests.support.scheduling import World, model_id, on_host

S = InstanceState


# preload


def test_a_preload_is_confirmed_when_the_model_is_ready_and_takes_no_lease() -> None:
    world = World(leases_per_model=1)
    ticket = world.preload("a")
    world.size("a", 60)
    load_id = world.load_id("a")
    assert world.ready("a") == (
        effects.ConfirmPreload(ticket, load_id),
        effects.ArmTimer(world.now_s + 300.0),
    )
    assert world.want("a") in world.leases
    again = world.preload("a", keep_alive_s=math.inf)
    assert world.answers[again] == effects.ConfirmPreload(again, load_id)
    assert world.view("a").keep_alive_s == math.inf


# keep_alive


@pytest.mark.parametrize(("idle_s", "state"), [(299.9, S.READY), (300.0, S.STOPPING), (300.1, S.STOPPING)])
def test_an_idle_model_is_unloaded_after_its_keep_alive(idle_s: float, state: InstanceState) -> None:
    world = World()
    world.load_idle("a", 60)
    world.advance(idle_s)
    assert world.state("a") is state


def test_keep_alive_zero_unloads_when_the_last_lease_ends() -> None:
    world = World()
    first = world.load("a", 60, keep_alive_s=0)
    second = world.want("a")
    assert world.release(first) == ()
    assert world.release(second) == (effects.StopWorker(world.load_id("a")),)


def test_keep_alive_infinite_never_idles_out() -> None:
    world = World()
    world.load_idle("a", 60, keep_alive_s=math.inf)
    assert world.timer_s is None
    world.advance(1e9)
    assert world.state("a") is S.READY


def test_the_last_keep_alive_counts_and_none_keeps_what_is_set() -> None:
    world = World()
    world.load_idle("a", 60, keep_alive_s=10)
    world.release(world.want("a", keep_alive_s=20))
    world.release(world.want("a"))
    assert world.timer_s == world.now_s + 20
    world.advance(20)
    world.end("a")
    world.load_idle("a", 60)
    assert world.timer_s == world.now_s + 300, "a new life begins with the default"


def test_a_keep_alive_of_somebody_who_was_never_served_changes_nothing() -> None:
    world = World()
    leaver, stayer = world.want("a", keep_alive_s=0), world.want("a")
    world.size("a", 60)
    world.leave(leaver)
    world.ready("a")
    world.release(stayer)
    assert world.state("a") is S.READY


def test_use_stops_the_idle_time_and_its_end_starts_it_anew() -> None:
    world = World()
    world.load_idle("a", 60)
    world.advance(299)
    ticket = world.want("a")
    assert world.timer_s is None
    world.advance(1000)
    assert world.release(ticket) == (effects.ArmTimer(world.now_s + 300),)


def test_L13_a_timer_that_goes_off_early_is_armed_again_and_a_late_one_hits_only_what_is_due() -> None:
    world = World()
    world.load_idle("idle", 30)
    busy = world.load("busy", 30)
    due_s = world.now_s + 300
    world.advance(100)
    assert world.send(events.Ticked()) == (effects.ArmTimer(due_s),)
    world.advance(1e6)  # the machine slept
    assert (world.state("idle"), world.state("busy")) == (S.STOPPING, S.READY)
    world.release(busy)
    assert world.timer_s == world.now_s + 300, "its idle time begins now"


def test_L13_a_clock_that_goes_back_is_taken_as_standing_still() -> None:
    world = World()
    world.load_idle("a", 60)
    world.core.handle(events.Ticked(), world.now_s - 500)
    assert world.state("a") is S.READY
    assert world.view("a").expires_at_s == world.now_s + 300


# unload


def test_unload_stops_idle_models_and_is_answered_when_they_are_gone() -> None:
    world = World()
    world.load_idle("a", 60)
    world.load("busy", 30)
    ticket = world.unload()
    assert world.state("a") is S.STOPPING and ticket not in world.answers
    world.end("a")
    report = UnloadReport(unloaded=("a",), in_use=("busy",))
    assert world.answers[ticket] == effects.ReportUnloaded(ticket, report)


def test_unload_of_what_is_not_loaded_or_in_use_is_answered_at_once() -> None:
    world = World()
    world.load("busy", 30)
    world.want("loading")
    ticket = world.unload("busy", "loading", "unknown", "busy")
    report = UnloadReport(unloaded=(), in_use=("busy", "loading"))
    assert world.answers[ticket] == effects.ReportUnloaded(ticket, report)


def test_unload_waits_for_a_process_that_is_ending_already() -> None:
    world = World()
    world.load_idle("a", 60, keep_alive_s=0)
    first, second = world.unload("a"), world.unload("a")
    world.leave(second)
    world.end("a")
    report = UnloadReport(unloaded=("a",), in_use=())
    assert world.answers[first] == effects.ReportUnloaded(first, report)
    assert second not in world.answers


def test_L11_a_request_for_a_model_that_is_being_unloaded_waits_and_loads_it_again() -> None:
    world = World()
    world.load_idle("a", 60)
    unload = world.unload("a")
    ticket = world.want("a")
    assert ticket not in world.answers
    world.end("a")
    assert unload in world.answers and world.state("a") is S.SIZING, "not after a delay: it did not crash"
    world.size("a", 60)
    world.ready("a")
    assert ticket in world.leases


# crashes


def test_L03_a_crash_voids_leases_and_the_next_request_gets_a_new_worker_after_a_delay() -> None:
    world = World()
    lease = world.load("a", 60)
    former = world.load_id("a")
    world.crash("a", "signal SIGKILL", jitter=0.5)
    assert world.state("a") is S.UNLOADED and not world.reserved
    assert world.release(lease) == ()
    ticket = world.want("a")
    assert world.state("a") is S.COOLING
    assert world.timer_s == world.now_s + 0.25 * 1.25
    world.advance(0.25 * 1.25)
    world.size("a", 60)
    world.ready("a")
    assert world.leases[ticket] != former


def test_L03_a_crash_leaves_other_models_alone_and_gives_its_room_to_those_who_wait() -> None:
    world = World(budget=100)
    world.load("a", 50)
    world.load("b", 40)
    world.want("c")
    world.size("c", 50)
    world.crash("a")
    assert (world.state("b"), world.state("c")) == (S.READY, S.LOADING)
    assert len(world.leases) == 1


def test_L03_those_who_wait_at_a_crash_are_served_by_the_next_worker() -> None:
    world = World(leases_per_model=1)
    world.load("a", 60)
    ticket = world.want("a")
    world.crash("a")
    assert world.state("a") is S.COOLING
    world.advance(1)
    world.size("a", 60)
    world.ready("a")
    assert ticket in world.leases


def test_whoever_waits_out_a_delay_and_leaves_starts_nothing() -> None:
    world = World()
    world.load("a", 60)
    world.crash("a")
    ticket = world.want("a")
    assert world.leave(ticket) == (effects.ArmTimer(None),)
    assert world.state("a") is S.UNLOADED


def test_a_worker_that_ends_while_it_loads_fails_all_who_wait() -> None:
    world = World()
    ticket = world.want("a")
    world.size("a", 60)
    world.crash("a", "signal SIGSEGV")
    refusal = world.refusal(ticket)
    assert isinstance(refusal, effects.CannotLoad)
    assert refusal.failure.code == "loading_failed"
    assert "signal SIGSEGV" in refusal.failure.message
    world.want("a")
    assert world.state("a") is S.COOLING


def test_L01_who_comes_between_the_fault_of_a_worker_and_its_end_gets_the_next_one() -> None:
    world = World(leases_per_model=2)
    lease = world.load("a", 60)
    former = world.load_id("a")
    assert world.fail_worker("a") == ()
    ticket = world.want("a")
    assert ticket not in world.answers and world.reserved == on_host(60)
    assert world.release(lease) == ()
    assert world.fail_worker("a") == (), "told twice, it changes nothing"
    world.crash("a")
    assert world.state("a") is S.COOLING
    world.advance(1)
    world.size("a", 60)
    world.ready("a")
    assert world.leases[ticket] != former


def test_a_load_that_failed_by_a_crash_is_delayed_and_one_that_failed_in_order_is_not() -> None:
    world = World()
    failure = events.Failure("loading_failed", "the worker ended")
    for is_crash, state in ((False, S.SIZING), (True, S.COOLING)):
        world.want("a")
        world.size("a", 60)
        world.fail_load("a", failure)
        world.end_load(world.load_id("a"), is_crash=is_crash)
        ticket = world.want("a")
        assert world.state("a") is state
        world.leave(ticket)


# drain


def test_a_drain_refuses_new_work_and_those_who_wait_and_stops_all_workers() -> None:
    world = World(budget=100)
    world.load_idle("idle", 30)
    world.load("busy", 30)
    waiting = [world.want("loading"), world.want("sizing"), world.want("queued")]
    world.size("loading", 30)
    world.size("queued", 100)
    ticket = world.drain()
    assert world.core.is_draining
    assert {world.refusal(one) for one in waiting} == {effects.NoNewWork()}
    assert world.refusal(world.want("idle")) == world.refusal(world.preload("b")) == effects.NoNewWork()
    for name in ("idle", "busy", "loading"):
        assert world.state(name) is S.STOPPING and ticket not in world.answers
        world.end(name)
    assert world.answers[ticket] == effects.ReportDrained(ticket)
    again = world.drain()
    assert world.answers[again] == effects.ReportDrained(again)


@pytest.mark.parametrize(("passed_s", "state"), [(29.9, S.READY), (30.0, S.STOPPING)])
def test_L09_a_drain_leaves_models_in_use_their_grace(passed_s: float, state: InstanceState) -> None:
    world = World()
    world.load("busy", 60)
    world.drain(grace_s=30.0)
    world.advance(passed_s)
    assert world.state("busy") is state


def test_L09_a_drain_stops_a_model_as_soon_as_its_last_lease_ends() -> None:
    world = World()
    lease = world.load("busy", 60)
    ticket = world.drain(grace_s=30.0)
    world.release(lease)
    world.end("busy")
    assert world.answers[ticket] == effects.ReportDrained(ticket)
    assert world.timer_s is None


# why


def test_decisions_tell_what_was_done_why_and_with_which_numbers() -> None:
    world = World(budget=100)
    world.load_idle("a", 60)
    world.advance(5)
    world.want("b")
    world.size("b", 70)
    told = {(one.model, one.action): one for one in world.core.decisions()}
    evicted = told["a", Action.EVICT]
    assert evicted.why == "makes room for b; its absence costs least of what could go"
    assert evicted.others == ("b",)
    assert evicted.numbers == {
        "freed_bytes": 60,
        "shortage_bytes": 30,
        "idle_s": 5.0,
        "cost_s": pytest.approx(LEAST_RELOAD_S * 60 / 65),
        "waiting": 0,
    }
    assert told["b", Action.QUEUE].why == "room is being made"
    assert told["a", Action.LOAD].numbers["needed_bytes"] == 60
    assert {one.model for one in world.core.decisions(model_id("b"))} == {"b"}


def test_a_wait_is_noted_once_however_much_happens_meanwhile() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.want("a")
    world.size("a", 60)
    for _ in range(5):
        world.release(world.want("busy"))
    noted = [one for one in world.core.decisions(model_id("a")) if one.action is Action.QUEUE]
    assert [(one.why, one.others) for one in noted] == [
        ("everything else is in use (busy: it was loaded a moment ago)", ("busy",))
    ]
