"""States out of one worker and into the next, over a socketpair, with the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from runner.domain.events import Finished, GenerationEvent
from runner.domain.generation import TextPrompt
from runner.engine.engine import Engine
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import Find, KnownState
from runner.engine.prefix import Namespace
from runner.engine.sequence import SequenceRequest
from runner.wire.messages import (
    Cancel,
    FromWorker,
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StateKept,
    StateOffer,
    StatePart,
    Step,
    WantState,
)
from runner.wire.state_schema import STATE_PART_BYTES
from runner.worker.states import PARTS_BESIDE_WORK, StateCarrier
from tests.support.worker_peer import ROOMY, WorkerThread, generate, worker_thread

LONG = "Of green bottles there are so many that nobody has ever counted them all. " * 4
BIG = 1 << 20


@attrs.frozen
class Kept:
    announced: SaveState
    data: bytes

    def offer(self, state_id: int = 1, **fields: object) -> StateOffer:
        offer = StateOffer(
            state_id=state_id,
            owner=self.announced.owner,
            tokens=self.announced.tokens,
            size_bytes=self.announced.size_bytes,
        )
        return attrs.evolve(offer, **fields)  # type: ignore[arg-type]  # whatever a test wants to set


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"scripted")
    return path


@pytest.fixture
def worker(weights: Path) -> Iterator[WorkerThread]:
    with worker_thread() as worker:
        worker.load(weights, options=ROOMY)
        yield worker


def ask(worker: WorkerThread, request_id: str, text: str, **fields: object) -> None:
    worker.send(generate(request_id, TextPrompt(text), max_tokens=2, **fields))


def wanted(worker: WorkerThread) -> int:
    """The state that it asks for next."""
    while isinstance(message := worker.receive(), Step):
        pass
    assert isinstance(message, WantState), message
    return message.state_id


def cached_of(events: list[GenerationEvent]) -> int:
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished.usage.cached_tokens


def collect(worker: WorkerThread) -> list[Kept]:
    """What comes after `Shutdown`, whole states only."""
    found: list[Kept] = []
    announced, data = None, b""
    while (message := worker.receive()) is not None:
        if isinstance(message, SaveState):
            announced, data = message, b""
        elif isinstance(message, SavedPart):
            assert announced is not None
            data += message.data
            if len(data) == announced.size_bytes:
                found.append(Kept(announced, data))
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A state of `LONG`, as a worker has saved it."""
    path = tmp_path_factory.mktemp("model") / "weights"
    path.write_bytes(b"scripted")
    with worker_thread() as worker:
        worker.load(path, options=ROOMY)
        ask(worker, "a", LONG + "[[say one]]")
        worker.outcome("a")
        worker.send(Shutdown(save_bytes=BIG, save_s=20.0))
        (state,) = collect(worker)
    return state


def test_what_a_worker_saves_at_its_end_another_goes_on_from(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(7),)))
    ask(worker, "b", LONG + "[[say two]]")
    ask(worker, "c", LONG + "[[say three]]")  # waits for the same
    assert wanted(worker) == 7
    worker.send(StatePart(7, kept.data[:100]), StatePart(7, kept.data[100:]))
    for events in worker.outcomes("b", "c").values():
        assert cached_of(events) > len(LONG)
    assert worker.steps[-1].counts.restored_tokens > len(LONG)


def test_what_is_in_cells_is_not_asked_for(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)))
    ask(worker, "other", "Nothing of the kind, but about as long as what was saved before. " * 4)
    assert cached_of(worker.outcome("other")) == 0  # no WantState came in between
    ask(worker, "uncached", LONG, cache_prompt=False)
    assert cached_of(worker.outcome("uncached")) == 0
    ask(worker, "foreign", LONG, cache_owner="somebody")
    assert cached_of(worker.outcome("foreign")) == 0


def test_a_state_that_is_gone_costs_its_request_nothing(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)))
    ask(worker, "b", LONG)
    assert wanted(worker) == 1
    worker.send(StatePart(1, kept.data[:100]), StateGone(1))
    assert cached_of(worker.outcome("b")) == 0
    ask(worker, "c", LONG + "again")  # and is not asked for again
    assert cached_of(worker.outcome("c")) > 0


@pytest.mark.parametrize("damage", ["other bytes", "fewer tokens", "too many bytes"])
def test_a_state_that_the_engine_refuses_is_dropped(kept: Kept, worker: WorkerThread, damage: str) -> None:
    offer, data = kept.offer(), kept.data
    if damage == "other bytes":
        data = bytes(len(data))
    elif damage == "fewer tokens":
        offer = kept.offer(tokens=kept.announced.tokens[:-1])
    else:
        data += b"x"
    worker.send(OfferStates((offer,)))
    ask(worker, "b", LONG)
    assert wanted(worker) == 1
    worker.send(StatePart(1, data))
    assert cached_of(worker.outcome("b")) == 0
    assert worker.steps[-1].counts.restored_tokens == 0


