"""Shared prefixes in the engine, on the scripted backend: its answers depend on what is in cells, token by
token, so that a wrong cell is a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import CacheMiss, EngineOptions
from runner.domain.events import Failed, Finished, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import LoadedFacts
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ScriptedBackend
from runner.engine.prefix import Namespace

OPTIONS = EngineOptions(context_size=512, n_cells=1024, max_sequences=4, max_retained=4, prefill_chunk=16)
HERE = Namespace()
SYSTEM = "<|system|>" + "You are of use. " * 12 + "<|end|>"  # 194 tokens


class Bench:
    def __init__(self, options: EngineOptions = OPTIONS, backend: ScriptedBackend | None = None) -> None:
        self.backend = backend or ScriptedBackend(options, sleep=lambda _: None)
        self.engine = Engine(self.backend, options, clock=lambda: 0.0, stopwatch=lambda: 0.0)
        self.events: dict[str, list[EngineEvent]] = {}
        self.prefilled = 0
        self.most_used = 0

    def submit(
        self,
        name: str,
        prompt: str,
        *,
        namespace: Namespace | None = HERE,
        max_tokens: int = 400,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008  # a value
    ) -> int:
        tokens = tuple(self.backend.tokenize(prompt + "<|answer|>", add_special=False, parse_special=True))
        self.engine.submit(
            SequenceRequest(
                request_id=name,
                prompt_tokens=tokens,
                max_tokens=max_tokens,
                namespace=namespace,
                sampling=sampling,
                submitted_s=0.0,
            )
        )
        return len(tokens)

    def step(self) -> None:
        output = self.engine.step()
        self.prefilled += output.prefill_tokens
        for name, event in output.events:
            self.events.setdefault(name, []).append(event)
        told = self.engine.statistics()
        assert told.cells_used + told.cells_retained == self.backend.cells_used <= told.n_cells
        assert told.cells_retained <= told.n_cells // 2
        self.most_used = max(self.most_used, told.cells_used)

    def run(self) -> None:
        for _ in range(5000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def text(self, name: str) -> str:
        return "".join(event.text for event in self.events[name] if isinstance(event, TextDelta))

    def cached(self, name: str) -> int:
        end = self.events[name][-1]
        assert isinstance(end, Finished), end
        return end.usage.cached_tokens

    def misses(self) -> dict[CacheMiss, int]:
        misses = self.engine.statistics().counts.misses
        return {reason: count for reason, count in zip(CacheMiss, misses, strict=True) if count}


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.run()
    assert bench.engine.statistics().cells_used == 0
    bench.engine.forget_retained()
    assert bench.backend.cells_used == bench.engine.statistics().cells_retained == 0
    bench.engine.close()


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_its_rest(bench: Bench) -> None:
    bench.submit("a", SYSTEM + "<|user|>[[say one]]<|end|>")
    bench.run()
    n_first = bench.prefilled
    n_prompt = bench.submit("b", SYSTEM + "<|user|>[[say two]]<|end|>")
    bench.run()
    assert (bench.text("a"), bench.text("b")) == ("one", "two")
    assert bench.cached("a") == 0
    assert bench.cached("b") == 194 + len(">[[say ") - 1 + 1
    assert bench.prefilled - n_first == n_prompt - bench.cached("b")
    told = bench.engine.statistics()
    assert (told.counts.reuse_hits, told.counts.reused_tokens) == (1, bench.cached("b"))
    assert bench.misses() == {CacheMiss.NEW: 1}


def test_an_equal_prompt_computes_its_last_token_only(bench: Bench) -> None:
    for name in "ab":
        n_prompt = bench.submit(name, SYSTEM + "<|user|>[[say one]]<|end|>")
        bench.run()
    assert bench.cached("b") == n_prompt - 1
    assert bench.text("a") == bench.text("b") == "one"


def test_a_request_with_a_seed_shares_only_up_to_where_a_prompt_alone_is_cut(bench: Bench) -> None:
    seeded = SamplingParams(seed=7)
    for name in "ab":
        n_prompt = bench.submit(name, SYSTEM + "<|user|>[[say one]]<|end|>", sampling=seeded)
        bench.run()
    assert bench.cached("b") == (n_prompt - 1) // 16 * 16
    for name in "cd":
        bench.submit(name, SYSTEM * 2 + f"<|user|>[[say {name}]]<|end|>", sampling=seeded)
    bench.run()
    n_shared = 2 * 194 + 1 + len("[[say ")
    assert bench.cached("d") == n_shared // 16 * 16
    assert [bench.text(name) for name in "abcd"] == ["one", "one", "c", "d"]


def test_a_conversations_next_turn_reuses_all_of_the_turn_before_and_its_answer(bench: Bench) -> None:
    prompt, n_before = SYSTEM, 0
    for turn in range(6):
        prompt += f"<|user|>[[say this is answer {turn}]]<|end|>"
        n_prompt = bench.submit(str(turn), prompt)
        bench.run()
        if turn:
            assert bench.cached(str(turn)) == n_before
        n_before = n_prompt + len(bench.text(str(turn)))  # the end of the turn is never put into a cell
        prompt += "<|answer|>" + bench.text(str(turn)) + "<|end|>"
    assert bench.engine.statistics().cells_retained == n_before


def test_of_those_that_arrive_together_one_computes_what_all_begin_with(bench: Bench) -> None:
    for name in "abcd":
        bench.submit(name, SYSTEM + f"<|user|>[[say {name * 3}]]<|end|>")
    bench.run()
    assert [bench.text(name) for name in "abcd"] == ["aaa", "bbb", "ccc", "ddd"]
    n_shared = 194 + 1 + len("[[say ")
    assert [bench.cached(name) for name in "abcd"] == [0, *[n_shared] * 3]
    assert bench.prefilled == n_shared + 4 * len("aaa]]<E><A>".replace("<E>", "e").replace("<A>", "a"))
    assert bench.most_used < n_shared + 4 * 16


def test_followers_share_with_the_one_they_have_most_in_common_with(bench: Bench) -> None:
    common = SYSTEM + "<|user|>" + "word " * 20
    bench.submit("a", SYSTEM + "<|user|>[[say a]]<|end|>")
    bench.submit("b", common + "<|end|><|user|>[[say b]]<|end|>")
    bench.submit("c", common + "<|end|><|user|>[[say c]]<|end|>")
    bench.run()
    assert [bench.text(name) for name in "abc"] == ["a", "b", "c"]
    assert bench.cached("b") == 194 + 1
    assert bench.cached("c") == 194 + 1 + 100 + 1 + 1 + len("[[say ")


@pytest.mark.parametrize("n_steps", [1, 3, 9])
def test_when_the_one_who_computes_leaves_another_goes_on_from_there(bench: Bench, n_steps: int) -> None:
    for name in "abc":
        bench.submit(name, SYSTEM + f"<|user|>[[say {name}]]<|end|>")
    for _ in range(n_steps):
        bench.step()
    bench.engine.cancel("a")
    bench.run()
    assert [bench.text(name) for name in "bc"] == ["b", "c"]
    assert bench.cached("b") == n_steps * 16
    assert bench.cached("c") == 194 + 1 + len("[[say ")


def test_when_the_one_who_computes_fails_the_others_do_not() -> None:
    class FailsOnce(ScriptedBackend):
        n_failures = 2  # of the pass, and of its sequence alone

        def decode(self, n_rows: int):  # type: ignore[no-untyped-def]  # as the backend's
            if n_rows == 16 and self._batch.positions[0] == 64 and self.n_failures:
                self.n_failures -= 1
                self._batch.positions[0] = 7
            return super().decode(n_rows)

    bench = Bench(OPTIONS, FailsOnce(OPTIONS))
    for name in "abc":
        bench.submit(name, SYSTEM + f"<|user|>[[say {name}]]<|end|>")
    bench.run()
    assert isinstance(bench.events["a"][-1], Failed)
    assert [bench.text(name) for name in "bc"] == ["b", "c"]
    assert bench.cached("b") == 0, "what a failed pass computed is not kept"
    assert bench.cached("c") > 190


def test_a_short_prompt_does_not_wait_for_a_long_one(bench: Bench) -> None:
    bench.submit("long", "<|user|>" + "x" * 400 + "<|end|>", max_tokens=1)
    bench.submit("short", "<|user|>[[say y]]<|end|>")
    bench.run()
    ends = list(bench.events)
    assert ends == ["short", "long"]


def test_what_is_asked_to_share_nothing_shares_nothing(bench: Bench) -> None:
    prompt = SYSTEM + "<|user|>[[say x]]<|end|>"
    bench.submit("a", prompt)
    bench.run()
    bench.submit("b", prompt, namespace=None)
    bench.submit("c", prompt, namespace=None)
    bench.submit("d", prompt, namespace=Namespace(owner="somebody else"))
    bench.run()
    assert [bench.cached(name) for name in "abcd"] == [0] * 4
    assert bench.misses() == {CacheMiss.NEW: 2, CacheMiss.DISABLED: 2}


def test_why_a_prefix_is_not_there_any_more(bench: Bench) -> None:
    prompt = SYSTEM + "<|user|>[[say x]]<|end|>"
    bench.submit("a", prompt)
    bench.run()
    bench.engine.forget_retained()
    bench.submit("b", prompt)
    bench.run()
    assert bench.cached("b") == 0
    assert bench.misses() == {CacheMiss.NEW: 1, CacheMiss.GIVEN_UP: 1}


class HasStates(ScriptedBackend):
    """As recurrent models do: nothing can be shared."""

    @property
    def facts(self) -> LoadedFacts:
        return attrs.evolve(super().facts, shares_cells=False)

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        return from_position == 0 and super().drop_cells(sequence_id)

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        raise AssertionError("not of a state")


def test_of_states_nothing_is_shared_and_nothing_kept() -> None:
    bench = Bench(OPTIONS, HasStates(OPTIONS))
    for _ in range(2):
        for name in "ab":
            bench.submit(name, SYSTEM + f"<|user|>[[say {name}]]<|end|>")
        bench.run()
        assert (bench.text("a")[-1], bench.text("b")[-1]) == ("a", "b")
    assert bench.misses() == {CacheMiss.UNSUPPORTED: 4}
    assert bench.backend.cells_used == 0


class Forgets(ScriptedBackend):
    """As sliding windows may."""

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        return False


def test_what_a_window_has_left_behind_is_computed_again() -> None:
    bench = Bench(OPTIONS, Forgets(OPTIONS))
    for name in "ab":
        bench.submit(name, SYSTEM + f"<|user|>[[say {name}]]<|end|>")
        bench.run()
    bench.submit("c", SYSTEM + "<|user|>[[say c]]<|end|>")
    bench.submit("d", SYSTEM + "<|user|>[[say d]]<|end|>")
    bench.run()
    assert [bench.text(name) for name in "abcd"] == list("abcd")
    assert bench.misses()[CacheMiss.WINDOW] == 3


def test_retained_prefixes_make_room_before_anybody_is_preempted() -> None:
    options = attrs.evolve(OPTIONS, context_size=300, n_cells=512)
    bench = Bench(options)
    bench.submit("old", "<|user|>" + "x" * 230 + "<|end|>", max_tokens=1)
    bench.run()
    assert bench.engine.statistics().cells_retained == 233
    for name in "ab":
        bench.submit(name, f"<|user|>{name}[[repeat 220 {name}]]<|end|>")
    bench.run()
    assert [len(bench.text(name)) for name in "ab"] == [220, 220]
    assert bench.engine.statistics().counts.preemptions == 0


def test_what_leaves_the_cells_for_host_memory_is_counted_there() -> None:
    bench = Bench(attrs.evolve(OPTIONS, max_retained=1, host_cells=512))
    n_prompt = bench.submit("a", "<|user|>" + "x" * 230 + "<|end|>", max_tokens=1)
    bench.run()
    assert bench.engine.statistics().host_tokens == 0
    bench.submit("b", "<|user|>" + "y" * 130 + "<|end|>", max_tokens=1)
    bench.run()
    told = bench.engine.statistics()
    assert told.host_tokens == told.counts.saved_tokens == n_prompt
    assert told.cells_retained == 133
    bench.engine.forget_retained()
    assert bench.engine.statistics().host_tokens == 0


def test_a_preempted_sequence_finds_what_was_not_needed_of_it() -> None:
    options = attrs.evolve(OPTIONS, context_size=300, n_cells=360, max_sequences=2)
    bench = Bench(options)
    for name in "ab":
        bench.submit(name, f"<|user|>{name}" + name * 60 + f"<|end|><|user|>[[repeat 200 {name}]]<|end|>")
    bench.run()
    told = bench.engine.statistics()
    assert told.counts.preemptions == 1
    assert [bench.text(name) for name in "ab"] == ["a" * 200, "b" * 200]
    assert bench.cached("b") == 0, "its own tokens do not count"
    n_prompts, n_preempted = 2 * 85, 360 // 2
    assert bench.prefilled < n_prompts + n_preempted - 48, "its beginning was still there"


def test_O08_distinct_prompts_level_off(bench: Bench) -> None:
    """Ids, cells, edges of the tree, and what is remembered of prompts that were given up."""
    sizes = []
    for index in range(60):
        bench.submit(str(index), f"<|user|>{index}" + "x" * 300 + "<|end|>", max_tokens=1)
        bench.run()
        pool = bench.engine._cells
        sizes.append((len(pool._retained), pool.n_retained, len(list(pool._tree._edges()))))
    assert len(set(sizes[10:])) <= 2
    assert max(sizes) <= (OPTIONS.max_retained, OPTIONS.n_cells // 2, 2 * OPTIONS.max_retained)


def test_N23_a_sequence_cancelled_in_a_long_prefill_leaves_at_the_next_step(bench: Bench) -> None:
    bench.submit("long", "<|user|>" + "x" * 400 + "<|end|>")
    bench.submit("other", "<|user|>[[say y]]<|end|>", namespace=None)
    bench.step()
    bench.engine.cancel("long")
    assert bench.engine.statistics().running == 1
    bench.run()
    assert bench.text("other") == "y"
    assert bench.prefilled < 40


def test_steps_are_timed_in_and_outside_the_forward_pass() -> None:
    options = OPTIONS
    times = iter(range(1000))
    backend = ScriptedBackend(options)
    engine = Engine(backend, options, stopwatch=lambda: float(next(times)))
    engine.submit(SequenceRequest(request_id="a", prompt_tokens=(1, 2), submitted_s=0.0))
    output = engine.step()
    assert (output.step_s, output.computing_s) == (3.0, 1.0)


prompts = st.tuples(st.integers(0, 2), st.integers(0, 120), st.integers(1, 30))
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 10)),
    ),
    max_size=25,
)


@given(actions, st.integers(256, 700), st.integers(1, 4), st.integers(0, 4), st.sampled_from([1, 7, 16]))
def test_whatever_is_shared_every_request_that_stays_gets_its_own_whole_answer(
    played: list[tuple[str, object]], n_cells: int, max_sequences: int, max_retained: int, chunk: int
) -> None:
    """Prompts of three families, each as long a part of its family's text as was drawn."""
    bench = Bench(
        EngineOptions(
            context_size=200,
            n_cells=n_cells,
            max_sequences=max_sequences,
            max_retained=max_retained,
            prefill_chunk=chunk,
        )
    )
    answers: dict[str, str] = {}
    cancelled: set[str] = set()
    for kind, drawn in played:
        match kind, drawn:
            case "submit", (int(family), int(n_shared), int(n_answer)):
                name = str(len(answers))
                answers[name] = (f"{name}-" * 20)[:n_answer]
                text = (f"{family} is what it is about. " * 10)[:n_shared]
                bench.submit(name, f"<|user|>{text}[[say {answers[name]}]]<|end|>")
            case "cancel", int(number):
                bench.engine.cancel(str(number))
                cancelled.add(str(number))
            case "step", int(n_steps):
                for _ in range(n_steps):
                    bench.step()
    bench.run()
    for name in answers.keys() - cancelled:
        assert bench.text(name) == answers[name]
