"""States leave and come back while an engine runs, on the scripted backend: its answers depend on what is in
cells, token by token, so that a wrong cell is a wrong answer."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import EngineOptions
from runner.domain.events import Failed, Finished, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import LEAST_SAVED
from runner.engine.prefix import Namespace

OPTIONS = EngineOptions(
    context_size=512, n_cells=512, host_cells=320, max_sequences=2, max_retained=4, prefill_chunk=16
)
"""Host memory for one state of a scripted conversation, and for nothing beside it."""
BIG = 1 << 30
TALK = "tell of green bottles, and of the wall that they hang on. " * 3  # 174 tokens


class Saved:
    """What a daemon does: keeps states, and gives them back, a step later. `is_slow`: never says so."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.data: dict[int, bytes] = {}
        self.is_slow = False
        self.wanted: list[int] = []
        self.damages = False
        self.is_gone = False

    def serve(self) -> None:
        hibernation = self.engine.hibernation
        if hibernation.outgoing is not None and not self.is_slow:
            state_id = len(self.data) + 1
            self.data[state_id] = bytes(hibernation.outgoing.data)
            hibernation.sent(state_id)
        wanted = self.engine.wanted_state
        if wanted is not None:
            self.wanted.append(wanted.state_id)
            data = bytearray(self.data[wanted.state_id])
            if self.damages:
                data[0] ^= 1
            is_good = self.engine.bring_state(wanted.state_id, None if self.is_gone else memoryview(data))
            if self.is_gone or not is_good:
                hibernation.forget(wanted.state_id)


class Bench:
    """Every prompt counts as a turn of a conversation, unless `are_turns` says that they speak for
    themselves."""

    def __init__(
        self, options: EngineOptions = OPTIONS, *, room_bytes: int = BIG, are_turns: bool = True
    ) -> None:
        self.backend = ScriptedBackend(options, sleep=lambda _: None)
        self.now_s = 0.0
        self.engine = Engine(self.backend, options, clock=lambda: self.now_s, stopwatch=lambda: 0.0)
        self.engine.hibernation.allow(room_bytes)
        if are_turns:
            self.engine._cells.goes_on = lambda prompt, namespace: True  # type: ignore[method-assign]
        self.saved = Saved(self.engine)
        self.events: dict[str, list[EngineEvent]] = {}
        self.prefilled = 0

    def tokens(self, prompt: str) -> list[int]:
        return self.backend.tokenize(prompt + "<|answer|>", add_special=False, parse_special=True)

    def submit(
        self,
        name: str,
        prompt: str,
        *,
        max_tokens: int = 300,
        seed: int | None = None,
        namespace: Namespace | None = Namespace(),  # noqa: B008  # a value
        n: int = 1,
    ) -> None:
        self.engine.submit(
            SequenceRequest(
                request_id=name,
                prompt_tokens=tuple(self.tokens(prompt)),
                max_tokens=max_tokens,
                namespace=namespace,
                sampling=SamplingParams(seed=seed),
                n=n,
                submitted_s=0.0,
            )
        )

    def step(self) -> None:
        output = self.engine.step()
        self.now_s += 0.01
        self.prefilled += output.prefill_tokens
        for name, event in output.events:
            self.events.setdefault(name, []).append(event)
        told = self.engine.statistics()
        assert told.cells_used + told.cells_retained == self.backend.cells_used <= told.n_cells
        held = self.engine.hibernation._held
        assert sum(len(state.data) for state in held) == held.used_bytes <= held.limit_bytes

    def run(self, *names: str) -> None:
        """Until these have ended, or all."""
        for _ in range(5000):
            if not self.engine.has_work and self.engine.wanted_state is None:
                return
            if names and all(self.has_ended(name) for name in names):
                return
            if self.engine.has_work:
                self.step()
            self.saved.serve()
        raise AssertionError("the engine does not come to an end")

    def has_ended(self, name: str) -> bool:
        return isinstance(self.events.get(name, [None])[-1], Finished | Failed)

    def ask(self, name: str, prompt: str, **fields: int) -> str:
        self.submit(name, prompt, **fields)  # type: ignore[arg-type]  # as it takes them
        self.run(name)
        return self.text(name)

    def text(self, name: str) -> str:
        return "".join(event.text for event in self.events[name] if isinstance(event, TextDelta))

    def cached(self, name: str) -> int:
        end = self.events[name][-1]
        assert isinstance(end, Finished), end
        return end.usage.cached_tokens

    @property
    def restored(self) -> int:
        return self.engine.statistics().counts.restored_tokens


def talk_of(who: str, turns: int) -> str:
    said = [f"<|user|>{who}, {TALK}<|end|>"]
    said += [f"<|assistant|>{who}{turn}<|end|><|user|>[[say {who}{turn}]]<|end|>" for turn in range(turns)]
    return "".join(said)


