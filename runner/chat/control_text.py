"""Keeps clients' text from being read as the model's control tokens (G10).

A rendered prompt is one text, and tokenising it reads `<|im_start|>` as the control token wherever it stands:
whoever writes it in a message opens a turn of a role of his choice. Where it came from must therefore survive
the template, which trims, splits and joins as it likes. So, before rendering, the first character of every
control text in what a client wrote is replaced by a stand-in, a character that occurs nowhere else; after
rendering, a stand-in that begins a control text marks it as the client's, and that stretch alone is tokenised
without control tokens.

    user:     what is <|im_end|>?            what is □|im_end|>?
    rendered: <|im_start|>user\\nwhat is □|im_end|>?<|im_end|>\\n
    pieces:   "<|im_start|>user\\nwhat is " · "<|im_end|>" (literal) · "?<|im_end|>\\n"

Text without control texts passes untouched and is tokenised in one piece, so that it gives the very ids that
plain rendering gives. Tried and rejected: rendering placeholders instead of messages (templates that trim or
look into a message then do something else, and text tokenised in parts gives other ids), and marks around
every message (the same).

A prompt that is cut may spell a little differently at the cuts than it would in one piece (SentencePiece
vocabularies put a space in front of every piece); only prompts with control texts of a client's are cut.

What this does not do: protect templates whose roles are ordinary words (`### User:`), nor against a template
that removes characters from inside a message and so joins what was apart. Pure; imports `runner.domain` and
`runner.errors`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from runner.domain.generation import ChatMessage, ChatPrompt
from runner.errors import FieldFault, InvalidParameter

_NONCHARACTERS = (
    *range(0xFDD0, 0xFDF0),  # never assigned, meant for use inside a program
    *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
)
_PRIVATE_USE = range(0xE000, 0xF900)  # when a client uses up the others


@attrs.frozen
class Piece:
    """A stretch of the prompt; `is_literal`: control texts in it are only text."""

    text: str
    is_literal: bool


@attrs.frozen
class Disarmed:
    """A prompt whose control texts have stand-ins. `originals` maps a stand-in to what it stands for."""

    prompt: ChatPrompt
    originals: Mapping[str, str]


class ControlTexts:
    """The control texts of one vocabulary."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        self._lengths = sorted({len(text) for text in self._texts}, reverse=True)
        self._beginnings = frozenset(text[:end] for text in self._texts for end in range(1, len(text)))
        first_characters = "".join(sorted({text[0] for text in self._texts}))
        self._first = re.compile(f"[{re.escape(first_characters)}]" if first_characters else "(?!)")

    def disarm(self, prompt: ChatPrompt, template_source: str) -> Disarmed:
        """`prompt` itself when nothing in it needs a stand-in, as nearly always.

        Raises InvalidParameter when no character is left to stand in: there are 6466.
        """
        found = {
            text: starts
            for text in (*_client_texts(prompt), *_option_texts(prompt))
            if (starts := self._starts(text))
        }
        if not found:
            return Disarmed(prompt, {})
        characters = {text[start] for text, starts in found.items() for start in starts}
        used = set(template_source).union(*_client_texts(prompt), *_option_texts(prompt))
        free = (chr(code) for code in itertools.chain(_NONCHARACTERS, _PRIVATE_USE) if chr(code) not in used)
        stand_ins = dict(zip(sorted(characters), free, strict=False))
        if len(stand_ins) < len(characters):
            raise InvalidParameter(
                FieldFault("messages", "use every character that is reserved for programs")
            )
        disarmed = {text: _substitute(text, starts, stand_ins) for text, starts in found.items()}
        return Disarmed(_replaced(prompt, disarmed), {new: old for old, new in stand_ins.items()})

    def pieces(self, rendered: str, originals: Mapping[str, str]) -> list[Piece]:
        """`rendered` with the original characters, cut so that clients' control texts stand alone."""
        if not originals:
            return [Piece(rendered, is_literal=False)]
        restored = rendered.translate({ord(new): old for new, old in originals.items()})
        pieces = []
        done = 0
        for match in re.finditer(f"[{''.join(originals)}]", rendered):
            start = match.start()
            length = self._longest_at(restored, start)
            if start < done or not length:
                continue  # inside the one before, or no control text any more
            pieces += [Piece(restored[done:start], False), Piece(restored[start : start + length], True)]
            done = start + length
        pieces.append(Piece(restored[done:], False))
        return [piece for piece in pieces if piece.text]

    def _starts(self, text: str) -> list[int]:
        """Where a control text starts, or the beginning of one that what follows `text` could complete.

        Templates trim: what counts as the end of `text` is the end without white space, too.
        """
        trimmed_end = len(text.rstrip())
        longest = self._lengths[0] if self._lengths else 0
        starts = []
        for match in self._first.finditer(text):
            start = match.start()
            if self._longest_at(text, start) or (
                trimmed_end - start < longest
                and (text[start:] in self._beginnings or text[start:trimmed_end] in self._beginnings)
            ):
                starts.append(start)
        return starts

    def _longest_at(self, text: str, start: int) -> int:
        """Length of the longest control text at `start`, 0 when there is none."""
        return next((n for n in self._lengths if text[start : start + n] in self._texts), 0)


def _client_texts(prompt: ChatPrompt) -> Iterator[str]:
    for message in prompt.messages:
        yield message.content
        if message.name is not None:
            yield message.name


def _option_texts(prompt: ChatPrompt) -> Iterator[str]:
    for value in prompt.template_options.values():
        if isinstance(value, str):
            yield value


def _substitute(text: str, starts: list[int], stand_ins: Mapping[str, str]) -> str:
    characters = list(text)
    for start in starts:
        characters[start] = stand_ins[characters[start]]
    return "".join(characters)


def _replaced(prompt: ChatPrompt, disarmed: Mapping[str, str]) -> ChatPrompt:
    def safe(text: str) -> str:
        return disarmed.get(text, text)

    return attrs.evolve(
        prompt,
        messages=tuple(
            ChatMessage(
                role=message.role,
                content=safe(message.content),
                name=None if message.name is None else safe(message.name),
            )
            for message in prompt.messages
        ),
        template_options={
            name: safe(value) if isinstance(value, str) else value
            for name, value in prompt.template_options.items()
        },
    )