def test_a_request_that_is_cancelled_while_it_waits_is_forgotten(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)))
    ask(worker, "b", LONG)
    assert wanted(worker) == 1
    worker.send(Cancel("b"), StatePart(1, kept.data))
    ask(worker, "c", LONG + "again")  # asks for it anew
    assert wanted(worker) == 1
    worker.send(StatePart(1, kept.data))
    assert cached_of(worker.outcomes("c")["c"]) > 0


def test_what_was_withdrawn_is_not_asked_for(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)), StateGone(1))
    ask(worker, "b", LONG)
    assert cached_of(worker.outcome("b")) == 0


def test_others_are_answered_while_a_request_waits_for_its_state(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)))
    ask(worker, "b", LONG)
    assert wanted(worker) == 1
    ask(worker, "c", "short")
    assert cached_of(worker.outcome("c")) == 0
    worker.send(StatePart(1, kept.data))
    assert cached_of(worker.outcome("b")) > 0


def test_what_would_have_to_go_leaves_while_the_worker_runs_and_comes_back(weights: Path) -> None:
    """There is room for it in host memory, and for nothing beside it."""
    text = LONG + "[[say one]]"
    n_held = len(text.encode()) + 20
    with worker_thread() as worker:
        worker.load(weights, options=attrs.evolve(ROOMY, max_retained=1, host_cells=n_held))
        worker.send(OfferStates((), room_bytes=BIG))
        for again in ("a", "a again"):  # so that it is worth it
            ask(worker, again, text)
            worker.outcome(again)
        ask(worker, "other", "x" * 100)  # of one id
        state = received_state(worker, "other")
        worker.send(StateKept(3, BIG))
        ask(worker, "another", "y" * 100)  # the other is held, and makes it go
        worker.outcome("another")
        ask(worker, "b", LONG + "[[say two]]")
        assert wanted(worker) == 3
        worker.send(StatePart(3, state.data))
        assert cached_of(worker.outcome("b")) > len(LONG)
        counts = worker.steps[-1].counts
        assert counts.saved_tokens >= len(state.announced.tokens)
        assert counts.restored_tokens > len(LONG)


def received_state(worker: WorkerThread, request_id: str) -> Kept:
    """A state that is sent while the worker runs, each part as it is asked for."""
    message = worker.receive()
    while not isinstance(message, SaveState):
        assert isinstance(message, Step), message
        message = worker.receive()
    announced, data = message, b""
    while len(data) < announced.size_bytes:
        worker.send(MoreParts(1))
        message = worker.receive()
        while isinstance(message, Step):
            message = worker.receive()
        assert isinstance(message, SavedPart)
        data += message.data
    return Kept(announced, data)


def test_parts_of_nothing_that_was_asked_for_change_nothing(kept: Kept, worker: WorkerThread) -> None:
    worker.send(OfferStates((kept.offer(),)), StatePart(9, b"x"), StateGone(9))
    ask(worker, "b", "short")
    assert cached_of(worker.outcome("b")) == 0


# the bounds of saving


class Clock:
    def __init__(self, *, step_s: float) -> None:
        self.now_s, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def an_engine(*texts: str, owner: str = "") -> Engine:
    """Everything in `texts` retained, the last most recently."""
    options = attrs.evolve(ROOMY, host_cells=BIG)
    engine = Engine(ScriptedBackend(options), options)
    namespace = Namespace(owner=owner)
    for text in texts:
        tokens = list(text.encode())
        state = state_of(tokens)
        known = KnownState(state_id=1, owner=owner, tokens=tokens, size_bytes=len(state))
        slot = engine._cells.open(namespace)
        assert engine.hibernation.restore(slot, namespace, Find(known, len(tokens)), tokens, state)
        engine._cells.expect_back(slot)
        engine._cells.retain(slot, namespace)
    return engine


def state_of(tokens: list[int]) -> memoryview:
    backend = ScriptedBackend(ROOMY)
    for start in range(0, len(tokens), backend.batch.size):
        rows = tokens[start : start + backend.batch.size]
        backend.batch.tokens[: len(rows)] = rows
        backend.batch.positions[: len(rows)] = range(start, start + len(rows))
        backend.batch.sequence_ids[: len(rows)] = 0
        backend.batch.wants_logits[: len(rows)] = 0
        backend.decode(len(rows))
    state = memoryview(bytearray(backend.state_bytes(0)))
    assert backend.save_state(0, state)
    return state


def saved(engine: Engine, order: Shutdown, clock: Clock) -> list[FromWorker]:
    sent: list[FromWorker] = []
    StateCarrier(sent.append).leave(engine, order, clock)
    return sent


def test_the_most_recently_used_is_saved_first_within_so_many_bytes() -> None:
    size_bytes = len(state_of([97] * 100))
    for limit_bytes, expected in [
        (2 * size_bytes, ["b", "a"]),
        (2 * size_bytes - 1, ["b"]),
        (size_bytes, ["b"]),
    ]:
        engine = an_engine("a" * 100, "b" * 100)
        sent = saved(engine, Shutdown(save_bytes=limit_bytes, save_s=9.0), Clock(step_s=0.0))
        names = [chr(one.tokens[0]) for one in sent if isinstance(one, SaveState)]
        assert names[: len(expected)] == expected
        assert sum(len(one.data) for one in sent if isinstance(one, SavedPart)) <= limit_bytes


