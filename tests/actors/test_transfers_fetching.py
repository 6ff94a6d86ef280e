"""The course of a transfer, and turns, on a virtual clock."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.transfers import TransferBoard
from actors.transfers_fetching import Course, TransferTurns
from runner.domain.transfer import TransferDirection, TransferPhase
from tests.support.transfers import descriptor_of

pytestmark = pytest.mark.anyio


@attrs.define
class Meter:
    done_bytes: int = 0


def course() -> Course:
    return Course(TransferBoard(reference="ai/tiny", direction=TransferDirection.PULL, started_s=0.0))


def test_a_course_sums_its_layers_and_counts_none_beyond_its_size():
    going, one, two = course(), Meter(), Meter()
    going.add(descriptor_of(bytes(10)), "gguf", "model.gguf", one)
    going.add(descriptor_of(bytes(5)), "license", None, two)
    going.enter(TransferPhase.TRANSFERRING)
    one.done_bytes, two.done_bytes = 4, 7
    going.show()
    shown = going.board.progress
    assert (shown.done_bytes, shown.total_bytes) == (9, 15)
    assert [layer.done_bytes for layer in shown.layers] == [4, 5]
    assert shown.phase is TransferPhase.TRANSFERRING
    one.done_bytes = 10
    going.show()
    assert going.board.progress.phase is TransferPhase.VERIFYING


async def test_turns_are_taken_in_order_and_places_are_shown(virtual_clock):
    turns, order, gates = TransferTurns(1), [], [trio.Event() for _ in range(3)]
    courses = [course() for _ in range(3)]

    async def take(number: int) -> None:
        async with turns.turn(number, courses[number]):
            courses[number].show()
            order.append(number)
            await gates[number].wait()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
        assert [each.board.progress.queue_position for each in courses] == [None, 1, 2]
        assert courses[2].board.progress.phase is TransferPhase.QUEUED
        for gate in gates:
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2]
    assert [each.board.progress.queue_position for each in courses] == [None] * 3


async def test_one_who_leaves_the_queue_frees_the_place(virtual_clock):
    turns, taken = TransferTurns(1), []
    scope = trio.CancelScope()

    async def wait_in_vain() -> None:
        with scope:
            async with turns.turn("b", course()):
                pytest.fail("its turn never comes")

    async def take() -> None:
        async with turns.turn("c", course()):
            taken.append("c")

    async with trio.open_nursery() as nursery:
        async with turns.turn("a", course()):
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not taken
    assert taken == ["c"]


async def test_the_same_model_shares_a_turn(virtual_clock):
    turns = TransferTurns(1)
    with trio.fail_after(1):
        async with turns.turn("a", course()), turns.turn("a", course()):
            await trio.lowlevel.checkpoint()
