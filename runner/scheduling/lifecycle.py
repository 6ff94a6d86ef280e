"""The life of one model in memory: its states, and what moves it from one to the next.

    unloaded ─> sizing ─> queued ─> loading ─> ready <─> yielding ─> stopping ─> unloaded
                                  └─────────────── bytes are reserved ────────────┘

Bytes are reserved from `loading` to the end of `stopping`, since a process holds memory until it is gone.
`TRANSITIONS` is the whole truth; `diagram()` draws it. Imports the error tree. Read on in `instances.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from runner.errors import RunnerError


class InstanceState(enum.Enum):
    UNLOADED = "unloaded"
    """Nothing runs, nothing is reserved."""
    COOLING = "cooling"
    """Wanted, but its worker crashed a moment ago: the next one starts after a delay."""
    SIZING = "sizing"
    """Its files are pinned and its footprint is being determined."""
    QUEUED = "queued"
    """The footprint is known and waits for room."""
    LOADING = "loading"
    """Bytes are reserved and a worker starts."""
    READY = "ready"
    """Leases are granted."""
    YIELDING = "yielding"
    """In use, but its room is wanted: running requests end, and no new lease is granted."""
    STOPPING = "stopping"
    """The worker was told to end, or ends by itself; its bytes count until the process is gone."""


class Trigger(enum.Enum):
    """What can move an instance; the values are the labels of the diagram."""

    WANTED = "somebody waits for it"
    BACKED_OFF = "wanted soon after a crash"
    COOLED = "the delay is over"
    SIZED = "the footprint is known"
    RESIZED = "the budget shrank, or a larger context is wanted"
    ROOM_RESERVED = "its bytes are reserved"
    LOADED = "the worker is ready"
    NOT_WANTED = "refused, failed, or nobody waits any more"
    STOP_ASKED = "idle, evicted, unloaded, failed, draining, or nobody waits any more"
    GIVES_WAY = "another load may have its room"
    KEEPS_ROOM = "its room is not needed any more"
    FAILING = "the worker serves nobody any more"
    GONE = "the process is gone"


_S, _T = InstanceState, Trigger

TRANSITIONS: Mapping[InstanceState, Mapping[Trigger, InstanceState]] = MappingProxyType(
    {
        _S.UNLOADED: {_T.WANTED: _S.SIZING, _T.BACKED_OFF: _S.COOLING},
        _S.COOLING: {_T.COOLED: _S.SIZING, _T.NOT_WANTED: _S.UNLOADED},
        _S.SIZING: {_T.SIZED: _S.QUEUED, _T.NOT_WANTED: _S.UNLOADED},
        _S.QUEUED: {_T.ROOM_RESERVED: _S.LOADING, _T.RESIZED: _S.SIZING, _T.NOT_WANTED: _S.UNLOADED},
        _S.LOADING: {_T.LOADED: _S.READY, _T.STOP_ASKED: _S.STOPPING, _T.GONE: _S.UNLOADED},
        _S.READY: {
            _T.STOP_ASKED: _S.STOPPING,
            _T.GIVES_WAY: _S.YIELDING,
            _T.FAILING: _S.STOPPING,
            _T.GONE: _S.UNLOADED,
        },
        _S.YIELDING: {
            _T.STOP_ASKED: _S.STOPPING,
            _T.KEEPS_ROOM: _S.READY,
            _T.FAILING: _S.STOPPING,
            _T.GONE: _S.UNLOADED,
        },
        _S.STOPPING: {_T.GONE: _S.UNLOADED},
    }
)

HOLDING_MEMORY = frozenset({_S.LOADING, _S.READY, _S.YIELDING, _S.STOPPING})
"""States in which the ledger holds the footprint, and in which a worker process may exist."""


SERVING = frozenset({_S.READY, _S.YIELDING})
"""States in which leases may be held."""


class IllegalTransition(RunnerError):
    """An event that must not happen in this state: a fault of ours. Nothing has changed when it is raised."""

    def __init__(self, state: InstanceState, trigger: Trigger) -> None:
        super().__init__(f"an instance that is {state.value} cannot take {trigger.name.lower()!r}")
        self.state = state
        self.trigger = trigger


def next_state(state: InstanceState, trigger: Trigger) -> InstanceState:
    """Raises IllegalTransition for a pair that `TRANSITIONS` does not list."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(state, trigger) from None


def diagram() -> str:
    """`TRANSITIONS` as mermaid text, for the reference pages."""
    lines = ["stateDiagram-v2", f"    [*] --> {_S.UNLOADED.value}"]
    for state, exits in TRANSITIONS.items():
        lines += [
            f"    {state.value} --> {target.value}: {trigger.value}" for trigger, target in exits.items()
        ]
    return "\n".join(lines) + "\n"
