"""One blob on its way into a real store, from sources that misbehave as a test says."""

from __future__ import annotations

import random

import attrs
import pytest
import trio

from runner.errors import ContentMismatch, DiskFull, RegistryDenied, RegistryUnavailable
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.transfers import (
    REGISTRY,
    RULES,
    Asked,
    ScriptedSource,
    descriptor_of,
    downloads,
    tools,
    until,
    without_ranges,
)

pytestmark = pytest.mark.anyio

CONTENT = random.Random(1).randbytes(20_000)  # in pieces of 1,000
SMALL = b"some text"


async def test_a_small_blob_comes_in_one_request_without_a_range(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(SMALL)
        blob = await into.fetch(source)
        assert blob.path.read_bytes() == SMALL
        assert source.ranges() == [(0, None)]
        assert into.meter.done_bytes == into.meter.transferred_bytes == len(SMALL)


async def test_an_empty_blob_needs_no_request(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(b"")
        assert (await into.fetch(source)).path.read_bytes() == b""
        assert source.asked == []


async def test_a_large_blob_comes_in_ranges_side_by_side(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(CONTENT)
        async with trio.open_nursery() as nursery:
            source.gate.clear()
            nursery.start_soon(into.fetch, source)
            await until(lambda: source.open_bodies == RULES.connections)
            source.gate.set()
        assert source.open_bodies_max == RULES.connections
        assert sorted(source.ranges()) == [(start, start + 1000) for start in range(0, 20_000, 1000)]
        (blob,) = await into.running.store.hold_blobs((descriptor_of(CONTENT).digest,))
        assert blob.path.read_bytes() == CONTENT


async def test_all_blobs_together_have_no_more_connections_than_there_are(tmp_path):
    async with downloads(tmp_path / "store") as into:
        into.tools = tools(connections=6)
        contents = [random.Random(seed).randbytes(9_000) for seed in range(3)]
        sources = [ScriptedSource(content) for content in contents]
        async with trio.open_nursery() as nursery:
            for each in sources:
                each.gate.clear()
                nursery.start_soon(into.fetch, each)
            await until(lambda: sum(each.open_bodies for each in sources) == 6)
            for each in sources:
                each.gate.set()
        assert into.tools.connections.borrowed_tokens == 0


async def test_content_that_is_there_is_not_fetched(tmp_path):
    async with downloads(tmp_path / "store") as into:
        await into.running.upload(CONTENT)
        source = ScriptedSource(CONTENT)
        assert (await into.fetch(source)).path.read_bytes() == CONTENT
        assert source.asked == []
        assert into.meter.done_bytes == len(CONTENT)


# going on


async def test_what_was_cut_off_is_resumed_where_it_stopped(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(CONTENT, breaks_after=400)
        with pytest.raises(RegistryDenied):
            source.answer = _refusing_after(5)
            await into.fetch(source)
        had_bytes = into.meter.done_bytes
        assert had_bytes
        again = ScriptedSource(CONTENT)
        assert (await into.fetch(again)).path.read_bytes() == CONTENT
        assert again.sent_bytes == len(CONTENT) - had_bytes


def _refusing_after(number: int):
    def answer(asked: Asked):
        if asked.number >= number:
            raise RegistryDenied(REGISTRY, "no more")

    return answer


async def test_O06_a_cancelled_transfer_wakes_its_blocked_readers_and_can_be_resumed(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(CONTENT)

        def answer(asked: Asked):
            if asked.number == 7:
                source.gate.clear()

        source.answer = answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into.fetch, source)
            await until(lambda: len(source.asked) > 7)
            nursery.cancel_scope.cancel()
        assert source.open_bodies == 0
        again = ScriptedSource(CONTENT)
        assert (await into.fetch(again)).path.read_bytes() == CONTENT
        assert again.sent_bytes < len(CONTENT)


async def test_a_straggler_is_replaced(tmp_path):
    async with downloads(tmp_path / "store") as into:
        into.tools = tools(rules=attrs.evolve(RULES, window_s=0.01, slow_rest_s=0.01))
        source = ScriptedSource(CONTENT, stalls=lambda asked: asked.number == 6)
        assert (await into.fetch(source)).path.read_bytes() == CONTENT
        stalled = source.asked[6]
        assert (stalled.start, stalled.end) in source.ranges()[7:]


# S20


async def test_S20_a_server_without_ranges_is_asked_for_all_of_it(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(CONTENT, without_ranges)
        assert (await into.fetch(source)).path.read_bytes() == CONTENT
        assert source.ranges() == [(0, 1000), (0, None)]
        assert list(into.meter.notes) == [f"{REGISTRY} sends no ranges; starting again without"]


async def test_S20_bytes_of_an_earlier_try_that_are_wrong_do_not_spoil_the_next(tmp_path):
    async with downloads(tmp_path / "store") as into:
        wrong = ScriptedSource(CONTENT, _wrong_then_denied)
        with pytest.raises(RegistryDenied):
            await into.fetch(wrong)
        source = ScriptedSource(CONTENT)
        assert (await into.fetch(source)).path.read_bytes() == CONTENT
        assert "starting again" in into.meter.notes[-1]


def _wrong_then_denied(asked: Asked):
    if asked.number:
        raise RegistryDenied(REGISTRY, "no more")
    return bytes(1000)


# S02


async def test_S02_wrong_bytes_leave_nothing_and_the_error_names_digest_and_registry(tmp_path):
    async with downloads(tmp_path / "store") as into:
        before = into.files()
        source = ScriptedSource(CONTENT, lambda asked: bytes(asked.end - asked.start))
        with pytest.raises(ContentMismatch) as caught:
            await into.fetch(source)
        assert REGISTRY in str(caught.value)
        assert str(descriptor_of(CONTENT).digest) in str(caught.value)
        assert into.files() == before
        assert (await into.fetch(ScriptedSource(CONTENT))).path.read_bytes() == CONTENT


# failing


async def test_S05_a_server_that_always_breaks_off_is_tried_five_times(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(SMALL, breaks_after=0)
        with pytest.raises(RegistryUnavailable, match="it broke off"):
            await into.fetch(source)
        assert len(source.asked) == 5


async def test_S05_a_long_transfer_survives_many_interruptions(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(CONTENT, breaks_after=600)
        assert (await into.fetch(source)).path.read_bytes() == CONTENT


async def test_S06_a_refusal_is_not_repeated(tmp_path):
    async with downloads(tmp_path / "store") as into:
        source = ScriptedSource(SMALL, _refusing_after(0))
        with pytest.raises(RegistryDenied):
            await into.fetch(source)
        assert len(source.asked) == 1


async def test_S23_a_full_disk_fails_the_transfer_and_the_next_try_goes_on(tmp_path):
    disk = CountingDisk()
    async with downloads(tmp_path / "store", disk=disk) as into:
        disk.arm(fail_at(lambda number, operation: operation.startswith("write") and number > 12, 28))
        with pytest.raises(DiskFull):
            await into.fetch(ScriptedSource(CONTENT))
        disk.arm(lambda number, operation: None)
        assert (await into.fetch(ScriptedSource(CONTENT))).path.read_bytes() == CONTENT
