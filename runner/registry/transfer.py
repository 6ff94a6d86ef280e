"""Which bytes of a blob are missing, which connection fetches them, and what follows a failure. Pure.

Events in, effects out: no clock, no randomness, no network. The shell is `actors/transfers_blob.py`; the
requests are those of `runner/registry/client.py`. Offsets and sizes are bytes, ranges half-open.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import assert_never

import attrs

from runner.errors import RangeRefused, RegistryUnavailable
from runner.registry.retrying import pause_before


@attrs.frozen(order=True)
class ByteRange:
    start: int
    end: int


def merged(ranges: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """The same bytes as the fewest ranges, in order."""
    found: list[ByteRange] = []
    for each in sorted(ranges):
        if each.start >= each.end:
            continue
        if found and each.start <= found[-1].end:
            found[-1] = ByteRange(found[-1].start, max(found[-1].end, each.end))
        else:
            found.append(each)
    return tuple(found)


def missing(size_bytes: int, have: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """What `have` leaves out of a blob of this size, in order."""
    found, position = [], 0
    for each in merged(have):
        if each.start > position:
            found.append(ByteRange(position, min(each.start, size_bytes)))
        position = max(position, each.end)
    if position < size_bytes:
        found.append(ByteRange(position, size_bytes))
    return tuple(found)


# one blob


@attrs.frozen(kw_only=True)
class RangeRules:
    """How a blob is divided among connections."""

    connections: int = 8
    piece_bytes_min: int = 8 << 20  # below it the round trip of a request begins to show
    piece_bytes_max: int = 64 << 20  # above it little is known of a connection for too long
    pieces_per_connection: int = 4
    window_s: float = 2.0
    """A rate is measured over at least this long."""
    slow_factor: float = 4.0
    """A straggler is this much slower than its peers…"""
    slow_rest_s: float = 5.0
    """…and would go on for longer than this."""
    reissues_max: int = 2
    steal_rest_s: float = 2.0
    """With a connection free, work that takes longer than this is shared."""

    def piece_bytes(self, missing_bytes: int) -> int:
        wanted = missing_bytes // (self.connections * self.pieces_per_connection)
        return max(self.piece_bytes_min, min(self.piece_bytes_max, wanted))


# events


@attrs.frozen
class RangeOpened:
    """The server has answered, with exactly what was asked for."""

    attempt_id: int


@attrs.frozen
class RangeEnded:
    """All bytes up to `position` have come, which is the attempt's end, or beyond it if it was shortened."""

    attempt_id: int
    position: int


@attrs.frozen(kw_only=True)
class RangeFailed:
    """Bytes up to `position` have come, then an error that may pass. `chance` is uniform in [0, 1)."""

    attempt_id: int
    position: int
    error: RegistryUnavailable
    chance: float


@attrs.frozen
class RangeAborted:
    """The end of what `AbortAttempt` asked for; bytes up to `position` have come."""

    attempt_id: int
    position: int


@attrs.frozen(kw_only=True)
class RangesRefused:
    """The server answered something else than the range that was asked for (S20)."""

    attempt_id: int
    error: RangeRefused
    chance: float


@attrs.frozen
class Look:
    """Time has passed. `positions`: how far each attempt is, by its id."""

    positions: Mapping[int, int]


BlobEvent = RangeOpened | RangeEnded | RangeFailed | RangeAborted | RangesRefused | Look


# effects


@attrs.frozen(kw_only=True)
class Fetch:
    """Ask for these bytes. `is_whole`: the blob from its beginning, without naming a range."""

    attempt_id: int
    start: int
    end: int
    is_whole: bool


@attrs.frozen
class AbortAttempt:
    """Cut it off; its rest is fetched by another."""

    attempt_id: int


@attrs.frozen
class Shorten:
    """The attempt is to end at `end`; another one fetches the rest."""

    attempt_id: int
    end: int


@attrs.frozen
class StartOver:
    """Forget all bytes that have come; no attempt is under way."""


