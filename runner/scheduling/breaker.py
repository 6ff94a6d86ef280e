"""Models whose workers keep crashing are left alone for a while (L04). Pure; no clock.

    closed ── 3 crashes within 60 s ──> open, 30 s ── next request ──> probing ── success ──> closed
                                          └──────── twice as long, at most 5 min <── crash ──┘

While it is open, requests are refused at once. The first one after that is the probe: it goes the usual way
while others are still refused. It succeeds when it ends with its worker alive, or has used it for
`settled_s`. One that ends without having tried (nobody waited any more, no room, a load refused in order)
says nothing, and the next request is the probe.

`backoff.py` spaces restarts that are still allowed. Imports digests only. Read on in `core.py`.
"""

from __future__ import annotations

import enum
import math
from collections import deque

import attrs

from runner.oci.digest import Digest

_AT_LEAST_ONE = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class BreakerRules:
    """`crashes` within `window_s` open it for `first_open_s`; each failed probe doubles that, up to
    `longest_open_s`. While a probe runs, others are told to come again in `probe_retry_s`."""

    crashes: int = attrs.field(default=3, validator=_AT_LEAST_ONE)
    window_s: float = 60.0
    first_open_s: float = 30.0
    longest_open_s: float = 300.0
    settled_s: float = 10.0
    probe_retry_s: float = 5.0


class BreakerState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@attrs.define
class Breaker:
    """Of one model. Times are the core's clock; tickets are those of requests."""

    rules: BreakerRules
    state: BreakerState = attrs.field(default=BreakerState.CLOSED, init=False)
    _crashes_s: deque[float] = attrs.field(factory=deque, init=False)
    _open_s: float = attrs.field(default=0.0, init=False)
    """How long it was opened for the last time; 0 since it was closed."""
    _until_s: float = attrs.field(default=-math.inf, init=False)
    _probe: int | None = attrs.field(default=None, init=False)
    _granted_s: float = attrs.field(default=math.inf, init=False)

    def admit(self, ticket: int, now_s: float) -> float:
        """0 when the request may go on, which makes it the probe where one is due; else when to come again,
        in seconds."""
        if self.state is BreakerState.PROBING and now_s - self._granted_s >= self.rules.settled_s:
            self._close()
        match self.state:
            case BreakerState.CLOSED:
                return 0.0
            case BreakerState.OPEN if now_s < self._until_s:
                return self._until_s - now_s
            case BreakerState.OPEN:
                self.state, self._probe, self._granted_s = BreakerState.PROBING, ticket, math.inf
                return 0.0
            case BreakerState.PROBING:
                return self.rules.probe_retry_s

    def refuses_s(self, now_s: float) -> float:
        """What a request would be told now: seconds after which to come again, 0 when it may go on."""
        match self.state:
            case BreakerState.OPEN:
                return max(0.0, self._until_s - now_s)
            case BreakerState.PROBING if now_s - self._granted_s < self.rules.settled_s:
                return self.rules.probe_retry_s
            case _:
                return 0.0

    def granted(self, ticket: int, now_s: float) -> None:
        """The probe has got its worker."""
        if ticket == self._probe:
            self._granted_s = now_s

    def succeeded(self, ticket: int) -> None:
        """This request ended, and its worker lives."""
        if ticket == self._probe:
            self._close()

    def abandoned(self, ticket: int) -> None:
        """This request ended without having shown anything."""
        if ticket == self._probe:
            self.state, self._probe = BreakerState.OPEN, None

    def crashed(self, now_s: float) -> bool:
        """The worker died. True when that has opened the breaker.

        1. Closed: only the last of several crashes opens it.  2. Open, and time for a probe: the probe's
        waiters were refused a moment before their worker was gone.  3. Probing: the probe has failed.
        """
        if self.state is BreakerState.CLOSED:  # 1
            self._crashes_s.append(now_s)
            while now_s - self._crashes_s[0] > self.rules.window_s:
                self._crashes_s.popleft()
            if len(self._crashes_s) < self.rules.crashes:
                return False
        elif self.state is BreakerState.OPEN and now_s < self._until_s:
            return False  # the end of something that began before
        self._open(now_s)  # 1, 2, 3
        return True

    @property
    def open_s(self) -> float:
        """For how long it was opened last; 0 while it is closed."""
        return self._open_s

    def _open(self, now_s: float) -> None:
        doubled_s = 2 * self._open_s or self.rules.first_open_s
        self._open_s = min(doubled_s, self.rules.longest_open_s)
        self.state, self._probe, self._until_s = BreakerState.OPEN, None, now_s + self._open_s
        self._crashes_s.clear()

    def _close(self) -> None:
        self.state, self._probe, self._open_s = BreakerState.CLOSED, None, 0.0
        self._crashes_s.clear()


@attrs.define
class Breakers:
    """The breakers of the `limit` models that crashed last; a model without one has not crashed lately."""

    rules: BreakerRules
    limit: int = 256
    _breakers: dict[Digest, Breaker] = attrs.field(factory=dict, init=False)
    _probes: dict[int, Breaker] = attrs.field(factory=dict, init=False)

    def admit(self, model_id: Digest, ticket: int, now_s: float) -> float:
        """Seconds after which to come again; 0 when the request may go on."""
        breaker = self._breakers.get(model_id)
        if breaker is None:
            return 0.0
        retry_after_s = breaker.admit(ticket, now_s)
        if not retry_after_s and breaker.state is BreakerState.PROBING:
            self._probes[ticket] = breaker
        return retry_after_s

    def refuses_s(self, model_id: Digest, now_s: float) -> float:
        """What `admit` would answer, without making anything the probe."""
        breaker = self._breakers.get(model_id)
        return 0.0 if breaker is None else breaker.refuses_s(now_s)

    def crashed(self, model_id: Digest, now_s: float) -> Breaker | None:
        """The breaker that this crash has opened, if it has."""
        breaker = self._breakers.pop(model_id, None) or Breaker(self.rules)
        self._breakers[model_id] = breaker  # the latest is last
        self._probes = {ticket: one for ticket, one in self._probes.items() if one is not breaker}
        if len(self._breakers) > self.limit:
            del self._breakers[next(iter(self._breakers))]
        return breaker if breaker.crashed(now_s) else None

    def granted(self, ticket: int, now_s: float) -> None:
        if ticket in self._probes:
            self._probes[ticket].granted(ticket, now_s)

    def succeeded(self, ticket: int) -> None:
        if ticket in self._probes:
            self._probes.pop(ticket).succeeded(ticket)

    def abandoned(self, ticket: int) -> None:
        if ticket in self._probes:
            self._probes.pop(ticket).abandoned(ticket)

    def state(self, model_id: Digest) -> BreakerState:
        breaker = self._breakers.get(model_id)
        return breaker.state if breaker is not None else BreakerState.CLOSED

    def __repr__(self) -> str:
        return f"<Breakers of {len(self._breakers)} models, {len(self._probes)} probes>"
