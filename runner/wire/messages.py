"""The unions of messages between daemon and worker, and between daemon and probe.

Small, flat, versioned. `runner.wire.codec` turns them into frames and back and refuses everything else.
Model bytes never travel here: the worker maps the file that `LoadModel` names.
"""

from __future__ import annotations

import attrs

from runner.domain.engine import DeviceBuffers, EngineCounts, EngineSizes
from runner.domain.engine import EngineOptions as EngineOptions
from runner.domain.events import GenerationEvent
from runner.domain.generation import GenerationRequest
from runner.hardware.pinning import DevicePin

PROTOCOL_VERSION = 7


# daemon -> worker


@attrs.frozen(kw_only=True)
class LoadModel:
    """First message. `engine` is `llama` or `scripted`; `chat_template` None takes the one in the file.

    `weights_paths` are the parts of the weights in order, of which there is one unless the file was split.

    `pins` are the devices that the worker may see, set before any back end is touched.
    """

    engine: str
    weights_paths: tuple[str, ...]
    options: EngineOptions
    chat_template: str | None = None
    pins: tuple[DevicePin, ...] = ()


@attrs.frozen
class Generate:
    request: GenerationRequest


@attrs.frozen
class Cancel:
    """Ends one sequence between steps; unknown ids are ignored, since the end may have crossed it."""

    request_id: str


@attrs.frozen
class SetThreads:
    """Use so many threads from the next step on; never more than the model was loaded with."""

    n_threads: int


@attrs.frozen
class CloseAnnex:
    """Give the memory of a second context for embeddings back, and say so; requests that use it are ended.
    Embeddings asked for later open it again."""


@attrs.frozen(kw_only=True)
class StateOffer:
    """A saved state that can be had, of `size_bytes`; `tokens` are what its cells hold, of `owner`."""

    state_id: int
    owner: str
    tokens: tuple[int, ...]
    size_bytes: int


@attrs.frozen
class OfferStates:
    """What was saved of this very model earlier, the most recently used first. Sent once, after `Loaded`.

    `room_bytes`: from now on a state of at most so many bytes may be saved; 0: none.
    """

    offers: tuple[StateOffer, ...]
    room_bytes: int = 0


@attrs.frozen
class StatePart:
    """The next bytes of a state that was asked for; all parts are as long as its offer says."""

    state_id: int
    data: bytes


@attrs.frozen
class StateGone:
    """A state that was offered cannot be had any more, or its parts so far are not to be used."""

    state_id: int


@attrs.frozen
class MoreParts:
    """So many parts more may be sent of the state that is being saved."""

    count: int


@attrs.frozen
class StateKept:
    """The state that was announced is saved, and offered as `state_id`; or, None, it is not, and no more of
    its parts are wanted. The next may be announced, of at most `room_bytes`; 0: none."""

    state_id: int | None
    room_bytes: int


@attrs.frozen(kw_only=True)
class Shutdown:
    """Cancel everything and exit 0; before that, save states of at most so many bytes, for so long."""

    save_bytes: int = 0
    save_s: float = 0.0


ToWorker = (
    LoadModel
    | Generate
    | Cancel
    | SetThreads
    | CloseAnnex
    | OfferStates
    | StatePart
    | StateGone
    | MoreParts
    | StateKept
    | Shutdown
)

# worker -> daemon


@attrs.frozen(kw_only=True)
class Hello:
    """Sent once the worker is imported and ready for `LoadModel`."""

    protocol_version: int
    pid: int


@attrs.frozen
class LoadProgress:
    """Counted work of a load, 0 to 1."""

    fraction: float


@attrs.frozen(kw_only=True)
class Loaded:
    """The engine is ready. `devices` are the buffers that it reported, none when it reports nothing."""

    engine_version: str
    context_size: int
    trained_context_size: int
    n_vocab: int
    n_cells: int
    max_sequences: int
    load_s: float
    devices: tuple[DeviceBuffers, ...] = ()


@attrs.frozen(kw_only=True)
class LoadFailed:
    """`code` is one of `runner.errors` (`loading_failed`, `invalid_model_file`, …)."""

    code: str
    message: str


StepEvent = GenerationEvent


@attrs.frozen(kw_only=True)
class Step:
    """One frame for the engine's steps since the last one: what happened to every sequence, and counted work.

    `events` pairs request ids with events, in order. Also sent without a step when requests were refused.
    `cells_used` are those of running sequences, `cells_retained` what is kept beside them, `host_tokens` what
    is kept in host memory. `step_s` is what the steps took, `computing_s` of it the engine's own forward
    passes; `counts` go on from step to step.
    """

    step_index: int
    prefill_tokens: int
    decode_tokens: int
    running: int
    waiting: int
    cells_used: int
    events: tuple[tuple[str, StepEvent], ...] = ()
    cells_retained: int = 0
    host_tokens: int = 0
    step_s: float = 0.0
    computing_s: float = 0.0
    counts: EngineCounts = attrs.field(factory=EngineCounts)


@attrs.frozen
class AnnexClosed:
    """The answer to `CloseAnnex`."""


@attrs.frozen
class WantState:
    """Send the parts of an offered state, or say that it is gone. One at a time."""

    state_id: int


@attrs.frozen(kw_only=True)
class SaveState:
    """A state follows, in parts of `size_bytes` together: what the cells of `tokens` hold.

    One after the other, each answered by `StateKept`, and parts only as `MoreParts` allows; after `Shutdown`
    nothing is answered, and nothing need be allowed.
    """

    owner: str
    tokens: tuple[int, ...]
    size_bytes: int


@attrs.frozen
class SavedPart:
    """The next bytes of the state that was announced last."""

    data: bytes


FromWorker = (
    Hello | LoadProgress | Loaded | LoadFailed | Step | AnnexClosed | WantState | SaveState | SavedPart
)


# daemon -> probe, a process that answers once and ends


@attrs.frozen(kw_only=True)
class ProbeModel:
    """What would a load of these parts with these options take? Nothing is loaded."""

    weights_paths: tuple[str, ...]
    options: EngineOptions


ToProbe = ProbeModel

# probe -> daemon


@attrs.frozen(kw_only=True)
class Probed:
    engine_version: str
    sizes: EngineSizes


FromProbe = Probed | LoadFailed