@attrs.frozen
class GiveUp:
    """As many failures as there may be: the blob fails with the newest error. Nothing follows."""


BlobEffect = Fetch | AbortAttempt | Shorten | StartOver | GiveUp


# core


@attrs.define
class _Attempt:
    id: int
    start: int
    end: int
    is_whole: bool
    reissues: int
    position: int = attrs.field(init=False)
    opened_s: float | None = None
    mark_s: float = 0.0
    mark_position: int = 0
    rate: float | None = None  # bytes a second, of the newest window
    is_aborted: bool = False

    def __attrs_post_init__(self) -> None:
        self.position = self.start

    @property
    def rest_bytes(self) -> int:
        return max(0, self.end - self.position)

    @property
    def rest_s(self) -> float:
        return self.rest_bytes / max(self.rate or 0.0, 1.0)


@attrs.frozen(order=True)
class _Piece:
    start: int
    end: int
    reissues: int = 0


class BlobPlan:
    """The transfer of one blob, from what is missing to complete or given up.

    The first request goes alone, since it shows whether the server sends ranges at all; then as many as the
    rules allow. What failed is tried again after a while, by the rules of `retrying.py`. Failures of requests
    that were under way together count once; bytes of a whole piece between two failures let the count begin
    anew, so that a long transfer survives many interruptions, and one that gets nowhere ends.
    """

    def __init__(
        self,
        size_bytes: int,
        missing_ranges: Iterable[tuple[int, int]],
        rules: RangeRules = RangeRules(),
        *,
        may_range: bool = True,
    ) -> None:
        """`may_range` False: the server is known to send no ranges."""
        self.size_bytes = size_bytes
        self._rules = rules
        self._pending = [
            _Piece(each.start, each.end) for each in merged(ByteRange(*pair) for pair in missing_ranges)
        ]
        missing_bytes = sum(piece.end - piece.start for piece in self._pending)
        self._piece_bytes = rules.piece_bytes(missing_bytes)
        self._reset_bytes = min(rules.piece_bytes_min, size_bytes)
        self._attempts: dict[int, _Attempt] = {}
        self._next_id = 0
        self._has_ranges: bool | None = None if may_range else False
        self._must_start_over = False
        self._limit = self._limit_before = float(rules.connections)
        self._failures = 0
        self._gained_bytes = 0
        self._round_first_id = 0
        self._not_before_s = float("-inf")
        self._old_rates: deque[float] = deque(maxlen=8)
        self._has_given_up = False

    @property
    def is_complete(self) -> bool:
        return not (self._pending or self._attempts or self._must_start_over or self._has_given_up)

    @property
    def failures(self) -> int:
        """In a row; 0 while all is well."""
        return self._failures

    @property
    def not_before_s(self) -> float:
        """No request is made before this time."""
        return self._not_before_s

    def missing(self) -> tuple[ByteRange, ...]:
        """Bytes that have not come, as far as is known."""
        if self._must_start_over:
            return (ByteRange(0, self.size_bytes),)
        waiting = [ByteRange(piece.start, piece.end) for piece in self._pending]
        return merged([*waiting, *(ByteRange(each.position, each.end) for each in self._attempts.values())])

    def handle(self, event: BlobEvent, now_s: float) -> tuple[BlobEffect, ...]:
        if self._has_given_up:
            return ()
        return (*self._take_in(event, now_s), *self._start_over(), *self._issue(now_s))

    def _take_in(self, event: BlobEvent, now_s: float) -> tuple[BlobEffect, ...]:
        match event:
            case Look(positions):
                return self._look(positions, now_s)
            case RangeOpened(attempt_id):
                return self._open(self._attempts[attempt_id], now_s)
            case RangeEnded(attempt_id, position) | RangeAborted(attempt_id, position):
                self._take(attempt_id, position, now_s)
                return ()
            case RangeFailed():
                attempt = self._take(event.attempt_id, event.position, now_s)
                return self._fail(event, now_s, was_answered=attempt.opened_s is not None)
            case RangesRefused():
                return self._refuse(event, now_s)
            case _:
                assert_never(event)

    # what came

    def _open(self, attempt: _Attempt, now_s: float) -> tuple[BlobEffect, ...]:
        attempt.opened_s = attempt.mark_s = now_s
        attempt.mark_position = attempt.position
        if not attempt.is_whole:
            self._has_ranges = True
        return ()

    def _take(self, attempt_id: int, position: int, now_s: float) -> _Attempt:
        """The attempt has ended at `position`; what it leaves of its range is to be fetched."""
        attempt = self._attempts.pop(attempt_id)
        if not attempt.is_aborted and attempt.opened_s is not None and now_s > attempt.opened_s:
            self._old_rates.append((position - attempt.start) / (now_s - attempt.opened_s))
        if self._must_start_over:
            return attempt
        if self._has_ranges is False and position < attempt.end:
            position = attempt.start
        self._gained_bytes += position - attempt.start
        if position >= attempt.end:
            self._limit = min(self._limit + 0.25, self._rules.connections)
        else:
            reissues = attempt.reissues + (1 if attempt.is_aborted else 0)
            self._pending.append(_Piece(position, attempt.end, reissues))
            self._pending.sort()
        return attempt

    # what went wrong

    def _fail(self, event: RangeFailed, now_s: float, *, was_answered: bool) -> tuple[BlobEffect, ...]:
        """Count the failure once for all that were under way together, and wait (S06)."""
        if event.attempt_id >= self._round_first_id:
            self._limit_before = self._limit
            if self._gained_bytes >= self._reset_bytes and self._has_ranges is not False:
                self._failures = 0
            self._failures += 1
            self._gained_bytes = 0
            self._round_first_id = self._next_id
        self._lower_limit(event, was_answered=was_answered)
        delay_s = pause_before(self._failures + 1, event.error, chance=event.chance)
        if delay_s is None:
            self._has_given_up = True
            return (*(AbortAttempt(each) for each in self._attempts), GiveUp())
        self._not_before_s = max(self._not_before_s, now_s + delay_s)
        return ()

    def _lower_limit(self, event: RangeFailed, *, was_answered: bool) -> None:
        """How many requests go side by side from now on; each piece that ends adds a quarter of one.

        1. The server says that it is too much: half as many.
        2. It did not answer, and others go on: as many as those are, since it may take no more.
        3. All have failed: as many as before, since it was not their number.
        """
        n_going_on = sum(attempt.opened_s is not None for attempt in self._attempts.values())
        if event.error.retry_after_s is not None:
            self._limit = max(1, self._limit // 2)  # 1
        elif n_going_on and not was_answered:
            self._limit = max(1, min(int(self._limit_before) - 1, n_going_on))  # 2
        elif not self._attempts:
            self._limit = self._limit_before  # 3

    def _refuse(self, event: RangesRefused, now_s: float) -> tuple[BlobEffect, ...]:
        """S20. The first time, all begin again without ranges; after that it is a failure."""
        self._attempts.pop(event.attempt_id)
        if self._must_start_over:
            return ()
        if self._has_ranges is False:
            self._pending = [_Piece(0, self.size_bytes)]
            return self._fail(_as_failure(event), now_s, was_answered=True)
        self._has_ranges = False
        self._must_start_over = True
        self._pending = []
        return tuple(self._abort(each) for each in self._attempts.values() if not each.is_aborted)

    def _abort(self, attempt: _Attempt) -> AbortAttempt:
        attempt.is_aborted = True
        return AbortAttempt(attempt.id)

    def _start_over(self) -> tuple[BlobEffect, ...]:
        if not self._must_start_over or self._attempts:
            return ()
        self._must_start_over = False
        self._pending = [_Piece(0, self.size_bytes)]
        return (StartOver(),)

    # what to fetch next

    def _issue(self, now_s: float) -> tuple[BlobEffect, ...]:
        if self._has_given_up or self._must_start_over or now_s < self._not_before_s:
            return ()
        limit = int(self._limit) if self._has_ranges else 1
        effects = []
        while self._pending and len(self._attempts) < limit:
            effects.append(self._fetch(self._cut()))
        return tuple(effects)

    def _cut(self) -> _Piece:
        """The first piece of what is pending, up to the next multiple of the piece size."""
        first = self._pending.pop(0)
        end = (first.start // self._piece_bytes + 1) * self._piece_bytes
        if self._has_ranges is False or end >= first.end:
            return first
        self._pending.insert(0, attrs.evolve(first, start=end))
        return attrs.evolve(first, end=end)

    def _fetch(self, piece: _Piece) -> Fetch:
        is_whole = piece.start == 0 and piece.end == self.size_bytes
        attempt = _Attempt(self._next_id, piece.start, piece.end, is_whole, piece.reissues)
        self._next_id += 1
        self._attempts[attempt.id] = attempt
        return Fetch(attempt_id=attempt.id, start=attempt.start, end=attempt.end, is_whole=is_whole)

    # who is slow

    def _look(self, positions: Mapping[int, int], now_s: float) -> tuple[BlobEffect, ...]:
        for attempt_id, position in positions.items():
            if attempt_id in self._attempts:
                self._measure(self._attempts[attempt_id], position, now_s)
        if not self._has_ranges or self._must_start_over:
            return ()
        return (*self._abort_stragglers(), *self._share(now_s))

    def _measure(self, attempt: _Attempt, position: int, now_s: float) -> None:
        attempt.position = max(attempt.position, position)
        passed_s = now_s - attempt.mark_s
        if attempt.opened_s is not None and passed_s >= self._rules.window_s:
            attempt.rate = (attempt.position - attempt.mark_position) / passed_s
            attempt.mark_s, attempt.mark_position = now_s, attempt.position

    def _abort_stragglers(self) -> list[BlobEffect]:
        """Attempts that are much slower than the usual rate, of at least three others, now or before."""
        found: list[BlobEffect] = []
        for attempt in self._attempts.values():
            others = [each.rate for each in self._attempts.values() if each.rate and each is not attempt]
            rates = [*others, *self._old_rates]
            if attempt.rate is None or attempt.is_aborted or len(rates) < 3:
                continue
            is_slow = attempt.rate * self._rules.slow_factor < statistics.median(rates)
            is_worth_it = attempt.rest_s > self._rules.slow_rest_s
            if is_slow and is_worth_it and attempt.reissues < self._rules.reissues_max:
                found.append(self._abort(attempt))
        return found

    def _share(self, now_s: float) -> list[BlobEffect]:
        """With nothing pending and a connection free, the longest rest is fetched from both its halves."""
        effects: list[BlobEffect] = []
        while not self._pending and len(self._attempts) < int(self._limit) and now_s >= self._not_before_s:
            candidates = [each for each in self._attempts.values() if self._can_share(each)]
            if not candidates:
                break
            attempt = max(candidates, key=lambda each: each.rest_s)
            middle = attempt.position + attempt.rest_bytes // 2
            tail = _Piece(middle, attempt.end, attempt.reissues)
            attempt.end = middle
            effects += [Shorten(attempt.id, middle), self._fetch(tail)]
        return effects

    def _can_share(self, attempt: _Attempt) -> bool:
        return (
            not attempt.is_aborted
            and attempt.rate is not None
            and attempt.rest_s > self._rules.steal_rest_s
            and attempt.rest_bytes >= self._rules.piece_bytes_min
        )

    def __repr__(self) -> str:
        state = "given up" if self._has_given_up else "complete" if self.is_complete else "going on"
        return f"<BlobPlan {state}: {len(self._attempts)} under way, {len(self._pending)} pending>"


def _as_failure(refused: RangesRefused) -> RangeFailed:
    error = RegistryUnavailable(refused.error.registry, "it refuses a range where none was asked for")
    return RangeFailed(attempt_id=refused.attempt_id, position=0, error=error, chance=refused.chance)
