"""The core's decisions about loads, room and lines, one by one: events in, effects out."""

from __future__ import annotations

import pytest

from runner.scheduling import effects, events
from runner.scheduling.lifecycle import IllegalTransition, InstanceState
from tests.support.scheduling import World, model_id, on_host

S = InstanceState
BROKEN = events.Failure("invalid_model_file", "the header is cut off")


def refused(ticket: int, refusal: effects.Refusal) -> effects.Refuse:
    return effects.Refuse(ticket, refusal)


# one load


def test_a_first_request_sizes_reserves_loads_and_is_granted() -> None:
    world = World(budget=100)
    ticket = world.want("a")
    load_id = world.load_id("a")
    assert world.sizing == {load_id: model_id("a")} and not world.reserved
    assert world.size("a", 60) == (effects.StartWorker(load_id),)
    assert world.reserved == on_host(60)
    assert world.ready("a") == (effects.GrantLease(ticket, load_id),)
    assert world.release(ticket) == (effects.ArmTimer(world.now_s + 300.0),)


def test_a_loaded_model_is_granted_at_once() -> None:
    world = World()
    first = world.load("a", 60)
    second = world.want("a")
    assert world.answers[second] == effects.GrantLease(second, world.leases[first])


def test_O05_a_hundred_first_requests_for_one_cold_model_make_one_load() -> None:
    world = World(waiters_per_model=100, leases_per_model=100)
    tickets = [world.want("a") for _ in range(100)]
    assert len(world.sizing) == 1
    world.size("a", 60)
    done = world.ready("a")
    assert done == tuple(effects.GrantLease(ticket, world.load_id("a")) for ticket in tickets)


def test_O05_a_load_that_fails_fails_all_who_wait_with_its_error() -> None:
    world = World()
    tickets = [world.want("a"), world.preload("a"), world.want("a")]
    world.size("a", 60)
    refusal = effects.CannotLoad(model="a", failure=BROKEN)
    load_id = world.load_id("a")
    assert world.fail_load("a", BROKEN) == (
        effects.StopWorker(load_id),
        *(refused(ticket, refusal) for ticket in tickets),
    )
    assert world.reserved == on_host(60), "the process is not gone yet"
    world.end_load(load_id)
    assert world.state("a") is S.UNLOADED and not world.reserved


def test_a_model_that_cannot_be_sized_fails_all_who_wait() -> None:
    world = World()
    tickets = [world.want("a"), world.want("a")]
    failure = events.Failure("model_not_found", "model 'a' is not in the store")
    done = world.fail_sizing("a", failure)
    refusal = effects.CannotLoad(model="a", failure=failure)
    assert done == (*(refused(ticket, refusal) for ticket in tickets), effects.DropLoad(1))
    assert world.state("a") is S.UNLOADED


def test_the_first_client_leaves_and_the_load_goes_on_for_the_others() -> None:
    world = World()
    first, second = world.want("a"), world.want("a")
    world.size("a", 60)
    assert world.leave(first) == ()
    assert world.ready("a") == (effects.GrantLease(second, world.load_id("a")),)


@pytest.mark.parametrize("state", [S.SIZING, S.QUEUED, S.LOADING])
def test_a_load_that_nobody_waits_for_any_more_is_cancelled(state: InstanceState) -> None:
    world = World(budget=100)
    if state is S.QUEUED:
        world.load("other", 70)
    first, second = world.want("a"), world.preload("a")
    load_id = world.load_id("a")
    if state is not S.SIZING:
        world.size("a", 60)
    assert world.state("a") is state
    assert effects.DropLoad(load_id) not in world.leave(first)
    done = world.leave(second)
    if state is S.LOADING:
        assert done == (effects.StopWorker(load_id),)
        assert world.state("a") is S.STOPPING
        world.end_load(load_id)
    else:
        assert effects.DropLoad(load_id) in done
    assert world.state("a") is S.UNLOADED


def test_news_of_a_load_that_was_given_up_is_ignored() -> None:
    world = World()
    ticket = world.want("a")
    world.leave(ticket)
    assert world.core.handle(events.ModelSized(1, on_host(60), 1000), world.now_s) == ()
    assert world.core.handle(events.SizingFailed(1, BROKEN), world.now_s) == ()
    ended = events.WorkerEnded(load_id=1, cause="stopped", is_crash=False, jitter=0.0)
    assert world.core.handle(ended, world.now_s) == ()


def test_a_worker_that_is_ready_just_after_it_was_told_to_stop_is_not_used() -> None:
    world = World()
    ticket = world.want("a")
    world.size("a", 60)
    load_id = world.load_id("a")
    world.leave(ticket)
    late = world.want("a")
    assert world.ready_load(load_id) == ()
    assert world.fail_load("a", BROKEN) == ()
    assert late not in world.answers
    world.end_load(load_id)
    assert world.state("a") is S.SIZING


