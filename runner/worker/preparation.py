"""From a request to token ids, in a thread of its own, so that no step of the engine waits for a template.

`Preparer` does the work for one request: options checked, control texts disarmed, template rendered, text
tokenised, length checked. `Preparation` is the thread around it with a bounded queue; what has a constraint
goes on to `compiling.py`. Imports `runner.chat`
(in the thread: importing jinja2 takes 40 ms, in which the model can load), the engine's protocol and values.

    reader thread ──submit──> queue ──Preparer──> deliver(Prepared | Refused) ──> step thread
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Generator
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, assert_never

import attrs

from runner.domain.engine import EngineOptions
from runner.domain.events import Examined, Failed
from runner.domain.generation import (
    ENCODER_REFUSAL,
    EXAMINED_BYTES_MAX,
    ChatPrompt,
    EmbeddingPrompt,
    Examination,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from runner.engine.backend import Backend
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.embed import EmbeddingRequest
from runner.engine.prefix import Namespace
from runner.engine.sequence import SequenceRequest
from runner.errors import ContextLengthExceeded, FieldFault, InvalidParameter, RunnerError
from runner.worker.compiling import Compiling
from runner.worker.embedding_inputs import InputReader

if TYPE_CHECKING:
    from runner.chat.control_text import ControlTexts
    from runner.chat.reasoning import PromptEnd
    from runner.chat.template import ChatTemplate
    from runner.worker.reasoning import ReasoningReader

QUEUE_MAX = 64 * 64
"""Sequences that may wait here; the daemon sends at most 64 requests at once, of at most 64 answers each, so
this is never met in order."""
TURN_S = 0.05
"""Inputs of embeddings are read for so long, at a megabyte or two a second, before others have their turn."""

_COUNTED_BYTES = 64
"""Bytes per cell of the context that are tokenised before a longer text is refused: no language has more
bytes to a token on average, and 32 MiB would take 15 s only to report an exact number."""
_COUNTED_BYTES_MIN = 1024 * 1024
_REPORTED_FAULTS = 8


@attrs.frozen
class Prepared:
    """Ready for `Engine.submit`."""

    request: SequenceRequest | EmbeddingRequest


@attrs.frozen
class Refused:
    """Will not run; `failed` goes to whoever asked."""

    request_id: str
    failed: Failed


@attrs.frozen
class Answered:
    """Needs no engine."""

    request_id: str
    examined: Examined


Outcome = Prepared | Refused | Answered


def failure(error: RunnerError) -> Failed:
    """An error of ours as the event that ends a request."""
    if isinstance(error, ContextLengthExceeded):
        return Failed(
            code=error.code,
            message=str(error),
            prompt_tokens=error.prompt_tokens,
            context_size=error.context_size,
        )
    return Failed(code=error.code, message=str(error))


class Preparer:
    """Turns requests for one loaded model into token ids. Used by one thread."""

    def __init__(
        self,
        backend: Backend,
        options: EngineOptions,
        template: ChatTemplate,
        control_texts: ControlTexts,
        reasoning: ReasoningReader,
    ) -> None:
        self._backend = backend
        self._context_size = min(options.context_size, options.n_cells)
        self._template = template
        self._control_texts = control_texts
        self._reasoning = reasoning
        self._leading = self._find_leading()
        self._inputs = InputReader(backend)

    def new_compiler(self) -> ConstraintCompiler:
        return ConstraintCompiler(self._backend.new_constraint_tokenizer)

    def prepare(self, request: GenerationRequest, submitted_s: float) -> SequenceRequest:
        """All but its constraint, which is compiled elsewhere. Raises TemplateFailed, InvalidParameter or
        ContextLengthExceeded; nothing has happened then."""
        prompt = request.prompt
        assert not isinstance(prompt, EmbeddingPrompt), "see prepare_embedding"
        if not self._backend.facts.generates:
            raise InvalidParameter(FieldFault("model", ENCODER_REFUSAL))
        self._check_biases(request)
        reasoning = None
        if isinstance(prompt, ChatPrompt):
            token_ids, end = self._chat_tokens(prompt)
            reasoning = self._reasoning.reasoning(end, is_separated=request.separates_reasoning)
        else:
            token_ids = self._prompt_tokens(prompt)
        if not token_ids:
            raise InvalidParameter(FieldFault("prompt", "must hold at least one token"))
        if len(token_ids) >= self._context_size:
            raise ContextLengthExceeded(len(token_ids), self._context_size)
        return SequenceRequest(
            request_id=request.request_id,
            prompt_tokens=tuple(token_ids),
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            reasoning=reasoning,
            namespace=Namespace(owner=request.cache_owner) if request.cache_prompt else None,
            n=request.n,
            logprobs=request.logprobs,
            echo=request.echo,
            submitted_s=submitted_s,
        )

    def prepare_embedding(
        self,
        request_id: str,
        prompt: EmbeddingPrompt,
        submitted_s: float,
    ) -> Generator[None, None, EmbeddingRequest]:
        """In steps, one for each input. Raises InvalidParameter."""
        inputs = yield from self._inputs.reading(prompt)
        return EmbeddingRequest(
            request_id=request_id, inputs=inputs, dimensions=prompt.dimensions, submitted_s=submitted_s
        )

    def examine(self, prompt: Prompt, examination: Examination) -> Examined:
        """Raises TemplateFailed, InvalidParameter, and ContextLengthExceeded for what is far too long; what
        is only somewhat too long for the context is counted."""
        if examination is Examination.TEXT:
            text = self._text_of(prompt).encode("utf-8", "replace")
            return Examined(0, _within_limit(text))
        if examination is Examination.PLAIN_TOKENS and isinstance(prompt, TextPrompt):
            self._refuse_far_too_long(prompt.text)
            token_ids = self._backend.tokenize(prompt.text, add_special=False, parse_special=True)
        else:
            token_ids = self._prompt_tokens(prompt)
        if examination is Examination.COUNT:
            return Examined(len(token_ids))
        return Examined(len(token_ids), _within_limit(array("i", token_ids).tobytes()))

    def _text_of(self, prompt: Prompt) -> str:
        match prompt:
            case ChatPrompt():
                return self._rendered(prompt)[0]
            case TextPrompt():
                return prompt.text
            case TokenPrompt():
                pieces = map(self._backend.token_text, self._checked_tokens(prompt.token_ids))
                return b"".join(pieces).decode("utf-8", "replace")
        assert_never(prompt)

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        match prompt:
            case ChatPrompt():
                return self._chat_tokens(prompt)[0]
            case TextPrompt():
                return self._text_tokens(prompt.text)
            case TokenPrompt():
                return self._checked_tokens(prompt.token_ids)
        assert_never(prompt)

    def _rendered(self, prompt: ChatPrompt) -> tuple[str, PromptEnd]:
        rendered = self._template.render(prompt.messages, self._reasoning.options(prompt))
        return self._reasoning.finish(rendered, prompt)

    def _chat_tokens(self, prompt: ChatPrompt) -> tuple[list[int], PromptEnd]:
        """As llama.cpp tokenises a rendered prompt: with the leading token (BOS) that the model asks for,
        unless the template has written it."""
        disarmed = self._control_texts.disarm(prompt, self._template.source or "")
        rendered, end = self._rendered(disarmed.prompt)
        self._refuse_far_too_long(rendered)
        bos = self._backend.bos_text
        token_ids = [] if bos and rendered.startswith(bos) else list(self._leading)
        for piece in self._control_texts.pieces(rendered, disarmed.originals):
            token_ids += self._backend.tokenize(
                piece.text, add_special=False, parse_special=not piece.is_literal
            )
        return token_ids, end

    def _text_tokens(self, text: str) -> list[int]:
        """A raw completion: its text may name control tokens, and a BOS of its own is not doubled."""
        self._refuse_far_too_long(text)
        token_ids = self._backend.tokenize(text, add_special=True, parse_special=True)
        n_leading = len(self._leading)
        if n_leading and token_ids[: 2 * n_leading] == self._leading * 2:
            del token_ids[:n_leading]
        return token_ids

    def _checked_tokens(self, token_ids: tuple[int, ...]) -> list[int]:
        n_vocab = self._backend.facts.n_vocab
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < n_vocab:
            strangers = [(index, token) for index, token in enumerate(token_ids) if not 0 <= token < n_vocab]
            raise InvalidParameter(
                *(
                    FieldFault(f"prompt[{index}]", f"{token} is outside the vocabulary of {n_vocab} tokens")
                    for index, token in strangers[:_REPORTED_FAULTS]
                )
            )
        return list(token_ids)

    def _check_biases(self, request: GenerationRequest) -> None:
        n_vocab = self._backend.facts.n_vocab
        strangers = [token_id for token_id, _ in request.sampling.logit_bias if token_id >= n_vocab]
        if strangers:
            what = f"is outside the vocabulary of {n_vocab} tokens"
            raise InvalidParameter(
                *(FieldFault(f"logit_bias[{token_id}]", what) for token_id in strangers[:_REPORTED_FAULTS])
            )

    def _refuse_far_too_long(self, text: str) -> None:
        """Raise ContextLengthExceeded, with a lower bound, when the beginning of `text` is too long
        already."""
        counted_bytes = max(_COUNTED_BYTES_MIN, _COUNTED_BYTES * self._context_size)
        if len(text) <= counted_bytes // 4:  # characters, of at most four bytes
            return
        data = text.encode("utf-8", "replace")
        if len(data) <= counted_bytes:
            return
        beginning = data[:counted_bytes].decode("utf-8", "ignore")
        n_tokens = len(self._backend.tokenize(beginning, add_special=False, parse_special=True))
        if n_tokens >= self._context_size:
            raise ContextLengthExceeded(n_tokens, self._context_size)

    def _find_leading(self) -> list[int]:
        """What `add_special` puts in front of a prompt."""
        plain = self._backend.tokenize("a", add_special=False, parse_special=False)
        full = self._backend.tokenize("a", add_special=True, parse_special=False)
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start]
        return []


def _within_limit(data: bytes) -> bytes:
    if len(data) > EXAMINED_BYTES_MAX:
        what = f"comes to {len(data)} bytes, and may come to {EXAMINED_BYTES_MAX}"
        raise InvalidParameter(FieldFault("prompt", what))
    return data


@attrs.define(eq=False)
class _Job:
    """`steps`: it takes turns with others, and has begun."""

    request: GenerationRequest
    submitted_s: float
    steps: Generator[None, None, EmbeddingRequest] | None = None


class Preparation:
    """The thread. It starts at once, to import what it needs; requests wait until `begin` gives it a
    preparer.

    `deliver` is called from the thread, or the one that compiles constraints, once for every request that was
    not discarded before. `on_fault` is called when the thread ends by an error of its own: nothing is
    prepared any more then.
    """

    def __init__(
        self,
        deliver: Callable[[Outcome], None],
        *,
        on_fault: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver = deliver
        self._on_fault = on_fault
        self._clock = clock
        self._may_import = threading.Event()
        self._maker: SimpleQueue[Callable[[], Preparer] | None] = SimpleQueue()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._pending: set[str] = set()
        self._lock = threading.Lock()
        """Guards `_pending`, and that nothing is delivered once it was discarded."""
        self._is_closing = False
        self._compiling: Compiling | None = None
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Now is a good time for imports."""
        self._may_import.set()

    def begin(self, make_preparer: Callable[[], Preparer]) -> None:
        """The model is there. `make_preparer` is called in the thread."""
        self._maker.put(make_preparer)
        self._may_import.set()

    def submit(self, request: GenerationRequest) -> bool:
        """Queue a request; False when `QUEUE_MAX` wait already."""
        with self._lock:
            if len(self._pending) >= QUEUE_MAX:
                return False
            self._pending.add(request.request_id)
        self._jobs.put(_Job(request, self._clock()))
        return True

    def discard(self, request_id: str) -> None:
        """Its outcome will not be delivered, if it has not been."""
        with self._lock:
            self._pending.discard(request_id)

    def close(self, timeout_s: float) -> bool:
        """End the threads and wait for them; False when one is still busy, with a template, a long text or a
        constraint."""
        self._is_closing = True
        self._maker.put(None)
        self._may_import.set()
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and (self._compiling is None or self._compiling.close(timeout_s))

    def _run(self) -> None:
        try:
            self._may_import.wait()
            if not self._is_closing:
                _import_templates()
            make_preparer = self._maker.get()
            if make_preparer is not None:
                self._work(make_preparer())
        except BaseException:  # the thread's last words, whatever happened
            traceback.print_exc()
            self._on_fault()

    def _work(self, preparer: Preparer) -> None:
        self._compiling = Compiling(preparer.new_compiler())
        while (job := self._jobs.get()) is not None and not self._is_closing:
            if job.request.request_id not in self._pending:
                continue  # discarded while it waited
            outcome = _outcome(preparer, job, self._clock)
            if outcome is None:
                self._jobs.put(job)
            elif (
                isinstance(outcome, Prepared)
                and isinstance(outcome.request, SequenceRequest)
                and job.request.constraint is not None
            ):
                self._compiling.submit(job.request.constraint, partial(self._finish_constrained, outcome))
            else:
                self._finish(job.request.request_id, outcome)

    def _finish_constrained(self, prepared: Prepared, compiled: CompiledConstraint | RunnerError) -> None:
        request = prepared.request
        assert isinstance(request, SequenceRequest), "embeddings have no constraint"
        if isinstance(compiled, RunnerError):
            self._finish(request.request_id, Refused(request.request_id, failure(compiled)))
        else:
            self._finish(request.request_id, Prepared(attrs.evolve(request, constraint=compiled)))

    def _finish(self, request_id: str, outcome: Outcome) -> None:
        with self._lock:
            if request_id in self._pending:
                self._pending.remove(request_id)
                self._deliver(outcome)


