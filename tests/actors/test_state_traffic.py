"""One worker's exchange of saved states, without a worker: what it may say, and what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from actors.saved_states import SavedStates
from actors.state_traffic import PARTS_AHEAD, SAVED_MAX, SEND_S, WANTED_MAX, SavingRules, StateTraffic
from actors.worker_handle import Outbox
from runner.oci.digest import Digest
from runner.store.states import StateKey
from runner.wire.codec import ToWorkerDecoder
from runner.wire.messages import (
    Loaded,
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StateKept,
    StatePart,
    ToWorker,
    WantState,
)
from runner.wire.state_schema import OFFERS_MAX, STATE_PART_BYTES
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


def key_of(traffic: Traffic) -> StateKey:
    assert traffic.traffic._key is not None
    return traffic.traffic._key


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
        assert next_one.traffic.hear(WantState(offer.state_id))
        data = b""
        while len(data) < size_bytes:
            part = await next_one.told()
            assert isinstance(part, StatePart)
            data += part.data
    assert data == parts[0].data + parts[1].data


async def test_nothing_is_offered_when_there_is_nothing(states: SavedStates) -> None:
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    assert offers.offers == () and offers.room_bytes > 0
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
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    assert len(offers.offers) == (save_bytes > 100)
    assert offers.room_bytes == max(0, free_bytes) // 4


async def test_G12_a_worker_gets_only_what_was_offered_to_it(states: SavedStates) -> None:
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    await traffic.told()
    await leave(states, *a_state(token=9))  # meanwhile, by another worker of the same model
    (offer,) = states.offers(key_of(traffic))
    async with served(traffic):
        assert traffic.traffic.hear(WantState(offer.state_id))
        assert await traffic.told() == StateGone(offer.state_id)


async def test_W07_only_so_many_states_may_be_asked_for_at_a_time(states: SavedStates) -> None:
    traffic = traffic_of(states)
    assert not traffic.traffic.hear(WantState(1))  # before it was loaded
    traffic.traffic.loaded(LOADED)
    for _ in range(WANTED_MAX):
        assert traffic.traffic.hear(WantState(1))
    assert not traffic.traffic.hear(WantState(1))


async def test_a_worker_that_had_no_room_is_told_when_there_is_some(
    states: SavedStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.state_traffic.ROOM_INTERVAL_S", 0.001)
    free = [0]
    traffic = traffic_of(states, attrs.evolve(RULES, free_bytes=lambda: free[0]))
    traffic.traffic.loaded(LOADED)
    assert await traffic.told() == OfferStates((), 0)
    async with served(traffic):
        free[0] = 4000
        assert await traffic.told() == OfferStates((), 1000)


async def test_a_state_that_went_meanwhile_is_gone(states: SavedStates) -> None:
    await leave(states, *a_state())
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    offers = await traffic.told()
    assert isinstance(offers, OfferStates)
    state_id = offers.offers[0].state_id
    await states.drop(state_id, "for a test")
    assert await traffic.told() == StateGone(state_id)  # at once
    async with served(traffic):
        assert traffic.traffic.hear(WantState(state_id))
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
        assert traffic.traffic.hear(WantState(offers.offers[0].state_id))
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


# while a worker runs


@asynccontextmanager
async def running(states: SavedStates, rules: SavingRules = RULES) -> AsyncIterator[Traffic]:
    traffic = traffic_of(states, rules)
    traffic.traffic.loaded(LOADED)
    assert isinstance(await traffic.told(), OfferStates)
    async with served(traffic):
        yield traffic
    await traffic.traffic.end()


async def kept_state(traffic: Traffic, *, token: int = 1) -> int:
    announced, part = a_state(token=token)
    assert traffic.traffic.hear(announced)
    assert await traffic.told() == MoreParts(PARTS_AHEAD)
    assert traffic.traffic.hear(part)
    kept = await traffic.told()
    assert isinstance(kept, StateKept) and kept.state_id is not None
    return kept.state_id


async def test_what_a_running_worker_saves_it_can_have_back(states: SavedStates) -> None:
    size_bytes = (PARTS_AHEAD + 1) * STATE_PART_BYTES
    announced = SaveState(owner="", tokens=(1, 2, 3), size_bytes=size_bytes)
    async with running(states) as traffic:
        assert traffic.traffic.hear(announced)
        assert await traffic.told() == MoreParts(PARTS_AHEAD)
        for index in range(PARTS_AHEAD):
            assert traffic.traffic.hear(SavedPart(bytes([index]) * STATE_PART_BYTES))
        assert await traffic.told() == MoreParts(1)
        assert traffic.traffic.hear(SavedPart(b"z" * STATE_PART_BYTES))
        answers = [await traffic.told() for _ in range(PARTS_AHEAD)]
        kept = answers.pop()
        assert answers == [MoreParts(1)] * (PARTS_AHEAD - 1)
        assert isinstance(kept, StateKept) and kept.state_id is not None and kept.room_bytes > size_bytes
        assert traffic.traffic.hear(WantState(kept.state_id))
        parts = [await traffic.told() for _ in range(PARTS_AHEAD + 1)]
        assert parts[-1] == StatePart(kept.state_id, b"z" * STATE_PART_BYTES)


async def test_W07_a_worker_saves_one_state_at_a_time_and_sends_what_it_was_asked_for(
    states: SavedStates,
) -> None:
    async with running(states) as traffic:
        announced, part = a_state(1 << 20)
        assert not traffic.traffic.hear(part)
        assert traffic.traffic.hear(announced)
        assert not traffic.traffic.hear(announced)
        assert not traffic.traffic.hear(part)
        assert await traffic.told() == MoreParts(PARTS_AHEAD)
        small = SavedPart(b"x")
        for _ in range(PARTS_AHEAD):
            assert traffic.traffic.hear(small)
        assert not traffic.traffic.hear(small)
    nothing = traffic_of(None)
    nothing.traffic.loaded(LOADED)
    assert not nothing.traffic.hear(announced)


@pytest.mark.parametrize("how", ["too large", "more than announced"])
async def test_of_a_state_that_cannot_be_kept_the_worker_is_told_and_the_next_is(
    states: SavedStates, tmp_path: Path, how: str
) -> None:
    async with running(states) as traffic:
        size_bytes = 1 << 41 if how == "too large" else 9
        announced = SaveState(owner="", tokens=(1, 2, 3), size_bytes=size_bytes)
        assert traffic.traffic.hear(announced)
        if how == "more than announced":
            assert await traffic.told() == MoreParts(PARTS_AHEAD)
            assert traffic.traffic.hear(SavedPart(b"x" * 10))
            assert traffic.traffic.hear(SavedPart(b"x"))  # was on its way
        kept = await traffic.told()
        assert isinstance(kept, StateKept) and kept.state_id is None
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]
        await kept_state(traffic)
    assert states.usage.states == 1


async def test_a_worker_is_told_what_it_cannot_have_any_more(states: SavedStates) -> None:
    async with running(states) as traffic:
        state_id = await kept_state(traffic)
        await states.drop(state_id, "for a test")
        assert await traffic.told() == StateGone(state_id)
        longer = SaveState(owner="", tokens=(7, 2, 3, 4), size_bytes=1)
        first = await kept_state(traffic, token=7)
        assert traffic.traffic.hear(longer)
        assert isinstance(await traffic.told(), MoreParts)
        assert traffic.traffic.hear(SavedPart(b"x"))
        assert await traffic.told() == StateGone(first)  # the longer one has all of it
        assert isinstance(await traffic.told(), StateKept)
    await states.drop(first + 1, "for a test")  # nobody is left to be told
    assert repr(traffic.outbox).startswith("<Outbox 0")


async def test_O08_a_worker_is_offered_only_so_many_states(states: SavedStates) -> None:
    async with running(states) as traffic:
        ids = [await kept_state(traffic, token=token) for token in range(OFFERS_MAX)]
        assert traffic.traffic.hear(WantState(ids[0]))
        assert isinstance(await traffic.told(), StatePart)
        await kept_state(traffic, token=OFFERS_MAX)
        assert await traffic.told() == StateGone(ids[1])
        assert states.usage.states == OFFERS_MAX + 1


async def test_a_state_that_was_under_way_when_the_worker_was_asked_to_end_is_kept(
    states: SavedStates,
) -> None:
    announced, _ = a_state(3)
    async with running(states) as traffic:
        assert traffic.traffic.hear(announced)
        assert await traffic.told() == MoreParts(PARTS_AHEAD)
        assert traffic.traffic.hear(SavedPart(b"x"))
        assert await traffic.told() == MoreParts(1)
        assert traffic.traffic.hear(SavedPart(b"y"))
    traffic = traffic_of(states)
    traffic.traffic.loaded(LOADED)
    async with served(traffic):
        assert traffic.traffic.hear(announced)
        await traffic.told()
        await traffic.told()
    assert traffic.traffic.hear(SavedPart(b"x"))  # read, and not written yet
    traffic.traffic.farewell()
    await traffic.traffic.take([SavedPart(b"yz"), *a_state(token=9)])
    await traffic.traffic.end()
    assert states.usage.states == 2


async def test_a_worker_that_dies_while_it_saves_leaves_nothing(states: SavedStates, tmp_path: Path) -> None:
    async with running(states) as traffic:
        assert traffic.traffic.hear(a_state()[0])
        assert isinstance(await traffic.told(), MoreParts)
    assert states.usage.states == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


async def test_L07_a_disk_that_hangs_keeps_no_prompt_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_clock: trio.testing.MockClock
) -> None:
    async def at_once(work: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return work()

    async def hang(state_id: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("actors.saved_states._in_thread", at_once)
    states = SavedStates(tmp_path / "cache", limit_bytes=1 << 40)
    await states.open()
    async with running(states) as traffic:
        state_id = await kept_state(traffic)
        monkeypatch.setattr(states, "read", hang)
        begin_s = trio.current_time()
        assert traffic.traffic.hear(WantState(state_id))
        assert await traffic.told() == StateGone(state_id)
        assert trio.current_time() - begin_s == pytest.approx(SEND_S)
