"""One worker's exchange of saved states, without a worker: what it may say, and what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from actors.saved_states import SavedStates
from actors.state_traffic import SAVED_MAX, WANTED_MAX, SavingRules, StateTraffic
from actors.worker_handle import Outbox
from runner.oci.digest import Digest
from runner.wire.codec import ToWorkerDecoder
from runner.wire.messages import (
    Loaded,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StatePart,
    ToWorker,
)
from runner.wire.state_schema import STATE_PART_BYTES
from tests.support.kept_worker import worker_spec

pytestmark = pytest.mark.anyio

LOADED = Loaded(
    engine_version="engine 1",
    context_size=100,
    trained_context_size=100,
    n_vocab=256,
    n_cells=200,
    max_sequences=4,
    load_s=0.1,
)
RULES = SavingRules(save_s=1.0, save_bytes=1000, free_bytes=lambda: 1 << 40)


@pytest.fixture
async def states(tmp_path: Path) -> SavedStates:
    states = SavedStates(tmp_path / "cache", limit_bytes=1 << 40)
    await states.open()
    return states


@attrs.define
class Traffic:
    traffic: StateTraffic
    outbox: Outbox
    _decoder: ToWorkerDecoder = attrs.field(factory=ToWorkerDecoder)

    async def told(self) -> ToWorker:
        """What the worker is told next."""
        (message,) = self._decoder.feed(await self.outbox.take())
        return message


def traffic_of(
    states: SavedStates | None, rules: SavingRules = RULES, *, with_digests: bool = True
) -> Traffic:
    digests = (Digest.parse("sha256:" + "ab" * 32),) if with_digests else ()
    spec = worker_spec(weights_digests=digests)
    outbox = Outbox(1 << 20)
    return Traffic(StateTraffic(states, spec.files, spec.options, outbox, rules), outbox)


async def leave(states: SavedStates, *messages: object, rules: SavingRules = RULES) -> None:
    """A worker that ends, with these last words."""
    leaving = traffic_of(states, rules)
    leaving.traffic.loaded(LOADED)
    leaving.traffic.farewell()
    await leaving.traffic.take(messages)
    await leaving.traffic.end()


def a_state(size_bytes: int = 10, *, token: int = 1) -> tuple[SaveState, SavedPart]:
    announced = SaveState(owner="", tokens=(token, 2, 3), size_bytes=size_bytes)
    return announced, SavedPart(b"x" * size_bytes)


@asynccontextmanager
async def served(traffic: Traffic) -> AsyncIterator[Traffic]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.traffic.serve)
            yield traffic
            nursery.cancel_scope.cancel()


async def test_what_one_worker_leaves_the_next_is_offered_and_sent(states: SavedStates) -> None:
    size_bytes = STATE_PART_BYTES + 5
    announced, _ = a_state(size_bytes)
    parts = SavedPart(b"a" * STATE_PART_BYTES), SavedPart(b"b" * 5)
    await leave(states, announced, *parts, rules=attrs.evolve(RULES, save_bytes=size_bytes))
    next_one = traffic_of(states)
    next_one.traffic.loaded(LOADED)
    offers = await next_one.told()
    assert isinstance(offers, OfferStates)
    (offer,) = offers.offers
    assert (offer.tokens, offer.size_bytes) == ((1, 2, 3), size_bytes)
    async with served(next_one):
        assert next_one.traffic.want(offer.state_id)
        data = b""
        while len(data) < size_bytes:
            part = await next_one.told()
            assert isinstance(part, StatePart)
            data += part.data
    assert data == parts[0].data + parts[1].data


async def test_nothing_is_offered_when_there_is_nothing(states: SavedStates) -> None:
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    assert repr(traffic.outbox) == "<Outbox 0 waiting, 0 bytes>"
    assert traffic.traffic.farewell() == Shutdown(save_bytes=1000, save_s=1.0)
    assert traffic.traffic.save_s == 1.0


@pytest.mark.parametrize("lacks", ["states", "digests", "load"])
async def test_without_what_it_needs_a_worker_is_not_asked_to_save(states: SavedStates, lacks: str) -> None:
    traffic = traffic_of(None if lacks == "states" else states, with_digests=lacks != "digests")
    if lacks != "load":
        traffic.traffic.loaded(LOADED)
    assert traffic.traffic.farewell() == Shutdown()
    assert traffic.traffic.save_s == 0
    await traffic.traffic.take(a_state())
    await traffic.traffic.end()
    assert states.usage.states == 0


@pytest.mark.parametrize(("free_bytes", "save_bytes"), [(-1, 0), (400, 100), (4000, 1000), (4004, 1000)])
async def test_a_state_takes_no_more_than_its_part_of_the_free_memory(
    states: SavedStates, free_bytes: int, save_bytes: int
) -> None:
    await leave(states, *a_state(101))
    traffic = traffic_of(states, attrs.evolve(RULES, free_bytes=lambda: free_bytes))
    traffic.traffic.loaded(LOADED)
    assert traffic.traffic.farewell() == Shutdown(save_bytes=save_bytes, save_s=1.0)
    assert repr(traffic.outbox).startswith("<Outbox 1 ") is (save_bytes > 100)


async def test_G12_a_worker_may_ask_only_for_what_was_offered_to_it(states: SavedStates) -> None:
    await leave(states, *a_state())
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    state_id = offers.offers[0].state_id
    assert not traffic.traffic.want(state_id + 1)
    await leave(states, *a_state(token=9))  # meanwhile, by another worker of the same model
    assert not traffic.traffic.want(state_id + 1)
    for _ in range(WANTED_MAX):
        assert traffic.traffic.want(state_id)
    assert not traffic.traffic.want(state_id)


async def test_a_state_that_went_meanwhile_is_gone(states: SavedStates) -> None:
    await leave(states, *a_state())
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    state_id = offers.offers[0].state_id
    await states.drop(state_id, "for a test")
    async with served(traffic):
        assert traffic.traffic.want(state_id)
        assert await traffic.told() == StateGone(state_id)


async def test_G12_of_a_damaged_state_the_worker_is_told_that_it_is_gone(
    states: SavedStates, tmp_path: Path
) -> None:
    await leave(states, *a_state())
    (path,) = (tmp_path / "cache").glob("*.state")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    async with served(traffic):
        assert traffic.traffic.want(offers.offers[0].state_id)
        assert isinstance(await traffic.told(), StateGone)
    assert states.usage.states == 0


@pytest.mark.parametrize(("size_bytes", "n_kept"), [(999, 1), (1000, 1), (1001, 0)])
async def test_W07_a_worker_leaves_no_more_bytes_than_it_was_asked_for(
    states: SavedStates, size_bytes: int, n_kept: int
) -> None:
    await leave(states, *a_state(size_bytes), *a_state(1000, token=2))
    assert states.usage.states == (n_kept or 1)
    next_one = traffic_of(states)
    next_one.traffic.loaded(LOADED)
    offers = await next_one.told()
    assert isinstance(offers, OfferStates)
    assert [offer.tokens[0] for offer in offers.offers] == ([1] if n_kept else [2])


async def test_W07_a_worker_leaves_only_so_many_states(states: SavedStates) -> None:
    words = [word for token in range(SAVED_MAX + 2) for word in a_state(1, token=token)]
    await leave(states, *words)
    assert states.usage.states == SAVED_MAX


@pytest.mark.parametrize(
    "words",
    [
        (a_state()[1],),
        (a_state()[0],),
        (a_state()[0], SavedPart(b"x" * 9)),
        (a_state()[0], SavedPart(b"x" * 11)),
        ("nothing of interest", a_state()[0], a_state()[0]),
    ],
)
async def test_W07_what_is_not_whole_leaves_nothing(
    states: SavedStates, tmp_path: Path, words: tuple[object, ...]
) -> None:
    await leave(states, *words)
    assert states.usage.states == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


async def test_a_state_after_one_that_was_cut_short_is_kept(states: SavedStates) -> None:
    announced, part = a_state()
    await leave(states, announced, *a_state(token=2), part)
    assert states.usage.states == 1
