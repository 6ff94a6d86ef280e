"""Several generations read as one: a request with several prompts is a stream for each of them.

Answers are numbered prompt by prompt: choice `c` of prompt `p` has the index `p * n + c`. The first failure
ends all. Imports the domain; streams are those of `actors/stream.py`. Read on in `inference.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from runner.domain.events import (
    ChoiceEnded,
    Failed,
    Finished,
    GenerationEvent,
    PromptText,
    TextDelta,
    Timings,
    Usage,
)
from runner.errors import ContextLengthExceeded, EngineFailed, FieldFault, InvalidParameter, RunnerError

if TYPE_CHECKING:
    from actors.stream import GenerationStream


class EventReader(Protocol):
    """One reader's end, of a single stream or of several."""

    async def receive(self) -> list[GenerationEvent]: ...

    def close(self) -> None: ...


class JoinedStreams:
    """An `EventReader` of streams that were accepted, each with `n_choices` answers."""

    def __init__(
        self, streams: Sequence[GenerationStream], first: Sequence[list[GenerationEvent]], n_choices: int
    ) -> None:
        """`first` are events of each that came with its acceptance."""
        self._streams = streams
        self._first = list(first)
        self._n_choices = n_choices
        self._ends: dict[int, Finished] = {}
        self._news = trio.Event()
        self._has_failed = False
        for stream in streams:
            stream.on_news = self._ring

    async def receive(self) -> list[GenerationEvent]:
        """As `GenerationStream.receive`; nothing follows after one of them has failed."""
        while True:
            self._news = trio.Event()
            events = self._take()
            if events or self._is_over:
                await trio.lowlevel.checkpoint_if_cancelled()
                return events
            await self._news.wait()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    @property
    def _is_over(self) -> bool:
        return self._has_failed or len(self._ends) == len(self._streams)

    def _ring(self) -> None:
        self._news.set()

    def _take(self) -> list[GenerationEvent]:
        """Everything that is ready. An error of a stream is raised when all was told that came before it."""
        if self._is_over:
            return []
        told: list[GenerationEvent] = []
        raised: RunnerError | None = None
        for prompt_index, stream in enumerate(self._streams):
            events, self._first[prompt_index] = self._first[prompt_index], []
            try:
                events += stream.receive_nowait()
            except RunnerError as error:
                raised = error
            for event in events:
                told.append(self._numbered(event, prompt_index))
                if self._has_failed:
                    self.close()
                    return told
        if raised is not None and not told:
            raise raised
        return told

    def _numbered(self, event: GenerationEvent, prompt_index: int) -> GenerationEvent:
        """Raises EngineFailed for an answer that nobody asked for: it would be taken for another prompt's."""
        offset = prompt_index * self._n_choices
        match event:
            case TextDelta() | ChoiceEnded() | Finished() if event.choice_index >= self._n_choices:
                raise EngineFailed("the worker told an answer that nobody asked for")
            case TextDelta() | ChoiceEnded():
                return attrs.evolve(event, choice_index=event.choice_index + offset)
            case PromptText():
                return attrs.evolve(event, prompt_index=prompt_index)
            case Finished():
                self._ends[prompt_index] = event
                return self._ending(event, event.choice_index + offset)
            case Failed():
                self._has_failed = True
                return _failure_of(event, prompt_index)
        return event

    def _ending(self, event: Finished, choice_index: int) -> ChoiceEnded | Finished:
        """Of the last one, what is told of all together."""
        if len(self._ends) < len(self._streams):
            return ChoiceEnded(choice_index, event.reason)
        ends = self._ends.values()
        return Finished(
            reason=event.reason,
            usage=Usage(
                prompt_tokens=sum(end.usage.prompt_tokens for end in ends),
                completion_tokens=sum(end.usage.completion_tokens for end in ends),
                cached_tokens=sum(end.usage.cached_tokens for end in ends),
                reasoning_tokens=sum(end.usage.reasoning_tokens for end in ends),
            ),
            timings=Timings.spanning([end.timings for end in ends]),
            choice_index=choice_index,
        )

    def __repr__(self) -> str:
        return f"<JoinedStreams: {len(self._ends)} of {len(self._streams)} ended>"


def _failure_of(failed: Failed, prompt_index: int) -> Failed:
    """Messages of ours are passed on to clients for this code alone."""
    if failed.code != EngineFailed.code:
        return failed
    return attrs.evolve(failed, message=f"prompt[{prompt_index}]: {failed.message}")


def naming_prompt(error: RunnerError, prompt_index: int) -> RunnerError:
    """The same error, which says which of several prompts it is about, where it is about one."""
    name = f"prompt[{prompt_index}]"
    match error:
        case ContextLengthExceeded():
            return ContextLengthExceeded(error.prompt_tokens, error.context_size, what=name)
        case InvalidParameter():
            return InvalidParameter(*(_named(fault, name) for fault in error.faults))
        case EngineFailed():
            return EngineFailed(f"{name}: {error}")
    return error


def _named(fault: FieldFault, name: str) -> FieldFault:
    if fault.path != "prompt" and not fault.path.startswith("prompt["):
        return fault
    return FieldFault(name + fault.path.removeprefix("prompt"), fault.message)
