from __future__ import annotations

import pytest
import trio
import trio.testing

from runner.api.body import READ_AHEAD_BYTES, RequestBody

pytestmark = pytest.mark.anyio


async def test_all_of_it() -> None:
    body = RequestBody()
    body.append(b"ab")
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            await trio.testing.wait_all_tasks_blocked()
            body.append(b"")
            body.append(b"c")
            body.set_complete()

        nursery.start_soon(finish)
        assert await body == b"abc"
    assert await body == b"abc"


async def test_piece_by_piece() -> None:
    body = RequestBody()
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            async for piece in body:
                got.append(piece)  # looked at meanwhile

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        body.append(b"a")
        await trio.testing.wait_all_tasks_blocked()
        assert got == [b"a"]
        body.append(b"b")
        body.append(b"c")
        body.set_complete()
    assert got == [b"a", b"bc"]


async def test_an_empty_body_has_no_pieces() -> None:
    body = RequestBody()
    body.set_complete()
    assert [piece async for piece in body] == []
    assert await body == b""


@pytest.mark.parametrize(
    ("size_bytes", "has_room"), [(READ_AHEAD_BYTES, True), (READ_AHEAD_BYTES + 1, False)]
)
async def test_the_reader_waits_when_enough_is_there(size_bytes: int, has_room: bool) -> None:
    body = RequestBody()
    body.append(b"x" * size_bytes)
    with trio.move_on_after(0) as scope:
        await body.wait_for_room()
    assert scope.cancelled_caught is not has_room


async def test_taking_a_piece_makes_room() -> None:
    body = RequestBody()
    body.append(b"x" * (READ_AHEAD_BYTES + 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await anext(aiter(body))) == READ_AHEAD_BYTES + 1


async def test_wanting_all_of_it_makes_room_for_all_of_it() -> None:
    body = RequestBody()
    body.append(b"x" * (READ_AHEAD_BYTES + 1))
    async with trio.open_nursery() as nursery:

        async def bring_the_rest() -> None:
            for _ in range(3):
                await body.wait_for_room()
                body.append(b"x" * READ_AHEAD_BYTES)
            body.set_complete()

        nursery.start_soon(bring_the_rest)
        assert len(await body) == 4 * READ_AHEAD_BYTES + 1
