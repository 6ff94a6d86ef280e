"""The owner of saved states: what it keeps, for how long, and what it offers to whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from actors.saved_states import AGE_MAX_S, OFFERED_TOKENS_MAX, SavedStates
from runner.store.states import (
    STATE_BYTES_MAX,
    STATE_TOKENS_MAX,
    StateKey,
    StateRefused,
    file_bytes_of,
)
from runner.wire.messages import SaveState
from runner.wire.state_schema import OFFERS_MAX

pytestmark = pytest.mark.anyio

KEY = StateKey(
    weights=("sha256:" + "a" * 64,),
    engine="engine 1",
    architecture="tiny",
    key_type="f16",
    value_type="f16",
    flash_attention="auto",
)
OTHER_WEIGHTS = "sha256:" + "b" * 64
BIG = 1 << 40


@attrs.define
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@attrs.define
class Bench:
    """One run after the other on the same directory."""

    root: Path
    clock: Clock = attrs.field(factory=Clock)
    notices: list[str] = attrs.field(factory=list)

    async def run(self, *, limit_bytes: int = BIG, **options: Any) -> SavedStates:
        states = SavedStates(
            self.root,
            limit_bytes=limit_bytes,
            report=lambda notice: self.notices.append(notice.message),
            clock=self.clock,
            **options,
        )
        await states.open()
        return states


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def announced(*tokens: int, size_bytes: int = 10, owner: str = "") -> SaveState:
    return SaveState(owner=owner, tokens=tokens, size_bytes=size_bytes)


async def save(states: SavedStates, message: SaveState, key: StateKey = KEY) -> bool:
    writer = await states.begin(key, message)
    if writer is None:
        return False
    assert await states.write(writer, b"x" * message.size_bytes)
    await states.keep(writer)
    return True


def offered(states: SavedStates, key: StateKey = KEY) -> list[tuple[int, ...]]:
    return [offer.tokens for offer in states.offers(key)]


async def test_what_was_saved_is_offered_by_the_next_run_last_used_first(bench: Bench) -> None:
    first = await bench.run()
    for token in range(3):
        assert await save(first, announced(token, owner="o", size_bytes=20))
    assert offered(first) == [(2,), (1,), (0,)]
    reader = await first.read(first.offers(KEY)[-1].state_id)
    assert reader is not None
    assert await reader.next_part() == b"x" * 20
    assert await reader.next_part() == b""
    reader.close()
    assert offered(first) == [(0,), (2,), (1,)]
    second = await bench.run()
    assert offered(second) == [(0,), (2,), (1,)]
    assert {(offer.owner, offer.size_bytes) for offer in second.offers(KEY)} == {("o", 20)}
    assert second.usage == first.usage
    assert second.usage.states == 3
    assert second.usage.size_bytes == sum(path.stat().st_size for path in bench.root.glob("*.state"))
    assert bench.notices == []


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (OTHER_WEIGHTS,)},
        {"weights": (*KEY.weights, OTHER_WEIGHTS)},
        {"engine": "engine 2"},
        {"architecture": "other"},
        {"key_type": "q8_0"},
        {"value_type": "q8_0"},
        {"flash_attention": "off"},
    ],
)
async def test_G12_a_worker_is_offered_only_what_was_saved_of_its_like(
    bench: Bench, change: dict[str, Any]
) -> None:
    states = await bench.run()
    assert await save(states, announced(1))
    assert offered(states, attrs.evolve(KEY, **change)) == []
    assert offered(states) == [(1,)]


async def test_the_same_tokens_of_one_owner_are_kept_once(bench: Bench) -> None:
    states = await bench.run()
    for owner in ("", "", "o", "o"):
        assert await save(states, announced(1, 2, owner=owner))
    assert states.usage.states == 2 == len(list(bench.root.glob("*.state")))


async def test_offers_are_few_enough_for_a_message(bench: Bench) -> None:
    states = await bench.run()
    for token in range(OFFERS_MAX + 1):
        await save(states, announced(token))
    assert len(states.offers(KEY)) == OFFERS_MAX
    long = tuple(range(OFFERED_TOKENS_MAX // 4))
    for owner in "abcde":
        await save(states, announced(*long, owner=owner))
    assert [offer.owner for offer in states.offers(KEY)] == list("edcb")


async def test_O08_the_oldest_make_room_for_the_newest(bench: Bench) -> None:
    size_bytes = file_bytes_of(1, 10)
    states = await bench.run(limit_bytes=size_bytes)
    for token in range(30):
        assert await save(states, announced(token))
    assert states.usage.size_bytes <= size_bytes
    assert offered(states)[0] == (29,)
    assert (0,) not in offered(states)
    assert states.usage.states == len(list(bench.root.glob("*.state")))


@pytest.mark.parametrize(("spare_bytes", "is_kept"), [(1, True), (0, True), (-1, False)])
async def test_O08_what_is_larger_than_everything_is_not_kept(
    bench: Bench, spare_bytes: int, is_kept: bool
) -> None:
    states = await bench.run(limit_bytes=file_bytes_of(1, 10) + spare_bytes)
    assert await save(states, announced(1)) is is_kept


async def test_O08_what_is_being_written_counts(bench: Bench) -> None:
    states = await bench.run(limit_bytes=2 * file_bytes_of(1, 10))
    first, second = [await states.begin(KEY, announced(token)) for token in range(2)]
    assert first is not None and second is not None
    assert await states.begin(KEY, announced(2)) is None
    await states.abandon(first)
    third = await states.begin(KEY, announced(2))
    assert third is not None
    for writer in (second, third):
        await states.abandon(writer)
    assert [path.name for path in bench.root.iterdir()] == ["key"]


async def test_what_was_not_used_for_a_day_goes(bench: Bench) -> None:
    await save(await bench.run(), announced(1))
    bench.clock.now_s += AGE_MAX_S - 10
    assert offered(await bench.run()) == [(1,)]
    bench.clock.now_s += 20
    assert offered(await bench.run()) == []
    assert list(bench.root.glob("*.state")) == []


async def test_states_go_with_their_weights(bench: Bench) -> None:
    wanted = {*KEY.weights, OTHER_WEIGHTS}
    states = await bench.run(is_wanted=lambda digest: digest in wanted)
    both, other = (
        attrs.evolve(KEY, weights=(*KEY.weights, OTHER_WEIGHTS)),
        attrs.evolve(KEY, weights=(OTHER_WEIGHTS,)),
    )
    for key in (KEY, both, other):
        await save(states, announced(1), key)
    await states.forget_unwanted()
    assert states.usage.states == 3
    wanted.remove(OTHER_WEIGHTS)
    await states.forget_unwanted()
    assert (offered(states), offered(states, both), offered(states, other)) == ([(1,)], [], [])
    wanted.clear()
    again = await bench.run(is_wanted=lambda digest: digest in wanted)
    assert again.usage.states == 0 == len(list(bench.root.glob("*.state")))


async def test_switched_off_nothing_is_kept_and_what_was_there_goes(bench: Bench) -> None:
    off = await bench.run(limit_bytes=0)
    assert not off.is_on and not bench.root.exists()
    assert not await save(off, announced(1))
    await save(await bench.run(), announced(1))
    off = await bench.run(limit_bytes=0)
    assert not off.is_on and off.usage.states == 0
    assert list(bench.root.glob("*.state")) == []


async def test_room_that_others_need_is_not_taken(bench: Bench) -> None:
    states = await bench.run(keep_free_bytes=1 << 62)
    assert not await save(states, announced(1))
    assert list(bench.root.glob("*.part")) == []


async def test_a_directory_that_cannot_be_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    bench = Bench(tmp_path / "file" / "cache")
    states = await bench.run()
    assert not states.is_on and states.offers(KEY) == ()
    assert not await save(states, announced(1))
    assert len(bench.notices) == 1


async def test_G12_what_proves_damaged_when_it_is_read_is_dropped(bench: Bench) -> None:
    states = await bench.run()
    await save(states, announced(1))
    (path,) = bench.root.glob("*.state")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    (offer,) = states.offers(KEY)
    reader = await states.read(offer.state_id)
    assert reader is not None
    with pytest.raises(StateRefused) as refused:
        await reader.next_part()
    await states.drop(offer.state_id, str(refused.value))
    assert await states.read(offer.state_id) is None
    assert not path.exists()
    assert len(bench.notices) == 1


async def test_a_file_that_somebody_removed_is_no_fault(bench: Bench) -> None:
    states = await bench.run()
    await save(states, announced(1))
    (path,) = bench.root.glob("*.state")
    path.unlink()
    assert await states.read(states.offers(KEY)[0].state_id) is None
    assert states.usage.states == 0


async def test_more_bytes_than_announced_are_refused(bench: Bench) -> None:
    states = await bench.run()
    writer = await states.begin(KEY, announced(1, size_bytes=3))
    assert writer is not None
    assert not await states.write(writer, b"1234")
    await states.abandon(writer)
    assert states.usage.states == 0


async def test_what_a_state_begins_with_is_superseded_and_nothing_else(bench: Bench) -> None:
    states = await bench.run()
    other = attrs.evolve(KEY, engine="engine 2")
    for message, key in [
        (announced(1), KEY),
        (announced(1, 2), KEY),
        (announced(1, 2, owner="o"), KEY),
        (announced(1, 2), other),
        (announced(1, 9), KEY),
        (announced(1, 2, 3), KEY),
    ]:
        assert await save(states, message, key)
    assert offered(states) == [(1, 2, 3), (1, 9), (1, 2)]
    assert offered(states, other) == [(1, 2)]
    assert len(list(bench.root.glob("*.state"))) == 4
    assert await save(states, announced(1, 2))  # shorter, and newer: it was wanted after all
    assert offered(states)[0] == (1, 2)


@pytest.mark.parametrize(
    ("n_old", "n_common", "is_superseded"),
    [(800, 737, True), (800, 736, True), (800, 735, False), (80, 70, True), (80, 69, False), (7, 6, False)],
)
async def test_what_differs_in_its_last_few_tokens_only_is_superseded(
    bench: Bench, n_old: int, n_common: int, is_superseded: bool
) -> None:
    states = await bench.run()
    assert await save(states, announced(*range(n_old)))
    assert await save(states, announced(*range(n_common), *range(5000, 6000)))
    assert states.usage.states == (1 if is_superseded else 2)


async def test_who_was_offered_a_state_is_told_when_it_goes(bench: Bench) -> None:
    told: list[frozenset[int]] = []
    states = await bench.run(limit_bytes=2 * file_bytes_of(1, 10))
    states.subscribe(told.append)
    for token in range(30):
        await save(states, announced(token))
    gone = set().union(*told)
    assert gone == set(range(1, 31)) - {offer.state_id for offer in states.offers(KEY)}
    states.unsubscribe(told.append)
    states.unsubscribe(told.append)
    await states.drop(30, "for a test")
    assert 30 not in set().union(*told)


async def test_weights_that_go_while_their_state_is_written_take_it_along(bench: Bench) -> None:
    wanted = set(KEY.weights)
    states = await bench.run(is_wanted=lambda digest: digest in wanted)
    writer = await states.begin(KEY, announced(1))
    assert writer is not None
    wanted.clear()
    await states.forget_unwanted()
    assert await states.write(writer, b"x" * 10)
    assert await states.keep(writer) is None
    assert offered(states) == [] and list(bench.root.glob("*.state")) == []


async def test_a_clock_that_was_put_back_neither_keeps_states_for_ever_nor_forgets_their_order(
    bench: Bench,
) -> None:
    states = await bench.run()
    for token in range(3):
        await save(states, announced(token))
    bench.clock.now_s -= 10 * AGE_MAX_S
    await save(states, announced(3))
    assert offered(states) == [(3,), (2,), (1,), (0,)]
    bench.clock.now_s += AGE_MAX_S - 100
    await save(states, announced(4))
    assert offered(states) == [(4,), (3,), (2,), (1,), (0,)]
    bench.clock.now_s += 200
    await save(states, announced(5))
    assert offered(states) == [(5,), (4,)]


async def test_the_largest_state_that_is_told_is_kept_and_no_larger_one(bench: Bench) -> None:
    limit_bytes = file_bytes_of(STATE_TOKENS_MAX, STATE_BYTES_MAX) + 1000 - STATE_BYTES_MAX
    states = await bench.run(limit_bytes=limit_bytes)
    assert states.largest_bytes == await states.room_bytes() == 1000
    writer = await states.begin(KEY, announced(1, size_bytes=states.largest_bytes))
    assert writer is not None
    assert states.largest_bytes == 0
    await states.abandon(writer)
    assert (await bench.run(limit_bytes=limit_bytes - 1000)).largest_bytes == 0
    full = await bench.run(limit_bytes=limit_bytes, keep_free_bytes=1 << 62)
    assert (full.largest_bytes, await full.room_bytes()) == (1000, 0)
    assert (await bench.run(limit_bytes=0)).largest_bytes == 0


@pytest.mark.parametrize("which", ["begin", "write", "keep"])
async def test_what_is_done_to_a_file_is_done_to_its_end_when_its_worker_goes(
    bench: Bench, which: str
) -> None:
    states = await bench.run()
    writer = await states.begin(KEY, announced(1))
    assert writer is not None
    with trio.CancelScope() as scope:
        scope.cancel()
        if which == "begin":
            await states.begin(KEY, announced(2))
        elif which == "write":
            assert await states.write(writer, b"x" * 10)
        else:
            await states.write(writer, b"x" * 10)
            await states.keep(writer)
    if which == "keep":
        assert states.usage.states == 1 == len(list(bench.root.glob("*.state")))
        assert list(bench.root.glob("*.part")) == []
    else:
        await states.abandon(writer)
        assert [path.name for path in bench.root.iterdir()] == ["key"]
    assert states.largest_bytes == (await bench.run()).largest_bytes


async def at_once(work: Callable[[], object]) -> object:
    await trio.lowlevel.checkpoint()
    return work()


async def test_L08_a_disk_that_hangs_does_not_hold_up_the_end_of_a_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, virtual_clock: trio.testing.MockClock
) -> None:
    async def hang(work: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("actors.saved_states._in_thread", at_once)
    states = await bench.run()
    writer = await states.begin(KEY, announced(1))
    assert writer is not None
    monkeypatch.setattr("actors.saved_states._in_thread", hang)
    assert not await states.write(writer, b"x" * 10)
    await states.abandon(writer)
    assert await states.room_bytes() == 0
    assert len(bench.notices) == 2
    writer.abandon()


@pytest.mark.parametrize("which", ["begin", "write", "keep"])
async def test_what_a_disk_does_too_late_leaves_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, virtual_clock: trio.testing.MockClock, which: str
) -> None:
    late: list[Callable[[], object]] = []

    async def hang(work: Callable[[], object]) -> object:
        if work == states._free_bytes:
            return work()
        late.append(work)
        return await trio.sleep_forever()

    monkeypatch.setattr("actors.saved_states._in_thread", at_once)
    states = await bench.run()
    room_bytes = states.largest_bytes
    writer = await states.begin(KEY, announced(1))
    assert writer is not None
    if which == "keep":
        assert await states.write(writer, b"x" * 10)
    elif which == "begin":
        await states.abandon(writer)
    monkeypatch.setattr("actors.saved_states._in_thread", hang)
    match which:
        case "begin":
            assert await states.begin(KEY, announced(2)) is None
        case "write":
            assert not await states.write(writer, b"x" * 10)
            await states.abandon(writer)
        case "keep":
            assert await states.keep(writer) is None
    assert (offered(states), states.largest_bytes) == ([], room_bytes)
    for work in late:
        work()
    assert [path.name for path in bench.root.iterdir()] == ["key"]


async def test_what_is_done_when_its_time_is_up_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, virtual_clock: trio.testing.MockClock
) -> None:
    async def tell_too_late(work: Callable[[], object]) -> object:
        monkeypatch.setattr("actors.saved_states._in_thread", at_once)
        work()
        return await trio.sleep_forever()

    monkeypatch.setattr("actors.saved_states._in_thread", at_once)
    states = await bench.run()
    writer = await states.begin(KEY, announced(1))
    assert writer is not None
    assert await states.write(writer, b"x" * 10)
    monkeypatch.setattr("actors.saved_states._in_thread", tell_too_late)
    assert await states.keep(writer) is not None
    assert states.usage.states == 1 == len(list(bench.root.glob("*.state")))
