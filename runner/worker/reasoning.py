"""How the loaded model reasons: by its template and vocabulary, and for one request by its rendered prompt.

Used by the preparation thread. Imports the chat side's table of markers and the engine's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runner.chat.reasoning import Markers, PromptEnd, end_of_prompt, find_markers
from runner.chat.template import ChatTemplate
from runner.domain.generation import ChatPrompt
from runner.engine.backend import Backend
from runner.engine.reasoning import Reasoning, SpelledMarkers
from runner.errors import FieldFault, InvalidParameter

_SWITCHES: Final = ("enable_thinking", "thinking")
"""Options of templates that are true or false."""
_EFFORT: Final = "reasoning_effort"
_LEADS: Final = ("", "\n", "a")
"""What may stand before a text so that it is tokenised as in the middle of one: some vocabularies put a blank
in front of a beginning."""


class ReasoningReader:
    """Of one model. Looking for markers takes 1 ms, their tokens 5 to 30 ms more where there are some."""

    def __init__(self, backend: Backend, template: ChatTemplate) -> None:
        self._backend = backend
        self._template = template
        markers = find_markers(template.source, lambda text: self._token_of(text) is not None)
        self._spelled = None if markers is None else self._spell(markers)

    def __repr__(self) -> str:
        return f"<ReasoningReader: {self._spelled and self._spelled.start}>"

    def options(self, prompt: ChatPrompt) -> Mapping[str, str | int | float | bool]:
        """What the template is given. Raises InvalidParameter for an effort that it does not know.

        1. No effort said: the options as they are.  2. Some: the template has to read it.  3. None: a model
        that does not reason needs nothing; of others, every switch of the template is off.
        """
        options, effort = prompt.template_options, prompt.reasoning_effort
        reads_effort = effort is not None and self._template.reads(_EFFORT)
        if effort is None:  # 1
            return options
        if effort != "none":  # 2
            if not reads_effort:
                raise _no_effort("is not known to this model's chat template")
            return {**options, _EFFORT: effort}
        if self._spelled is None:  # 3
            if reads_effort:
                raise _no_effort("cannot be none with this model's chat template")
            return options
        switches: dict[str, str | bool] = {name: False for name in _SWITCHES if self._template.reads(name)}
        return {**options, **switches, **({_EFFORT: effort} if reads_effort else {})}

    def finish(self, rendered: str, prompt: ChatPrompt) -> tuple[str, PromptEnd]:
        """The whole prompt, and what it leaves to the model. Reasoning that is not wanted and that the
        template has opened all the same is closed. Raises InvalidParameter where that is no help."""
        if self._spelled is None:
            return rendered, PromptEnd.CLOSED
        end = end_of_prompt(rendered, Markers(self._spelled.start, self._spelled.end))
        if prompt.reasoning_effort != "none":
            return rendered, end
        if end is PromptEnd.OPEN:
            return f"{rendered}{self._spelled.end}\n\n", PromptEnd.CLOSED
        if end is PromptEnd.UNDECIDED and not any(map(self._template.reads, (*_SWITCHES, _EFFORT))):
            raise _no_effort("cannot be none: this model's chat template has no switch for it")
        return rendered, end

    def reasoning(self, end: PromptEnd, *, is_separated: bool) -> Reasoning | None:
        """For the engine; None when what comes is the answer."""
        if self._spelled is None or end is PromptEnd.CLOSED:
            return None
        return Reasoning(markers=self._spelled, is_open=end is PromptEnd.OPEN, is_separated=is_separated)

    def _spell(self, markers: Markers) -> SpelledMarkers | None:
        """None where the vocabulary cannot write the markers; then the model does not either."""
        start_tokens, end_tokens = map(self._tokens_along, markers)
        if start_tokens is None or end_tokens is None:
            return None
        firsts = zip(markers, (start_tokens[0], end_tokens[0]), strict=True)
        names = {token: text.encode() for text, token in firsts if not self._backend.token_piece(token)}
        return SpelledMarkers(
            start=markers.start,
            end=markers.end,
            start_tokens=start_tokens,
            end_tokens=end_tokens,
            names=names,
        )

    def _tokens_along(self, marker: str) -> tuple[int, ...] | None:
        """For each place in `marker` the longest token that it goes on with."""
        tokens = [
            next(
                (
                    token
                    for stop in range(len(marker), start, -1)
                    if (token := self._token_of(marker[start:stop])) is not None
                ),
                None,
            )
            for start in range(len(marker))
        ]
        found = tuple(token for token in tokens if token is not None)
        return found if len(found) == len(tokens) else None

    def _token_of(self, text: str) -> int | None:
        """The one token that stands for `text`."""
        for lead in _LEADS:
            token_ids = self._backend.tokenize(lead + text, add_special=False, parse_special=True)
            if token_ids and self._backend.token_text(token_ids[-1]) == text.encode():
                return token_ids[-1]
        return None


def _no_effort(what: str) -> InvalidParameter:
    return InvalidParameter(FieldFault(_EFFORT, what))