def test_saving_ends_when_its_time_is_used_up() -> None:
    engine = an_engine("a" * 100, "b" * 100)
    sent = saved(engine, Shutdown(save_bytes=BIG, save_s=1.5), Clock(step_s=1.0))
    assert [type(one) for one in sent] == [SaveState, SavedPart, SaveState]
    engine = an_engine("a" * 100, "b" * 100)
    assert [type(one) for one in saved(engine, Shutdown(save_bytes=BIG), Clock(step_s=1.0))] == [SaveState]


@attrs.define
class Sending:
    """A state of `n_parts` parts on its way out of an engine that has work, or none."""

    n_parts: int
    is_busy: bool
    sent: list[FromWorker] = attrs.field(factory=list)
    engine: Engine = attrs.field(init=False)
    carrier: StateCarrier = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.engine = an_engine("a" * 100)
        self.carrier = StateCarrier(self.sent.append)
        backend = self.engine._backend
        assert isinstance(backend, ScriptedBackend)
        size_bytes = self.n_parts * STATE_PART_BYTES

        def save_state(sequence_id: int, room: memoryview) -> bool:
            return len(room) == size_bytes

        backend.state_bytes = lambda sequence_id: size_bytes  # type: ignore[method-assign]
        backend.save_state = save_state  # type: ignore[method-assign]
        self.engine.hibernation._held.limit_bytes = size_bytes
        self.carrier.hear(OfferStates((), room_bytes=1 << 30), self.engine)
        self.engine._cells.give_up_oldest()
        if self.is_busy:
            self.engine.submit(
                SequenceRequest(request_id="a", prompt_tokens=tuple(b"[[forever]]"), submitted_s=0.0)
            )
            self.engine.step()

    def advance(self) -> int:
        """Parts that go out now."""
        del self.sent[:]
        self.carrier.advance(self.engine)
        return sum(isinstance(message, SavedPart) for message in self.sent)


def test_beside_streams_parts_go_out_a_few_at_a_time_and_as_they_are_asked_for() -> None:
    sending = Sending(n_parts=9, is_busy=True)
    assert sending.advance() == 0
    assert [type(message) for message in sending.sent] == [SaveState]
    assert sending.advance() == 0  # none was asked for
    for allowed in (PARTS_BESIDE_WORK - 1, PARTS_BESIDE_WORK):
        sending.carrier.hear(MoreParts(allowed), sending.engine)
        assert sending.advance() == allowed
        assert sending.advance() == 0
    sending.carrier.hear(MoreParts(32), sending.engine)
    assert sending.advance() == PARTS_BESIDE_WORK
    assert sending.carrier.has_to_send(sending.engine)


def test_where_nobody_waits_all_that_was_asked_for_goes_out_at_once() -> None:
    sending = Sending(n_parts=9, is_busy=False)
    assert sending.carrier.has_to_send(sending.engine)
    sending.advance()
    assert not sending.carrier.has_to_send(sending.engine)
    sending.carrier.hear(MoreParts(8), sending.engine)
    assert sending.carrier.has_to_send(sending.engine)
    assert sending.advance() == 8
    assert not sending.carrier.has_to_send(sending.engine)
    sending.carrier.hear(MoreParts(8), sending.engine)
    assert sending.advance() == 1
    sending.carrier.hear(StateKept(1, 1 << 30), sending.engine)
    assert sending.engine.hibernation.n_saved_tokens == 100
    assert not sending.carrier.has_to_send(sending.engine)


def test_a_state_that_the_daemon_does_not_want_any_more_is_given_up() -> None:
    sending = Sending(n_parts=3, is_busy=False)
    sending.advance()
    sending.carrier.hear(MoreParts(1), sending.engine)
    sending.advance()
    sending.carrier.hear(StateKept(None, 0), sending.engine)
    assert sending.engine.hibernation.outgoing is None
    assert sending.advance() == 0


def test_what_is_on_its_way_out_goes_first_at_the_end() -> None:
    sending = Sending(n_parts=3, is_busy=True)
    sending.advance()
    sending.carrier.hear(MoreParts(1), sending.engine)
    assert sending.advance() == 1
    del sending.sent[:]
    sending.carrier.leave(sending.engine, Shutdown(save_bytes=BIG, save_s=9.0), Clock(step_s=0.0))
    assert [type(message) for message in sending.sent] == [SavedPart, SavedPart]


def test_no_memory_for_a_state_that_comes_is_no_fault(
    kept: Kept, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size_bytes: int) -> None:
        raise MemoryError

    monkeypatch.setattr("runner.worker.states.room_for", refuse)
    worker.send(OfferStates((kept.offer(),)))
    ask(worker, "b", LONG)
    assert cached_of(worker.outcome("b")) == 0
