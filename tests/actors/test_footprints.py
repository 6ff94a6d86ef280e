"""What loads take: measured once, remembered, corrected; and estimated where nothing else can be had."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from actors.deaths import DeathKind
from actors.footprints import (
    LEARNED_STEP_BYTES,
    FootprintNotice,
    Footprints,
    MeasurementTaught,
    ProbeFault,
)
from actors.leases import Pins, StoreLease
from actors.probing import ProbeFailed, ProbeOutcome, refused
from actors.sizing import EngineSettings, Sized, by_header
from runner.domain.device_bytes import DeviceBytes
from runner.domain.engine import DeviceBuffers, EngineOptions, EngineSizes
from runner.domain.model import ModelFiles
from runner.errors import ModelNotFound
from runner.memory.footprint import PROCESS_BYTES, Basis, estimate, exact
from runner.oci.digest import Digest
from runner.telemetry.measurements import MeasurementKey, Measurements
from runner.wire.messages import Loaded, Probed
from tests.support.scheduler_bench import model_named

pytestmark = pytest.mark.anyio

MIB = 2**20
KV = 1000
KEPT = KV + 64
"""Bytes of a token in the pool, as header and engine agree, and beside it."""
ENGINE = EngineSettings(context_size=8192, max_sequences=4, n_threads=2)
PLENTY = DeviceBytes.on_host(10**12)
HOST = DeviceBuffers(device="cpu", weights_bytes=100 * MIB, compute_bytes=4 * MIB, output_bytes=2 * MIB)
FIXED = 106 * MIB + 8 * MIB + PROCESS_BYTES
"""What the engine of this file takes beside its cells."""
SCARCE = (FIXED + 7000 * KV) * 100 // 95
"""Room for the pool and a part of a host cache, which is to leave 5 % of the budget alone."""

files = ModelFiles(
    model=attrs.evolve(model_named("a"), trained_context_size=4096),
    weights=(Path("/blobs/weights"),),
    weights_digests=(Digest.of(b"weights"),),
    weights_bytes=101 * MIB,
    kv_bytes_per_cell=KV,
)
ANNEX = 3 * LEARNED_STEP_BYTES


def sizes_for(options: EngineOptions) -> EngineSizes:
    host = attrs.evolve(HOST, kv_cache_bytes=options.n_cells * KV)
    annex = DeviceBuffers(device="cpu", kv_cache_bytes=ANNEX)
    return EngineSizes(devices=(host,), process_bytes=8 * MIB, annex=(annex,))


class FakeProber:
    """Answers after `delay_s` with what `answer` makes of the options."""

    def __init__(self) -> None:
        self.asked: list[EngineOptions] = []
        self.delay_s = 0.5
        self.running = self.most_at_once = 0
        self.answer: Callable[[EngineOptions], ProbeOutcome] = lambda options: Probed(
            engine_version="engine 1", sizes=sizes_for(options)
        )

    async def __call__(self, _files: ModelFiles, options: EngineOptions) -> ProbeOutcome:
        self.asked.append(options)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self.running -= 1
        return self.answer(options)


class FakeStore:
    def __init__(self) -> None:
        self.pins = Pins()
        self.is_there = True

    async def lease(self, model_id: Digest) -> StoreLease:
        await trio.lowlevel.checkpoint()
        if not self.is_there:
            raise ModelNotFound(str(model_id))
        self.pins.add(model_id)
        return StoreLease(files, self.pins)

    def visiting(self, model_id: Digest, leave: Callable[[], None]) -> AbstractContextManager[None]:
        return self.pins.visiting(model_id, leave)

    async def files(self, model_id: Digest) -> ModelFiles:
        await trio.lowlevel.checkpoint()
        if not self.is_there:
            raise ModelNotFound(str(model_id))
        return files


async def at_once(call: Callable[..., object], *arguments: object) -> object:
    """The virtual clock would not wait for a thread."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


