"""What loads take: remembered, measured by a probe, or estimated; and what loads teach.

    size      a load asks    known? ─no─> probe ─> believable? ─> remember ─> options that fit the budget
                                   │        └─ no answer in time, or none at all: the header's estimate
    anticipate               the same in the background for a model that is new, so that its load finds it
    watch                    what the engine really allocated and the process really used: compare, remember

Loads ask in tasks of their own, and wait here for nothing but their probe and the disk. `run` does the rest,
in the background: a supervised child, without which sizes are still told. Shared state changes between two
awaits only.

Imports the prober, measurements and `runner.memory`. Read on in `actors/load.py`, which asks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs
import trio

from actors.deaths import DeathKind, DeathReport
from actors.leases import StoreVisits
from actors.probing import ProbeFailed, Prober, refused
from actors.sizing import (
    EngineSettings,
    LoadedWorker,
    Sized,
    Watch,
    by_header,
    estimate_of,
    fit,
    wished_options,
)
from runner.domain.device_bytes import DeviceBytes
from runner.domain.engine import DeviceBuffers, EngineOptions, EngineSizes
from runner.domain.model import ModelFiles
from runner.errors import RunnerError
from runner.hardware.resident import anonymous_bytes
from runner.memory.footprint import (
    PROCESS_BYTES,
    Basis,
    Footprint,
    exact,
    is_believable,
    with_cells,
)
from runner.oci.digest import Digest
from runner.telemetry.measurements import Measurement, MeasurementKey, Measurements
from runner.wire.messages import Loaded, Probed

MEASURE_TIMEOUT_S: Final = 25.0
"""What a load waits for exact sizes, at the most; twice when it has to shrink."""
WATCH_INTERVAL_S: Final = 10.0
LEARNED_STEP_BYTES: Final = 4 * 1024**2
"""What is learned is rounded up to this, so that a process that grows slowly does not write each time."""

_PROBES_AT_ONCE: Final = 2
_PROBED_ENGINE: Final = "llama"
_KNOWN_MAX: Final = 256
_ANTICIPATED_MAX: Final = 64
_TOLD_ROUNDING_BYTES: Final = 64 * 1024
"""A loaded engine tells several buffers, each to 0.01 MiB."""
_LASTING: Final = frozenset(
    {
        DeathKind.LOADING_FAILED,
        DeathKind.SEGMENTATION_FAULT,
        DeathKind.ABORT,
        DeathKind.BUS_ERROR,
        DeathKind.PROTOCOL_FAULT,
    }
)
"""Ends of a probe that say something of the model, not of the machine at that moment."""


@attrs.frozen
class ProbeFault:
    """A model could not be measured; its header's estimate is used instead."""

    report: DeathReport


@attrs.frozen
class MeasurementTaught:
    """A load took something else than was expected; the next one is expected to."""

    model: str
    expected: Footprint
    found: Footprint


FootprintNotice = ProbeFault | MeasurementTaught


@attrs.define(eq=False)
class _Watched:
    """A worker that lives, and what is known of its sizes so far."""

    key: MeasurementKey
    options: EngineOptions
    worker: LoadedWorker
    known: Measurement


