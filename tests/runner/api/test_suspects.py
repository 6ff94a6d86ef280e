"""The table of requests that were there when workers died (L05)."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.suspects import Suspects, Verdict
from runner.domain.generation import ChatMessage, ChatPrompt, GenerationRequest, TextPrompt
from runner.domain.sampling import SamplingParams
from runner.errors import TooLarge
from runner.oci.digest import Digest
from runner.wire.codec import MESSAGE_LIMIT_BYTES

MODEL = Digest.of(b"model")
REQUEST = GenerationRequest(request_id="r1", prompt=TextPrompt("Why?"))


def chat(**options: str | bool) -> GenerationRequest:
    message = ChatMessage(role="user", content="Why?")
    return GenerationRequest(request_id="r", prompt=ChatPrompt(messages=(message,), template_options=options))


def suspects(**limits: float) -> Suspects:
    return Suspects(b"key", **limits)  # type: ignore[arg-type]  # limits are numbers of either kind


def test_L05_the_second_death_puts_a_request_in_quarantine() -> None:
    table = suspects()
    assert table.is_empty
    assert table.verdict(b"a", 0) is Verdict.CLEAR
    table.killed(b"a", 0)
    assert table.verdict(b"a", 1) is Verdict.SUSPECT
    table.killed(b"a", 1)
    assert table.verdict(b"a", 2) is Verdict.QUARANTINED
    assert table.verdict(b"b", 2) is Verdict.CLEAR
    assert repr(table) == "<Suspects 1, of them 1 in quarantine>"


def test_a_suspect_that_finishes_is_cleared() -> None:
    table = suspects()
    table.killed(b"a", 0)
    table.cleared(b"a")
    table.cleared(b"b")
    table.killed(b"a", 1)
    assert table.verdict(b"a", 1) is Verdict.SUSPECT


@pytest.mark.parametrize(("after_s", "verdict"), [(99.9, Verdict.QUARANTINED), (100.0, Verdict.CLEAR)])
def test_time_heals(after_s: float, verdict: Verdict) -> None:
    table = suspects(forget_s=100.0)
    table.killed(b"a", -50)
    table.killed(b"a", 0)
    assert table.verdict(b"a", after_s) is verdict
    assert table.is_empty is (verdict is Verdict.CLEAR)


def test_O08_the_table_is_bounded_and_forgets_the_oldest_death_first() -> None:
    table = suspects(limit=2)
    table.killed(b"a", 0)
    table.killed(b"b", 1)
    table.killed(b"a", 2)
    table.killed(b"c", 3)
    assert table.verdict(b"b", 3) is Verdict.CLEAR
    assert table.verdict(b"a", 3) is Verdict.QUARANTINED


def test_L05_identical_is_what_a_worker_would_be_sent_for_the_same_model() -> None:
    table = suspects()
    known = table.fingerprint(MODEL, REQUEST)
    assert table.fingerprint(MODEL, attrs.evolve(REQUEST, request_id="r2")) == known
    others = [
        table.fingerprint(Digest.of(b"other"), REQUEST),
        table.fingerprint(MODEL, attrs.evolve(REQUEST, max_tokens=5)),
        table.fingerprint(MODEL, attrs.evolve(REQUEST, sampling=SamplingParams(temperature=0.5))),
        table.fingerprint(MODEL, attrs.evolve(REQUEST, prompt=TextPrompt("Why? "))),
        table.fingerprint(MODEL, chat()),
    ]
    assert len({known, *others}) == 6


def test_the_order_of_options_makes_no_other_request() -> None:
    table = suspects()
    one = table.fingerprint(MODEL, chat(date_string="x", thinking=True))
    assert table.fingerprint(MODEL, chat(thinking=True, date_string="x")) == one


def test_K04_a_fingerprint_tells_nothing_without_the_key() -> None:
    one, other = Suspects(b"key"), Suspects(b"another")
    assert one.fingerprint(MODEL, REQUEST) != other.fingerprint(MODEL, REQUEST)
    assert len(one.fingerprint(MODEL, REQUEST)) == 16
    assert Suspects(b"k" * 100).fingerprint(MODEL, REQUEST)


def test_a_request_that_no_worker_can_be_sent_is_told_so() -> None:
    huge = attrs.evolve(REQUEST, prompt=TextPrompt("x" * (MESSAGE_LIMIT_BYTES + 1)))
    with pytest.raises(TooLarge):
        suspects().fingerprint(MODEL, huge)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["kill", "clear"]), st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 60)
        ),
        max_size=50,
    )
)
def test_quarantine_is_two_deaths_without_a_finish_within_the_time(
    history: list[tuple[str, bytes, int]],
) -> None:
    table, now_s = suspects(forget_s=100.0), 0.0
    deaths: dict[bytes, list[float]] = {b"a": [], b"b": [], b"c": []}
    for what, request, seconds in history:
        now_s += seconds
        for known in deaths.values():
            if known and now_s - known[-1] >= 100:
                known.clear()
        if what == "kill":
            table.killed(request, now_s)
            deaths[request].append(now_s)
        else:
            table.cleared(request)
            deaths[request].clear()
        for one, known in deaths.items():
            expected = (Verdict.CLEAR, Verdict.SUSPECT, Verdict.QUARANTINED)[min(len(known), 2)]
            assert table.verdict(one, now_s) is expected
