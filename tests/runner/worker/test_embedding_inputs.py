"""Inputs of embeddings become token ids: checked, counted, cut where that is asked for."""

from __future__ import annotations

import pytest

from runner.domain.engine import EngineOptions
from runner.domain.generation import EMBEDDED_BYTES_MAX, EmbeddingPrompt, TextPrompt, TokenPrompt
from runner.engine.fake import ANSWER, BOS, N_VOCAB, ScriptedBackend
from runner.engine.fake_embedding import DIMENSIONS
from runner.errors import FieldFault, InvalidParameter
from runner.worker.embedding_inputs import FAULTS_MAX, InputReader
from tests.support.embedding_inputs import read_all

LIMIT = 64
READER = InputReader(ScriptedBackend(EngineOptions(context_size=LIMIT, n_cells=2 * LIMIT)))


def text(content: str) -> TextPrompt:
    return TextPrompt(content)


def read(*inputs: TextPrompt | TokenPrompt, **fields: object) -> tuple[tuple[int, ...], ...]:
    return read_all(READER, EmbeddingPrompt(inputs=inputs, **fields))  # type: ignore[arg-type]  # as a test likes


def faults(*inputs: TextPrompt | TokenPrompt, **fields: object) -> list[FieldFault]:
    with pytest.raises(InvalidParameter) as caught:
        read(*inputs, **fields)
    return list(caught.value.faults)


def test_texts_have_what_the_model_wants_around_them_and_tokens_are_taken_as_they_are() -> None:
    assert read(text("ab"), TokenPrompt((1, 2))) == ((BOS, *b"ab", ANSWER), (1, 2))


def test_G10_names_of_control_tokens_are_mere_text() -> None:
    [tokens] = read(text("<|end|>"))
    assert tokens == (BOS, *b"<|end|>", ANSWER)


def test_N12_what_is_too_long_is_named_with_both_numbers() -> None:
    inputs = (text("a"), text("b" * LIMIT), TokenPrompt((1,) * (LIMIT + 1)))
    assert faults(*inputs) == [
        FieldFault(
            f"input[{index}]",
            f"has {n_tokens} tokens, and the model takes {LIMIT}, unless truncate asks to cut it",
        )
        for index, n_tokens in ((1, LIMIT + 2), (2, LIMIT + 1))
    ]
    [fault] = faults(text("b" * LIMIT))
    assert fault.path == "input"


def test_an_input_that_just_fits_is_not_cut() -> None:
    [tokens] = read(text("a" * (LIMIT - 2)), truncates=True)
    assert tokens == (BOS, *b"a" * (LIMIT - 2), ANSWER)
    assert read(TokenPrompt((1,) * LIMIT)) == ((1,) * LIMIT,)


def test_a_cut_text_keeps_its_beginning_and_what_the_model_wants_behind_it() -> None:
    [tokens] = read(text("a" * 30 + "b" * 90), truncates=True)
    assert tokens == (BOS, *b"a" * 30, *b"b" * (LIMIT - 32), ANSWER)
    [tokens] = read(text("abc"), truncates=True, tokens_max=3)
    assert tokens == (BOS, *b"a", ANSWER)
    [tokens] = read(text("abc"), truncates=True, tokens_max=1)
    assert tokens == (BOS,)
    [tokens] = read(TokenPrompt(tuple(range(99))), truncates=True)
    assert tokens == tuple(range(LIMIT))


def test_of_a_very_long_text_only_the_beginning_is_looked_at() -> None:
    huge = text("x" * 10_000_000)
    [tokens] = read(huge, truncates=True)
    assert tokens == (BOS, *b"x" * (LIMIT - 2), ANSWER)
    [fault] = faults(huge)
    assert "more than" in fault.message
    assert f"takes {LIMIT}" in fault.message


@pytest.mark.parametrize("token_id", [-1, N_VOCAB, 10**9])
def test_N12_a_token_outside_the_vocabulary_is_named(token_id: int) -> None:
    [fault] = faults(text("a"), TokenPrompt((5, token_id)))
    assert fault.path == "input[1]"
    assert str(token_id) in fault.message


def test_an_input_needs_a_token() -> None:
    [fault] = faults(TokenPrompt(()))
    assert fault == FieldFault("input", "must hold at least one token")


def test_as_many_faults_are_told_as_one_reads() -> None:
    assert len(faults(*[TokenPrompt(())] * 100)) == FAULTS_MAX


def test_N12_more_dimensions_or_tokens_than_there_are_are_refused_together() -> None:
    told = faults(text("a"), dimensions=DIMENSIONS + 1, tokens_max=LIMIT + 1, truncates=True)
    assert [fault.path for fault in told] == ["dimensions", "truncate_prompt_tokens"]
    assert str(DIMENSIONS) in told[0].message
    assert str(LIMIT) in told[1].message
    assert read(text("a"), dimensions=DIMENSIONS, tokens_max=LIMIT, truncates=True)


def test_vectors_may_not_come_to_more_than_the_daemon_takes() -> None:
    n_inputs = EMBEDDED_BYTES_MAX // (4 * DIMENSIONS) + 1
    [fault] = faults(*[TokenPrompt((1,))] * n_inputs)
    assert fault.path == "input"
    assert str(EMBEDDED_BYTES_MAX) in fault.message


def test_many_inputs_are_read_in_steps() -> None:
    steps = READER.reading(EmbeddingPrompt(inputs=(text("a"),) * 5))
    assert [next(steps) for _ in range(5)] == [None] * 5
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert len(ended.value.value) == 5


def test_a_text_far_too_long_to_be_read_is_refused_though_its_beginning_has_few_tokens() -> None:
    class Blank(ScriptedBackend):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            return [BOS, ANSWER]

    reader = InputReader(Blank(EngineOptions(context_size=LIMIT, n_cells=2 * LIMIT)))
    blanks = text(" " * 1_000_000)
    with pytest.raises(InvalidParameter, match="too long to be looked at whole"):
        read_all(reader, EmbeddingPrompt(inputs=(blanks,)))
    assert read_all(reader, EmbeddingPrompt(inputs=(blanks,), truncates=True)) == ((BOS, ANSWER),)
