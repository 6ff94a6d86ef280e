"""What an engine must offer to the batching loop, and the one place that chooses between engines.

Owns the protocols `Backend` and `Sampler` and the values they exchange. Imports numpy and `runner.domain`;
an implementation is imported only when it is asked for, since loading llama.cpp costs 0.3 s and must come
after the process environment is right. Read on in `llama.py` (the real one) and `fake.py` (the scripted one).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from runner.domain.engine import DeviceBuffers, EngineOptions
from runner.engine.sampler import SamplerPlan
from runner.errors import LoadingFailed

if TYPE_CHECKING:
    from llguidance import LLTokenizer

ProgressReport = Callable[[float], bool]
"""Told the loaded fraction (0 to 1) during a load; answers False to give the load up."""


class Pooling(enum.Enum):
    """How the vectors of an input's tokens become the one of the input."""

    MEAN = "mean"
    FIRST = "first"
    """The one of the leading token, which encoders are trained to sum up in (CLS)."""
    LAST = "last"


GROUP_ROWS: Final = 512
"""Rows of a pass that short inputs are gathered for. More gain nothing, and each attends to all of them,
masked or not."""


@attrs.frozen(kw_only=True)
class EmbeddingFacts:
    """What vectors a model makes, of `n_dimensions` numbers, and of how long inputs, in tokens.

    `is_whole`: an input is computed in one pass, since each token attends to those behind it as well.
    Several share a pass of up to `group_rows`.
    """

    n_dimensions: int
    input_max: int
    pooling: Pooling = Pooling.MEAN
    is_whole: bool = False
    max_sequences: int = 8
    group_rows: int = GROUP_ROWS


@attrs.frozen(kw_only=True)
class LoadedFacts:
    """What a backend knows once it is loaded. `devices` are empty where the engine reports no sizes.

    `shares_cells`: sequences can have cells in common. Not where a model keeps one state per sequence.
    `n_outputs`: rows of one forward pass whose logits can be had. `generates`: not an encoder, which makes
    embeddings only. `embedding` is None where there are none to be had.
    `n_outputs`: rows of one forward pass whose logits can be had. `cuts_states`: one may go
    on from any position of a restored state; otherwise, with a sliding window, from its end only.
    """

    engine_version: str
    architecture: str
    trained_context_size: int
    n_vocab: int
    n_outputs: int
    shares_cells: bool = True
    generates: bool = True
    embedding: EmbeddingFacts | None = None
    cuts_states: bool = True
    devices: tuple[DeviceBuffers, ...] = ()


@attrs.frozen(eq=False)
class BatchArrays:
    """The rows of the next forward pass, reused for every step; all arrays of shape (batch_size,).

    Row `i` computes token `tokens[i]` at `positions[i]` of sequence `sequence_ids[i]`; when `wants_logits[i]`
    is 1 its logits may be read afterwards. At most `LoadedFacts.n_outputs` rows may want them.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    sequence_ids: npt.NDArray[np.int32]
    wants_logits: npt.NDArray[np.int8]

    @property
    def size(self) -> int:
        return len(self.tokens)

    @classmethod
    def empty(cls, size: int) -> BatchArrays:
        tokens, positions, sequence_ids = (np.zeros(size, np.int32) for _ in range(3))
        return cls(tokens, positions, sequence_ids, np.zeros(size, np.int8))


class DecodeResult(enum.Enum):
    DONE = "done"
    NO_CELLS = "no cells"
    """No place for the rows; nothing has changed."""
    FAILED = "failed"
    """Some rows may be in memory: drop what lies beyond the last good position before the next attempt."""


class Sampler(Protocol):
    """The choice of one sequence's next tokens; holds its random state."""

    def sample(self, row: int) -> int:
        """The token that follows row `row` of the last decode, which wanted logits.

        Raises `runner.engine.sampler.UnusableLogits` when it holds NaN.
        """

    def propose(self, row: int) -> int:
        """As `sample`, but the choice stays open: another may be proposed, and one is accepted."""

    def accept(self, token_id: int) -> None:
        """The proposal that was taken, or a token that nobody proposed."""

    def close(self) -> None: ...


