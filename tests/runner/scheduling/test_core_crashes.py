"""Models whose workers crash, in the core: the breaker (L04) and the quarantine (L06)."""

from __future__ import annotations

import pytest

from runner.scheduling import effects, events
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.protection import InQuarantine, LeftAlone
from tests.support.scheduling import World

S = InstanceState


@pytest.fixture
def world() -> World:
    return World(budget=100)


def crash_in_use(world: World, name: str, times: int) -> None:
    for _ in range(times):
        world.load(name, 10)
        world.fail_worker(name)
        world.crash(name)
        world.advance(2.0)  # the delay after it


def crash_in_load(world: World, name: str) -> int:
    ticket = world.want(name)
    world.size(name, 10)
    world.crash(name)
    return ticket


def test_L04_after_three_crashes_within_a_minute_requests_are_refused_at_once(world: World) -> None:
    crash_in_use(world, "a", 2)
    assert world.state("a") is S.UNLOADED
    crash_in_use(world, "a", 1)
    refusal = world.refusal(world.want("a"))
    assert refusal == LeftAlone(model="a", retry_after_s=28.0)
    assert world.state("a") is S.UNLOADED
    world.load("b", 10)


def test_L04_crashes_spread_over_more_than_a_minute_open_nothing(world: World) -> None:
    for _ in range(5):
        crash_in_use(world, "a", 1)
        world.advance(31.0)
    world.load("a", 10)


def test_L04_who_waits_when_the_breaker_opens_is_refused(world: World) -> None:
    crash_in_use(world, "a", 2)
    world.load("a", 10)
    world.fail_worker("a")
    waiting = [world.want("a"), world.preload("a")]
    world.crash("a")
    assert [world.refusal(ticket) for ticket in waiting] == 2 * [LeftAlone(model="a", retry_after_s=30.0)]
    assert world.state("a") is S.UNLOADED


def test_L04_one_probe_is_let_through_and_its_success_lets_all_others(world: World) -> None:
    crash_in_use(world, "a", 3)
    world.advance(30.0)
    probe = world.load("a", 10)
    assert world.refusal(world.want("a")) == LeftAlone(model="a", retry_after_s=5.0)
    world.release(probe)
    assert isinstance(world.answers[world.want("a")], effects.GrantLease)


def test_L04_a_probe_whose_worker_crashes_doubles_the_time(world: World) -> None:
    crash_in_use(world, "a", 3)
    world.advance(30.0)
    crash_in_use(world, "a", 1)
    assert world.refusal(world.want("a")) == LeftAlone(model="a", retry_after_s=58.0)


@pytest.mark.parametrize("how", ["leaves", "no room", "fails in order"])
def test_L04_a_probe_that_shows_nothing_leaves_its_place(world: World, how: str) -> None:
    crash_in_use(world, "a", 3)
    world.advance(30.0)
    probe = world.want("a")
    match how:
        case "leaves":
            world.leave(probe)
        case "no room":
            world.size("a", 1000)
        case "fails in order":
            world.size("a", 10)
            world.fail_load("a", events.Failure("loading_failed", "no such tensor"))
            world.end("a")
    world.release(world.load("a", 10))


def test_L04_a_preload_is_a_probe_too(world: World) -> None:
    crash_in_use(world, "a", 3)
    world.advance(30.0)
    world.preload("a")
    world.size("a", 10)
    world.ready("a")
    assert isinstance(world.answers[world.want("a")], effects.GrantLease)


def test_L04_a_lease_that_a_crash_has_voided_is_no_success(world: World) -> None:
    crash_in_use(world, "a", 3)
    world.advance(30.0)
    probe = world.load("a", 10)
    world.fail_worker("a")
    world.release(probe)
    world.crash("a")
    assert isinstance(world.refusal(world.want("a")), LeftAlone)


def test_L06_two_crashes_while_loading_put_a_model_in_quarantine(world: World) -> None:
    for _ in range(2):
        refusal = world.refusal(crash_in_load(world, "a"))
        assert isinstance(refusal, effects.CannotLoad)
        world.advance(2.0)
    assert [one.crashes for one in world.kept] == [2]
    in_quarantine = InQuarantine(model="a", crashes=2, cause="signal SIGSEGV")
    assert world.refusal(world.want("a")) == in_quarantine
    assert world.refusal(world.preload("a")) == in_quarantine
    world.advance(100_000.0)
    assert world.refusal(world.want("a")) == in_quarantine
    world.load("b", 10)
    assert [one.model for one in world.core.quarantined] == ["a"]


def test_L06_a_load_that_succeeds_between_them_forgets_the_first(world: World) -> None:
    crash_in_load(world, "a")
    world.advance(2.0)
    world.load_idle("a", 10)
    assert world.kept == ()
    world.unload("a")
    world.end("a")
    crash_in_load(world, "a")
    world.advance(2.0)
    world.load("a", 10)


def test_L06_who_came_while_the_last_process_ended_is_told(world: World) -> None:
    crash_in_load(world, "a")
    world.advance(2.0)
    world.want("a")
    world.size("a", 10)
    world.fail_load("a", events.Failure("loading_failed", "the worker ended"))
    late = world.want("a")
    world.end_load(world.load_id("a"), cause="signal SIGABRT", is_crash=True, is_load_crash=True)
    assert world.refusal(late) == InQuarantine(model="a", crashes=2, cause="signal SIGABRT")


def test_L06_a_command_frees_it(world: World) -> None:
    for _ in range(2):
        crash_in_load(world, "a")
        world.advance(2.0)
    first = world.unquarantine("a")
    assert world.answers[first] == effects.ReportFreed(ticket=first, was_quarantined=True, crashes=2)
    assert world.kept == () and world.core.quarantined == ()
    world.load("a", 10)
    second = world.unquarantine("a")
    assert world.answers[second] == effects.ReportFreed(ticket=second, was_quarantined=False, crashes=0)


def test_a_crash_and_what_follows_are_among_the_decisions(world: World) -> None:
    for _ in range(2):
        crash_in_load(world, "a")
        world.advance(2.0)
    told = [(one.action.value, one.why) for one in world.core.decisions()]
    assert ("crash", "signal SIGSEGV") in told
    assert ("refuse", "it is in quarantine: loading it crashes the engine") in told
