"""Between which markers a model reasons before it answers, and what a prompt says about that.

`FAMILIES` is the table: to know another family, add its pair. What is told apart here stands between two
texts in front of the answer. gpt-oss marks channels throughout its turns instead, which is another protocol
and not understood here: its templates name none of these markers.

Pure; imports the standard library only. Read on in `runner/engine/reasoning.py`, where answers are cut.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple


class Markers(NamedTuple):
    """Texts of ASCII characters without white space."""

    start: str
    end: str


FAMILIES: Final = (
    Markers("<think>", "</think>"),  # Qwen 3, QwQ, DeepSeek R1 and its pupils, SmolLM3, GLM 4.5, Nemotron
    Markers("[THINK]", "[/THINK]"),  # Magistral
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B, Command A Reasoning
    Markers("<seed:think>", "</seed:think>"),  # Seed-OSS
    Markers("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Markers("<thought>", "</thought>"),  # EXAONE Deep
)


def find_markers(template: str | None, is_token: Callable[[str], bool]) -> Markers | None:
    """The markers of a model by its chat template and its vocabulary; None: it answers at once.

    `is_token` says whether a text is one token.

    1. A family that the template names, in whatever way: templates also name markers to cut reasoning out of
       earlier turns. Of several the one that the vocabulary knows as well.
    2. Where the template is silent, a family whose markers are tokens: nobody adds such tokens by chance.
    """
    named = [markers for markers in FAMILIES if _names(template or "", markers)]
    known = [markers for markers in named or FAMILIES if all(map(is_token, markers))]
    return next(iter(known or named), None)


def _names(template: str, markers: Markers) -> bool:
    return markers.start in template or markers.end in template


class PromptEnd(enum.Enum):
    """What a rendered prompt leaves to the model."""

    OPEN = "open"
    """It has begun to reason: what comes first is reasoning."""
    CLOSED = "closed"
    """It has reasoned, or is not to: what comes is the answer."""
    UNDECIDED = "undecided"
    """It begins its turn, and may begin to reason."""


def end_of_prompt(prompt: str, markers: Markers) -> PromptEnd:
    """By the last words of `prompt`; white space behind them does not count."""
    prompt = prompt.rstrip()
    if prompt.endswith(markers.end):
        return PromptEnd.CLOSED
    return PromptEnd.OPEN if prompt.endswith(markers.start) else PromptEnd.UNDECIDED
