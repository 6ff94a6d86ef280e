"""Who shares a transfer of content with whom, and what becomes of it when some leave."""

from __future__ import annotations

import random

import pytest
import trio

from actors.transfers_blobs import BlobTicket, BlobTransfers
from runner.errors import ContentMismatch, RegistryDenied
from tests.support.transfers import (
    REGISTRY,
    Asked,
    Downloads,
    ScriptedSource,
    descriptor_of,
    downloads,
    tools,
    until,
)

pytestmark = pytest.mark.anyio

CONTENT = random.Random(2).randbytes(8_000)  # in pieces of 1,000


def held_source() -> ScriptedSource:
    source = ScriptedSource(CONTENT)
    source.gate.clear()
    return source


def transfers(nursery: trio.Nursery, into: Downloads) -> BlobTransfers:
    return BlobTransfers(nursery, into.running.store, tools())


def ticket() -> BlobTicket:
    return BlobTicket(descriptor_of(CONTENT))


def denied(asked: Asked) -> None:
    raise RegistryDenied(REGISTRY, "not for you")


async def test_S21_twenty_who_want_the_same_get_it_with_one_download(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs, source = transfers(nursery, into), held_source()
        got = []

        async def fetch():
            got.append(await blobs.fetch(ticket(), source))

        async with trio.open_nursery() as waiting:
            for _ in range(20):
                waiting.start_soon(fetch)
            await until(lambda: source.open_bodies > 0)
            assert repr(blobs) == "<BlobTransfers 1 under way>"
            source.gate.set()
        assert [blob.path.read_bytes() for blob in got] == [CONTENT] * 20
        assert source.sent_bytes == len(CONTENT)


async def test_S21_when_the_first_leaves_the_others_go_on(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs, source = transfers(nursery, into), held_source()
        first_scope = trio.CancelScope()

        async def first():
            with first_scope:
                await blobs.fetch(ticket(), source)

        async def second():
            assert (await blobs.fetch(ticket(), source)).path.read_bytes() == CONTENT

        async with trio.open_nursery() as waiting:
            waiting.start_soon(first)
            await until(lambda: source.open_bodies > 0)
            waiting.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            first_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            source.gate.set()
        assert source.sent_bytes == len(CONTENT)


async def test_S21_when_the_last_leaves_it_stops_and_can_be_resumed(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs = transfers(nursery, into)
        source = ScriptedSource(CONTENT)
        source.answer = lambda asked: source.gate.clear() if asked.number == 4 else None
        async with trio.open_nursery() as waiting:
            waiting.start_soon(blobs.fetch, ticket(), source)
            waiting.start_soon(blobs.fetch, ticket(), source)
            await until(lambda: len(source.asked) > 4)
            waiting.cancel_scope.cancel()
        assert source.open_bodies == 0
        assert repr(blobs) == "<BlobTransfers 0 under way>"
        again = ScriptedSource(CONTENT)
        await blobs.fetch(ticket(), again)
        assert again.sent_bytes < len(CONTENT)


async def test_S21_when_the_source_of_the_one_who_works_fails_the_others_use_their_own(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs = transfers(nursery, into)
        bad, good = ScriptedSource(CONTENT, denied), ScriptedSource(CONTENT)
        refused = []

        async def first():
            try:
                await blobs.fetch(ticket(), bad)
            except RegistryDenied as error:
                refused.append(error)

        async with trio.open_nursery() as waiting:
            waiting.start_soon(first)
            for _ in range(3):
                waiting.start_soon(blobs.fetch, ticket(), good)
        assert good.sent_bytes == len(CONTENT)
        assert len(refused) == 1 or not bad.asked  # unless another began


async def test_S21_an_error_reaches_all_who_have_the_same_source(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs, source = transfers(nursery, into), ScriptedSource(CONTENT, denied)
        refused = []

        async def fetch():
            with pytest.raises(RegistryDenied) as caught:
                await blobs.fetch(ticket(), source)
            refused.append(caught.value)

        async with trio.open_nursery() as waiting:
            for _ in range(5):
                waiting.start_soon(fetch)
        assert len(refused) == 5
        assert len(source.asked) == 1


async def test_S02_one_who_announces_another_size_waits_and_fails_alone(tmp_path):
    async with downloads(tmp_path / "store") as into, trio.open_nursery() as nursery:
        blobs, source, other = transfers(nursery, into), held_source(), ScriptedSource(CONTENT + b"more")
        wrong = BlobTicket(descriptor_of(CONTENT, size_bytes=len(CONTENT) + 4))
        caught = []

        async def fetch_wrong():
            try:
                await blobs.fetch(wrong, other)
            except ContentMismatch as error:
                caught.append(error)

        async with trio.open_nursery() as waiting:
            waiting.start_soon(blobs.fetch, ticket(), source)
            await until(lambda: source.open_bodies > 0)
            waiting.start_soon(fetch_wrong)
            await trio.testing.wait_all_tasks_blocked()
            assert other.asked == []
            source.gate.set()
        assert caught
        assert (await blobs.fetch(ticket(), source)).path.read_bytes() == CONTENT