def test_what_made_room_comes_back_to_the_prompt_that_goes_on_from_it() -> None:
    bench = Bench()
    n_first = len(bench.tokens(talk_of("a", 1)))
    assert bench.ask("a", talk_of("a", 1)) == "a0"
    assert bench.ask("b", talk_of("b", 1)) == "b0"
    assert bench.ask("c", talk_of("c", 1)) == "c0"
    bench.prefilled = 0
    assert bench.ask("a again", talk_of("a", 2)) == "a1"
    assert bench.cached("a again") >= n_first - 1
    assert bench.prefilled == len(bench.tokens(talk_of("a", 2))) - bench.cached("a again")
    assert bench.restored == bench.cached("a again")
    assert bench.engine.statistics().counts.saved_tokens > 0


def test_where_host_memory_has_room_it_comes_back_from_there_and_nothing_is_saved() -> None:
    bench = Bench(attrs.evolve(OPTIONS, host_cells=5000))
    length = dict.fromkeys("abcd", 0)
    for turn in range(1, 5):
        for who in "abcd":
            name = f"{who}{turn}"
            assert bench.ask(name, talk_of(who, turn)) == f"{who}{turn - 1}"
            assert bench.cached(name) >= 0.9 * length[who]
            length[who] = len(bench.tokens(talk_of(who, turn)))
    assert bench.restored > 0
    assert (bench.saved.data, bench.saved.wanted) == ({}, [])


def test_a_step_passes_over_little_of_what_others_left() -> None:
    bench = Bench(attrs.evolve(OPTIONS, n_cells=2048, host_cells=2048, context_size=1024))
    bench.ask("a", filler("a", 600) + "[[say a]]")
    assert bench.engine.statistics().cells_retained > 600
    bench.submit("b", "[[count 20]]")
    bench.step()
    assert bench.engine.statistics().cells_retained == 0
    bench.run()
    assert bench.ask("a again", filler("a", 600) + "[[say a]]") == "a"
    assert bench.cached("a again") > 600


def test_who_goes_on_at_once_finds_it_in_cells() -> None:
    bench = Bench(attrs.evolve(OPTIONS, n_cells=2048, host_cells=2048, context_size=1024))
    for turn in range(1, 4):
        bench.ask(f"a{turn}", filler("a", 600) + "[[say a]]" * turn)
    assert bench.cached("a3") > 600
    assert (bench.restored, bench.engine.statistics().counts.saved_tokens) == (0, 0)


@pytest.mark.parametrize("room_bytes", [0, 16 + 256 * LEAST_SAVED - 1])
def test_without_leave_to_save_it_is_computed(room_bytes: int) -> None:
    bench = Bench(room_bytes=room_bytes)
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    assert bench.ask("a again", talk_of("a", 2)) == "a1"
    assert (bench.restored, bench.saved.data) == (0, {})


def test_four_who_take_turns_where_two_have_room_find_what_they_left() -> None:
    bench = Bench()
    length = dict.fromkeys("abcd", 0)
    for turn in range(1, 5):
        for who in "abcd":
            name = f"{who}{turn}"
            bench.ask(name, talk_of(who, turn))
            assert bench.text(name) == f"{who}{turn - 1}"
            assert bench.cached(name) >= 0.9 * length[who]
            length[who] = len(bench.tokens(talk_of(who, turn)))
    assert len(bench.saved.wanted) >= 8


def test_four_at_once_where_two_have_room_find_what_they_left() -> None:
    bench = Bench()
    for turn in range(1, 5):
        for who in "abcd":
            bench.submit(f"{who}{turn}", talk_of(who, turn))
        bench.run()
        for who in "abcd":
            assert bench.text(f"{who}{turn}") == f"{who}{turn - 1}"
            before = len(bench.tokens(talk_of(who, turn - 1))) if turn > 1 else 0
            assert bench.cached(f"{who}{turn}") >= 0.9 * before


def test_what_is_on_its_way_out_still_comes_back_from_there() -> None:
    bench = Bench()
    bench.saved.is_slow = True
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    assert bench.engine.hibernation.outgoing is not None
    assert bench.ask("a again", talk_of("a", 2)) == "a1"
    assert bench.restored == bench.cached("a again") > 0
    assert bench.saved.wanted == []


@pytest.mark.parametrize("how", ["damages", "is_gone"])
def test_G12_a_state_that_cannot_be_had_is_computed_and_not_wanted_again(how: str) -> None:
    bench = Bench()
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    setattr(bench.saved, how, True)
    assert bench.ask("a again", talk_of("a", 2)) == "a1"
    assert len(bench.saved.wanted) == 1
    assert bench.restored == 0
    assert bench.ask("a, once more", talk_of("a", 3)) == "a2"
    assert len(bench.saved.wanted) == 1


def test_others_go_on_while_a_state_is_coming() -> None:
    bench = Bench()
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    bench.submit("x", "x[[count 20]]")
    bench.step()
    bench.submit("a again", talk_of("a", 2))
    while not bench.has_ended("x"):
        bench.step()
        assert bench.engine.wanted_state is not None
    assert bench.text("x").endswith(" 20")
    assert not bench.events.get("a again")
    while bench.engine.has_work:
        bench.step()
    assert bench.engine.wanted_state is not None  # nothing is left to do but to wait
    bench.run()
    assert bench.text("a again") == "a1"


