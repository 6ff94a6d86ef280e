"""The composition root: builds every part from settings, opens the nurseries, owns the order of shutdown.

    signals, idle exit
    supervisor
    ├── store       the disk
    ├── puller      content on its way in and out
    ├── footprints  what models take, measured before they are loaded
    ├── states      what was saved of models' caches
    ├── cores       looks at what other programs leave to the workers
    ├── spare       a worker that waits for the next load
    ├── scheduler   which model is loaded where; the keepers of its workers live inside
    └── http        listeners and requests

Children start in this order and stop in the reverse one. Below this file nobody knows settings.
"""

from __future__ import annotations

import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version as package_version
from typing import Any, Protocol

import structlog
import trio

from actors.actor import Address
from actors.cores import CoreSharing, count_busy_now, read_work
from actors.environment import PASSED_ON
from actors.footprints import Footprints
from actors.leases import Pins
from actors.load import EngineSettings
from actors.probing import run_probe
from actors.process import remove_stale_directories, spare_command, worker_command
from actors.puller import Network, PullerActor, PullerHandle, PullerMessage
from actors.quarantine import OnDisk
from actors.remote import RemoteModels
from actors.scheduler import SchedulerActor, SchedulerHandle, SchedulerSettings
from actors.scheduler_messages import SchedulerNotice
from actors.spare import SpareWorker
from actors.store import StoreActor
from actors.store_handle import StoreHandle
from actors.store_messages import StoreMessage
from actors.supervisor import ChildSpec, ChildStatistics, RestartLimitReached, Run, Supervisor
from actors.transfers import TransferLedger
from actors.worker import DeathReport, KeeperSettings, run_keeper
from runner.allowances import budget_meter, saved_states
from runner.api.app import AppContext, build_app
from runner.api.server import Server, ServerSettings
from runner.config import Settings
from runner.domain.device_bytes import HOST_MEMORY
from runner.domain.settings import (
    NOTHING,
    SETTINGS,
    USUAL,
    ModelSettings,
    SettingOrigin,
    SettingsLayer,
)
from runner.domain.status import ActorStatus, CrashReport, DaemonStatus, VersionInfo
from runner.errors import StartRefused
from runner.hardware.cpu import read_cores
from runner.hardware.identity import installation_identity, machine_identity
from runner.hardware.probe import compute_threads
from runner.network import hub, network_rules, registry_client
from runner.notices import (
    log_crash,
    log_footprints,
    log_measurements,
    log_scheduler,
    log_spare,
    log_store,
    log_transfer,
)
from runner.registry.transport import Door
from runner.store.quarantine import QuarantineFile
from runner.telemetry.crashes import CrashRecord
from runner.telemetry.logs import configure_logging
from runner.telemetry.measurements import Measurements

log = structlog.get_logger(__name__)

LAST_WORDS_S = 6.0
"""Beyond the drain: error events for what is left, and the connections' ends."""
WORKERS_END_S = 16.0
"""A worker that ignores everything but SIGKILL has ended by then."""
AT_ONCE_S = 3.0
"""After a second signal workers may end in order for so long."""
_API_VERSION = "v1"
ENGINE_PACKAGE = "llama-cpp-python"


def run_daemon(settings: Settings, said: Collection[str] = ()) -> int:
    """Serve until told to stop; the exit status of the process. Start faults are one message on stderr.

    `said` are the options that somebody set, so that it can be told what comes from them.
    """
    os.umask(0o077)
    configure_logging(settings.log_level, settings.log_file)
    try:
        daemon = Daemon(settings, said)
    except StartRefused as refused:
        print(f"error: {refused}", file=sys.stderr)  # noqa: T201  # as below
        return 1
    try:
        trio.run(daemon.run, strict_exception_groups=True)
    except* StartRefused as refused:
        daemon.exit_status = 1
        for error in leaves(refused):
            print(f"error: {error}", file=sys.stderr)  # noqa: T201  # the log may be a file nobody looks at yet
    except* RestartLimitReached as group:
        daemon.exit_status = 1
        for error in leaves(group):
            log.critical("a part of the daemon keeps failing; ending", error=str(error))
    except* Exception as group:
        daemon.exit_status = 1
        log.critical("ending by a fault of ours", exc_info=group)
        print(f"error: {next(leaves(group))!r}; the log tells more", file=sys.stderr)  # noqa: T201
    return daemon.exit_status


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors within nested groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


