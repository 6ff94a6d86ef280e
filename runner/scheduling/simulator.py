"""The scheduler's core on a virtual clock: what would requests have seen?

`simulate` plays callers, sizing and workers around anything that speaks the core's events and effects: the
core itself, or `FirstComeFirstServed`, the baseline that policies are held against. The same input gives the
same outcome. Imports its neighbours. Read on in `scripts/simulate.py`, which prints tables.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.oci.digest import Digest
from runner.scheduling import effects, events

ENDLESS_S = 1e7
"""A history that is not over by then has hung."""


@attrs.frozen(kw_only=True)
class SimulatedModel:
    """How a model behaves: seconds to load, to answer one request (whatever else runs), and to end."""

    name: str
    footprint: DeviceBytes
    load_s: float = 5.0
    use_s: float = 1.0
    stop_s: float = 0.2
    context_size: int = 8192

    @property
    def model_id(self) -> Digest:
        return Digest.of(self.name.encode())


@attrs.frozen
class Arrival:
    """Somebody asks for a model. `then_s`: asks again so long after each answer, `repeats` times."""

    at_s: float
    model: str
    then_s: float = 0.0
    repeats: int = 0


@attrs.frozen(kw_only=True)
class Served:
    """One request as its caller saw it. `granted_at_s` None: it was refused at `ended_at_s`."""

    model: str
    asked_at_s: float
    granted_at_s: float | None
    ended_at_s: float

    @property
    def waited_s(self) -> float:
        return (self.ended_at_s if self.granted_at_s is None else self.granted_at_s) - self.asked_at_s


@attrs.frozen(kw_only=True)
class Outcome:
    """A whole history. `loads` counts workers that became ready, `most` is the most that was held at once."""

    served: tuple[Served, ...]
    loads: int
    took_s: float
    most: DeviceBytes

    @property
    def refused(self) -> int:
        return sum(one.granted_at_s is None for one in self.served)

    @property
    def longest_wait_s(self) -> float:
        return max((one.waited_s for one in self.served), default=0.0)

    @property
    def mean_wait_s(self) -> float:
        return sum(one.waited_s for one in self.served) / max(1, len(self.served))

    def swaps(self, models: int) -> int:
        """Loads beyond the first one of each model."""
        return max(0, self.loads - models)

    def swaps_per_minute(self, models: int) -> float:
        return 60 * self.swaps(models) / self.took_s if self.took_s else 0.0


class Core(Protocol):
    def handle(self, event: events.Event, now_s: float) -> tuple[effects.Effect, ...]: ...


def simulate(core: Core, models: Sequence[SimulatedModel], arrivals: Sequence[Arrival]) -> Outcome:
    """Play until everybody was answered and every answer was used; RuntimeError when that never ends."""
    play = _Play(core, {model.name: model for model in models})
    for arrival in arrivals:
        play.later(arrival.at_s, partial(play.ask, arrival))
    return play.run()


@attrs.define
class _Play:
    core: Core
    models: Mapping[str, SimulatedModel]
    now_s: float = 0.0
    _agenda: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list)
    _numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    _open: dict[int, tuple[Arrival, float]] = attrs.field(factory=dict)
    _loads: dict[int, SimulatedModel] = attrs.field(factory=dict)
    _running: set[int] = attrs.field(factory=set)
    _stopping: set[int] = attrs.field(factory=set)
    _served: list[Served] = attrs.field(factory=list)
    _held: DeviceBytes = attrs.field(factory=DeviceBytes)
    _most: DeviceBytes = attrs.field(factory=DeviceBytes)
    _ready: int = 0
    _timer: int = 0
    _ended_s: float = 0.0

    def later(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), act))

    def run(self) -> Outcome:
        while self._agenda:
            self.now_s, _, act = heapq.heappop(self._agenda)
            if self.now_s > ENDLESS_S:
                raise RuntimeError(f"{len(self._open)} requests are still not answered")
            act()
        if self._open:
            raise RuntimeError(f"{len(self._open)} requests were forgotten")
        return Outcome(served=tuple(self._served), loads=self._ready, took_s=self._ended_s, most=self._most)

    # callers

    def ask(self, arrival: Arrival) -> None:
        ticket, model = next(self._numbers), self.models[arrival.model]
        self._open[ticket] = (arrival, self.now_s)
        self._send(events.LeaseRequested(ticket=ticket, model_id=model.model_id, name=model.name))

    def _granted(self, ticket: int) -> None:
        arrival, asked_at_s = self._open.pop(ticket)
        granted_at_s, ends_at_s = self.now_s, self.now_s + self.models[arrival.model].use_s

        def end() -> None:
            self._end(arrival, asked_at_s, granted_at_s)
            self._send(events.LeaseReleased(ticket))

        self.later(ends_at_s, end)

    def _refused(self, ticket: int) -> None:
        arrival, asked_at_s = self._open.pop(ticket)
        self._end(arrival, asked_at_s, None)

    def _end(self, arrival: Arrival, asked_at_s: float, granted_at_s: float | None) -> None:
        self._ended_s = self.now_s
        self._served.append(
            Served(
                model=arrival.model,
                asked_at_s=asked_at_s,
                granted_at_s=granted_at_s,
                ended_at_s=self.now_s,
            )
        )
        if arrival.repeats:
            again = attrs.evolve(arrival, repeats=arrival.repeats - 1)
            self.later(self.now_s + arrival.then_s, lambda: self.ask(again))

    # workers

    def _send(self, event: events.Event) -> None:
        for effect in self.core.handle(event, self.now_s):
            self._carry_out(effect)

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.SizeModel(load_id, model_id):
                model = next(one for one in self.models.values() if one.model_id == model_id)
                self._loads[load_id] = model
                sized = events.ModelSized(load_id, model.footprint, model.context_size)
                self.later(self.now_s, lambda: self._send(sized))
            case effects.StartWorker(load_id):
                self._start(load_id)
            case effects.StopWorker(load_id):
                self._stop(load_id)
            case effects.GrantLease(ticket):
                self._granted(ticket)
            case effects.Refuse(ticket):
                self._refused(ticket)
            case effects.ArmTimer(at_s):
                self._arm(at_s)
            case _:
                pass  # no caller here asks for anything else

    def _start(self, load_id: int) -> None:
        model = self._loads[load_id]
        self._held += model.footprint
        self._most = DeviceBytes(
            {one: max(self._held[one], self._most[one]) for one in (*self._held.devices, *self._most.devices)}
        )
        self._running.add(load_id)
        self.later(self.now_s + model.load_s, lambda: self._loaded(load_id))

    def _loaded(self, load_id: int) -> None:
        if load_id in self._running and load_id not in self._stopping:
            self._ready += 1
            self._send(events.WorkerReady(load_id))

    def _stop(self, load_id: int) -> None:
        self._stopping.add(load_id)
        self.later(self.now_s + self._loads[load_id].stop_s, lambda: self._gone(load_id))

    def _gone(self, load_id: int) -> None:
        self._running.discard(load_id)
        self._held -= self._loads[load_id].footprint
        self._send(events.WorkerEnded(load_id=load_id, cause="stopped", is_crash=False, jitter=0.0))

    def _arm(self, at_s: float | None) -> None:
        self._timer += 1
        number = self._timer
        if at_s is not None and self._open:  # afterwards only idle models would go
            self.later(max(at_s, self.now_s), lambda: self._tick(number))

    def _tick(self, number: int) -> None:
        if number == self._timer:
            self._send(events.Ticked())


@attrs.define
class FirstComeFirstServed:
    """The baseline: requests are served in the order of their coming, whatever is loaded.

    One model fits at a time. As many requests run side by side as one worker takes; the next one waits until
    the ones before it have begun, and where it wants another model, until they have ended and that one is
    loaded.
    """

    slots: int = 8
    _line: list[events.LeaseRequested] = attrs.field(factory=list, init=False)
    _running: set[int] = attrs.field(factory=set, init=False)
    _loaded: Digest | None = attrs.field(default=None, init=False)
    _load_id: int = attrs.field(default=0, init=False)
    _is_changing: bool = attrs.field(default=False, init=False)

    def handle(self, event: events.Event, now_s: float) -> tuple[effects.Effect, ...]:
        match event:
            case events.LeaseRequested():
                self._line.append(event)
            case events.LeaseReleased():
                self._running.discard(event.ticket)
            case events.ModelSized():
                return (effects.StartWorker(event.load_id),)
            case events.WorkerReady():
                self._is_changing = False
            case events.WorkerEnded():
                return self._load(self._line[0].model_id)
            case _:
                return ()
        return tuple(self._serve())

    def _serve(self) -> list[effects.Effect]:
        done: list[effects.Effect] = []
        while self._line and not self._is_changing:
            first = self._line[0]
            if first.model_id != self._loaded:
                return done + self._change(first.model_id)
            if len(self._running) >= self.slots:
                return done
            self._line.pop(0)
            self._running.add(first.ticket)
            done.append(effects.GrantLease(first.ticket, self._load_id))
        return done

    def _change(self, model_id: Digest) -> list[effects.Effect]:
        if self._running:
            return []
        self._is_changing = True
        if self._loaded is None:
            return list(self._load(model_id))
        return [effects.StopWorker(self._load_id)]

    def _load(self, model_id: Digest) -> tuple[effects.Effect, ...]:
        self._loaded = model_id
        self._load_id += 1
        return (effects.SizeModel(self._load_id, model_id),)
