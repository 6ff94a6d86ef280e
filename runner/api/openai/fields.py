"""What every field of a request means, for people; the reference is generated from it.

Imports the schema, and the domain for what can be configured too. Nothing of the daemon needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from runner.api.openai.schema import ChatRequest, CompletionRequest
from runner.domain.sampling import RANGES, SamplingParams, Stage
from runner.domain.settings import SETTING_BY_NAME

_STAGES: Final = ", ".join(f"`{stage.value}`" for stage in Stage)
_USUAL: Final = SamplingParams()
_FRESH: Final = "a fresh one for each request"

_HELP: Final[Mapping[str, tuple[str, str]]] = {
    "model": ("a name, digest or short id", "who answers; loaded when it is not"),
    "messages": ("1 to 4096 of them", "turns; content is text or a list of text parts"),
    "prompt": (
        "a text or token ids, or a list of up to 64 of either",
        "what goes on; control tokens in a text are read as such; answers to several are numbered in order",
    ),
    "repetition_penalty": ("0.1 to 2", "another name of `repeat_penalty`"),
    "dry_sequence_breakers": ("up to 16 texts of up to 40 bytes", "where DRY lets a run of tokens end"),
    "logit_bias": (
        "up to 1024 token ids with -100 to 100",
        "added to the logits of these tokens; an object, or a list of pairs",
    ),
    "samplers": (f"names out of {_STAGES}", "the stages of sampling and their order; others do not happen"),
    "response_format": (
        "`text`, `json_object`, `json_schema`, `regex`, `lark` or `gbnf` as its `type`",
        "form of the answer, with a schema under `json_schema.schema`, a `pattern` or a `grammar`",
    ),
    "grammar": ("GBNF; Lark when it begins with `%llguidance`", "form of the answer, as llama-server has it"),
    "json_schema": ("a schema", "form of the answer, as llama-server has it"),
    "guided_json": ("a schema, or JSON text of one", "form of the answer, as vLLM has it"),
    "guided_regex": ("up to 512 characters", "form of the answer, as vLLM has it"),
    "guided_choice": ("up to 1024 texts", "the answer is one of them, as vLLM has it"),
    "guided_grammar": ("Lark, or GBNF", "form of the answer, as vLLM has it"),
    "structured_outputs": (
        "`json`, `regex`, `choice`, `grammar` or `json_object`",
        "form of the answer, as newer vLLM has it",
    ),
    "max_tokens": ("1 or more", "the longest answer in tokens; the context ends it too"),
    "max_completion_tokens": ("1 or more", "the same; both hold"),
    "stop": ("up to 16 texts of 1 to 256 bytes", "texts that end the answer and are not part of it"),
    "stream": ("true or false", "send the answer as it comes"),
    "stream_options": ("`include_usage`", "a last chunk of a stream with counts"),
    "ignore_eos": ("true or false", "go on when the model would end its turn"),
    "cache_prompt": ("true or false", "use what is kept of prompts that begin alike, and keep this one"),
    "n": ("1 to 8", "number of answers; their prompt is computed once"),
    "best_of": ("1 to 8", "generate so many and show the `n` likeliest; not in a stream"),
    "logprobs": ("true; 0 to 20 for completions", "tell what the model thought of each token"),
    "top_logprobs": ("0 to 20", "tell so many of the likeliest tokens beside each; needs `logprobs`"),
    "echo": ("true or false", "put the prompt before the answer; its logprobs too, where asked for"),
    "keep_alive": ("a duration; 0; -1", "how long the model stays loaded afterwards"),
    "reasoning_format": (
        "`auto`, `deepseek` or `none`",
        "where reasoning goes: into `reasoning_content`, or with `none` into the answer, as it comes",
    ),
    "reasoning_effort": (
        "`none`, `low`, `medium` or `high`",
        "how much the model reasons, where its chat template has a way to say so",
    ),
    "chat_template_kwargs": ("options that templates know", "handed to the chat template"),
}

_DEFAULTS: Final[Mapping[str, str]] = {
    "seed": _FRESH,
    "samplers": "in this order",
    "n": "1",
    "reasoning_format": "`auto`",
}


@attrs.frozen(kw_only=True)
class FieldHelp:
    """One field of one or both endpoints."""

    name: str
    endpoints: str
    values: str
    default: str
    meaning: str


def helps() -> Iterator[FieldHelp]:
    """Every field, in the order of the schema."""
    of_chat, of_completion = (attrs.fields_dict(kind) for kind in (ChatRequest, CompletionRequest))
    for name in {**of_chat, **of_completion}:
        values, meaning = _HELP.get(name) or _of_setting(name)
        yield FieldHelp(
            name=name,
            endpoints="both" if name in of_chat and name in of_completion else _only(name in of_chat),
            values=values,
            default=_default(name),
            meaning=meaning,
        )


def _only(is_of_chat: bool) -> str:
    return "chat" if is_of_chat else "completions"


def _of_setting(name: str) -> tuple[str, str]:
    setting = SETTING_BY_NAME[name]
    return setting.values, setting.help.replace(" where a request says none", "").replace(",;", ";")


def _default(name: str) -> str:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    return f"{getattr(_USUAL, name):g}" if name in RANGES else ""
