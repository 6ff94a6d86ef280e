"""Answers as a whole: from the events of one generation to what a reply without a stream is made of.

Imports the domain. Read on in `inference.py`, which makes generations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

import attrs

from runner.domain.events import (
    ChoiceEnded,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptText,
    TextDelta,
    TokenLogprob,
)
from runner.domain.generation import EMBEDDED_BYTES_MAX
from runner.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    FieldFault,
    InvalidParameter,
    QueueFull,
    RunnerError,
    TemplateFailed,
)

_FIELD_PATH = re.compile(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+)*")


@attrs.frozen(kw_only=True)
class Choice:
    """One of the answers. `logprobs` are empty when they were not asked for; `reasoning` has none.
    `prompt_text` and `prompt_logprobs` are the echo of its prompt, if one was asked for."""

    text: str
    reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    prompt_text: str = ""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@attrs.frozen(kw_only=True)
class Completed:
    """Everything that was answered. `fingerprint` changes when model or engine do.

    `choices` are in order of their indices, all of one prompt before those of the next; `finished` is of them
    all.
    """

    choices: tuple[Choice, ...]
    finished: Finished
    fingerprint: str

    @property
    def text(self) -> str:
        """The first answer's."""
        return self.choices[0].text


@attrs.frozen(kw_only=True)
class Embeddings:
    """The vectors in the order of their inputs: 32-bit floats, little-endian, as many in each."""

    vectors: tuple[bytes, ...]
    finished: Finished
    fingerprint: str

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.vectors))


class Collectable(Protocol):
    """A generation that was accepted."""

    @property
    def fingerprint(self) -> str: ...

    async def receive(self) -> list[GenerationEvent]: ...


async def collect(generation: Collectable, *, n: int, n_prompts: int) -> Completed:
    """`n` answers to each prompt, to the end. Raises the error that a failed generation reports, and
    EngineFailed where an answer is missing, or nobody asked for it (W07)."""
    collected = _Collected(n)
    while events := await generation.receive():
        for event in events:
            match event:
                case TextDelta():
                    collected.answer(event.choice_index).append(event)
                case PromptText():
                    collected.prompts.setdefault(event.prompt_index, []).append(event)
                case ChoiceEnded():
                    collected.reasons[event.choice_index] = event.reason
                case Finished():
                    collected.reasons[event.choice_index] = event.reason
                    if sorted(collected.reasons) != list(range(n * n_prompts)):
                        raise EngineFailed("the worker did not end each answer once")
                    return collected.completed(event, generation.fingerprint)
                case Failed():
                    raise error_of(event)
    raise EngineFailed("the answer has no end")


async def collect_vectors(generation: Collectable, n_inputs: int) -> Embeddings:
    """Raises the error that was reported, and EngineFailed for what is no vector for each input (W07)."""
    vectors: dict[int, bytes] = {}
    size_bytes = 0
    while events := await generation.receive():
        for event in events:
            match event:
                case Embedded():
                    size_bytes += len(event.vector)
                    if event.input_index >= n_inputs or size_bytes > EMBEDDED_BYTES_MAX:
                        raise EngineFailed("the worker told vectors that nobody asked for")
                    vectors[event.input_index] = event.vector
                case Finished():
                    sizes = {len(vector) for vector in vectors.values()}
                    if len(vectors) < n_inputs or len(sizes) != 1 or sizes.pop() % 4:
                        raise EngineFailed("the worker did not tell a vector for each input")
                    told = tuple(vectors[index] for index in range(n_inputs))
                    return Embeddings(vectors=told, finished=event, fingerprint=generation.fingerprint)
                case Failed():
                    raise error_of(event)
    raise EngineFailed("the answer has no end")


@attrs.define
class _Collected:
    """What has come so far. An answer without any text has a reason only."""

    n_choices: int
    prompts: dict[int, list[PromptText]] = attrs.field(factory=dict)
    answers: dict[int, list[TextDelta]] = attrs.field(factory=dict)
    reasons: dict[int, FinishReason] = attrs.field(factory=dict)

    def answer(self, choice_index: int) -> list[TextDelta]:
        return self.answers.setdefault(choice_index, [])

    def completed(self, finished: Finished, fingerprint: str) -> Completed:
        return Completed(
            choices=tuple(self._choice(index) for index in sorted(self.reasons)),
            finished=finished,
            fingerprint=fingerprint,
        )

    def _choice(self, index: int) -> Choice:
        deltas = self.answer(index)
        prompt = self.prompts.get(index // self.n_choices, [])
        return Choice(
            text="".join(delta.text for delta in deltas if not delta.is_reasoning),
            reason=self.reasons[index],
            logprobs=_joined(deltas),
            reasoning="".join(delta.text for delta in deltas if delta.is_reasoning),
            prompt_text="".join(piece.text for piece in prompt),
            prompt_logprobs=_joined(prompt),
        )


def _joined(pieces: Iterable[TextDelta] | Iterable[PromptText]) -> tuple[TokenLogprob, ...]:
    return tuple(logprob for piece in pieces for logprob in piece.logprobs)


def error_of(failed: Failed) -> RunnerError:
    """The error that a worker reported. Its text is passed on for codes whose messages we write (N21)."""
    if failed.prompt_tokens is not None and failed.context_size is not None:
        return ContextLengthExceeded(failed.prompt_tokens, failed.context_size)
    match failed.code:
        case TemplateFailed.code:
            return TemplateFailed(failed.message)
        case InvalidParameter.code:
            return InvalidParameter(*_field_faults(failed.message))
        case QueueFull.code:
            return QueueFull(failed.message)
        case Draining.code:
            return Draining()
        case EngineFailed.code:
            return EngineFailed(failed.message)
    return EngineFailed("the generation failed for a reason that the worker's log tells")


def _field_faults(message: str) -> Iterator[FieldFault]:
    """The faults that `InvalidParameter` wrote as one text (`prompt[3]: …; prompt[5]: …`)."""
    for told in message.split("; "):
        path, colon, what = told.partition(": ")
        is_path = bool(colon) and _FIELD_PATH.fullmatch(path) is not None
        yield FieldFault(path, what) if is_path else FieldFault("prompt", told)