class Bench:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "measurements"
        self.prober = FakeProber()
        self.store = FakeStore()
        self.notices: list[FootprintNotice] = []
        self.resident: dict[int, int] = {}
        self.footprints = self.again()

    def again(self, *, identity: str = "engine 1 on x", engine: EngineSettings = ENGINE) -> Footprints:
        """As after a restart of the daemon."""
        return Footprints(
            self.prober,
            Measurements(self.path),
            self.store,
            engine_identity=identity,
            engine=engine,
            report=self.notices.append,
            resident=self.resident.get,
            in_thread=at_once,
        )

    async def size(self, budget_bytes: int = PLENTY.total_bytes, engine: EngineSettings = ENGINE) -> Sized:
        with trio.fail_after(1000):
            return await self.footprints.size(files, engine, DeviceBytes.on_host(budget_bytes))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the background at work, whose round takes ten seconds."""
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.footprints.run)
                yield
                nursery.cancel_scope.cancel()
        assert repr(self.store.pins) == "<Pins 0 leases on 0 models, 0 blobs held>"


@pytest.fixture
def bench(tmp_path: Path, virtual_clock: trio.testing.MockClock) -> Bench:
    return Bench(tmp_path)


@attrs.frozen
class Worker:
    pid: int
    loaded: Loaded
    model: str = "ai/a"
    has_annex: bool = False


def worker(pid: int, *devices: DeviceBuffers) -> Worker:
    loaded = Loaded(
        engine_version="engine 1",
        context_size=4096,
        trained_context_size=4096,
        n_vocab=256,
        n_cells=4096,
        max_sequences=4,
        load_s=0.1,
        devices=devices,
    )
    return Worker(pid, loaded)


# sizes


async def test_sizes_are_the_engines_own(bench: Bench) -> None:
    sized = await bench.size()
    assert sized.options == EngineOptions(
        context_size=4096, n_cells=4096, host_cells=4096, max_sequences=4, n_threads=2
    )
    assert sized.footprint.devices == sizes_for(sized.options).devices
    assert sized.footprint.total_bytes == FIXED + 4096 * (KV + KEPT)
    assert sized.footprint.basis is Basis.PROBE


async def test_a_model_is_measured_once_also_across_restarts(bench: Bench) -> None:
    first = await bench.size()
    assert await bench.size() == first
    bench.footprints = bench.again()
    assert await bench.size() == first
    assert len(bench.prober.asked) == 1


async def test_new_options_another_engine_and_other_weights_are_measured_anew(bench: Bench) -> None:
    await bench.size()
    await bench.size(engine=attrs.evolve(ENGINE, key_type="q8_0"))
    assert bench.prober.asked[1].key_type.value == "q8_0"
    await bench.size(engine=attrs.evolve(ENGINE, n_threads=1))  # whose share changes at any time
    assert len(bench.prober.asked) == 2
    bench.footprints = bench.again(identity="engine 2 on x")
    await bench.size()
    assert len(bench.prober.asked) == 3
    other = attrs.evolve(files, weights_digests=(Digest.of(b"others"),))
    await bench.footprints.size(other, ENGINE, PLENTY)
    assert len(bench.prober.asked) == 4


async def test_loads_that_come_together_share_one_probe(bench: Bench) -> None:
    found: list[Sized] = []

    async def ask() -> None:
        found.append(await bench.size())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert len(bench.prober.asked) == 1
    assert found == [found[0]] * 20


async def test_a_load_that_leaves_does_not_take_the_probe_from_the_others(bench: Bench) -> None:
    async with trio.open_nursery() as others:
        async with trio.open_nursery() as first:
            first.start_soon(bench.size)
            await trio.testing.wait_all_tasks_blocked()
            others.start_soon(bench.size)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
    assert len(bench.prober.asked) == 2
    assert (await bench.size()).footprint.basis is Basis.PROBE
    assert len(bench.prober.asked) == 2


async def test_few_probes_run_at_once(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(6):
            other = attrs.evolve(files, weights_digests=(Digest.of(b"%d" % number),))
            nursery.start_soon(bench.footprints.size, other, ENGINE, PLENTY)
    assert (len(bench.prober.asked), bench.prober.most_at_once) == (6, 2)


# budgets


async def test_O01_a_host_cache_that_does_not_fit_is_shrunk_and_nothing_measured_anew(bench: Bench) -> None:
    budget_bytes = SCARCE
    sized = await bench.size(budget_bytes)
    assert (sized.options.context_size, sized.options.n_cells) == (4096, 4096)
    assert sized.options.host_cells == 2560
    assert sized.footprint.total_bytes == FIXED + 4096 * KV + sized.options.host_cells * KEPT <= budget_bytes
    assert sized.footprint.devices == sizes_for(sized.options).devices
    assert sized.footprint.basis is Basis.PROBE
    assert await bench.size(budget_bytes - 1000) == sized  # a little less leads to the same sizes
    whole = await bench.size()
    assert (whole.options.host_cells, whole.key) == (4096, sized.key)
    assert len(bench.prober.asked) == 1


async def test_O01_a_pool_that_does_not_fit_is_halved_by_exact_sizes(bench: Bench) -> None:
    budget_bytes = FIXED + 4096 * KV - 1
    sized = await bench.size(budget_bytes)
    assert sized.options.context_size == sized.options.n_cells == 2048
    assert sized.footprint.total_bytes <= budget_bytes
    assert sized.footprint.devices == sizes_for(sized.options).devices
    assert [asked.n_cells for asked in bench.prober.asked] == [4096, 2048]
    assert await bench.size(budget_bytes - 1000) == sized
    assert len(bench.prober.asked) == 2


async def test_O01_exact_sizes_fit_where_the_flat_allowance_would_not(bench: Bench) -> None:
    budget_bytes = (FIXED + 4096 * (KV + KEPT)) * 100 // 95 + 1
    assert (await bench.size(budget_bytes)).options.host_cells == 4096
    budget = DeviceBytes.on_host(budget_bytes)
    assert by_header(files, ENGINE, budget).footprint.total_bytes > budget_bytes


async def test_O01_a_model_that_cannot_fit_says_what_it_takes(bench: Bench) -> None:
    sized = await bench.size(FIXED)
    assert sized.options.context_size == sized.options.n_cells == 2048
    assert sized.footprint.total_bytes == FIXED + 2048 * KV


async def test_a_smaller_pool_that_cannot_be_measured_is_bounded_by_the_larger_one(bench: Bench) -> None:
    honest = bench.prober.answer
    bench.prober.answer = lambda options: honest(options) if options.n_cells == 4096 else refused(files, "no")
    sized = await bench.size(FIXED + 4096 * KV - 1)
    assert sized.options.n_cells == 2048
    assert sized.footprint.total_bytes == FIXED + 2048 * KV + sized.options.host_cells * KEPT


async def test_what_a_probe_is_held_against_does_not_depend_on_the_host_cache(bench: Bench) -> None:
    """Its answer is kept for any."""
    most_bytes = estimate(files.weights_bytes, KV, 4096, 0).total_bytes * 8 + 8 * 2**30
    for excess, basis in ((0, Basis.PROBE), (1, Basis.HEADER)):
        lie = EngineSizes(devices=(HOST,), process_bytes=most_bytes - HOST.total_bytes + excess)
        bench.prober.answer = lambda options, lie=lie: Probed(engine_version="engine 1", sizes=lie)
        other = attrs.evolve(files, weights_digests=(Digest.of(b"%d" % excess),))
        assert (await bench.footprints.size(other, ENGINE, PLENTY)).footprint.basis is basis


# probes that fail


def failing(kind: DeathKind) -> Callable[[EngineOptions], ProbeOutcome]:
    failed = refused(files, "no")
    return lambda options: ProbeFailed(attrs.evolve(failed.report, kind=kind, cause="a cause"))


async def test_a_probe_that_fails_leaves_the_estimate_and_is_reported(bench: Bench) -> None:
    bench.prober.answer = failing(DeathKind.SEGMENTATION_FAULT)
    sized = await bench.size()
    assert attrs.evolve(sized, key=None) == by_header(files, ENGINE, PLENTY)
    assert sized.footprint.basis is Basis.HEADER
    (fault,) = bench.notices
    assert isinstance(fault, ProbeFault)
    assert fault.report.cause == "a cause"


@pytest.mark.parametrize(
    ("kind", "n_asked"),
    [
        (DeathKind.SEGMENTATION_FAULT, 1),
        (DeathKind.LOADING_FAILED, 1),
        (DeathKind.PROTOCOL_FAULT, 1),
        (DeathKind.NO_PROGRESS, 2),
        (DeathKind.NOT_STARTED, 2),
        (DeathKind.OUT_OF_MEMORY, 2),
        (DeathKind.KILLED, 2),
    ],
)
async def test_only_what_may_have_been_the_machines_fault_is_tried_again(
    bench: Bench, kind: DeathKind, n_asked: int
) -> None:
    bench.prober.answer = failing(kind)
    await bench.size()
    await bench.size()
    assert len(bench.prober.asked) == n_asked
    bench.footprints = bench.again()  # a failure is not kept on disk
    await bench.size()
    assert len(bench.prober.asked) == n_asked + 1


async def test_a_probe_that_takes_too_long_leaves_the_estimate(bench: Bench) -> None:
    bench.prober.delay_s = 10_000
    started_s = trio.current_time()
    assert (await bench.size()).footprint.basis is Basis.HEADER
    assert trio.current_time() - started_s == pytest.approx(25)
    bench.prober.delay_s = 1
    assert (await bench.size()).footprint.basis is Basis.PROBE


@pytest.mark.parametrize(
    "lie",
    [
        EngineSizes(devices=(attrs.evolve(HOST, weights_bytes=0),)),
        EngineSizes(devices=(attrs.evolve(HOST, device="CUDA0"),)),
        EngineSizes(devices=()),
        EngineSizes(devices=(HOST,), process_bytes=2**44),
    ],
)
async def test_W07_answers_that_cannot_be_true_are_refused(bench: Bench, lie: EngineSizes) -> None:
    bench.prober.answer = lambda options: Probed(engine_version="engine 1", sizes=lie)
    big = attrs.evolve(files, weights_bytes=1000 * MIB)
    sized = await bench.footprints.size(big, ENGINE, PLENTY)
    assert sized.footprint.basis is Basis.HEADER
    (fault,) = bench.notices
    assert isinstance(fault, ProbeFault)
    assert fault.report.cause == "protocol fault: an answer that cannot be true"


@pytest.mark.parametrize(
    ("engine", "asked_of"),
    [
        (attrs.evolve(ENGINE, name="scripted"), files),
        (ENGINE, attrs.evolve(files, weights_digests=())),
    ],
)
async def test_other_engines_and_nameless_files_are_not_measured(
    bench: Bench, engine: EngineSettings, asked_of: ModelFiles
) -> None:
    footprints = bench.again(engine=engine)
    sized = await footprints.size(asked_of, engine, PLENTY)
    assert sized == by_header(asked_of, engine, PLENTY)
    assert bench.prober.asked == []


# the background


async def test_a_new_model_is_measured_before_anybody_loads_it(bench: Bench) -> None:
    async with bench.running():
        bench.footprints.anticipate(files.model.id)
        await trio.sleep(5)
        assert len(bench.prober.asked) == 1
        started_s = trio.current_time()
        assert (await bench.size()).footprint.basis is Basis.PROBE
        assert trio.current_time() == started_s
    assert len(bench.prober.asked) == 1


async def test_a_model_that_was_removed_meanwhile_is_passed_over(bench: Bench) -> None:
    bench.store.is_there = False
    async with bench.running():
        bench.footprints.anticipate(files.model.id)
        await trio.sleep(5)
    assert bench.prober.asked == []
    assert bench.notices == []


async def test_a_model_that_is_measured_in_the_background_may_be_removed(bench: Bench) -> None:
    bench.prober.delay_s = 15
    async with bench.running():
        bench.footprints.anticipate(files.model.id)
        await trio.sleep(5)
        assert bench.prober.running == 1
        assert not bench.store.pins.is_pinned(files.model.id)
        bench.store.pins.send_away(files.model.id)
        await trio.sleep(1)
        assert bench.prober.running == 0
        bench.prober.delay_s = 0.5
        assert (await bench.size()).footprint.basis is Basis.PROBE
    assert bench.notices == []


async def test_O08_of_many_new_models_the_latest_are_measured(bench: Bench) -> None:
    for _ in range(1000):
        bench.footprints.anticipate(files.model.id)
    async with bench.running():
        await trio.sleep(100)
    assert len(bench.prober.asked) == 1


# learning


def private_bytes(sized: Sized) -> int:
    return sized.footprint.private_bytes


async def test_a_load_as_expected_teaches_nothing(bench: Bench) -> None:
    async with bench.running():
        sized = await bench.size()
        bench.resident[7] = private_bytes(sized)
        (host,) = sized.footprint.devices
        with bench.footprints.watch(sized) as watch:
            # the engine's log rounds
            watch(worker(7, attrs.evolve(host, weights_bytes=host.weights_bytes + 5000)))
            await trio.sleep(60)
    assert bench.notices == []
    bench.footprints = bench.again()
    assert await bench.size() == sized


async def test_buffers_of_a_load_replace_what_was_expected(bench: Bench) -> None:
    async with bench.running():
        sized = await bench.size()
        (host,) = sized.footprint.devices
        larger = attrs.evolve(host, repacked_bytes=13 * MIB)
        with bench.footprints.watch(sized) as watch:
            watch(worker(7, larger, DeviceBuffers(device="CUDA0", weights_bytes=MIB)))
            await trio.sleep(1)
        corrected = await bench.size()
    assert corrected.footprint.basis is Basis.LOAD
    assert corrected.footprint.total_bytes == sized.footprint.total_bytes + 14 * MIB
    (taught,) = bench.notices
    assert isinstance(taught, MeasurementTaught)
    assert (taught.model, taught.expected, taught.found) == ("ai/a", sized.footprint, corrected.footprint)
    bench.footprints = bench.again()
    assert await bench.size() == corrected


@pytest.mark.parametrize(
    ("excess", "learned"),
    [(0, 0), (1, LEARNED_STEP_BYTES), (LEARNED_STEP_BYTES, LEARNED_STEP_BYTES), (30 * MIB, 32 * MIB)],
)
async def test_O02_use_beyond_the_estimate_is_in_the_next_estimate(
    bench: Bench, excess: int, learned: int
) -> None:
    async with bench.running():
        sized = await bench.size()
        bench.resident[7] = private_bytes(sized) - 1000
        with bench.footprints.watch(sized) as watch:
            watch(worker(7, *sized.footprint.devices))
            await trio.sleep(15)
            bench.resident[7] = private_bytes(sized) + excess  # its peak, as seen in passing
            await trio.sleep(15)
            bench.resident[7] = 0
            await trio.sleep(15)
    bench.footprints = bench.again()
    again = await bench.size()
    assert again.footprint.learned_bytes == learned
    assert again.footprint.total_bytes == sized.footprint.total_bytes + learned
    assert again.footprint.devices == sized.footprint.devices


@pytest.mark.parametrize(("missing", "learned"), [(0, 0), (1, LEARNED_STEP_BYTES)])
async def test_O02_a_host_cache_hides_no_excess(bench: Bench, missing: int, learned: int) -> None:
    """It is shared memory, which is not among what is measured here."""
    async with bench.running():
        sized = await bench.size(SCARCE)
        assert sized.options.host_cells == 2560
        without = exact(sizes_for(sized.options), 4096, 0).private_bytes
        bench.resident[7] = without + missing
        with bench.footprints.watch(sized) as watch:
            watch(worker(7, *sized.footprint.devices))
            await trio.sleep(15)
    assert (await bench.size()).footprint.learned_bytes == learned


@pytest.mark.parametrize(("has_annex", "learned"), [(True, 0), (False, ANNEX)])
async def test_O02_a_context_for_embeddings_is_no_excess_while_it_is_reserved(
    bench: Bench, has_annex: bool, learned: int
) -> None:
    async with bench.running():
        sized = await bench.size()
        bench.resident[7] = private_bytes(sized) + ANNEX
        with bench.footprints.watch(sized) as watch:
            ready = worker(7, *sized.footprint.devices)
            watch(attrs.evolve(ready, has_annex=has_annex))
            await trio.sleep(15)
    assert (await bench.size()).footprint.learned_bytes == learned


async def test_O02_what_was_learned_once_is_expected_of_the_next_worker(bench: Bench) -> None:
    async with bench.running():
        for _ in range(3):
            sized = await bench.size()
            bench.resident[7] = private_bytes(sized) + MIB if not bench.notices else private_bytes(sized)
            with bench.footprints.watch(sized) as watch:
                watch(worker(7, *sized.footprint.devices))
                await trio.sleep(15)
    assert len(bench.notices) == 1
    assert sized.footprint.learned_bytes == LEARNED_STEP_BYTES


async def test_O02_a_load_that_was_only_estimated_teaches_what_it_took(bench: Bench) -> None:
    bench.prober.answer = failing(DeathKind.SEGMENTATION_FAULT)
    async with bench.running():
        estimated = await bench.size()
        (host,) = sizes_for(estimated.options).devices
        with bench.footprints.watch(estimated) as watch:
            watch(worker(7, host))
            await trio.sleep(1)
        learned = await bench.size()
    assert (estimated.footprint.basis, learned.footprint.basis) == (Basis.HEADER, Basis.LOAD)
    assert learned.footprint.devices == (host,)
    assert learned.footprint.overhead_bytes == estimated.footprint.overhead_bytes


async def test_a_worker_that_tells_nothing_and_cannot_be_looked_at_teaches_nothing(bench: Bench) -> None:
    async with bench.running():
        sized = await bench.size()
        with bench.footprints.watch(sized) as watch:
            watch(worker(7))
            await trio.sleep(60)
    assert bench.notices == []


async def test_nothing_is_watched_after_the_end_of_a_worker(bench: Bench) -> None:
    async with bench.running():
        sized = await bench.size()
        with bench.footprints.watch(sized) as watch:
            watch(worker(7, *sized.footprint.devices))
            await trio.sleep(1)
        bench.resident[7] = 10**12  # somebody else's process by now
        await trio.sleep(60)
    assert bench.notices == []


async def test_what_cannot_be_remembered_is_not_watched(bench: Bench) -> None:
    sized = attrs.evolve(await bench.size(), key=None)
    async with bench.running():
        with bench.footprints.watch(sized) as watch:
            watch(worker(7, DeviceBuffers(device="cpu", weights_bytes=5)))
            await trio.sleep(60)
    assert bench.notices == []


async def test_O08_what_is_kept_in_memory_is_bounded(bench: Bench) -> None:
    bench.prober.delay_s = 0
    for number in range(300):
        other = attrs.evolve(files, weights_digests=(Digest.of(b"%d" % number),))
        await bench.footprints.size(other, ENGINE, PLENTY)
    assert len(bench.footprints._known) == 256
    # and the disk still knows the others
    key = MeasurementKey.of(str(Digest.of(b"0")), bench.prober.asked[0], "engine 1 on x")
    assert Measurements(bench.path).find(key) is not None
