"""Sampler chains of llama.cpp, built from plans.

Owns the C objects of one sequence's sampling. Imports `llama_cpp`, its low-level bindings only. What a plan
holds is decided in `sampler.py`; read that first.
"""

from __future__ import annotations

import ctypes
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from runner.engine.llama_loading import Context, Model
from runner.engine.sampler import (
    Best,
    Draw,
    Drawn,
    Dry,
    LogitBias,
    LogitsOf,
    MinP,
    Mirostat,
    Penalties,
    PlannedStage,
    SamplerPlan,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    Xtc,
    best_token,
)

_KEPT_MIN = 1  # candidates that every filter leaves
_MIROSTAT_M = 100  # tokens of the estimate in version 1, as llama-server has it


class Candidates:
    """A `llama_token_data_array` of the whole vocabulary, refilled for each choice and shared by samplers."""

    def __init__(self, n_vocab: int) -> None:
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._data = np.zeros(n_vocab, np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]))
        array: Any = lib.llama_token_data_array()  # the binding's types declare an array for the pointer
        array.data = ctypes.cast(self._data.ctypes.data, ctypes.POINTER(lib.llama_token_data))
        self._array = array

    def choose(self, chain: Any, logits: npt.NDArray[np.float32]) -> int:
        """What `chain` picks by `logits`, shape (n_vocab,); nothing is told to it."""
        self._data["id"] = self._ids  # the filters have sorted them
        self._data["logit"] = logits
        self._array.size = len(self._ids)
        self._array.selected = -1
        self._array.sorted = False
        lib.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._data["id"][self._array.selected])


class ChainSampler:
    """See `runner.engine.backend.Sampler`. Holds a chain with its random state and its window of tokens.

    36 µs a token with top-k 40 at 49k vocabulary, but 4 ms with top-k off and top-p on, since the library
    then sorts the whole vocabulary.
    """

    def __init__(
        self, model: Model, context: Context, logits_of: LogitsOf, candidates: Candidates, plan: SamplerPlan
    ) -> None:
        self._context = context
        self._logits_of = logits_of
        self._candidates = candidates
        self._forbidden = np.array(plan.forbidden, dtype=np.intp)
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        vocab = lib.llama_model_get_vocab(model)
        for stage in plan.stages:
            lib.llama_sampler_chain_add(self._chain, _new_stage(stage, vocab))
        lib.llama_sampler_chain_add(self._chain, _new_draw(plan.draw, vocab))
        for token_id in plan.history:
            lib.llama_sampler_accept(self._chain, token_id)

    def sample(self, row: int) -> int:
        best_token(self._logits_of(row), self._forbidden)  # C++'s sorting goes astray on NaN
        return int(lib.llama_sampler_sample(self._chain, self._context, row))

    def propose(self, row: int) -> int:
        logits = self._logits_of(row)
        best_token(logits, self._forbidden)
        return self._candidates.choose(self._chain, logits)

    def accept(self, token_id: int) -> None:
        lib.llama_sampler_accept(self._chain, token_id)

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def _new_stage(stage: PlannedStage, vocab: Any) -> Any:
    """A C sampler; the chain it is added to owns it."""
    match stage:
        case LogitBias(biases):
            values = (lib.llama_logit_bias * len(biases))(*(lib.llama_logit_bias(*bias) for bias in biases))
            return lib.llama_sampler_init_logit_bias(lib.llama_vocab_n_tokens(vocab), len(biases), values)
        case Penalties():
            return lib.llama_sampler_init_penalties(
                lib.llama_vocab_n_tokens(vocab), stage.window, stage.repeat, stage.frequency, stage.presence
            )
        case Dry():
            breakers = [breaker.encode("utf-8", "replace") for breaker in stage.breakers]
            return lib.llama_sampler_init_dry(
                vocab,
                stage.multiplier,
                stage.base,
                stage.allowed_length,
                stage.window,
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            )
        case TopNSigma(n):
            return lib.llama_sampler_init_top_n_sigma(n)
        case TopK(k):
            return lib.llama_sampler_init_top_k(k)
        case TypicalP(p):
            return lib.llama_sampler_init_typical(p, _KEPT_MIN)
        case TopP(p):
            return lib.llama_sampler_init_top_p(p, _KEPT_MIN)
        case MinP(p):
            return lib.llama_sampler_init_min_p(p, _KEPT_MIN)
        case Xtc():
            return lib.llama_sampler_init_xtc(stage.probability, stage.threshold, _KEPT_MIN, stage.seed)
        case Temperature():
            return lib.llama_sampler_init_temp_ext(stage.value, stage.spread, stage.exponent)
        case _:
            assert_never(stage)


def _new_draw(draw: Draw, vocab: Any) -> Any:
    match draw:
        case Best():
            return lib.llama_sampler_init_greedy()
        case Drawn(seed):
            return lib.llama_sampler_init_dist(seed)
        case Mirostat(version=1):
            n_vocab = lib.llama_vocab_n_tokens(vocab)
            return lib.llama_sampler_init_mirostat(n_vocab, draw.seed, draw.tau, draw.eta, _MIROSTAT_M)
        case Mirostat():
            return lib.llama_sampler_init_mirostat_v2(draw.seed, draw.tau, draw.eta)
        case _:
            assert_never(draw)