def test_news_that_cannot_be_is_a_fault_of_ours_and_changes_nothing() -> None:
    world = World()
    world.load("a", 60)
    before = world.core.views()
    with pytest.raises(IllegalTransition):
        world.core.handle(events.WorkerReady(world.load_id("a")), world.now_s)
    assert world.core.views() == before


# room


def test_O01_a_footprint_above_the_whole_budget_is_refused_at_once_with_the_numbers() -> None:
    world = World(budget=100)
    world.load("busy", 30)
    world.load_idle("idle", 40)
    ticket = world.want("a")
    world.size("a", 101)
    refusal = world.refusal(ticket)
    assert isinstance(refusal, effects.NoRoom) and refusal.model == "a"
    assert (refusal.needed, refusal.free, refusal.in_use) == (on_host(101), on_host(70), on_host(30))
    assert world.state("idle") is S.READY


@pytest.mark.parametrize(("footprint", "is_loaded"), [(99, True), (100, True), (101, False)])
def test_O01_a_footprint_up_to_the_budget_is_loaded(footprint: int, is_loaded: bool) -> None:
    world = World(budget=100)
    world.want("a")
    world.size("a", footprint)
    assert (world.state("a") is S.LOADING) is is_loaded


def test_O01_two_loads_cannot_both_take_the_last_room() -> None:
    world = World(budget=100)
    world.want("a")
    world.want("b")
    world.size("a", 60)
    world.size("b", 60)
    assert (world.state("a"), world.state("b")) == (S.LOADING, S.QUEUED)
    assert world.reserved == on_host(60)


def test_O01_idle_models_go_least_recently_used_first_and_no_more_than_needed() -> None:
    world = World(budget=100)
    for name in ("old", "middle", "young"):
        world.load_idle(name, 30)
        world.advance(1)
    world.release(world.want("old"))  # used again: now `middle` is the oldest
    ticket = world.want("new")
    middle = world.load_id("middle")
    assert world.size("new", 40) == (effects.StopWorker(middle), effects.ArmTimer(world.timer_s))
    assert [world.state(name) for name in ("old", "middle", "young")] == [S.READY, S.STOPPING, S.READY]
    assert world.state("new") is S.QUEUED, "memory counts as used until the process is gone"
    world.end("middle")
    assert world.state("new") is S.LOADING
    world.ready("new")
    assert world.answers[ticket] == effects.GrantLease(ticket, world.load_id("new"))


def test_O03_a_model_in_use_is_never_evicted_and_the_request_waits_until_it_is_released() -> None:
    world = World(budget=100)
    lease = world.load("busy", 60)
    ticket = world.want("a")
    world.size("a", 60)
    assert world.state("busy") is S.READY and ticket not in world.answers
    world.release(lease)
    assert world.state("busy") is S.STOPPING
    world.end("busy")
    assert world.state("a") is S.LOADING


def test_O03_a_request_that_finds_no_room_for_too_long_is_refused_and_later_ones_still_wait() -> None:
    world = World(budget=100, room_wait_s=120.0)
    world.load("busy", 60)
    first = world.want("a")
    world.size("a", 60)
    world.advance(60)
    second = world.want("a")
    world.advance(59.9)
    assert not world.answers.keys() & {first, second}
    world.advance(0.1)
    refusal = world.refusal(first)
    assert isinstance(refusal, effects.NoRoom)
    assert (refusal.needed, refusal.free, refusal.in_use) == (on_host(60), on_host(40), on_host(60))
    assert world.state("a") is S.QUEUED
    world.advance(60)
    assert isinstance(world.refusal(second), effects.NoRoom)
    assert world.state("a") is S.UNLOADED


def test_requests_for_loaded_models_never_wait_behind_the_load_of_another() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.want("big")
    world.size("big", 90)
    world.advance(100)
    ticket = world.want("busy")
    assert ticket in world.leases


def test_a_small_load_passes_a_blocked_large_one_for_a_while_only() -> None:
    world = World(budget=100, overtaking_s=10.0)
    world.load("busy", 60)
    world.want("big")
    world.size("big", 90)
    world.advance(9)
    world.want("small")
    world.size("small", 20)
    assert world.state("small") is S.LOADING
    world.advance(1)
    world.want("late")
    world.size("late", 10)
    assert world.state("late") is S.QUEUED