class Footprints:
    """See the module. `engine_identity` names the build and the machine that measurements hold for."""

    def __init__(
        self,
        probe: Prober,
        measurements: Measurements,
        store: StoreVisits,
        *,
        engine_identity: str,
        engine: EngineSettings,
        report: Callable[[FootprintNotice], None] = lambda notice: None,
        measure_timeout_s: float = MEASURE_TIMEOUT_S,
        resident: Callable[[int], int | None] = anonymous_bytes,
        in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
    ) -> None:
        """`engine` is what models are measured with before anybody loads them. `resident` gives the anonymous
        memory of a process in bytes; `in_thread` makes calls that wait for the disk."""
        self._probe = probe
        self._measurements = measurements
        self._store = store
        self._identity = engine_identity
        self._engine = engine
        self._report = report
        self._measure_timeout_s = measure_timeout_s
        self._resident = resident
        self._in_thread = in_thread
        self._known: OrderedDict[MeasurementKey, Measurement | None] = OrderedDict()
        """None: could not be measured, so that it is not tried at every load."""
        self._measuring: dict[MeasurementKey, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(_PROBES_AT_ONCE)
        self._watched: list[_Watched] = []
        self._anticipated: deque[Digest] = deque(maxlen=_ANTICIPATED_MAX)
        self._has_news = trio.Event()

    # asked by loads

    async def size(self, files: ModelFiles, engine: EngineSettings, budget: DeviceBytes) -> Sized:
        """The options that fit the budget, and what they take.

        1. Exact sizes of the model with what it would have with room enough.
        2. They fit: that is it.
        3. They do not: options for which they would, and the exact sizes of those. With a smaller host cache
           alone these are known.
        4. Sizes that are not to be had are bounded by those of the larger pool, or estimated by the header.
        """
        wished = wished_options(files, engine)
        measured = await self._measure(files, wished)  # 1
        if measured is None:
            estimated = by_header(files, engine, budget)  # 4
            return attrs.evolve(estimated, key=self._key(files, estimated.options))
        options = fit(files, engine, measured.footprint, wished, budget)
        if options == wished:
            return measured  # 2
        fitting = await self._measure(files, options)  # 3
        if fitting is not None:
            return fitting
        bound = with_cells(measured.footprint, wished.n_cells, options.n_cells, options.host_cells)  # 4
        return Sized(options=options, footprint=bound, key=self._key(files, options))

    @contextmanager
    def watch(self, sized: Sized) -> Iterator[Watch]:
        """Compare what a worker really takes with `sized`, from when it is ready to when it is gone."""
        watched: list[_Watched] = []

        def begin(worker: LoadedWorker) -> None:
            if sized.key is not None:
                known = self._known.get(sized.key) or _measurement_of(sized.footprint)
                watched.append(_Watched(sized.key, sized.options, worker, known))
                self._watched += watched
                self._has_news.set()

        try:
            yield begin
        finally:
            for entry in watched:
                self._watched.remove(entry)

    def anticipate(self, model_id: Digest) -> None:
        """Measure this model soon; of many the latest."""
        self._anticipated.append(model_id)
        self._has_news.set()

    # the background

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            self._has_news = trio.Event()
            while self._anticipated:
                await self._measure_default(self._anticipated.popleft())
            for watched in tuple(self._watched):
                await self._learn(watched)
            with trio.move_on_after(WATCH_INTERVAL_S):
                await self._has_news.wait()

    async def _measure_default(self, model_id: Digest) -> None:
        """Without a lease: nobody should be refused a removal because of it."""
        try:
            with trio.CancelScope() as scope, self._store.visiting(model_id, scope.cancel):
                files = await self._store.files(model_id)
                await self._measure(files, wished_options(files, self._engine))
        except RunnerError:
            pass  # removed meanwhile, or no model that can be loaded, which its load will say

    # measuring

    async def _measure(self, files: ModelFiles, options: EngineOptions) -> Sized | None:
        """None when it cannot be done, or takes too long."""
        key = self._key(files, options)
        if key is None:
            return None
        found = None
        with trio.move_on_after(self._measure_timeout_s):
            found = await self._find(key, files, options)
        if found is None:
            return None
        return Sized(options=options, footprint=_footprint_of(found, options), key=key)

    def _key(self, files: ModelFiles, options: EngineOptions) -> MeasurementKey | None:
        """None for what is not to be measured: files without a name for their content, a scripted engine."""
        weights = " ".join(map(str, files.weights_digests))
        if not weights or self._engine.name != _PROBED_ENGINE:
            return None
        return MeasurementKey.of(weights, options, self._identity)

    async def _find(
        self, key: MeasurementKey, files: ModelFiles, options: EngineOptions
    ) -> Measurement | None:
        """From memory, from disk, or from a probe, of which there is one at a time for a key."""
        while key in self._measuring:
            await self._measuring[key].wait()
        if key in self._known:
            await trio.lowlevel.checkpoint()
            return self._known[key]
        done = self._measuring[key] = trio.Event()
        try:
            found: Measurement | None = await self._in_thread(self._measurements.find, key)
            if found is None:
                async with self._limiter:
                    found = await self._ask_probe(key, files, options)
                if found is not None:
                    await self._in_thread(self._measurements.remember, key, found)
            else:
                self._keep(key, found)
            return found
        finally:
            del self._measuring[key]
            done.set()

    async def _ask_probe(
        self, key: MeasurementKey, files: ModelFiles, options: EngineOptions
    ) -> Measurement | None:
        """Keeps the outcome, unless it may be another next time."""
        outcome = await self._probe(files, options)
        expected = estimate_of(files, attrs.evolve(options, host_cells=0))  # the answer holds for any number
        if isinstance(outcome, Probed) and not is_believable(outcome.sizes, expected):
            outcome = refused(files, "an answer that cannot be true")
        if isinstance(outcome, ProbeFailed):
            self._report(ProbeFault(outcome.report))
            if outcome.report.kind in _LASTING:
                self._keep(key, None)
            return None
        found = Measurement(sizes=outcome.sizes, basis=Basis.PROBE)
        self._keep(key, found)
        return found

    def _keep(self, key: MeasurementKey, found: Measurement | None) -> None:
        self._known[key] = found
        self._known.move_to_end(key)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    # learning

    async def _learn(self, watched: _Watched) -> None:
        """1. What the engine allocated replaces what it was expected to.  2. Memory of the process beyond all
        that is known becomes known (O02)."""
        found = _corrected(watched.known, watched.worker.loaded)  # 1
        used_bytes = self._resident(watched.worker.pid)
        if used_bytes is not None:
            footprint = _footprint_of(found, watched.options)
            found = _with_use(found, footprint, used_bytes, has_annex=watched.worker.has_annex)  # 2
        if found == watched.known:
            return
        model, expected = watched.worker.model, _footprint_of(watched.known, watched.options)
        watched.known = found
        self._keep(watched.key, found)
        self._report(MeasurementTaught(model, expected, _footprint_of(found, watched.options)))
        await self._in_thread(self._measurements.remember, watched.key, found)


# knowledge as values


def _footprint_of(found: Measurement, options: EngineOptions) -> Footprint:
    return exact(
        found.sizes,
        options.n_cells,
        options.host_cells,
        learned_bytes=found.learned_bytes,
        basis=found.basis,
    )


def _measurement_of(footprint: Footprint) -> Measurement:
    """What is known of a load that was only estimated: its flat allowance stays, until more is known."""
    process_bytes = max(0, footprint.overhead_bytes - PROCESS_BYTES)
    sizes = EngineSizes(devices=footprint.devices, process_bytes=process_bytes, annex=footprint.annex)
    return Measurement(sizes=sizes, basis=footprint.basis, learned_bytes=footprint.learned_bytes)


def _corrected(known: Measurement, loaded: Loaded) -> Measurement:
    """`known`, with the buffers of a load where they differ by more than the log's rounding."""
    if not loaded.devices or _are_alike(known.sizes.devices, loaded.devices):
        return known
    sizes = attrs.evolve(known.sizes, devices=loaded.devices)
    return attrs.evolve(known, sizes=sizes, basis=Basis.LOAD)


def _are_alike(expected: tuple[DeviceBuffers, ...], found: tuple[DeviceBuffers, ...]) -> bool:
    if {buffers.device for buffers in expected} != {buffers.device for buffers in found}:
        return False
    by_device = {buffers.device: buffers for buffers in expected}
    return all(
        abs(size_bytes - expected_bytes) <= _TOLD_ROUNDING_BYTES
        for buffers in found
        for size_bytes, expected_bytes in zip(_sizes(buffers), _sizes(by_device[buffers.device]), strict=True)
    )


def _sizes(buffers: DeviceBuffers) -> tuple[int, ...]:
    _device, *sizes = attrs.astuple(buffers)
    return tuple(sizes)


def _with_use(known: Measurement, footprint: Footprint, used_bytes: int, *, has_annex: bool) -> Measurement:
    """`known`, with what a process used beyond the footprint of it, in whole steps."""
    excess_bytes = used_bytes - footprint.private_bytes - has_annex * footprint.annex_host_bytes
    if excess_bytes <= 0:
        return known
    n_steps = -(-(known.learned_bytes + excess_bytes) // LEARNED_STEP_BYTES)
    return attrs.evolve(known, learned_bytes=n_steps * LEARNED_STEP_BYTES)
