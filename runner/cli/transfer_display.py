"""How far a pull or push is, for people: bars on a terminal, lines that come now and then elsewhere.

Takes the lines of the control API as they are; names in them are outside text, and are made harmless before
they are shown (K06). rich is imported for bars only.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from runner.cli.output import harmless_line, message
from runner.units import format_bytes, format_duration

SPACING_S: Final = 2.0  # between lines where bars cannot be shown
SILENCE_S: Final = 30.0  # after which a line is due, however little has changed
_BARS_MAX: Final = 8
_WORDS: Final = {"pull": ("pulling", "from"), "push": ("pushing", "to"), "repair": ("repairing", "from")}
_DIGEST: Final = re.compile(r"@sha256:([0-9a-f]{12})[0-9a-f]{52}\Z")
_SHORT_DIGEST: Final = slice(len("sha256:"), len("sha256:") + 12)

Moment = Mapping[str, Any]


class Display(Protocol):
    """Follows one transfer; `show` takes its progress lines in order."""

    def show(self, progress: Moment) -> None: ...


@contextmanager
def display(verb: str, name: str, *, is_silent: bool = False) -> Iterator[Display]:
    """What suits whoever reads stderr. `verb`: `pull`, `push` or `repair`."""
    if is_silent:
        yield _Nothing()
    elif is_terminal():
        with _bars(verb, name) as bars:
            yield bars
    else:
        yield Lines(verb, name)


def is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def stage(verb: str, name: str, progress: Moment | None) -> str:
    """What the transfer is at, as a phrase."""
    doing, _ = _WORDS[verb]
    match progress["phase"] if progress is not None else "resolving":
        case "queued" if progress is not None and progress["queue_position"] is not None:
            return f"{name} waits for {_others(progress['queue_position'])}"
        case "queued":
            return f"{name} waits"
        case "resolving":
            return f"resolving {name}"
        case "verifying":
            return f"verifying {name}"
        case "publishing":
            return f"finishing {name}"
    return f"{doing} {name}"


def _others(position: int) -> str:
    return "another transfer to end" if position == 1 else f"{position} other transfers to end"


def shown_name(name: str) -> str:
    """A reference for people: of a digest only the beginning."""
    return _DIGEST.sub(r"@sha256:\1…", name)


def amount(progress: Moment) -> str:
    """`12.0 MiB of 258.1 MiB`."""
    return f"{format_bytes(progress['done_bytes'])} of {format_bytes(progress['total_bytes'])}"


class Notes:
    """Each is told once; the oldest leave the progress when there are many."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def fresh(self, progress: Moment) -> list[str]:
        notes = [note for note in progress["notes"] if note not in self._told]
        self._told.update(notes)
        return [harmless_line(note) for note in notes]


class _Nothing:
    def show(self, progress: Moment) -> None:
        """Nobody watches."""


class Lines:
    """A line when the stage changes, at tenths of the whole that are some time apart, and after a silence."""

    def __init__(self, verb: str, name: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._verb = verb
        self._name = harmless_line(name)
        self._now_s = now_s
        self._stage = ""
        self._tenths = 0
        self._said_s = now_s()
        self._began: tuple[float, int] | None = None  # when the first bytes were told, with those of earlier
        self._notes = Notes()

    def show(self, progress: Moment) -> None:
        now_s = self._now_s()
        for note in self._notes.fresh(progress):
            message(note)
        stage_now = stage(self._verb, self._name, progress)
        if self._began is None and progress["phase"] == "transferring" and progress["done_bytes"]:
            self._began = (now_s, progress["done_bytes"])
        tenths = 10 * progress["done_bytes"] // max(1, progress["total_bytes"])
        is_further = tenths > self._tenths and now_s - self._said_s >= SPACING_S
        if stage_now != self._stage or is_further or now_s - self._said_s >= SILENCE_S:
            self._stage, self._tenths, self._said_s = stage_now, tenths, now_s
            message(stage_now + self._numbers(progress, now_s))

    def _numbers(self, progress: Moment, now_s: float) -> str:
        """How much, how fast and how much longer, as far as it is known."""
        if progress["phase"] != "transferring" or not progress["total_bytes"]:
            return ""
        text = f": {progress['done_bytes'] / progress['total_bytes']:.0%}, {amount(progress)}"
        if self._began is None or now_s <= self._began[0] or progress["done_bytes"] <= self._began[1]:
            return text
        rate = (progress["done_bytes"] - self._began[1]) / (now_s - self._began[0])
        left_s = (progress["total_bytes"] - progress["done_bytes"]) / rate
        return f"{text}, {format_bytes(int(rate))}/s" + (
            f", {format_duration(left_s)} left" if left_s >= 1 else ""
        )


def shown_layers(layers: Sequence[Moment], rows: int) -> list[Moment]:
    """At most `rows` of them: those under way, then those that wait, then the latest that are done; in their
    own order."""
    if len(layers) <= rows:
        return list(layers)

    def urgency(index: int) -> tuple[int, int]:
        layer = layers[index]
        if layer["done_bytes"] >= layer["size_bytes"]:
            return (2, -index)
        return (0 if layer["done_bytes"] else 1, index)

    chosen = sorted(range(len(layers)), key=urgency)[:rows]
    return [layers[index] for index in sorted(chosen)]


def label(layer: Moment) -> str:
    """What a part is called in front of its bar."""
    digest = layer["digest"][_SHORT_DIGEST] if layer["digest"].startswith("sha256:") else layer["digest"][:12]
    return harmless_line(" ".join(part for part in (digest, layer["title"] or layer["kind"]) if part))


@contextmanager
def _bars(verb: str, name: str) -> Iterator[Display]:
    from runner.cli.transfer_bars import Bars

    bars = Bars(verb, harmless_line(name), rows=_BARS_MAX)
    with bars.live():
        yield bars
