"""What a generation reports, in the order it happens.

    Accepted, TextDelta*, (Finished | Failed)

`Failed` may come first or at any point; after `Finished` or `Failed` nothing follows. Values only.
"""

from __future__ import annotations

import enum

import attrs


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its turn, or a stop string was met."""
    LENGTH = "length"
    """`max_tokens` or the context was reached."""


@attrs.frozen(kw_only=True)
class Usage:
    """Token counts of one generation. `cached_tokens` of the prompt were not prefilled again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@attrs.frozen(kw_only=True)
class Timings:
    """Seconds within the worker: waiting for a place, prefilling, decoding (first to last token)."""

    queued_s: float
    prefill_s: float
    decode_s: float


@attrs.frozen(kw_only=True)
class Accepted:
    """Rendered, tokenised, fits: the worker will run it."""

    prompt_tokens: int


@attrs.frozen
class TextDelta:
    """Text to append: whole characters only, never the beginning of a stop string.

    `n_tokens` counts the tokens consumed since the previous delta.
    """

    text: str
    n_tokens: int


@attrs.frozen(kw_only=True)
class Finished:
    reason: FinishReason
    usage: Usage
    timings: Timings


@attrs.frozen(kw_only=True)
class Failed:
    """The end of a generation that did not finish; `code` and the numbers rebuild an error of ours."""

    code: str
    message: str
    prompt_tokens: int | None = None
    context_size: int | None = None


GenerationEvent = Accepted | TextDelta | Finished | Failed
