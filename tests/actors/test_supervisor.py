"""Ordered start and stop, restarts with back-off, and the limit at which the supervisor fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from actors.restart import RestartKind, RestartPolicy
from actors.supervisor import (
    ChildCrashed,
    ChildSpec,
    ChildState,
    ChildStatistics,
    RestartLimitReached,
    Run,
    Supervisor,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_clock")]

POLICY = RestartPolicy(
    max_restarts=2, window_s=60.0, first_delay_s=1.0, longest_delay_s=8.0, jitter_share=0.0
)


class Boom(Exception):
    pass


class Diary:
    """What children did, with the second at which they did it, and what was reported of them."""

    def __init__(self) -> None:
        self.start_s = trio.current_time()
        self.entries: list[tuple[str, float]] = []
        self.crashes: list[ChildCrashed] = []

    def write(self, what: str) -> None:
        self.entries.append((what, round(trio.current_time() - self.start_s, 3)))

    @property
    def words(self) -> list[str]:
        return [what for what, _ in self.entries]

    def child(
        self,
        name: str,
        *,
        lives_s: float | None = None,
        error: BaseException | None = None,
        ends_s: float = 0.0,
        asked: trio.Event | None = None,
    ) -> Run:
        """Serves until cancelled, asked, or for `lives_s`; then cleans up for `ends_s` and raises `error`."""

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            self.write(f"{name} starts")
            task_status.started()
            try:
                if lives_s is not None:
                    await trio.sleep(lives_s)
                else:
                    await (trio.Event() if asked is None else asked).wait()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(ends_s)
                self.write(f"{name} ends")
            if error is not None:
                raise error

        return run

    def spec(self, name: str, run: Run | None = None, **fields: object) -> ChildSpec:
        return ChildSpec(name=name, run=run or self.child(name), policy=POLICY, **fields)  # type: ignore[arg-type]

    def supervisor(self, *specs: ChildSpec, jitter: Callable[[], float] = lambda: 0.0) -> Supervisor:
        return Supervisor(specs, report=self.crashes.append, jitter=jitter)


async def _never_up(*, task_status: trio.TaskStatus[None]) -> None:
    raise Boom("no port")


async def _run_for(supervisor: Supervisor, seconds: float) -> None:
    """Run it, stop it after `seconds`, and wait for its end."""
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await trio.sleep(seconds)
            supervisor.stop()


async def test_children_start_in_order_and_stop_in_reverse() -> None:
    diary = Diary()
    supervisor = diary.supervisor(*(diary.spec(name) for name in "abc"))
    await _run_for(supervisor, 1)
    assert diary.words == ["a starts", "b starts", "c starts", "c ends", "b ends", "a ends"]
    assert [child.state for child in supervisor.statistics()] == [ChildState.ENDED] * 3


async def test_the_next_child_starts_only_when_the_one_before_is_up() -> None:
    diary = Diary()

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(3)
        diary.write("slow is up")
        task_status.started()
        await trio.sleep_forever()

    supervisor = diary.supervisor(diary.spec("slow", slow), diary.spec("b"))
    await _run_for(supervisor, 1)
    assert diary.entries == [("slow is up", 3), ("b starts", 3), ("b ends", 4)]


async def test_started_is_told_once_all_children_are_up() -> None:
    diary = Diary()
    supervisor = diary.supervisor(diary.spec("a"), diary.spec("b"))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert supervisor.statistics() == (
            ChildStatistics("a", ChildState.RUNNING, 0),
            ChildStatistics("b", ChildState.RUNNING, 0),
        )
        assert repr(supervisor) == "<Supervisor: a running, b running>"
        supervisor.stop()


async def test_cancelling_stops_in_reverse_order_too_each_after_the_one_before_has_ended() -> None:
    diary = Diary()
    specs = [diary.spec(name, diary.child(name, ends_s=2)) for name in "ab"]
    async with trio.open_nursery() as nursery:
        await nursery.start(diary.supervisor(*specs).run)
        nursery.cancel_scope.cancel()
    assert diary.entries == [("a starts", 0), ("b starts", 0), ("b ends", 2), ("a ends", 4)]
    assert diary.crashes == []


async def test_the_error_of_a_first_start_surfaces_after_the_others_were_stopped() -> None:
    diary = Diary()
    supervisor = diary.supervisor(diary.spec("a"), diary.spec("b", _never_up), diary.spec("c"))
    with pytest.raises(Boom, match="no port"):
        await supervisor.run()
    assert diary.words == ["a starts", "a ends"]
    assert [child.state for child in supervisor.statistics()] == [
        ChildState.ENDED,
        ChildState.FAILED,
        ChildState.WAITING,
    ]


async def test_the_error_of_a_first_start_reaches_the_nursery_that_started_the_supervisor() -> None:
    diary = Diary()
    async with trio.open_nursery() as nursery:
        with pytest.raises(Boom, match="no port"):
            await nursery.start(diary.supervisor(diary.spec("b", _never_up)).run)


async def test_a_child_that_returns_without_having_started_fails_its_start() -> None:
    async def forgetful(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()

    diary = Diary()
    with pytest.raises(RuntimeError, match="started"):
        await diary.supervisor(diary.spec("forgetful", forgetful)).run()


async def test_a_start_that_hangs_can_be_cancelled() -> None:
    async def hanging(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    diary = Diary()
    supervisor = diary.supervisor(diary.spec("a"), diary.spec("hanging", hanging))
    with trio.move_on_after(5) as scope:
        await supervisor.run()
    assert scope.cancelled_caught
    assert diary.words == ["a starts", "a ends"]


async def test_a_crashed_child_is_restarted_alone_after_growing_delays() -> None:
    diary = Diary()
    crashing = diary.child("crashing", lives_s=10, error=Boom())
    supervisor = diary.supervisor(diary.spec("calm"), diary.spec("crashing", crashing))
    await _run_for(supervisor, 25)
    assert [entry for entry in diary.entries if entry[0] == "crashing starts"] == [
        ("crashing starts", 0),
        ("crashing starts", 11),
        ("crashing starts", 23),
    ]
    assert diary.words.count("calm starts") == 1
    assert [(crash.name, crash.restarts, crash.delay_s) for crash in diary.crashes] == [
        ("crashing", 0, 1.0),
        ("crashing", 1, 2.0),
    ]
    assert isinstance(diary.crashes[0].error, Boom)
    assert supervisor.statistics()[1].restarts == 2


async def test_jitter_lengthens_the_delay() -> None:
    diary = Diary()
    policy = RestartPolicy(first_delay_s=1.0, jitter_share=0.5)
    run = diary.child("a", lives_s=10, error=Boom())
    spec = ChildSpec(name="a", run=run, policy=policy)
    await _run_for(diary.supervisor(spec, jitter=lambda: 0.5), 12)
    assert diary.crashes[0].delay_s == 1.25


async def test_a_restart_that_fails_to_start_counts_as_another_crash() -> None:
    diary = Diary()
    starts = 0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise Boom("second start")
        task_status.started()
        await trio.sleep(1 if starts == 1 else 1e6)
        raise Boom("first run")

    supervisor = diary.supervisor(diary.spec("a", run))
    await _run_for(supervisor, 100)
    assert [str(crash.error) for crash in diary.crashes] == ["first run", "second start"]
    assert supervisor.statistics()[0].restarts == 2


async def test_too_many_restarts_stop_everything_and_fail_the_supervisor() -> None:
    diary = Diary()
    crashing = diary.child("crashing", lives_s=1, error=Boom("again"))
    supervisor = diary.supervisor(diary.spec("a"), diary.spec("crashing", crashing))
    with pytest.raises(RestartLimitReached, match="crashing ended again after 2 restarts in 60 s") as caught:
        await supervisor.run()
    assert isinstance(caught.value.__cause__, Boom)
    assert diary.words.count("crashing starts") == 3
    assert diary.words[-1] == "a ends"
    assert diary.crashes[-1].delay_s is None
    assert [child.state for child in supervisor.statistics()] == [ChildState.ENDED, ChildState.FAILED]


async def test_crashes_further_apart_than_the_window_never_reach_the_limit() -> None:
    diary = Diary()
    supervisor = diary.supervisor(diary.spec("a", diary.child("a", lives_s=61, error=Boom())))
    await _run_for(supervisor, 1000)
    assert supervisor.statistics()[0].restarts > 10


async def test_supervisors_nest_and_a_failed_one_is_restarted_by_the_one_above() -> None:
    diary = Diary()

    async def inner(*, task_status: trio.TaskStatus[None]) -> None:
        crashing = diary.child("crashing", lives_s=1, error=Boom())
        await diary.supervisor(diary.spec("crashing", crashing)).run(task_status=task_status)

    supervisor = Supervisor([diary.spec("inner", inner)], jitter=lambda: 0.0)
    await _run_for(supervisor, 8)
    assert supervisor.statistics() == (ChildStatistics("inner", ChildState.ENDED, 1),)
    assert diary.words.count("crashing starts") == 4


@pytest.mark.parametrize(
    ("kind", "error", "is_restarted"),
    [
        (RestartKind.PERMANENT, None, True),
        (RestartKind.PERMANENT, Boom(), True),
        (RestartKind.TRANSIENT, None, False),
        (RestartKind.TRANSIENT, Boom(), True),
        (RestartKind.TEMPORARY, None, False),
        (RestartKind.TEMPORARY, Boom(), False),
    ],
)
async def test_the_kind_decides_about_a_restart(
    kind: RestartKind, error: Exception | None, is_restarted: bool
) -> None:
    diary = Diary()
    run = diary.child("a", lives_s=5, error=error)
    supervisor = diary.supervisor(diary.spec("a", run, restart=kind), diary.spec("b"))
    await _run_for(supervisor, 7)
    assert supervisor.statistics()[0].restarts == (1 if is_restarted else 0)
    assert len(diary.crashes) == (1 if is_restarted or error else 0)
    assert diary.words.count("b starts") == 1


async def test_a_child_is_asked_first_and_given_time_to_return() -> None:
    diary = Diary()
    asked = trio.Event()
    run = diary.child("a", asked=asked, ends_s=3)
    spec = diary.spec("a", run, ask_to_end=asked.set, shutdown_s=5.0)
    await _run_for(diary.supervisor(spec), 1)
    assert diary.entries == [("a starts", 0), ("a ends", 4)]


async def test_a_child_that_does_not_return_when_asked_is_cancelled() -> None:
    diary = Diary()
    spec = diary.spec("a", ask_to_end=lambda: None, shutdown_s=5.0)
    await _run_for(diary.supervisor(spec), 1)
    assert diary.entries == [("a starts", 0), ("a ends", 6)]


async def test_a_child_that_is_slow_to_end_does_not_hold_up_the_next_for_ever() -> None:
    diary = Diary()
    slow = diary.spec("slow", diary.child("slow", ends_s=100), shutdown_s=5.0)
    await _run_for(diary.supervisor(diary.spec("a"), slow), 1)
    assert diary.entries == [("a starts", 0), ("slow starts", 0), ("a ends", 6), ("slow ends", 101)]


async def test_a_child_that_waits_for_its_restart_stops_at_once() -> None:
    diary = Diary()
    supervisor = diary.supervisor(diary.spec("a", diary.child("a", lives_s=1, error=Boom())))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(1.5)
        assert supervisor.statistics()[0].state is ChildState.BACKING_OFF
        supervisor.stop()
    assert trio.current_time() - diary.start_s == pytest.approx(1.5)


async def test_an_error_in_a_group_with_others_is_one_crash_with_all_of_them() -> None:
    diary = Diary()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(_raise_after, 1.0)
            nursery.start_soon(_raise_after, 1.0)

    await _run_for(diary.supervisor(diary.spec("a", run)), 1.5)
    (crash,) = diary.crashes
    assert isinstance(crash.error, ExceptionGroup)
    assert [type(error) for error in crash.error.exceptions] == [Boom, Boom]


async def _raise_after(seconds: float) -> None:
    try:
        await trio.sleep(seconds)
    finally:
        raise Boom


async def test_an_interrupt_is_no_crash_and_ends_everything() -> None:
    diary = Diary()
    run = diary.child("a", lives_s=1, error=KeyboardInterrupt())
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        await diary.supervisor(diary.spec("a", run), diary.spec("b")).run()
    assert diary.crashes == []
    assert diary.words[-1] == "b ends"


async def test_a_stop_while_children_are_starting_leaves_out_the_rest() -> None:
    diary = Diary()

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(3)
        task_status.started()

    supervisor = diary.supervisor(diary.spec("a"), diary.spec("slow", slow), diary.spec("c"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        supervisor.stop()
    assert diary.entries == [("a starts", 0), ("a ends", 1)]


async def test_a_fault_of_the_report_is_not_swallowed() -> None:
    def report(crash: ChildCrashed) -> None:
        raise Boom("report")

    diary = Diary()
    spec = diary.spec("a", diary.child("a", lives_s=1, error=Boom("child")))
    with pytest.RaisesGroup(pytest.RaisesExc(Boom, match="report"), flatten_subgroups=True):
        await Supervisor([spec], report=report).run()
