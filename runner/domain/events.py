"""What a generation reports, in the order it happens.

    Accepted, PromptText*, (TextDelta | ChoiceEnded)*, (Finished | Failed)

`Failed` may come first or at any point; after `Finished` or `Failed` nothing follows. Where several answers
were asked for, each but the last has a `ChoiceEnded`, and `Finished` tells of the last and of all together.
An examination has one event, `Examined` or `Failed`. Of embeddings:

    Accepted, Embedded*, (Finished | Failed)

Values only.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its turn, or a stop string was met."""
    LENGTH = "length"
    """`max_tokens` or the context was reached."""


@attrs.frozen
class RankedToken:
    """A token that might have come, as text with the names of control tokens, and its log-probability."""

    token_id: int
    text: bytes
    logprob: float


@attrs.frozen
class TokenLogprob:
    """A token that came, what the model thought of it, and of the likeliest ones at its place, best first.

    From the raw logits, before any sampling parameter or constraint; `LOGPROB_MIN` stands for all below it.
    None: nothing came before it, as for the first token of a prompt.
    """

    token_id: int
    text: bytes
    logprob: float | None
    top: tuple[RankedToken, ...] = ()


LOGPROB_MIN = -9999.0
"""JSON has no infinity; OpenAI's own stand-in for it."""


@attrs.frozen(kw_only=True)
class Usage:
    """Token counts of all answers to one request, whose prompt counts once.

    `cached_tokens` of the prompt were not prefilled again; `reasoning_tokens` of the completion went into
    reasoning that was told apart, with its markers.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@attrs.frozen(kw_only=True)
class Timings:
    """Seconds within the worker: waiting for a place, prefilling, decoding (first to last token)."""

    queued_s: float
    prefill_s: float
    decode_s: float

    @classmethod
    def spanning(cls, timings: Sequence[Timings]) -> Timings:
        """From the first that began to the last that ended, all having arrived together."""
        queued_s = min(one.queued_s for one in timings)
        first_s = min(one.queued_s + one.prefill_s for one in timings)
        last_s = max(one.queued_s + one.prefill_s + one.decode_s for one in timings)
        return cls(queued_s=queued_s, prefill_s=first_s - queued_s, decode_s=last_s - first_s)


@attrs.frozen(kw_only=True)
class Accepted:
    """Rendered, tokenised, fits: the worker will run it. Of several inputs, `prompt_tokens` are those of the
    longest: what may have to be computed before anything can be told."""

    prompt_tokens: int


@attrs.frozen
class TextDelta:
    """Text to append: whole characters only, never the beginning of a stop string.

    `n_tokens` counts the tokens consumed since the previous delta; `logprobs` has one entry for each when
    they were asked for. `choice_index` tells which of the answers goes on. `is_reasoning`: it is no part of
    the answer but of what the model thought before, and has no logprobs.
    """

    text: str
    n_tokens: int
    choice_index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    is_reasoning: bool = False


@attrs.frozen
class PromptText:
    """A piece of the prompt, echoed, in order; it stands before every answer to it.

    `prompt_index`: of several prompts in one request. A worker is given one at a time.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_index: int = 0


@attrs.frozen
class ChoiceEnded:
    """One of several answers is complete; others go on."""

    choice_index: int
    reason: FinishReason


@attrs.frozen(kw_only=True)
class Finished:
    reason: FinishReason
    usage: Usage
    timings: Timings
    choice_index: int = 0


@attrs.frozen
class Examined:
    """What was asked about a prompt: `n_tokens` where that was counted, and its text in UTF-8 or its token
    ids, four bytes each in native order."""

    n_tokens: int
    data: bytes = b""


@attrs.frozen
class Embedded:
    """The vector of one input, in any order of inputs: 32-bit floats, little-endian."""

    input_index: int
    vector: bytes


@attrs.frozen(kw_only=True)
class Failed:
    """The end of a generation that did not finish; `code` and the numbers rebuild an error of ours."""

    code: str
    message: str
    prompt_tokens: int | None = None
    context_size: int | None = None


GenerationEvent = Accepted | PromptText | TextDelta | ChoiceEnded | Finished | Failed | Examined | Embedded