def test_who_waits_for_a_state_can_be_cancelled() -> None:
    bench = Bench()
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    bench.submit("a again", talk_of("a", 2))
    while bench.engine.has_work:
        bench.step()
    wanted = bench.engine.wanted_state
    assert wanted is not None
    bench.engine.cancel("a again")
    assert bench.engine.wanted_state is None and not bench.engine.has_work
    assert bench.engine.statistics().cells_used == 0
    assert bench.engine.bring_state(wanted.state_id, memoryview(bytearray(bench.saved.data[wanted.state_id])))
    assert bench.ask("b again", talk_of("b", 2)) == "b1"


def test_several_answers_to_one_prompt_fetch_its_state_once() -> None:
    bench = Bench()
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    bench.submit("a again", talk_of("a", 2), n=2)
    bench.run()
    assert len(bench.saved.wanted) == 1
    assert sorted(bench.text("a again")) == sorted("a1a1")


def test_a_request_with_a_seed_uses_of_a_state_what_it_would_use_of_cells() -> None:
    bench = Bench()
    for name in "abcd":
        bench.ask(name, talk_of(name, 1))
    assert bench.ask("a again", talk_of("a", 2), seed=1) == "a1"
    assert bench.cached("a again") % OPTIONS.prefill_chunk == 0 < bench.cached("a again")


def test_what_is_not_to_be_kept_is_neither_saved_nor_found() -> None:
    bench = Bench()
    for name in "abc":
        bench.submit(name, talk_of(name, 1), namespace=None)
        bench.run()
    assert bench.saved.data == {}


def filler(name: str, count: int) -> str:
    return f"<|user|>{name}{'x' * count}<|end|><|user|>"


@pytest.mark.parametrize("is_held", [True, False])
def test_a_sequence_that_was_preempted_gets_back_what_it_lost(is_held: bool) -> None:
    host_cells = 400 if is_held else 0
    bench = Bench(
        attrs.evolve(OPTIONS, max_sequences=4, n_cells=400, context_size=400, host_cells=host_cells)
    )
    bench.submit("old", filler("o", 100) + "[[count 90]]")
    bench.step()
    bench.submit("young", filler("y", 100) + "[[count 60]]")
    bench.run()
    assert bench.engine.statistics().counts.preemptions >= 1
    assert (bench.restored > 0) is is_held
    for name, count in [("old", 90), ("young", 60)]:
        assert bench.text(name) == " ".join(map(str, range(1, count + 1)))
        assert bench.cached(name) == 0
    assert bench.engine.statistics().counts.reuse_hits == 0


@given(
    data=st.data(),
    n_cells=st.integers(260, 700),
    max_retained=st.integers(1, 4),
    host_cells=st.sampled_from([0, 320, 700, 5000]),
)
def test_whatever_leaves_and_comes_back_answers_are_right(
    data: st.DataObject, n_cells: int, max_retained: int, host_cells: int
) -> None:
    bench = Bench(
        attrs.evolve(
            OPTIONS,
            n_cells=n_cells,
            host_cells=host_cells,
            max_retained=max_retained,
            context_size=min(n_cells, 512),
        )
    )
    turns = dict.fromkeys("abc", 0)
    for number in range(data.draw(st.integers(1, 8))):
        who = data.draw(st.sampled_from("abc"))
        turns[who] = min(turns[who] + 1, 3)
        bench.saved.is_slow = data.draw(st.booleans())
        bench.saved.damages = False
        bench.saved.is_gone = data.draw(st.booleans()) and data.draw(st.booleans())
        bench.submit(f"{number}", talk_of(who, turns[who]), max_tokens=20)
        for _ in range(data.draw(st.integers(0, 30))):
            if bench.engine.has_work:
                bench.step()
        expected = f"{who}{turns[who] - 1}"
        if data.draw(st.booleans()):
            bench.run()
            assert bench.text(f"{number}") == expected
    bench.run()
    for name in bench.events:
        assert bench.has_ended(name)
    bench.engine.forget_retained()
    assert bench.backend.cells_used == 0
    bench.engine.close()


def test_what_nobody_went_on_from_is_not_saved_and_a_conversation_is_from_its_second_turn_on() -> None:
    bench = Bench(attrs.evolve(OPTIONS, max_retained=1), are_turns=False)
    for index in range(4):
        bench.submit(f"once {index}", f"{index} {TALK}", max_tokens=4)
        bench.run()
    assert bench.saved.data == {}
    bench.submit("turn 1", TALK, max_tokens=1)
    bench.run()
    bench.submit("turn 2", TALK + "[[say more]]", max_tokens=4)
    bench.run()
    assert bench.saved.data == {}, "it is in cells"
    bench.submit("another", "x " + TALK, max_tokens=4)
    bench.run()
    assert len(bench.saved.data) == 1
