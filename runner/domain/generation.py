"""One generation as a value: what a dialect asks and what a worker is sent.

Values only; every field has been checked by the dialect that built it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from runner.domain.constraints import Constraint
from runner.domain.sampling import SamplingParams

TEMPLATE_OPTIONS: Mapping[str, type[str] | type[bool]] = MappingProxyType(
    {
        "enable_thinking": bool,  # Qwen 3, GLM
        "thinking": bool,  # DeepSeek
        "preserve_thinking": bool,  # Qwen 3.6
        "clear_thinking": bool,  # GLM
        "keep_past_thinking": bool,  # LFM 2.5
        "thinking_effort": str,  # Kimi
        "thinking_mode": str,  # MiniMax
        "reasoning_effort": str,  # gpt-oss
        "model_identity": str,  # gpt-oss
        "date_string": str,  # Llama 3
    }
)
"""What a request may hand to a chat template, and of which type (G08): names that real templates read,
none of them a name that the renderer sets itself."""

REASONING_EFFORTS = ("none", "low", "medium", "high")
"""How much a model may be asked to reason: not at all, or by the words that gpt-oss was trained on."""

TEMPLATE_OPTION_CHARACTERS_MAX = 1024
"""Longest text of one option."""


@attrs.frozen(kw_only=True)
class ChatMessage:
    """One turn. `role` is `system`, `developer`, `user`, `assistant` or `tool`; `content` is plain text."""

    role: str
    content: str
    name: str | None = None


@attrs.frozen(kw_only=True)
class ChatPrompt:
    """Messages for the model's chat template. `template_options` are scalars named in `TEMPLATE_OPTIONS`.

    `reasoning_effort` is one of `REASONING_EFFORTS`, by whatever means the template has, and goes before the
    options; None leaves it to the template.
    """

    messages: tuple[ChatMessage, ...]
    template_options: Mapping[str, str | int | float | bool] = attrs.field(factory=dict)
    reasoning_effort: str | None = None


@attrs.frozen
class TextPrompt:
    """Text that is tokenised as it stands; special tokens in it are parsed only for raw completions."""

    text: str


@attrs.frozen
class TokenPrompt:
    """Token ids as the client sent them; the worker checks them against the vocabulary."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@attrs.frozen(kw_only=True)
class EmbeddingPrompt:
    """What embeddings are wanted of, instead of an answer: one vector for each input, of length 1.

    `dimensions` are how many of a vector's first numbers are wanted; None for all. An input of more tokens
    than the model takes is refused, unless `truncates`: then its beginning counts, `tokens_max` tokens of it
    where that is said.
    """

    inputs: tuple[TextPrompt | TokenPrompt, ...]
    dimensions: int | None = None
    truncates: bool = False
    tokens_max: int | None = None


ENCODER_REFUSAL = "is made for embeddings and does not generate text; ask /v1/embeddings"
"""What is wrong with the model of a generation, if it is an encoder."""
EMBEDDED_MAX = 2048
"""Tokens of the longest input of a model that generates, so that its second context stays small: what is
searched by embeddings is cut into pieces of some hundred tokens."""
EMBEDDING_INPUTS_MAX = 2048
"""Inputs of one request, as OpenAI has it."""
EMBEDDED_BYTES_MAX = 32 * 1024 * 1024
"""What the vectors of one request may come to, four bytes a number."""


class Examination(enum.Enum):
    """What is told of a prompt instead of answering it."""

    COUNT = "count"
    """How many tokens it has."""
    TOKENS = "tokens"
    """Which, as the model would be given them."""
    PLAIN_TOKENS = "plain_tokens"
    """Those of a text alone, without what the model wants around a prompt."""
    TEXT = "text"
    """The text that messages become by the template, or that token ids stand for."""


EXAMINED_BYTES_MAX = 512 * 1024
"""What one examination may tell: one frame's worth."""


@attrs.frozen(kw_only=True)
class GenerationRequest:
    """One sequence to generate.

    `request_id` is unique within the daemon. `max_tokens` None means "to the end of the context".
    `stop` holds non-empty strings that end the generation and are not emitted.
    `ignore_eos` generates until `max_tokens` or the context ends. `constraint` None lets any text follow.
    `cache_prompt` lets it use what is kept of prompts that begin alike, and keep its own for others, within
    what belongs to `cache_owner`: nobody's response times tell of another owner's prompts.
    `n` answers are generated. `logprobs` is the number of likeliest tokens that are told with each; None: not
    even its own. `echo` puts the prompt before the answers, with logprobs where they were asked for.
    `separates_reasoning`: what a model thinks before it answers a chat is told apart from the answer.
    With `examination`, or with an `EmbeddingPrompt`, nothing is generated.
    """

    request_id: str
    prompt: Prompt | EmbeddingPrompt
    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    cache_prompt: bool = True
    cache_owner: str = ""
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    separates_reasoning: bool = True
    examination: Examination | None = None
