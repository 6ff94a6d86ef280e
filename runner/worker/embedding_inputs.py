"""From the inputs of a request for embeddings to token ids, checked and cut. In the preparation thread.

Imports the engine's protocol and values. Used by `preparation.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from runner.domain.generation import EMBEDDED_BYTES_MAX, EmbeddingPrompt, TextPrompt, TokenPrompt
from runner.engine.backend import Backend, EmbeddingFacts
from runner.errors import FieldFault, InvalidParameter

FAULTS_MAX: Final = 8
_COUNTED_BYTES: Final = 64
"""Of a text, per token that an input may have: no language has more bytes to a token on average, and what
follows them would be cut off, or is too long anyway."""
_COUNTED_BYTES_MIN: Final = 64 * 1024


class InputReader:
    """Reads the inputs for one loaded model. Used by one thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._facts = backend.facts.embedding

    def reading(self, prompt: EmbeddingPrompt) -> Generator[None, None, tuple[tuple[int, ...], ...]]:
        """Token ids of each input, in steps of one, since all of them may take seconds.

        Raises InvalidParameter naming fields; as many faults as `FAULTS_MAX`.
        """
        facts = self._facts
        if facts is None:
            raise InvalidParameter(FieldFault("model", "makes no embeddings"))
        self._check(prompt, facts)
        limit = min(prompt.tokens_max or facts.input_max, facts.input_max)
        faults: list[FieldFault] = []
        inputs: list[tuple[int, ...]] = []
        for index, one in enumerate(prompt.inputs):
            if len(faults) >= FAULTS_MAX:
                break
            try:
                inputs.append(self._tokens(one, limit, truncates=prompt.truncates))
            except _Wrong as wrong:
                path = "input" if len(prompt.inputs) == 1 else f"input[{index}]"
                faults.append(FieldFault(path, str(wrong)))
            yield
        if faults:
            raise InvalidParameter(*faults)
        return tuple(inputs)

    def _check(self, prompt: EmbeddingPrompt, facts: EmbeddingFacts) -> None:
        faults: list[FieldFault] = []
        n_dimensions, dimensions = facts.n_dimensions, prompt.dimensions
        if dimensions is not None and dimensions > n_dimensions:
            faults.append(
                FieldFault("dimensions", f"is {dimensions}, and the model's vectors have {n_dimensions}")
            )
        if prompt.tokens_max is not None and prompt.tokens_max > facts.input_max:
            what = f"is {prompt.tokens_max}, and the model takes {facts.input_max} tokens"
            faults.append(FieldFault("truncate_prompt_tokens", what))
        size_bytes = 4 * len(prompt.inputs) * (dimensions or n_dimensions)
        if size_bytes > EMBEDDED_BYTES_MAX:
            what = f"come to {size_bytes} bytes of vectors, and may come to {EMBEDDED_BYTES_MAX}"
            faults.append(FieldFault("input", what))
        if faults:
            raise InvalidParameter(*faults)

    def _tokens(self, one: TextPrompt | TokenPrompt, limit: int, *, truncates: bool) -> tuple[int, ...]:
        match one:
            case TextPrompt():
                token_ids, is_more = self._text_tokens(one.text, limit)
                n_behind = self._n_behind(token_ids)
            case TokenPrompt():
                token_ids, is_more = self._checked(one.token_ids), False
                n_behind = 0  # who sends tokens has put all of them there
        if not token_ids:
            raise _Wrong("must hold at least one token")
        if len(token_ids) <= limit and not is_more:
            return tuple(token_ids)
        if not truncates:
            if len(token_ids) <= limit:
                raise _Wrong("is too long to be looked at whole, unless truncate asks to cut it")
            told = f"more than {len(token_ids)}" if is_more else str(len(token_ids))
            raise _Wrong(f"has {told} tokens, and the model takes {limit}, unless truncate asks to cut it")
        n_behind = min(n_behind, limit - 1)
        return (*token_ids[: limit - n_behind], *token_ids[len(token_ids) - n_behind :])

    def _text_tokens(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Those of its beginning, and whether more follows. Names of control tokens are mere text: what is
        searched for comes from anybody."""
        counted = max(_COUNTED_BYTES_MIN, _COUNTED_BYTES * limit)
        return (
            self._backend.tokenize(text[:counted], add_special=True, parse_special=False),
            len(text) > counted,
        )

    def _n_behind(self, token_ids: list[int]) -> int:
        """How many tokens the model wants behind a text: they stay when it is cut."""
        full = self._backend.tokenize("a", add_special=True, parse_special=False)
        plain = self._backend.tokenize("a", add_special=False, parse_special=False)
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                behind = full[start + len(plain) :]
                return len(behind) if behind and token_ids[-len(behind) :] == behind else 0
        return 0

    def _checked(self, token_ids: tuple[int, ...]) -> list[int]:
        n_vocab = self._backend.facts.n_vocab
        strangers = [token_id for token_id in token_ids if not 0 <= token_id < n_vocab]
        if strangers:
            raise _Wrong(f"holds {strangers[0]}, outside the vocabulary of {n_vocab} tokens")
        return list(token_ids)


class _Wrong(ValueError):
    """What is wrong with one input."""