def test_a_model_evicted_for_another_does_not_take_the_room_back_first() -> None:
    world = World(budget=100)
    world.load_idle("a", 80)
    world.want("b")
    world.size("b", 80)
    again = world.want("a")
    world.end("a")
    assert (world.state("b"), world.state("a")) == (S.LOADING, S.SIZING)
    world.size("a", 80)
    world.ready("b")
    world.release(next(iter(world.leases)))
    world.end("b")
    world.ready("a")
    assert again in world.leases


# the budget


def test_a_budget_that_grows_lets_waiting_loads_start() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.want("a")
    world.size("a", 60)
    assert world.set_budget(119) == ()
    assert world.set_budget(120) == (effects.StartWorker(world.load_id("a")), effects.ArmTimer(None))


def test_a_budget_that_shrinks_takes_nothing_from_models_in_memory_and_admits_nothing_new() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.set_budget(50)
    world.want("a")
    world.size("a", 10)
    assert (world.state("busy"), world.state("a")) == (S.READY, S.QUEUED)


def test_a_waiting_load_that_the_budget_cannot_hold_any_more_is_sized_again() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    ticket = world.want("a")
    world.size("a", 60)
    first = world.load_id("a")
    done = world.set_budget(59)
    assert done[:2] == (effects.DropLoad(first), effects.SizeModel(first + 1, model_id("a")))
    world.size("a", 60)
    assert isinstance(world.refusal(ticket), effects.NoRoom)


# lines


@pytest.mark.parametrize("is_loaded", [False, True])
def test_O04_the_surplus_beyond_places_and_line_is_refused_at_once(is_loaded: bool) -> None:
    world = World(waiters_per_model=64, leases_per_model=8)
    if is_loaded:
        world.load("a", 60)
    for _ in range(71 - is_loaded):
        world.want("a")
    last, surplus = world.want("a"), world.want("a")
    assert last not in world.answers
    refusal = world.refusal(surplus)
    assert isinstance(refusal, effects.LineFull)
    assert (refusal.model, refusal.waiting) == ("a", 64 if is_loaded else 72)
    assert 1.0 <= refusal.retry_after_s <= 300.0


def test_O04_of_a_hundred_first_requests_as_many_stay_as_can_run_and_wait_and_one_load_serves_them() -> None:
    world = World(waiters_per_model=64, leases_per_model=8)
    tickets = [world.want("a") for _ in range(100)]
    refused = [ticket for ticket in tickets if ticket in world.answers]
    assert refused == tickets[72:]
    assert len(world.sizing) == 1
    world.size("a", 60)
    world.ready("a")
    assert sorted(world.leases) == tickets[:8] and world.view("a").waiting == 64


def test_O04_one_who_leaves_the_line_frees_the_place() -> None:
    world = World(waiters_per_model=1, leases_per_model=1)
    first, _ = world.want("a"), world.want("a")
    assert isinstance(world.refusal(world.want("a")), effects.LineFull)
    world.leave(first)
    assert world.want("a") not in world.answers


def test_O04_retry_after_is_what_is_left_of_the_load_and_the_line_times_the_measured_use() -> None:
    world = World(waiters_per_model=3, leases_per_model=1)
    for _ in range(20):
        ticket = world.want("a")
        world.size("a", 60)
        world.advance(30)
        world.ready("a")
        world.advance(4)
        world.release(ticket)
        world.unload("a")
        world.end("a")
    for _ in range(4):
        world.want("a")
    world.size("a", 60)
    world.advance(10)
    refusal = world.refusal(world.want("a"))
    assert isinstance(refusal, effects.LineFull)
    assert refusal.retry_after_s == pytest.approx(20 + 4 * 4)
    world.advance(20)
    world.ready("a")
    refusal = world.refusal(world.want("a"))
    assert isinstance(refusal, effects.LineFull)
    assert refusal.retry_after_s == pytest.approx(3 * 4)


def test_a_released_lease_goes_to_the_first_in_line() -> None:
    world = World(leases_per_model=1)
    lease = world.load("a", 60)
    first, second = world.want("a"), world.want("a")
    assert world.release(lease) == (effects.GrantLease(first, world.load_id("a")),)
    assert second not in world.answers


def test_a_lease_can_be_released_once_and_strangers_release_nothing() -> None:
    world = World()
    ticket = world.load("a", 60)
    other = world.want("a")
    assert world.release(ticket) == world.release(ticket) == world.send(events.LeaseReleased(999)) == ()
    assert world.view("a").leases == 1
    assert other in world.leases


def test_a_caller_who_left_after_the_grant_gives_the_lease_back() -> None:
    world = World(leases_per_model=1)
    ticket = world.load("a", 60)
    waiting = world.want("a")
    assert world.leave(ticket) == (effects.GrantLease(waiting, world.load_id("a")),)
    assert world.leave(ticket) == ()
