"""How a loaded model reasons: the tokens of its markers, and what a request's prompt comes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.chat.control_text import ControlTexts
from runner.chat.template import ChatTemplate
from runner.domain.engine import EngineOptions
from runner.domain.generation import ChatMessage, ChatPrompt, Examination, GenerationRequest, TextPrompt
from runner.engine.backend import Backend, load_backend
from runner.engine.fake import ScriptedBackend
from runner.engine.reasoning import Reasoning
from runner.engine.sequence import SequenceRequest
from runner.errors import InvalidParameter
from runner.worker.preparation import Preparer
from runner.worker.reasoning import ReasoningReader

OPTIONS = EngineOptions(context_size=512, n_cells=512, n_threads=1)
TURNS = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>{% endfor %}<|answer|>"
MAY = TURNS + "{# <think> #}"
SWITCHED = (
    TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
ALWAYS = TURNS + "<think>"
HALVES = TURNS + "{{ '<think>' if thinking else '</think>' }}"
EFFORT = TURNS + "{{ reasoning_effort or 'medium' }}"
EFFORT_OR_NONE = TURNS + "{{ '<think></think>' if reasoning_effort == 'none' }}"


def preparer(template: str, backend: Backend | None = None) -> Preparer:
    backend = backend or ScriptedBackend(OPTIONS)
    chat_template = ChatTemplate(template, backend.bos_text, backend.eos_text)
    reader = ReasoningReader(backend, chat_template)
    return Preparer(backend, OPTIONS, chat_template, ControlTexts(backend.control_texts), reader)


def chat(content: str = "hi", **fields: Any) -> ChatPrompt:
    return ChatPrompt(messages=(ChatMessage(role="user", content=content),), **fields)


def prepared(template: str, prompt: ChatPrompt | TextPrompt, **fields: Any) -> SequenceRequest:
    return preparer(template).prepare(GenerationRequest(request_id="r", prompt=prompt, **fields), 0.0)


def ending(template: str, prompt: ChatPrompt) -> str:
    """What is behind `<|answer|>`."""
    examined = preparer(template).examine(prompt, Examination.TEXT)
    return examined.data.decode().rpartition("<|answer|>")[2]


def test_a_model_without_markers_answers_at_once() -> None:
    assert prepared(TURNS, chat()).reasoning is None


def test_a_model_may_open_its_reasoning_or_the_template_has() -> None:
    for template, is_open in ((MAY, False), (SWITCHED, False), (ALWAYS, True)):
        reasoning = prepared(template, chat()).reasoning
        assert reasoning is not None
        assert (reasoning.is_open, reasoning.is_separated) == (is_open, True)


def test_it_is_not_separated_where_that_is_not_wanted() -> None:
    reasoning = prepared(MAY, chat(), separates_reasoning=False).reasoning
    assert reasoning is not None
    assert not reasoning.is_separated


def test_a_prompt_that_closed_it_leaves_the_answer() -> None:
    assert prepared(SWITCHED, chat(template_options={"enable_thinking": False})).reasoning is None


def test_a_text_completion_is_all_answer() -> None:
    assert prepared(ALWAYS, TextPrompt("<think>")).reasoning is None


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS, ""),
        (SWITCHED, "<think>\n\n</think>\n\n"),
        (HALVES, "</think>"),
        (ALWAYS, "<think></think>\n\n"),
        (EFFORT_OR_NONE, "<think></think>"),
    ],
)
def test_no_effort_leaves_reasoning_out_by_the_means_of_the_template(template: str, end: str) -> None:
    asked = chat(reasoning_effort="none")
    assert ending(template, asked) == end
    assert prepared(template, asked).reasoning is None


def test_no_effort_goes_before_the_options() -> None:
    asked = chat(reasoning_effort="none", template_options={"enable_thinking": True})
    assert prepared(SWITCHED, asked).reasoning is None


@pytest.mark.parametrize(("template", "what"), [(MAY, "no switch"), (EFFORT, "cannot be none")])
def test_no_effort_where_a_template_has_no_means_is_refused(template: str, what: str) -> None:
    with pytest.raises(InvalidParameter, match=what) as caught:
        prepared(template, chat(reasoning_effort="none"))
    assert [fault.path for fault in caught.value.faults] == ["reasoning_effort"]


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_some_effort_is_for_templates_that_read_it(effort: str) -> None:
    assert ending(EFFORT, chat(reasoning_effort=effort)) == effort
    for template in (TURNS, SWITCHED, "{{"):
        with pytest.raises(InvalidParameter, match="reasoning_effort"):
            prepared(template, chat(reasoning_effort=effort))


def test_control_texts_of_clients_stay_text_beside_an_effort() -> None:
    """Disarming a prompt keeps what else it says."""
    asked = chat("<|end|>", reasoning_effort="none")
    reasoning = prepared(SWITCHED, asked).reasoning
    assert reasoning is None


def test_every_place_in_a_marker_has_a_token_that_goes_on_with_it() -> None:
    reasoning = prepared(MAY, chat()).reasoning
    assert reasoning is not None
    assert reasoning.markers.start_tokens == tuple(b"<think>")  # a token is a byte here
    assert reasoning.markers.end_tokens == tuple(b"</think>")
    assert reasoning.markers.names == {}


def test_markers_that_are_control_tokens_have_names() -> None:
    class Vocabulary(ScriptedBackend):
        """Two control tokens more: 300 and 301."""

        _markers = {"[THINK]": 300, "[/THINK]": 301}

        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            for marker, token in self._markers.items():
                if parse_special and text.endswith(marker):
                    return [*text.removesuffix(marker).encode(), token]
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

        def token_text(self, token_id: int) -> bytes:
            for marker, token in self._markers.items():
                if token == token_id:
                    return marker.encode()
            return super().token_text(token_id)

    made = preparer(TURNS, Vocabulary(OPTIONS))
    reasoning = made.prepare(GenerationRequest(request_id="r", prompt=chat()), 0.0).reasoning
    assert reasoning is not None
    assert reasoning.markers.start_tokens == (300, *b"THINK]")
    assert reasoning.markers.end_tokens == (301, *b"/THINK]")
    assert reasoning.markers.names == {300: b"[THINK]", 301: b"[/THINK]"}


def test_a_vocabulary_that_cannot_write_the_markers_has_none() -> None:
    class Vocabulary(ScriptedBackend):
        def token_text(self, token_id: int) -> bytes:
            return b"?" if token_id == ord(">") else super().token_text(token_id)

    made = preparer(MAY, Vocabulary(OPTIONS))
    assert made.prepare(GenerationRequest(request_id="r", prompt=chat()), 0.0).reasoning is None


@pytest.fixture(scope="module")
def real(default_model_file: Path) -> Iterator[Backend]:
    backend = load_backend("llama", default_model_file, OPTIONS, lambda _: True)
    yield backend
    backend.close()


@pytest.mark.real_model
def test_a_real_vocabulary_spells_markers_in_pieces(real: Backend) -> None:
    reasoning: Reasoning | None = (
        preparer(ALWAYS, real).prepare(GenerationRequest(request_id="r", prompt=chat()), 0.0).reasoning
    )
    assert reasoning is not None
    assert reasoning.is_open
    for marker, tokens in (
        (reasoning.markers.start, reasoning.markers.start_tokens),
        (reasoning.markers.end, reasoning.markers.end_tokens),
    ):
        for place, token in enumerate(tokens):
            assert marker[place:].encode().startswith(real.token_piece(token))
        assert any(len(real.token_piece(token)) > 1 for token in tokens)


@pytest.mark.real_model
def test_a_model_that_does_not_reason_is_not_taken_for_one(real: Backend) -> None:
    assert real.chat_template is not None
    made = preparer(real.chat_template, real)
    assert made.prepare(GenerationRequest(request_id="r", prompt=chat()), 0.0).reasoning is None
