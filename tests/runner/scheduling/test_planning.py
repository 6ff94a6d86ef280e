"""Plans: what a request would meet, told without doing it."""

from __future__ import annotations

from typing import Any

import pytest

from runner.domain.device_bytes import DeviceBytes
from runner.domain.explained import PlanReport
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.planning import Wish
from tests.support.scheduling import CONTEXT_SIZE, World, model_id, on_host

S = InstanceState


def plan(world: World, name: str, footprint: int | DeviceBytes, **changes: Any) -> PlanReport:
    """The core's answer; it must have changed nothing."""
    values: dict[str, Any] = {"context_size": CONTEXT_SIZE, "basis": "measured", **changes}
    wish = Wish(model_id=model_id(name), name=name, footprint=on_host(footprint), **values)
    before = (world.core.views(), world.core.reserved, world.core.decisions(), world.core.open_tickets)
    report = world.core.plan(wish, world.now_s)
    assert (
        world.core.views(),
        world.core.reserved,
        world.core.decisions(),
        world.core.open_tickets,
    ) == before
    assert world.core.plan(wish, world.now_s) == report
    return report


def waited(world: World, name: str, size: int, load_s: float = 4.0) -> None:
    """Loaded once, so that its load is measured; idle now."""
    ticket = world.want(name)
    world.size(name, size)
    world.advance(load_s)
    world.ready(name)
    world.advance(1)
    world.release(ticket)


def test_a_model_that_fits_would_be_loaded() -> None:
    world = World(budget=100)
    waited(world, "other", 30)
    report = plan(world, "a", 60)
    assert (report.verdict, report.state, report.position) == ("load", "not loaded", 0)
    assert report.expected_wait_s == report.expected_load_s and not report.is_load_measured
    [device] = report.devices
    assert (device.device, device.needed_bytes, device.free_bytes, device.budget_bytes) == (
        "cpu",
        60,
        70,
        100,
    )
    assert (device.reserved_bytes, device.missing_bytes) == (30, 0)


def test_a_loaded_model_serves_at_once_and_a_busy_one_has_a_line() -> None:
    world = World(leases_per_model=1, waiters_per_model=1)
    world.load_idle("a", 60)
    assert (plan(world, "a", 60).verdict, plan(world, "a", 60).expected_wait_s) == ("ready", 0.0)
    world.want("a")
    report = plan(world, "a", 60)
    assert (report.verdict, report.position, report.waiting) == ("in_line", 1, 0)
    world.want("a")
    report = plan(world, "a", 60)
    assert (report.verdict, report.why) == ("refuse", "its line is full")


def test_a_model_on_its_way_has_a_line() -> None:
    world = World()
    world.want("a")
    assert plan(world, "a", 60).why == "its footprint is being determined"
    world.size("a", 60)
    world.advance(0.5)
    report = plan(world, "a", 60)
    assert (report.verdict, report.state, report.why) == ("in_line", "loading", "it is being loaded")
    assert report.expected_wait_s is not None and report.expected_wait_s < 6
    assert (
        plan(world, "a", 70, least_context_size=4000).why == "it is being loaded, and then once more, larger"
    )


def test_idle_models_that_would_go_are_named_with_what_their_absence_costs() -> None:
    world = World(budget=100)
    waited(world, "cheap", 40, load_s=2.0)
    waited(world, "dear", 40, load_s=8.0)
    world.advance(60)
    report = plan(world, "a", 50)
    assert (report.verdict, report.position) == ("evict", 0)
    [victim] = report.victims
    assert (victim.model, victim.when, victim.freed_bytes) == ("cheap", "at once", 40)
    assert victim.reload_s == 2.0 and 0.5 < victim.cost_s < 1.0
    assert victim.idle_s == pytest.approx(69)
    assert report.why.startswith("cheap would make room")
    assert report.devices[0].missing_bytes == 30
    world.want("a")
    world.size("a", 50)
    assert world.state("cheap") is S.STOPPING, "which is what then happens"
    report = plan(world, "a", 50)
    assert (report.verdict, report.why, report.position) == ("wait", "processes that end make room for it", 1)
    assert report.devices[0].leaving_bytes == 40