def _outcome(preparer: Preparer, job: _Job, clock: Callable[[], float]) -> Outcome | None:
    """None when its turn is over and it is not."""
    request = job.request
    request_id, prompt = request.request_id, request.prompt
    try:
        if isinstance(prompt, EmbeddingPrompt):
            if job.steps is None:
                job.steps = preparer.prepare_embedding(request_id, prompt, job.submitted_s)
            return _take_turn(job.steps, clock)
        if request.examination is not None:
            return Answered(request_id, preparer.examine(prompt, request.examination))
        return Prepared(preparer.prepare(request, job.submitted_s))
    except RunnerError as error:
        return Refused(request_id, failure(error))
    except Exception:  # one request's bad luck; the others are not to pay for it
        sys.stderr.write(f"preparing request {request_id} failed\n")
        traceback.print_exc()
        return Refused(request_id, Failed(code=RunnerError.code, message="the request could not be prepared"))


def _take_turn(steps: Generator[None, None, EmbeddingRequest], clock: Callable[[], float]) -> Prepared | None:
    until_s = clock() + TURN_S
    try:
        next(steps)
        while clock() < until_s:
            next(steps)
    except StopIteration as end:
        return Prepared(end.value)
    return None


def _import_templates() -> None:
    import runner.chat.control_text
    import runner.chat.template
    import runner.worker.reasoning  # noqa: F401  # imported for its time
