"""Addresses, mailboxes and replies: every ask is answered, whatever ends."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.actor import Address, Mailbox, Reply
from runner.errors import Unavailable

pytestmark = pytest.mark.anyio


@attrs.frozen
class Add:
    number: int
    reply: Reply[int]


async def _summing_actor(address: Address[Add], *, task_status: trio.TaskStatus[None]) -> None:
    total = 0
    with address.open() as mailbox:
        task_status.started()
        async for message in mailbox:
            total += message.number
            message.reply.set(total)


async def test_an_ask_returns_what_the_actor_answered() -> None:
    address: Address[Add] = Address("adder")
    async with trio.open_nursery() as nursery:
        await nursery.start(_summing_actor, address)
        assert await address.ask(lambda reply: Add(2, reply)) == 2
        assert await address.ask(lambda reply: Add(3, reply)) == 5
        nursery.cancel_scope.cancel()


async def test_an_ask_to_an_actor_that_does_not_run_fails_at_once() -> None:
    address: Address[Add] = Address("adder")
    with pytest.raises(Unavailable, match="adder"):
        await address.ask(lambda reply: Add(1, reply))


async def test_an_actor_that_ends_fails_its_open_asks_also_those_it_had_taken_out(virtual_clock) -> None:
    address: Address[Add] = Address("sleeper")
    failures: list[str] = []

    async def take_one_and_leave(*, task_status: trio.TaskStatus[None]) -> None:
        with address.open() as mailbox:
            task_status.started()
            async for _ in mailbox:
                await trio.sleep(1)
                return

    async def ask() -> None:
        try:
            await address.ask(lambda reply: Add(1, reply))
        except Unavailable as error:
            failures.append(error.code)

    async with trio.open_nursery() as nursery:
        await nursery.start(take_one_and_leave)
        for _ in range(3):
            nursery.start_soon(ask)
    assert failures == ["unavailable"] * 3


async def test_an_address_serves_the_next_run_of_its_actor() -> None:
    address: Address[Add] = Address("adder")
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(_summing_actor, address)
            assert await address.ask(lambda reply: Add(7, reply)) == 7
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("asks", [1, 2, 3])
async def test_open_asks_are_limited_and_the_surplus_is_refused_at_once(asks: int, virtual_clock) -> None:
    address: Address[Add] = Address("busy", capacity=2)
    outcomes: list[str] = []

    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        with address.open():
            task_status.started()
            await trio.sleep(10)

    async def ask() -> None:
        with trio.move_on_after(1) as scope:
            try:
                await address.ask(lambda reply: Add(1, reply))
            except Unavailable:
                outcomes.append("refused")
        if scope.cancelled_caught:
            outcomes.append("waited")

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        for _ in range(asks):
            nursery.start_soon(ask)
    assert sorted(outcomes) == ["refused"] * max(0, asks - 2) + ["waited"] * min(asks, 2)


async def test_a_caller_who_left_is_visible_to_the_actor() -> None:
    reply: Reply[int] = Reply()
    with trio.move_on_after(0):
        await reply.wait()
    assert reply.is_abandoned
    assert repr(reply) == "<Reply abandoned>"


async def test_a_second_answer_is_ignored() -> None:
    reply: Reply[int] = Reply()
    reply.set(1)
    reply.fail(ValueError())
    assert await reply.wait() == 1


async def test_statistics_tell_queued_messages_and_open_asks() -> None:
    mailbox: Mailbox[int] = Mailbox(4)
    mailbox.tell(1)
    assert mailbox.statistics().queued == 1
    assert mailbox.statistics().open_asks == 0
    mailbox._close(lambda: Unavailable("gone"))