class Daemon:
    """One run. What routes may ask of it is `runner.api.app.DaemonControl`."""

    def __init__(self, settings: Settings, said: Collection[str] = ()) -> None:
        self._settings = settings
        self._said = said
        self._started_s = time.monotonic()
        self._listeners: tuple[str, ...] = ()
        self._is_draining = False
        self._http_scope: trio.CancelScope | None = None  # a new one with each restart
        self.exit_status = 0
        self._addresses: dict[str, Address[Any]] = {}
        self._crashes = CrashRecord()
        self._worker_directory = settings.socket.parent / "workers"
        self._build()

    async def run(self) -> None:
        """Serve until a signal, a command or idleness ends it. Raises what a first start raises."""
        self._prepare_worker_directory()
        with closing(self._door):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals)
                await nursery.start(self._supervisor_until_end, nursery.cancel_scope)
                log.info("serving", listeners=" ".join(self._listeners), store=self._settings.store)
                self._leave_terminal()
                if self._settings.idle_exit_s < math.inf:
                    nursery.start_soon(self._end_when_idle)

    # what routes may ask

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def request_shutdown(self) -> None:
        self._is_draining = True
        self._puller.end_transfers()
        self._supervisor.stop()

    def status(self) -> DaemonStatus:
        settings, statistics = self._settings, self._server.statistics()
        idle_exit_in_s = None
        if settings.idle_exit_s < math.inf:
            idle_exit_in_s = max(0.0, settings.idle_exit_s - statistics.quiet_s)
        return DaemonStatus(
            version=package_version("runner"),
            engine=self._engine_name(),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started_s,
            listeners=self._listeners,
            store=str(settings.store),
            log_file=str(settings.log_file) if settings.log_file is not None else None,
            is_draining=self._is_draining,
            open_connections=statistics.connections,
            idle_exit_in_s=idle_exit_in_s,
            budgets=self._scheduler.snapshot().budgets,
            actors=tuple(self._actor_status(child) for child in self._supervisor.statistics()),
        )

    def crashes(self, model_id: str | None = None) -> tuple[CrashReport, ...]:
        return self._crashes.latest(model_id)

    async def bound_memory(self, size_bytes: int | None) -> None:
        self._budgets.cap(HOST_MEMORY, size_bytes)
        await self._scheduler.measure_budgets()

    def version(self) -> VersionInfo:
        return VersionInfo(
            version=package_version("runner"),
            api=_API_VERSION,
            python=platform.python_version(),
            engine=self._settings.engine,
            engine_version=_engine_version(self._settings.engine),
        )

    # building

    def _build(self) -> None:
        settings = self._settings
        store_address: Address[StoreMessage] = Address("store")
        puller_address: Address[PullerMessage] = Address("puller")
        pins = Pins()
        self._states = saved_states(settings)
        store = StoreHandle(store_address, pins, states=self._states)
        transfers = TransferLedger()
        network = self._new_network()
        self._scheduler = SchedulerHandle()
        self._puller = PullerHandle(puller_address, transfers)
        self._addresses = {
            "store": store_address,
            "puller": puller_address,
            "scheduler": self._scheduler.address,
        }
        context = AppContext(
            store=store,
            puller=self._puller,
            scheduler=self._scheduler,
            daemon=self,
            remote=RemoteModels(network.client, network.hub),
            allowed_origins=frozenset(settings.allowed_origins),
            default_context_size=settings.context_size,
            setting_layers=setting_layers(settings, self._said),
        )
        self._budgets = budget_meter(settings)
        self._server = Server(build_app(context), _server_settings(settings))
        self._footprints = self._new_footprints(store)
        self._spare = self._new_spare() if settings.spare_worker else None
        self._cores = self._new_cores()
        self._supervisor = Supervisor(
            (
                ChildSpec(
                    name="store",
                    run=_fresh(
                        lambda: StoreActor(
                            store_address,
                            pins,
                            settings.store,
                            report=log_store,
                            keep_free_bytes=settings.disk_reserve_bytes,
                        )
                    ),
                ),
                ChildSpec(
                    name="puller",
                    run=_fresh(
                        lambda: PullerActor(
                            puller_address,
                            store,
                            network=network,
                            ledger=transfers,
                            on_published=lambda model: self._footprints.anticipate(model.id),
                            report=log_transfer,
                        )
                    ),
                ),
                ChildSpec(name="footprints", run=self._footprints.run),
                ChildSpec(name="states", run=self._states.run),
                ChildSpec(name="cores", run=self._cores.run),
                *([ChildSpec(name="spare", run=self._spare.run)] if self._spare is not None else ()),
                ChildSpec(
                    name="scheduler", run=_fresh(lambda: self._new_scheduler(store)), shutdown_s=WORKERS_END_S
                ),
                ChildSpec(
                    name="http",
                    run=self._run_http,
                    ask_to_end=self._server.stop,
                    shutdown_s=settings.drain_s + LAST_WORDS_S,
                ),
            ),
            report=log_crash,
        )

    def _new_network(self) -> Network:
        """Raises StartRefused for settings that make no way out."""
        settings = self._settings
        self._door = Door(network_rules(settings, os.environ))
        return Network(
            client=registry_client(self._door, os.environ),
            hub=hub(settings, self._door, os.environ),
            rest=self._door.rest,
            pulls=settings.transfers_at_once,
            pushes=settings.transfers_at_once,
            connections=settings.connections,
        )

    def _new_scheduler(self, store: StoreHandle) -> SchedulerActor:
        settings = self._settings
        return SchedulerActor(
            self._scheduler,
            store,
            self._cores.launch,
            self._budgets.measure,
            SchedulerSettings(
                queue_limit_per_model=settings.queue_limit,
                default_keep_alive_s=settings.keep_alive_s,
                swap_wait_s=settings.swap_wait_s,
                min_residency_s=settings.min_residency_s,
                engine=_engine_settings(settings),
                engine_version=self._engine_name(),
            ),
            sizer=self._footprints,
            quarantine=OnDisk(QuarantineFile(settings.store)),
            report=self._hear_scheduler,
        )

    def _new_spare(self) -> SpareWorker:
        return SpareWorker(
            spare_command=spare_command(self._settings.engine),
            command=worker_command,
            directory=self._worker_directory,
            report=log_spare,
        )

    def _new_cores(self) -> CoreSharing:
        keeping = KeeperSettings(
            directory=self._worker_directory, engine_version=self._engine_name(), states=self._states
        )
        n_cores = _engine_settings(self._settings).n_threads
        return CoreSharing(
            partial(run_keeper, settings=keeping, workers=self._spare),
            n_cores,
            n_processors=max(n_cores, read_cores().physical),
            read=read_work,
            count_busy=count_busy_now,
        )

    def _new_footprints(self, store: StoreHandle) -> Footprints:
        settings = self._settings
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ and name != "TZ"}
        return Footprints(
            partial(run_probe, directory=self._worker_directory),
            Measurements(
                settings.store.with_name(f"{settings.store.name}-measurements.sqlite3"),
                report=log_measurements,
            ),
            store,
            engine_identity=f"{installation_identity(ENGINE_PACKAGE)} on {machine_identity(environment)}",
            engine=_engine_settings(settings),
            report=log_footprints,
        )

    def _hear_scheduler(self, notice: SchedulerNotice) -> None:
        if isinstance(notice, DeathReport) and notice.is_crash:
            self._crashes.add(notice.as_crash(time.time()))
        log_scheduler(notice)

    # running

    def _prepare_worker_directory(self) -> None:
        """Where workers have their empty directories; what killed daemons left of theirs goes."""
        try:
            for path in (self._worker_directory.parent, self._worker_directory):  # `parents` has other modes
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartRefused(
                f"cannot create {self._worker_directory}: {error.strerror}; choose another path with --socket"
            ) from error
        remove_stale_directories(self._worker_directory)

    async def _supervisor_until_end(
        self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self._supervisor.run(task_status=task_status)
        everything.cancel()

    async def _run_http(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._listeners = await nursery.start(self._server.run)
            self._http_scope = nursery.cancel_scope
            task_status.started()

    async def _obey_signals(self) -> None:
        """The first signal begins the ordered end; a second one ends requests and workers at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._is_draining:
                    log.warning("ending at once", signal=signal.Signals(number).name)
                    self.exit_status = 128 + number
                    if self._http_scope is not None:
                        self._http_scope.cancel()
                    break
                log.info("ending; running requests may finish", signal=signal.Signals(number).name)
                self.request_shutdown()
        await trio.sleep(AT_ONCE_S)
        os._exit(self.exit_status)  # workers end with us, and the next start recognises what is left behind

    async def _end_when_idle(self) -> None:
        while True:
            statistics = self._server.statistics()
            left_s = self._settings.idle_exit_s - statistics.quiet_s
            if left_s <= 0:
                log.info("ending: no client came for a while", idle_s=self._settings.idle_exit_s)
                self.request_shutdown()
                return
            await trio.sleep(max(0.1, left_s))

    def _leave_terminal(self) -> None:
        """With a log file, what libraries print goes there too: whoever started us may close our pipes."""
        if self._settings.log_file is None:
            return
        descriptor = os.open(
            self._settings.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)

    def _engine_name(self) -> str:
        return f"{self._settings.engine} {_engine_version(self._settings.engine)}".strip()

    def _actor_status(self, child: ChildStatistics) -> ActorStatus:
        mailbox = self._addresses[child.name].statistics() if child.name in self._addresses else None
        return ActorStatus(
            name=child.name,
            state=child.state.value,
            restarts=child.restarts,
            queued=mailbox.queued if mailbox is not None else 0,
            open_asks=mailbox.open_asks if mailbox is not None else 0,
        )


class _Actor(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


def _fresh(make_actor: Callable[[], _Actor]) -> Run:
    """A child that is a new actor at each start."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await make_actor().run(task_status=task_status)

    return run


def _engine_settings(settings: Settings) -> EngineSettings:
    return EngineSettings(
        name=settings.engine,
        context_size=settings.context_size,
        max_sequences=settings.max_sequences,
        n_threads=settings.threads or compute_threads(),
    )


def setting_layers(settings: Settings, said: Collection[str]) -> tuple[SettingsLayer, ...]:
    """What holds for models of which nobody says anything: `said` options are the daemon's word."""
    engine = _engine_settings(settings)
    of_all = ModelSettings(
        context_size=engine.context_size,
        max_sequences=engine.max_sequences,
        threads=engine.n_threads,
        keep_alive_s=settings.keep_alive_s,
    )
    unsaid = [setting.name for setting in SETTINGS if setting.name not in said]
    return (
        SettingsLayer(SettingOrigin.DAEMON, of_all.changed(NOTHING, unsaid)),
        SettingsLayer(SettingOrigin.BUILT_IN, USUAL.settings.changed(of_all)),
    )


def _server_settings(settings: Settings) -> ServerSettings:
    return ServerSettings(
        host=settings.host,
        port=settings.port,
        socket_path=settings.socket,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=frozenset(settings.allowed_origins),
        grace_s=settings.drain_s,
    )


def _engine_version(engine: str) -> str:
    """Of the installed binding; the daemon itself never loads it."""
    return f"{ENGINE_PACKAGE} {package_version(ENGINE_PACKAGE)}" if engine == "llama" else ""
