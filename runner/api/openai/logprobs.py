"""Log-probabilities in OpenAI's two shapes: one object per token for chats, parallel lists for completions.

Pure. Imports the domain's events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.domain.events import RankedToken, TokenLogprob


def chat_object(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {**_token(one.text, one.logprob), "top_logprobs": [_ranked(top) for top in one.top]}
            for one in logprobs
        ],
        "refusal": None,
    }


def _ranked(token: RankedToken) -> dict[str, Any]:
    return _token(token.text, token.logprob)


def _token(text: bytes, logprob: float | None) -> dict[str, Any]:
    """`bytes` are the token's own, also where they are only part of a character."""
    return {"token": _shown(text), "logprob": logprob, "bytes": list(text)}


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")


class CompletionLogprobs:
    """The lists of one answer, in parts as they come; offsets count on from one part to the next."""

    def __init__(self, prompt: str | None = None) -> None:
        """`prompt` is the text that the answer begins with, if it is known: tokens that the model was given
        in front of it take no room in it."""
        self._prompt = prompt
        self._offset = 0

    def object(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [_shown(one.text) for one in logprobs]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [self._likeliest(one) for one in logprobs],
            "text_offset": [self._next_offset(text) for text in texts],
        }

    def _likeliest(self, one: TokenLogprob) -> dict[str, float] | None:
        """By text; of tokens that look alike, the likelier one."""
        if one.logprob is None:
            return None
        return {_shown(top.text): top.logprob for top in reversed(one.top)}

    def _next_offset(self, text: str) -> int:
        offset = self._offset
        is_in_front = offset == 0 and self._prompt is not None and not self._prompt.startswith(text)
        if not is_in_front:
            self._offset += len(text)
        return offset


def mean(logprobs: Sequence[TokenLogprob]) -> float:
    """Of a token; nothing said is as likely as can be."""
    known = [one.logprob for one in logprobs if one.logprob is not None]
    return sum(known) / len(known) if known else 0.0
