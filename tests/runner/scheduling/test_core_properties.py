"""Random histories of the core: safe at every step, and nobody forgotten while work is possible.

Safety is checked by the world after every event: bytes within the budget, no leased victim, one worker per
model, every caller answered exactly once. Liveness is checked at the end of each history: when callers
finish, workers do what they are told and time passes, every question is answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling import effects, events
from runner.scheduling.lifecycle import InstanceState
from tests.support.scheduling import CONTEXT_SIZE, LOADING, READY, STOPPING, World, on_host

names = st.sampled_from(["a", "b", "c", "d"])
keep_alives = st.sampled_from([None, 0.0, 5.0, 300.0, math.inf])
footprints = st.builds(
    lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(1, 110), st.integers(0, 90)
)
budgets = st.builds(
    lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(60, 120), st.integers(50, 100)
)
contexts = st.sampled_from([0, 0, 0, 500, CONTEXT_SIZE, 2000, 4000])
pins = st.sampled_from([None, None, None, True, False])
choice = st.integers(0, 1000)
FAILURE = events.Failure("loading_failed", "broken")


class Histories(RuleBasedStateMachine):
    """Whatever callers, workers and the machine do, in any order."""

    @initialize(
        waiters=st.integers(1, 4),
        leases=st.integers(1, 3),
        room_wait_s=st.sampled_from([5.0, 120.0]),
        swap_wait_s=st.sampled_from([0.0, 3.0, 30.0]),
        min_residency_s=st.sampled_from([0.0, 2.0, 10.0]),
        linger_s=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, waiters: int, leases: int, **seconds: float) -> None:
        self.world = World(
            budget=DeviceBytes({"cpu": 100, "CUDA0": 80}),
            waiters_per_model=waiters,
            leases_per_model=leases,
            overtaking_s=3.0,
            **seconds,
        )

    # callers

    @rule(name=names, keep_alive_s=keep_alives, context_size=contexts)
    def want(self, name: str, keep_alive_s: float | None, context_size: int) -> None:
        self.world.want(name, keep_alive_s, context_size=context_size)

    @rule(name=names, keep_alive_s=keep_alives)
    def want_annex(self, name: str, keep_alive_s: float | None) -> None:
        self.world.want_annex(name, keep_alive_s)

    @rule(name=names, keep_alive_s=keep_alives, context_size=contexts, pin=pins)
    def preload(self, name: str, keep_alive_s: float | None, context_size: int, pin: bool | None) -> None:
        self.world.preload(name, keep_alive_s, context_size=context_size, pin=pin)

    @rule(name=names, count=st.integers(2, 5))
    def crowd(self, name: str, count: int) -> None:
        """Several at once, and the model comes up for them if it can: more than single steps would find."""
        for _ in range(count):
            self.world.want(name)
        for load_id in tuple(self.world.sizing):
            self.world.size_load(load_id, 40)
        for load_id in self.in_state(LOADING):
            self.world.ready_load(load_id)

    @precondition(lambda self: self.world.leases)
    @rule(which=choice)
    def release(self, which: int) -> None:
        self.world.release(self.pick(which, self.world.leases))

    @precondition(lambda self: self.world.waiting or self.world.leases)
    @rule(which=choice)
    def leave(self, which: int) -> None:
        self.world.leave(self.pick(which, [*self.world.waiting, *self.world.leases]))

    @rule(name=names)
    def unquarantine(self, name: str) -> None:
        self.world.unquarantine(name)

    @rule(some=st.lists(names, max_size=3))
    def unload(self, some: list[str]) -> None:
        self.world.unload(*some)

    @rule(which=choice)
    def disturb_with_old_news(self, which: int) -> None:
        """Releases of tickets that ended, and news of loads that are over."""
        over = [one for one in self.world.model_of if one not in self.world.workers]
        over = [one for one in over if one not in self.world.sizing and one not in self.world.sized]
        self.world.send(events.LeaseReleased(10_000 + which))
        if over:
            load_id = self.pick(which, over)
            self.world.send(events.ModelSized(load_id, on_host(10), CONTEXT_SIZE))
            self.world.send(events.WorkerReady(load_id))
            self.world.send(events.WorkerFailing(load_id))
            self.world.send(events.WorkerEnded(load_id=load_id, cause="", is_crash=True, jitter=0.0))

    # workers

    @precondition(lambda self: self.world.sizing)
    @rule(which=choice, footprint=footprints, context_size=st.sampled_from([None, None, None, 100, 9000]))
    def size(self, which: int, footprint: DeviceBytes, context_size: int | None) -> None:
        self.world.size_load(self.pick(which, self.world.sizing), footprint, context_size)

    @precondition(lambda self: self.world.sizing)
    @rule(which=choice)
    def fail_sizing(self, which: int) -> None:
        self.world.send(events.SizingFailed(self.pick(which, self.world.sizing), FAILURE))

    @precondition(lambda self: self.in_state(LOADING))
    @rule(which=choice)
    def ready(self, which: int) -> None:
        self.world.ready_load(self.pick(which, self.in_state(LOADING)))

    @precondition(lambda self: self.in_state(LOADING))
    @rule(which=choice)
    def fail_load(self, which: int) -> None:
        self.world.send(events.WorkerLoadFailed(self.pick(which, self.in_state(LOADING)), FAILURE))

    @precondition(lambda self: self.world.workers)
    @rule(which=choice, jitter=st.floats(0, 1, exclude_max=True), by_itself=st.booleans())
    def crash(self, which: int, jitter: float, by_itself: bool) -> None:
        load_id = self.pick(which, self.world.workers)
        is_load_crash = by_itself and self.world.workers[load_id] is LOADING
        self.world.end_load(load_id, is_crash=True, is_load_crash=is_load_crash, jitter=jitter)

    @precondition(lambda self: self.in_state(READY))
    @rule(which=choice)
    def fail_worker(self, which: int) -> None:
        self.world.fail_worker_of(self.pick(which, self.in_state(READY)))

    @precondition(lambda self: self.in_state(STOPPING))
    @rule(which=choice)
    def end(self, which: int) -> None:
        self.world.end_load(self.pick(which, self.in_state(STOPPING)))

    # the machine

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 60.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(budget=budgets, margin=st.sampled_from([None, 0, 20]))
    def change_budget(self, budget: DeviceBytes, margin: int | None) -> None:
        self.world.set_budget(budget, None if margin is None else budget + on_host(margin))

    @precondition(lambda self: not self.world.core.is_draining)
    @rule(grace_s=st.sampled_from([0.0, 10.0]), is_meant=st.integers(0, 9))
    def drain(self, grace_s: float, is_meant: int) -> None:
        if is_meant == 0:  # seldom, since little happens afterwards
            self.world.drain(grace_s)

    # the end of a history

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.let_everything_finish()
        assert not self.world.waiting, "somebody was forgotten"
        assert not self.world.sizing and not self.world.sized
        assert not self.in_state(STOPPING) and not self.in_state(LOADING)
        assert all(view.state is READY for view in self.world.core.views())
        self.all_idle_models_can_be_unloaded()

    def let_everything_finish(self) -> None:
        world = self.world
        for _ in range(1000):
            if world.sizing:
                world.size_load(next(iter(world.sizing)), 50)
            elif self.in_state(LOADING):
                world.ready_load(self.in_state(LOADING)[0])
            elif self.in_state(STOPPING):
                world.end_load(self.in_state(STOPPING)[0])
            elif world.leases:
                world.release(next(iter(world.leases)))
            elif world.waiting:
                world.advance(1.0)  # delays after crashes
            else:
                return
        raise AssertionError(f"no end: {world.core.views()}")

    def all_idle_models_can_be_unloaded(self) -> None:
        ticket = self.world.unload()
        for load_id in self.in_state(STOPPING):
            self.world.end_load(load_id)
        assert all(view.owner_id for view in self.world.core.views())
        for load_id in self.in_state(READY):  # whose models have ended
            self.world.fail_worker_of(load_id)
            self.world.end_load(load_id)
        answer = self.world.answers[ticket]
        assert isinstance(answer, effects.ReportUnloaded) and answer.report.in_use == ()
        assert self.world.reserved == self.world.core.reserved == DeviceBytes()
        assert self.world.core.views() == ()
        assert self.world.timer_s is None

    # small things

    def in_state(self, state: InstanceState) -> list[int]:
        return [load_id for load_id, one in self.world.workers.items() if one is state]

    @staticmethod
    def pick(which: int, among: Iterable[int]) -> int:
        options = list(among)
        return options[which % len(options)]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_flood_of_two_models_that_fit_only_in_turns_is_served_to_the_end() -> None:
    world = World(budget=100, leases_per_model=2)
    tickets = [world.want("ab"[number % 2]) for number in range(40)]
    for _ in range(400):
        if world.sizing:
            world.size_load(next(iter(world.sizing)), 60)
        for load_id, state in tuple(world.workers.items()):
            if state is LOADING:
                world.ready_load(load_id)
            elif state is STOPPING:
                world.end_load(load_id)
        if world.leases:
            world.release(next(iter(world.leases)))
        world.advance(0.1)
    assert all(isinstance(world.answers[ticket], effects.GrantLease) for ticket in tickets)