def test_models_in_use_that_would_give_way_are_named() -> None:
    world = World(budget=100, min_residency_s=0.0, swap_wait_s=0.0)
    waited(world, "busy", 80)
    world.want("busy")
    report = plan(world, "a", 50)
    assert report.verdict == "swap"
    [victim] = report.victims
    assert (victim.when, victim.running, victim.idle_s) == ("when its requests have ended", 1, None)
    assert report.expected_wait_s is not None and report.expected_wait_s > 2.0


def test_models_that_stay_are_named_with_the_reason() -> None:
    world = World(budget=100, min_residency_s=5.0)
    waited(world, "busy", 40)
    world.preload("pinned", pin=True)
    world.size("pinned", 20)
    world.ready("pinned")
    world.advance(10)
    world.want("busy")
    report = plan(world, "a", 50)
    assert (report.verdict, report.position) == ("wait", 1)
    stays = {one.model: one.why for one in report.obstacles}
    assert stays == {
        "busy": "its own requests are served first, which costs less than a swap",
        "pinned": "it is pinned",
    }
    [busy] = [one for one in report.obstacles if one.model == "busy"]
    assert busy.stays_for_s is not None and 0 < busy.stays_for_s <= 30
    assert report.expected_wait_s is not None and report.expected_wait_s <= 31


@pytest.mark.parametrize(
    ("footprint", "why"),
    [(101, "it is larger than the whole budget"), (81, "it is larger than what pinned models leave")],
)
def test_what_can_never_fit_would_be_refused(footprint: int, why: str) -> None:
    world = World(budget=100)
    world.preload("pinned", pin=True)
    world.size("pinned", 20)
    world.ready("pinned")
    report = plan(world, "a", footprint)
    assert (report.verdict, report.why, report.expected_wait_s) == ("refuse", why, None)


def test_who_waits_for_room_already_comes_first() -> None:
    world = World(budget=100)
    world.load("busy", 60)
    world.want("first")
    world.size("first", 70)
    report = plan(world, "a", 90)
    assert (report.verdict, report.position) == ("wait", 2)
    assert plan(world, "first", 70).position == 1


def test_a_larger_context_would_take_the_place_of_the_model_itself() -> None:
    world = World(budget=100)
    waited(world, "a", 60)
    assert plan(world, "a", 60, least_context_size=CONTEXT_SIZE).verdict == "ready"
    report = plan(world, "a", 90, context_size=4000, least_context_size=4000)
    assert (report.verdict, report.context_size, report.state) == ("evict", 4000, "ready")
    assert [victim.model for victim in report.victims] == ["a"]
    world.want("a")
    report = plan(world, "a", 90, context_size=4000, least_context_size=4000)
    assert report.verdict == "wait" and report.expected_wait_s is None


def test_every_device_is_told_of() -> None:
    world = World(budget=DeviceBytes({"cpu": 100, "CUDA0": 50}))
    report = plan(world, "a", DeviceBytes({"cpu": 10, "CUDA0": 60, "CUDA1": 5}))
    missing = {one.device: one.missing_bytes for one in report.devices}
    assert missing == {"cpu": 0, "CUDA0": 10, "CUDA1": 5}
    assert report.verdict == "refuse"


def test_L04_a_plan_for_a_model_that_keeps_crashing_says_when_it_is_tried_again() -> None:
    world = World(budget=100)
    for _ in range(3):
        world.load("a", 10)
        world.fail_worker("a")
        world.crash("a")
        world.advance(2.0)
    report = plan(world, "a", 10)
    assert (report.verdict, report.why, report.expected_wait_s) == (
        "refuse",
        "its workers keep crashing",
        28.0,
    )
    world.advance(28.0)
    assert plan(world, "a", 10).verdict == "load", "the next request is the probe, and asking was none"
    world.want("a")
    assert (plan(world, "a", 10).verdict, plan(world, "a", 10).expected_wait_s) == ("refuse", 5.0)


def test_L06_a_plan_for_a_quarantined_model_says_so() -> None:
    world = World(budget=100)
    for _ in range(2):
        world.want("a")
        world.size("a", 10)
        world.crash("a")
        world.advance(2.0)
    report = plan(world, "a", 10)
    assert (report.verdict, report.expected_wait_s) == ("refuse", None)
    assert report.why == "it is in quarantine: loading it crashes the engine"
    world.unquarantine("a")
    assert plan(world, "a", 10).verdict == "load"