class EmbeddingContext(Protocol):
    """Where embeddings are computed, over a backend's weights. Belongs to the thread that steps.

    Sequence ids are below `EmbeddingFacts.max_sequences`. Every row of `batch` has a vector afterwards.
    """

    @property
    def batch(self) -> BatchArrays: ...

    def set_threads(self, n_threads: int) -> None: ...

    def decode(self, n_rows: int) -> DecodeResult:
        """Run the first `n_rows` rows of `batch`."""

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        """Shape (n_dimensions,); a view that is valid until the next decode."""

    def forget(self) -> None:
        """All sequences: each may begin anew."""

    def close(self) -> None:
        """Free what is this context's own; before the backend is closed."""


class Backend(Protocol):
    """One model in memory with one pool of cells. Belongs to the thread that steps.

    Sequence ids are below `max_sequences`, plus `max_retained` where cells can be shared.

    Only `tokenize`, `new_constraint_tokenizer` and the constants (`facts`, `chat_template`, `bos_text`,
    `eos_text`, `control_texts`) may be used from another thread, also while a step runs.
    """

    @property
    def facts(self) -> LoadedFacts: ...

    @property
    def batch(self) -> BatchArrays: ...

    @property
    def chat_template(self) -> str | None:
        """The template in the model file, as Jinja source."""

    @property
    def bos_text(self) -> str: ...

    @property
    def eos_text(self) -> str: ...

    @property
    def control_texts(self) -> frozenset[str]:
        """What `parse_special` would read as control tokens (llama.cpp's CONTROL and UNKNOWN attributes).

        The chat side keeps these out of what clients write; read by the preparation thread after the load.
        """

    @property
    def end_of_generation(self) -> frozenset[int]:
        """Every token that ends a turn."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `add_special` adds what the model wants around a prompt (BOS, …);
        `parse_special` reads `<|im_start|>` and its like as the control tokens they name."""

    def token_piece(self, token_id: int) -> bytes:
        """The bytes a token stands for in the answer: none for control tokens, may be part of a character."""

    def token_text(self, token_id: int) -> bytes:
        """The same, but control tokens stand for their names."""

    def is_end_of_generation(self, token_id: int) -> bool: ...

    def new_constraint_tokenizer(self) -> LLTokenizer:
        """The vocabulary as constraints read it, which takes long; must not outlive the backend in use."""

    def new_sampler(self, plan: SamplerPlan) -> Sampler: ...

    def set_threads(self, n_threads: int) -> None:
        """How many threads the next decode uses; at most those of the options it was loaded with."""

    def decode(self, n_rows: int) -> DecodeResult:
        """Run the first `n_rows` rows of `batch`; adds one cell per row."""

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Shape (n_vocab,); a view that is valid until the next decode."""

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        """Let a sequence that has nothing share the first `count` cells of another; nothing is computed.

        False when not all that is needed to go on from there has been kept (sliding windows); then it has
        nothing. Only where `facts.shares_cells`.
        """

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None:
        """Let the first `count` cells of a sequence be those of another, which hold the same tokens.

        Only where `facts.cuts_states`.
        """

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        """Forget a sequence from a position on; False when only forgetting all of it is possible."""

    def open_embedding(self) -> EmbeddingContext:
        """Only where `facts.embedding`. Raises LoadingFailed when there is no memory for it."""

    def state_bytes(self, sequence_id: int) -> int:
        """What `save_state` would give. Only where `facts.shares_cells`."""

    def save_state(self, sequence_id: int, room: memoryview) -> bool:
        """Write what the cells of a sequence hold into `room`, of exactly `state_bytes`; False when the
        engine would not."""

    def restore_state(self, sequence_id: int, state: memoryview, count: int) -> bool:
        """Give a sequence that has nothing the cells of a saved one, of `count` tokens; nothing is computed.

        False when the engine refuses the state, has no room for it, or finds another number of tokens in it;
        the sequence then has nothing.
        """

    def close(self) -> None:
        """Free everything; the backend must not be used afterwards."""


def load_backend(
    engine: str,
    path: Path,
    options: EngineOptions,
    progress: ProgressReport,
    *,
    further_parts: tuple[Path, ...] = (),
) -> Backend:
    """Load `path`, with the further parts of a split file in order, by the engine `llama` or `scripted`.

    Raises LoadingFailed, whose text names no path. A hostile file may also end the process.
    """
    if engine == "llama":
        from runner.engine.llama import LlamaBackend

        return LlamaBackend.load(path, options, progress, further_parts=further_parts)
    if engine == "scripted":
        from runner.engine.fake import ScriptedBackend

        return ScriptedBackend.load(path, options, progress, further_parts=further_parts)
    raise LoadingFailed(f"there is no engine called {engine!r}")
