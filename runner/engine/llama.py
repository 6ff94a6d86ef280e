"""llama.cpp as a backend. Only this module and those of this package whose names begin alike import
`llama_cpp`, and only its low-level bindings.

Owns one model and one context with one pool of cells; a second one makes embeddings (`llama_embedding.py`).
Imports numpy, `llama_cpp` and the rest of this package. `llama_cpp.Llama` is not used: it serves one request
at a time.

A fault inside the library (an assertion, a bad file) ends the process; the worker's keeper deals with that.

The environment must be right before this module is imported, which is the business of whoever starts the
process: `GOMP_SPINCOUNT` between 1000 and 10000 (with OpenMP's unbounded spinning at barriers, two processes
that share cores fall to a hundredth of their speed), `OPENBLAS_NUM_THREADS=1`, and the visible devices.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from runner.domain.engine import DeviceBuffers, EngineOptions
from runner.engine.backend import BatchArrays, DecodeResult, LoadedFacts, ProgressReport, Sampler
from runner.engine.llama_batch import CBatch
from runner.engine.llama_cells import LlamaCells
from runner.engine.llama_embedding import LlamaEmbedding
from runner.engine.llama_loading import (
    Context,
    Model,
    architecture_of,
    embedding_facts,
    embedding_rows,
    engine_log,
    ids_of,
    is_encoder,
    load_model,
    needs_guards,
    new_context,
    new_embedding_context,
    outputs_of,
    rows_of,
    shares_cells,
)
from runner.engine.llama_loading import engine_version as engine_version
from runner.engine.llama_sampling import Candidates, ChainSampler
from runner.engine.llama_vocabulary import new_constraint_tokenizer
from runner.engine.sampler import GreedySampler, SamplerPlan
from runner.engine.touching import touched_from_the_end

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_PIECE_BYTES = 128


class LlamaBackend:
    """See `runner.engine.backend.Backend` for what the methods promise."""

    def __init__(
        self,
        model: Model,
        context: Context,
        options: EngineOptions,
        facts: LoadedFacts,
        batch: BatchArrays,
        control: _ControlTokens,
        guard_offset: int,
    ) -> None:
        self.control_texts = control.texts
        self.end_of_generation = control.ends
        self._model = model
        self._context = context
        self._options = options
        self._cells = LlamaCells(
            context,
            guard_offset=guard_offset,
            window=lib.llama_model_n_swa(model),
        )
        self._vocab = lib.llama_model_get_vocab(model)
        self._facts = facts
        self._batch = batch
        self._c_batch = CBatch(batch)
        self._pieces: dict[int, bytes] = {}
        self._texts: dict[int, bytes] = {}
        self._logits_views: dict[int, npt.NDArray[np.float32]] = {}
        self._is_closed = False

    @classmethod
    def load(
        cls,
        path: Path,
        options: EngineOptions,
        progress: ProgressReport,
        *,
        further_parts: tuple[Path, ...] = (),
    ) -> LlamaBackend:
        """Map the files and reserve everything a step needs. Raises LoadingFailed; may end the process."""
        log = engine_log()
        log.buffers.clear()
        model = load_model(path, progress, further_parts=further_parts)
        try:
            with _ControlTokens(model) as control, touched_from_the_end():
                context = new_context(model, options)
        except BaseException:
            lib.llama_model_free(model)
            raise
        facts = _facts(model, options, log.buffers.devices())
        batch = BatchArrays.empty(rows_of(options))
        guard_offset = ids_of(model, options) if needs_guards(model, options) else 0
        return cls(model, context, options, facts, batch, control, guard_offset)

    def __repr__(self) -> str:
        return f"<LlamaBackend: {self._facts.architecture}, {'closed' if self._is_closed else 'open'}>"

    @property
    def facts(self) -> LoadedFacts:
        return self._facts

    @property
    def batch(self) -> BatchArrays:
        return self._batch

    # text

    @property
    def chat_template(self) -> str | None:
        source = lib.llama_model_chat_template(self._model, None)
        return None if source is None else bytes(source).decode("utf-8", "replace")

    @property
    def bos_text(self) -> str:
        return self._token_text(lib.llama_vocab_bos(self._vocab))

    @property
    def eos_text(self) -> str:
        return self._token_text(lib.llama_vocab_eos(self._vocab))

    def is_end_of_generation(self, token_id: int) -> bool:
        return bool(lib.llama_vocab_is_eog(self._vocab, token_id))

    def new_constraint_tokenizer(self) -> LLTokenizer:
        return new_constraint_tokenizer(self._vocab, self.end_of_generation)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 8  # a token is at least one byte; the rest is for BOS and its like
        for _ in range(2):
            found = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(
                self._vocab, data, len(data), found, capacity, add_special, parse_special
            )
            if count >= 0:
                return list(found[:count])
            capacity = -count
        raise AssertionError("llama_tokenize asked for more room twice")

    def token_piece(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._read_piece(token_id, _PIECE_BYTES)
        return piece

    def token_text(self, token_id: int) -> bytes:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._read_piece(token_id, _PIECE_BYTES, names_control=True)
        return text

    def _read_piece(self, token_id: int, capacity: int, *, names_control: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(capacity)
        length = lib.llama_token_to_piece(self._vocab, token_id, buffer, capacity, 0, names_control)
        if length < 0:
            return self._read_piece(token_id, -length, names_control=names_control)
        return buffer.raw[:length]

    def _token_text(self, token_id: int) -> str:
        return "" if token_id == lib.LLAMA_TOKEN_NULL else _token_text(self._vocab, token_id)

    # the forward pass

    def new_sampler(self, plan: SamplerPlan) -> Sampler:
        if plan.is_greedy:
            return GreedySampler(self.logits, plan.forbidden)
        return ChainSampler(self._model, self._context, self.logits, self._candidates, plan)

    @functools.cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self._facts.n_vocab)

    def set_threads(self, n_threads: int) -> None:
        lib.llama_set_n_threads(self._context, n_threads, n_threads)

    def decode(self, n_rows: int) -> DecodeResult:
        self._c_batch.struct.n_tokens = n_rows
        status = lib.llama_decode(self._context, self._c_batch.struct)
        if status == 0:
            self._cells.guard(self._batch, n_rows)
            return DecodeResult.DONE
        return DecodeResult.NO_CELLS if status == 1 else DecodeResult.FAILED

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        address = ctypes.addressof(lib.llama_get_logits_ith(self._context, row).contents)
        view = self._logits_views.get(address)
        if view is None:  # few addresses occur, one per row of the library's output buffer
            values = (ctypes.c_float * self._facts.n_vocab).from_address(address)
            view = self._logits_views[address] = np.ctypeslib.as_array(values)
        return view

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        return self._cells.copy(source_id, target_id, count)

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None:
        self._cells.share_beginning(source_id, target_id, count)

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        return self._cells.drop(sequence_id, from_position)

    def open_embedding(self) -> LlamaEmbedding:
        facts = self._facts.embedding
        assert facts is not None
        is_own = self._facts.generates
        return LlamaEmbedding(
            new_embedding_context(self._model, self._options, facts) if is_own else self._context,
            n_rows=embedding_rows(facts, self._options),
            n_dimensions=facts.n_dimensions,
            is_own=is_own,
        )

    def state_bytes(self, sequence_id: int) -> int:
        return self._cells.state_bytes(sequence_id)

    def save_state(self, sequence_id: int, room: memoryview) -> bool:
        return self._cells.save(sequence_id, room)

    def restore_state(self, sequence_id: int, state: memoryview, count: int) -> bool:
        return self._cells.restore(sequence_id, state, count)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._logits_views.clear()
            lib.llama_free(self._context)
            lib.llama_model_free(self._model)


class _ControlTokens:
    """Finds the control tokens of a vocabulary in a thread, while the `with` block makes the context.

    Each token has to be asked for: 15 ms of 49k and 80 ms of 262k, which the first request would wait for.
    `ends` are those that end an answer: the library marks all of them as control tokens, but for what the
    file itself calls the end.
    """

    texts: frozenset[str]
    ends: frozenset[int]

    def __init__(self, model: Model) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self._thread = threading.Thread(target=self._find, name="vocabulary")

    def __enter__(self) -> _ControlTokens:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _find(self) -> None:
        attributes = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        found = [
            token_id
            for token_id in range(lib.llama_vocab_n_tokens(self._vocab))
            if lib.llama_vocab_get_attr(self._vocab, token_id) & attributes
        ]
        self.texts = frozenset(_token_text(self._vocab, token_id) for token_id in found)
        named = (lib.llama_vocab_eos(self._vocab), lib.llama_vocab_eot(self._vocab))
        self.ends = frozenset(
            token_id
            for token_id in (*found, *named)
            if token_id >= 0 and lib.llama_vocab_is_eog(self._vocab, token_id)
        )


def _token_text(vocab: Any, token_id: int) -> str:
    return bytes(lib.llama_vocab_get_text(vocab, token_id)).decode("utf-8", "replace")


def _facts(model: Model, options: EngineOptions, devices: tuple[DeviceBuffers, ...]) -> LoadedFacts:
    return LoadedFacts(
        engine_version=engine_version(),
        architecture=architecture_of(model),
        trained_context_size=lib.llama_model_n_ctx_train(model),
        n_vocab=lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)),
        n_outputs=outputs_of(model, options),
        shares_cells=shares_cells(model),
        generates=not is_encoder(model),
        embedding=embedding_facts(model, options),
        cuts_states=lib.llama_model_n_swa(model) == 0,
        devices=devices,
    )
