"""The scripted backend: no model, deterministic, made to misbehave on request. It ships; tests of everything
above the engine run on it.

Any file serves as weights. The vocabulary is the 256 bytes and the control tokens of `CONTROL`. Sampling
parameters change nothing: every choice is greedy; constraints hold.

**Answers.** The question is the text before the last `<|answer|>`, back to the control token before it;
the built-in chat template ends in `<|answer|>`, and `tokenize(add_special=True)` appends it to plain
text. Without directives the answer is the question itself, then the end of the turn. When the end is
forbidden (`ignore_eos`), and after prompts without `<|answer|>`, the text goes on with the alphabet from
its last letter.

**Directives** in the question replace that. Answers of several are joined; faults happen before the
answer's token `N` (default 0, the first) is computed:

    [[say TEXT]]              answers TEXT
    [[hex DIGITS]]            answers these bytes, valid UTF-8 or not
    [[repeat N TEXT]]         answers TEXT N times
    [[count N]]               answers `1 2 3 … N`
    [[threads N]]             answers N digits, each the number of threads (its last digit) of that step
    [[forever]]               goes on with the alphabet and never ends its turn
    [[slow MS]]               every step takes MS milliseconds longer while this sequence decodes
    [[noise N]]               writes N bytes to stdout and stderr, as libraries do, before the first token
    [[crash HOW after N]]     HOW is segv, bus, abort, kill, exit or exception
    [[hang after N]]          never returns from the step
    [[grow MIB after N]]      takes so much memory more, and keeps it
    [[fail after N]]          the forward pass reports an error and leaves its rows in memory
    [[nan after N]]           the logits are not numbers

**In the file**, within its first 64 KiB:

    [[load fail]]  [[load slow MS]]  [[load crash HOW]]  [[load hang]]  [[load grow MIB]]
    [[load encoder]]          a model that is made for embeddings (`fake_embedding.py`)

Imports numpy, `runner.domain`, `runner.errors` and this package's protocols.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np
import numpy.typing as npt

from runner.domain.engine import DeviceBuffers, EngineOptions
from runner.engine.backend import (
    BatchArrays,
    DecodeResult,
    EmbeddingFacts,
    LoadedFacts,
    ProgressReport,
    Sampler,
)
from runner.engine.fake_embedding import DIMENSIONS, INPUT_MAX, ScriptedEmbedding
from runner.engine.fake_faults import CRASHES, crash, grow, hang, misbehave_in_load
from runner.engine.sampler import GreedySampler, SamplerPlan
from runner.errors import LoadingFailed

if TYPE_CHECKING:
    from llguidance import LLTokenizer

BOS, END, ANSWER = 256, 257, 258
ROLES = ("system", "developer", "user", "assistant", "tool")
CONTROL = {"<|bos|>": BOS, "<|end|>": END, "<|answer|>": ANSWER} | {
    f"<|{role}|>": ANSWER + 1 + index for index, role in enumerate(ROLES)
}
N_VOCAB = 256 + len(CONTROL)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
_CONTROL_TEXT = re.compile("|".join(re.escape(text) for text in CONTROL))
_DIRECTIVE = re.compile(rb"\[\[([a-z]+)(?: (.*?))?\]\]", re.DOTALL)
_STATE_MARK = b"scripted state 1"
_CELL_BYTES = 256
_SCANNED_BYTES = 64 * 1024
_AFTER = re.compile(r"(\w*) ?after (\d+)")


@attrs.frozen
class Fault:
    """`kind` is crash, hang, grow, fail or nan; `how` is of a crash, or the size of what grows."""

    kind: str
    how: str
    after: int

    def is_due(self, kind: str, n_answered: int) -> bool:
        return self.kind == kind and self.after == n_answered


@attrs.frozen(kw_only=True)
class Script:
    """How one question is answered."""

    answer: bytes
    n_told_threads: int = 0
    is_endless: bool = False
    slow_s: float = 0.0
    n_noise: int = 0
    faults: tuple[Fault, ...] = ()


def read_script(question: bytes) -> Script:
    """The script that a question asks for; a directive that cannot be read is answered with a complaint."""
    script = Script(answer=b"")
    found = _DIRECTIVE.findall(question)
    if not found:
        return Script(answer=question)
    for name, argument in found:
        try:
            script = _with_directive(script, name.decode(), argument)
        except (ValueError, UnicodeDecodeError):
            script = attrs.evolve(script, answer=script.answer + b"cannot follow [[" + name + b"]]")
    return script


def _with_directive(script: Script, name: str, argument: bytes) -> Script:
    """`script` with one directive more; ValueError when there is no such one or its argument is wrong."""
    match name:
        case "say":
            return attrs.evolve(script, answer=script.answer + argument)
        case "hex":
            return attrs.evolve(script, answer=script.answer + bytes.fromhex(argument.decode()))
        case "repeat":
            count, _, text = argument.partition(b" ")
            return attrs.evolve(script, answer=script.answer + text * int(count))
        case "count":
            numbers = " ".join(str(number) for number in range(1, int(argument) + 1))
            return attrs.evolve(script, answer=script.answer + numbers.encode())
        case "threads":
            return attrs.evolve(script, n_told_threads=int(argument))
        case "forever":
            return attrs.evolve(script, is_endless=True)
        case "slow":
            return attrs.evolve(script, slow_s=int(argument) / 1000)
        case "noise":
            return attrs.evolve(script, n_noise=int(argument))
        case "crash" | "hang" | "grow" | "fail" | "nan":
            return attrs.evolve(script, faults=(*script.faults, _read_fault(name, argument.decode())))
        case _:
            raise ValueError(name)


def _read_fault(kind: str, argument: str) -> Fault:
    how, after = argument, "0"
    if match := _AFTER.fullmatch(argument):
        how, after = match.groups()
    if not (how.isdecimal() if kind == "grow" else how in (CRASHES if kind == "crash" else {""})):
        raise ValueError(argument)
    return Fault(kind, how, int(after))


@attrs.define
class _Cells:
    """What is in memory of one sequence. `script` is read when the first logits are wanted.

    `numbers` are of its cells, one for each token; what is shared has the same number in several sequences.
    """

    tokens: list[int] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)
    script: Script | None = None
    answer_start: int = 0

    @property
    def n_answered(self) -> int:
        return len(self.tokens) - self.answer_start

    def read_script(self) -> Script:
        """Also finds where the answer starts: after the last `<|answer|>`."""
        if self.script is None:
            if ANSWER not in self.tokens:  # yet: these may be rows within a prompt
                return Script(answer=b"", is_endless=True)
            self.answer_start = len(self.tokens) - self.tokens[::-1].index(ANSWER)
            self.script = read_script(_question(self.tokens[: self.answer_start - 1]))
        return self.script


@attrs.frozen
class _WantedRow:
    """A row whose logits are wanted, as its sequence stood then."""

    row: int
    last_token: int
    n_answered: int
    script: Script

    @classmethod
    def of(cls, row: int, cells: _Cells) -> _WantedRow:
        script = cells.read_script()
        return cls(row, cells.tokens[-1], cells.n_answered, script)

    def has_due(self, kind: str) -> bool:
        return any(fault.is_due(kind, self.n_answered) for fault in self.script.faults)


def _question(tokens: list[int]) -> bytes:
    """The last message, or a whole prompt: the text behind the last control token that has any."""
    end = len(tokens)
    while end and tokens[end - 1] >= 256:  # the <|end|> of the last message
        end -= 1
    start = end
    while start and tokens[start - 1] < 256:
        start -= 1
    return bytes(tokens[start:end])


class ScriptedBackend:
    """See `runner.engine.backend.Backend` for what the methods promise; breaks none of it unless told to.

    Strict where llama.cpp is: a row whose position does not continue its sequence fails the pass.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        weights_bytes: int = 0,
        is_encoder: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self.n_threads = options.n_threads
        """As it was told; it needs none."""
        self._batch = BatchArrays.empty(max(options.max_sequences, options.prefill_chunk))
        self._cells: dict[int, _Cells] = {}
        self._numbers = itertools.count()
        self._logits: dict[int, npt.NDArray[np.float32]] = {}
        self._facts = LoadedFacts(
            engine_version="scripted 1",
            architecture="scripted",
            trained_context_size=1 << 20,
            n_vocab=N_VOCAB,
            n_outputs=self._batch.size,
            generates=not is_encoder,
            embedding=EmbeddingFacts(
                n_dimensions=DIMENSIONS,
                input_max=min(options.context_size, INPUT_MAX),
                is_whole=is_encoder,
                max_sequences=4,
            ),
            devices=(
                DeviceBuffers(
                    device="cpu",
                    weights_bytes=weights_bytes,
                    kv_cache_bytes=0 if is_encoder else _CELL_BYTES * options.n_cells,
                ),
            ),
        )
        self.is_closed = False

    @classmethod
    def load(
        cls,
        path: Path,
        options: EngineOptions,
        progress: ProgressReport,
        *,
        further_parts: tuple[Path, ...] = (),
    ) -> ScriptedBackend:
        """Raises LoadingFailed when a file cannot be read or the first one asks for it; may end or halt the
        process."""
        try:
            with path.open("rb") as file:
                head = file.read(_SCANNED_BYTES)
                weights_bytes = file.seek(0, os.SEEK_END)
            weights_bytes += sum(part.stat().st_size for part in further_parts)
        except OSError:
            raise LoadingFailed("the scripted engine could not read the model file") from None
        wishes = [argument.decode() for name, argument in _DIRECTIVE.findall(head) if name == b"load"]
        for fraction in (0.0, 0.25, 0.5, 0.75):
            _report(progress, fraction)
            for wish in wishes:
                misbehave_in_load(wish, fraction)
        _report(progress, 1.0)
        return cls(options, weights_bytes=weights_bytes, is_encoder="encoder" in wishes)

    def __repr__(self) -> str:
        return f"<ScriptedBackend: {len(self._cells)} sequences, {self.cells_used} cells>"

    @property
    def facts(self) -> LoadedFacts:
        return self._facts

    @property
    def batch(self) -> BatchArrays:
        return self._batch

    @property
    def cells_used(self) -> int:
        return len(set().union(*(cells.numbers for cells in self._cells.values())))

    @property
    def chat_template(self) -> str | None:
        return CHAT_TEMPLATE

    @property
    def bos_text(self) -> str:
        return "<|bos|>"

    @property
    def eos_text(self) -> str:
        return "<|end|>"

    @property
    def control_texts(self) -> frozenset[str]:
        return frozenset(CONTROL)

    @property
    def end_of_generation(self) -> frozenset[int]:
        return frozenset({END})

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens: list[int] = []
        position = 0
        for match in _CONTROL_TEXT.finditer(text) if parse_special else ():
            tokens += text[position : match.start()].encode("utf-8", "replace")
            tokens.append(CONTROL[match[0]])
            position = match.end()
        tokens += text[position:].encode("utf-8", "replace")
        if add_special and tokens[:1] != [BOS]:
            tokens.insert(0, BOS)
        if add_special and tokens[-1] != ANSWER:
            tokens.append(ANSWER)
        return tokens

    def token_piece(self, token_id: int) -> bytes:
        return bytes((token_id,)) if token_id < 256 else b""

    def token_text(self, token_id: int) -> bytes:
        return _Vocabulary.tokens[token_id]

    def is_end_of_generation(self, token_id: int) -> bool:
        return token_id == END

    def new_constraint_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Vocabulary()))

    def new_sampler(self, plan: SamplerPlan) -> Sampler:
        return GreedySampler(self.logits, plan.forbidden)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        return self._logits[row]

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        if from_position == 0:
            self._cells.pop(sequence_id, None)
        elif sequence_id in self._cells:
            cells = self._cells[sequence_id]
            del cells.tokens[from_position:], cells.numbers[from_position:]
        return True

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        source = self._cells[source_id]
        assert target_id not in self._cells, target_id
        assert count <= len(source.tokens), count
        self._cells[target_id] = _Cells(source.tokens[:count], source.numbers[:count])
        return True

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None:
        source, target = self._cells[source_id], self._cells[target_id]
        assert source.tokens[:count] == target.tokens[:count], target_id
        target.numbers[:count] = source.numbers[:count]

    def open_embedding(self) -> ScriptedEmbedding:
        facts = self._facts.embedding
        assert facts is not None
        n_rows = facts.input_max if facts.is_whole else min(self._options.prefill_chunk, facts.input_max)
        return ScriptedEmbedding(n_rows, play=self._play)

    def _play(self, question: bytes) -> bool:
        """Do what is asked for in an input; False when its pass is to fail."""
        script = read_script(question)
        if script.slow_s:
            self._sleep(script.slow_s)
        for fault in script.faults:
            if fault.kind == "crash":
                crash(fault.how)
            elif fault.kind == "hang":
                hang()
            elif fault.kind == "grow":
                grow(int(fault.how))
        return not any(fault.kind == "fail" for fault in script.faults)

    def state_bytes(self, sequence_id: int) -> int:
        return len(_STATE_MARK) + _CELL_BYTES * len(self._cells[sequence_id].tokens)

    def save_state(self, sequence_id: int, room: memoryview) -> bool:
        if len(room) != self.state_bytes(sequence_id):
            return False
        state = _STATE_MARK + array("i", self._cells[sequence_id].tokens).tobytes()
        room[: len(state)] = state
        return True

    def restore_state(self, sequence_id: int, state: memoryview, count: int) -> bool:
        assert sequence_id not in self._cells, sequence_id
        mark, data = bytes(state[: len(_STATE_MARK)]), bytes(state[len(_STATE_MARK) :])
        if (
            mark != _STATE_MARK
            or len(data) != _CELL_BYTES * count
            or self.cells_used + count > self._options.n_cells
        ):
            return False
        numbers = [next(self._numbers) for _ in range(count)]
        self._cells[sequence_id] = _Cells(list(array("i", data[: 4 * count])), numbers)
        return True

    def close(self) -> None:
        self.is_closed = True
        self._cells.clear()

    # the forward pass

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def decode(self, n_rows: int) -> DecodeResult:
        self._logits.clear()
        if self.cells_used + n_rows > self._options.n_cells:
            return DecodeResult.NO_CELLS
        wanted: list[_WantedRow] = []
        for row in range(n_rows):
            cells = self._cells.setdefault(self._sequence_id(row), _Cells())
            if self._batch.positions[row] != len(cells.tokens):
                return DecodeResult.FAILED
            cells.tokens.append(int(self._batch.tokens[row]))
            cells.numbers.append(next(self._numbers))
            if self._batch.wants_logits[row]:
                wanted.append(_WantedRow.of(row, cells))
        if slow_s := max((one.script.slow_s for one in wanted), default=0.0):
            self._sleep(slow_s)
        if any(one.has_due("fail") for one in wanted):
            return DecodeResult.FAILED
        self._logits = {one.row: _next_logits(one, self.n_threads) for one in wanted}
        return DecodeResult.DONE

    def _sequence_id(self, row: int) -> int:
        sequence_id = int(self._batch.sequence_ids[row])
        assert 0 <= sequence_id < self._options.max_sequences + self._options.max_retained, sequence_id
        return sequence_id


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    eos_token_id = END
    bos_token_id = BOS
    tokens: ClassVar = [bytes((byte,)) for byte in range(256)] + [text.encode() for text in CONTROL]
    special_token_ids: ClassVar = list(CONTROL.values())

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _next_logits(wanted: _WantedRow, n_threads: int) -> npt.NDArray[np.float32]:
    """The script's next token first, the alphabet's second; or the fault that is due."""
    script, n_answered = wanted.script, wanted.n_answered
    if n_answered == 0 and script.n_noise:
        os.write(1, b"." * script.n_noise)
        os.write(2, b"." * script.n_noise)
    logits = np.zeros(N_VOCAB, np.float32)
    logits[_next_letter(wanted.last_token)] = 1.0
    if n_answered < len(script.answer):
        logits[script.answer[n_answered]] = 2.0
    elif n_answered < len(script.answer) + script.n_told_threads:
        logits[ord("0") + n_threads % 10] = 2.0
    elif not script.is_endless:
        logits[END] = 2.0
    for fault in script.faults:
        if fault.is_due("crash", n_answered):
            crash(fault.how)
        elif fault.is_due("hang", n_answered):
            hang()
        elif fault.is_due("grow", n_answered):
            grow(int(fault.how))
        elif fault.is_due("nan", n_answered):
            logits[:] = np.nan
    return logits


def _next_letter(token: int) -> int:
    first, last = ord("a"), ord("z")
    return token + 1 if first <= token < last else first


def _report(progress: ProgressReport, fraction: float) -> None:
    if not progress(fraction):
        raise LoadingFailed("the load was given up")
