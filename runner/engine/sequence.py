"""One generation's life inside the engine: its state, its tokens, its text, its times.

Owns what belongs to one sequence; what several share is decided in `batcher.py` and done in `engine.py`.
Imports `runner.domain`, `runner.errors` and the text parts of this package.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from runner.domain.engine import CacheMiss
from runner.domain.events import Finished, FinishReason, TextDelta, Timings, TokenLogprob, Usage
from runner.domain.sampling import SamplingParams
from runner.engine.choosing import Chooser
from runner.engine.constraints import CompiledConstraint
from runner.engine.detokenizer import Detokenizer
from runner.engine.echo import Echo
from runner.engine.hibernation import Find
from runner.engine.prefix import Namespace
from runner.engine.reasoning import Phase, Reasoning, Splitter
from runner.engine.stopping import StopMatcher
from runner.errors import RunnerError


class SequenceState(enum.Enum):
    WAITING = "waiting"
    """Submitted, holds no id and no cells."""
    PREFILLING = "prefilling"
    """Its known tokens are put into cells, chunk by chunk."""
    DECODING = "decoding"
    """One new token per step."""
    PREEMPTED = "preempted"
    """Gave its cells up for older ones; what is not retained of its tokens will be prefilled again."""
    ENDED = "ended"
    """Finished, failed or cancelled; holds nothing."""


TRANSITIONS: Mapping[SequenceState, frozenset[SequenceState]] = MappingProxyType(
    {
        SequenceState.WAITING: frozenset({SequenceState.PREFILLING, SequenceState.ENDED}),
        SequenceState.PREFILLING: frozenset(
            {SequenceState.DECODING, SequenceState.PREEMPTED, SequenceState.ENDED}
        ),
        SequenceState.DECODING: frozenset({SequenceState.PREEMPTED, SequenceState.ENDED}),
        SequenceState.PREEMPTED: frozenset({SequenceState.PREFILLING, SequenceState.ENDED}),
        SequenceState.ENDED: frozenset(),
    }
)


class InvalidTransition(RunnerError):
    """A fault in the engine: a sequence was asked to do what its state rules out. Nothing has changed."""

    def __init__(self, old: SequenceState, new: SequenceState) -> None:
        super().__init__(f"a sequence that is {old.value} cannot become {new.value}")


@attrs.frozen(kw_only=True)
class SequenceRequest:
    """One sequence to generate. `prompt_tokens` are checked against the vocabulary and not empty.

    `max_tokens` None means "to the end of the context". `submitted_s` is `time.monotonic()` of the arrival,
    from which the queueing time counts. Cells are shared within `namespace`, and not at all when it is None.
    `n`, `logprobs` and `echo` are those of `GenerationRequest`. `reasoning` None: all of it is the answer.
    """

    request_id: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    constraint: CompiledConstraint | None = None
    reasoning: Reasoning | None = None
    namespace: Namespace | None = attrs.field(factory=Namespace)
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    submitted_s: float

    @property
    def n_tokens_longest(self) -> int:
        return len(self.prompt_tokens)


class Sequence:
    """Holds `tokens` (prompt and answer); the first `n_filled` of them are in cells under the id `slot`.

    `n_filled` and `slot` mean something only while it runs. `chooser` outlives preemption, so that its random
    numbers continue and the text does too.

    While it has a `leader`, an older sequence that computes what both begin with, it computes nothing itself:
    it will share the first `n_awaited` cells. Nor does it while it waits for a state that was `found`, and is
    to be put into its cells. `n_cached` tokens of the prompt were there already when it began; `miss` tells
    why there were none.
    """

    __slots__ = (
        "_admitted_s", "_detokenizer", "_first_token_s", "_last_token_s", "_matcher", "_n_reasoned",
        "_n_untold", "_names", "_splitter", "_untold", "_was_preempted", "choice_index", "chooser",
        "echo", "found", "leader", "miss", "n_awaited", "n_cached", "n_filled", "n_prompt", "n_tokens_max",
        "order", "request", "slot", "state", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: SequenceRequest,
        *,
        order: int,
        n_tokens_max: int,
        chooser: Chooser,
        choice_index: int = 0,
        echo: Echo | None = None,
    ) -> None:
        """`n_tokens_max` counts prompt and answer. `order` grows with every submission. `choice_index` is the
        place of this one among the `n` answers to the request, of which one echoes the prompt."""
        self.request = request
        self.echo = echo
        self.choice_index = choice_index
        self.order = order
        self.n_tokens_max = n_tokens_max
        self.chooser = chooser
        self.state = SequenceState.WAITING
        self.tokens = list(request.prompt_tokens)
        self.n_prompt = len(self.tokens)
        self.n_filled = 0
        self.n_awaited = 0
        self.n_cached = 0
        self.leader: Sequence | None = None
        self.found: Find | None = None
        self.miss = CacheMiss.NEW
        self.slot = -1
        self._detokenizer = Detokenizer()
        self._matcher = StopMatcher(request.stop) if request.stop else None
        self._splitter = _new_splitter(request)
        self._names = {} if request.reasoning is None else request.reasoning.markers.names
        self._n_reasoned = 0
        self._n_untold = 0
        self._untold: list[TokenLogprob] = []
        self._was_preempted = False
        self._admitted_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.request.request_id}: {self.state.value}, {self.n_prompt} prompt tokens, "
            f"{self.n_generated} generated, {self.n_filled} in cells>"
        )

    @property
    def is_repeatable(self) -> bool:
        """Asked to give the same answer when asked again."""
        return self.request.sampling.seed is not None

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_pending(self) -> int:
        """Tokens that it has still to compute."""
        return len(self.tokens) - max(self.n_filled, self.n_awaited)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_remaining(self) -> int:
        return self.n_tokens_max - len(self.tokens)

    @property
    def is_waiting(self) -> bool:
        """It runs, and computes nothing before others have."""
        return self.leader is not None or self.found is not None

    @property
    def is_running(self) -> bool:
        return self.state in (SequenceState.PREFILLING, SequenceState.DECODING)

    # transitions

    def start(self, slot: int, now_s: float) -> None:
        """Begin or resume prefilling under the id `slot`, which has no cells yet."""
        self._become(SequenceState.PREFILLING)
        self.slot = slot
        self.n_filled = 0
        if self._admitted_s is None:
            self._admitted_s = now_s

    def attach(self, count: int) -> None:
        """Its first `count` tokens are in cells, computed by others, or by itself before it was preempted."""
        self.n_filled = count
        if not self._was_preempted:
            self.n_cached = count

    def follow(self, leader: Sequence | None, count: int = 0) -> None:
        """Wait until `leader` has computed the first `count` tokens, or do not any more."""
        self.leader = leader
        self.n_awaited = count

    def await_state(self, found: Find, n_shared: int) -> None:
        """Wait until that state is there, or cannot be had; others have `n_shared` of its cells."""
        self.found = found
        self.n_awaited = n_shared

    def stop_waiting(self) -> None:
        """For a leader, or for a state."""
        self.found = None
        self.follow(None)

    def preempt(self) -> None:
        self._become(SequenceState.PREEMPTED)
        self._was_preempted = True
        self.slot = -1
        self.n_filled = 0
        self.stop_waiting()

    def end(self) -> None:
        """Also frees the sampler's objects."""
        self._become(SequenceState.ENDED)
        self.stop_waiting()
        self.chooser.close()

    def _become(self, state: SequenceState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransition(self.state, state)
        self.state = state

    # tokens and text

    def add_token(self, token_id: int, now_s: float) -> None:
        """The next token of the answer was sampled."""
        if self.state is SequenceState.PREFILLING:
            self._become(SequenceState.DECODING)
        if self._first_token_s is None:
            self._first_token_s = now_s
        self._last_token_s = now_s
        self.tokens.append(token_id)
        self._n_untold += 1
        if self.chooser.logprob is not None:
            self._untold.append(self.chooser.logprob)

    def add_text(self, piece: bytes) -> list[TextDelta]:
        """What may be shown after the last token, whose bytes are `piece`."""
        if not piece and self._names:
            piece = self._names.get(self.tokens[-1], b"")
        text = self._detokenizer.push(piece)
        if self._splitter is not None:
            return self._add_undivided(text, self._splitter)
        if self._matcher is not None:
            text = self._matcher.push(text)
        return self._told(text)

    def _add_undivided(self, text: str, splitter: Splitter) -> list[TextDelta]:
        """Stop strings are looked for in the answer only, and only its tokens have logprobs."""
        if not text:
            return []
        before = splitter.phase
        reasoning, answer = splitter.push(text)
        if before in (Phase.UNDECIDED, Phase.REASONING) and splitter.has_reasoned:
            self._n_reasoned = self.n_generated
        if splitter.phase in (Phase.REASONING, Phase.BETWEEN):
            self._untold.clear()
        elif splitter.phase is Phase.ANSWERING:
            self._splitter = None
        told = self._told_reasoning(reasoning)
        if self._matcher is not None:
            answer = self._matcher.push(answer)
        return told + self._told(answer)

    @property
    def met_stop_string(self) -> bool:
        return self._matcher is not None and self._matcher.is_stopped

    @property
    def is_full(self) -> bool:
        """`max_tokens` or the context was reached."""
        return len(self.tokens) >= self.n_tokens_max

    def flush(self, *, ended_by_model: bool) -> list[TextDelta]:
        """Text held back until now. A character that a limit of ours cut off is left out; one that the model
        itself left unfinished is invalid, and shows as U+FFFD. Likewise what may be part of a marker."""
        text = self._detokenizer.finish() if ended_by_model else ""
        told: list[TextDelta] = []
        if self._splitter is not None:
            reasoning, answer = self._splitter.push(text)
            more, text = self._splitter.finish(is_whole=ended_by_model)
            told = self._told_reasoning(reasoning + more)
            text = answer + text
        if self._matcher is not None:
            text = self._matcher.push(text) + self._matcher.finish()
        return told + self._told(text)

    def _told(self, text: str) -> list[TextDelta]:
        if not text:
            return []
        n_tokens, self._n_untold = self._n_untold, 0
        logprobs, self._untold = self._untold, []
        if self.met_stop_string:
            logprobs = _covering(text, logprobs)
        return [TextDelta(text, n_tokens, self.choice_index, tuple(logprobs))]

    def _told_reasoning(self, text: str) -> list[TextDelta]:
        if not text:
            return []
        n_tokens, self._n_untold = self._n_untold, 0
        return [TextDelta(text, n_tokens, self.choice_index, is_reasoning=True)]

    @property
    def _n_reasoning(self) -> int:
        """Tokens of the answer that went into reasoning, markers included."""
        is_reasoning = self._splitter is not None and self._splitter.phase is Phase.REASONING
        return self.n_generated if is_reasoning else self._n_reasoned

    def finished(self, reason: FinishReason) -> Finished:
        """The last event. The token that ended the turn counts as a completion token, as in llama-server."""
        return Finished(
            reason=reason,
            usage=Usage(
                prompt_tokens=self.n_prompt,
                completion_tokens=self.n_generated,
                cached_tokens=min(self.n_cached, self.n_prompt),
                reasoning_tokens=self._n_reasoning,
            ),
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        submitted_s = self.request.submitted_s
        admitted_s = submitted_s if self._admitted_s is None else self._admitted_s
        first_s = admitted_s if self._first_token_s is None else self._first_token_s
        last_s = first_s if self._last_token_s is None else self._last_token_s
        return Timings(
            queued_s=max(0.0, admitted_s - submitted_s),
            prefill_s=first_s - admitted_s,
            decode_s=last_s - first_s,
        )


def _new_splitter(request: SequenceRequest) -> Splitter | None:
    """A constraint binds every character of the answer, so that none may be left out."""
    reasoning = request.reasoning
    if reasoning is None or not reasoning.is_separated:
        return None
    return Splitter(
        reasoning.markers.start,
        reasoning.markers.end,
        is_open=reasoning.is_open,
        is_exact=request.constraint is not None,
    )


def _covering(text: str, logprobs: list[TokenLogprob]) -> list[TokenLogprob]:
    """Those of the tokens that `text` is made of, without the ones that only the stop string had."""
    left = len(text.encode("utf-8"))
    found = []
    for logprob in logprobs:
        if left <= 0:
            break
        found.append(logprob)
        left -= len(logprob.text)
    return found
