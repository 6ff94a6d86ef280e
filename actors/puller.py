"""What brings models into the store and sends them out: packages, pulls, pushes and repairs.

Messages, then the handle, then the actor. Every transfer is a task of its own, shared by all who ask for the
same; the actor knows who waits for which. Read on: `actors/transfers_pull.py`, `transfers_hub.py`,
`transfers_push.py`, `transfers_repair.py`, and `puller_packaging.py` for local files.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import assert_never

import attrs
import trio

from actors.actor import Address, Mailbox, Reply
from actors.puller_packaging import Packaging
from actors.store_handle import StoreHandle
from actors.transfers import TransferBoard, TransferFeed, TransferLedger, interrupted
from actors.transfers_blob import BlobTools
from actors.transfers_blobs import BlobTransfers
from actors.transfers_fetching import Course, TransferTurns
from actors.transfers_hub import HubTools, pull_from_hub
from actors.transfers_pull import PullTools, pull
from actors.transfers_push import PushTools, push
from actors.transfers_repair import RepairRequest, repair
from actors.transfers_threads import RemoteThreads
from runner.domain.model import Model
from runner.domain.transfer import (
    PullRequest,
    PushRequest,
    RemoteCredentials,
    TransferDirection,
    TransferResult,
    TransferStatus,
)
from runner.errors import Draining, RunnerError, Unavailable
from runner.oci.reference import ModelName
from runner.registry.client import RegistryClient
from runner.registry.huggingface import Hub, is_hub
from runner.registry.transfer import RangeRules
from runner.store.package import PackageSpec

SHOWN_EVERY_S = 0.2
_UPLOADS_AT_ONCE = 4
_SMALL_REQUESTS_AT_ONCE = 4
_DISK_THREADS = 4

TransferRequest = PullRequest | PushRequest | RepairRequest


# messages


@attrs.frozen
class PackageModel:
    spec: PackageSpec
    reply: Reply[Model]


@attrs.frozen
class JoinTransfer:
    """Take part in a transfer, which begins if nobody has asked for it yet."""

    request: TransferRequest
    waiter: object
    reply: Reply[TransferBoard]


@attrs.frozen
class LeaveTransfer:
    waiter: object


@attrs.frozen
class TransferEnded:
    transfer_id: int


@attrs.frozen
class EndTransfers:
    """The daemon is ending: transfers end where they are, and none begins."""


PullerMessage = PackageModel | JoinTransfer | LeaveTransfer | TransferEnded | EndTransfers


# handle


class PullerHandle:
    """What others know of the puller. Every method raises Unavailable while it is not running."""

    def __init__(self, address: Address[PullerMessage], ledger: TransferLedger | None = None) -> None:
        """`ledger` is the one that the actor writes."""
        self._address = address
        self._ledger = ledger or TransferLedger()

    async def package(self, spec: PackageSpec) -> Model:
        """Check uploaded parts, write config and manifest, and name the result.

        Raises InvalidParameter with every fault of the spec, BlobNotFound for a part that was never uploaded,
        InvalidModelFile for a part that must not reach the engine, DiskFull. Packaging the same again under
        the same name changes nothing.
        """
        spec.check()
        return await self._address.ask(lambda reply: PackageModel(spec, reply))

    def pull(self, request: PullRequest) -> TransferFeed:
        """Bring a model into the store: a context in which one takes part, and a feed of the newest progress.

        `result` raises RegistryError, DiskFull, StoreError, ContentMismatch, InvalidManifest or
        InvalidModelFile; then nothing of the model is visible, and what has come is kept for another try.
        """
        return self._feed(request)

    def push(self, request: PushRequest) -> TransferFeed:
        """Send a model to a registry. `result` raises InvalidParameter, ModelNotFound, StoreDamaged,
        RegistryError."""
        return self._feed(request)

    def repair(self, name: ModelName, given: RemoteCredentials | None = None) -> TransferFeed:
        """Fetch what is damaged of a model from where it came. `result` raises ModelNotFound, StoreDamaged
        when its manifest is lost as well, InvalidParameter when nobody knows where it came from,
        RegistryError."""
        return self._feed(RepairRequest(name=name, given=given))

    def end_transfers(self) -> None:
        """Whoever waits for one hears Draining, now and from now on. What has come is kept."""
        self._address.tell(EndTransfers())

    def status(self) -> tuple[TransferStatus, ...]:
        """All transfers under way or waiting, in the order in which they were asked for."""
        return self._ledger.status(trio.current_time())

    def _feed(self, request: TransferRequest) -> TransferFeed:
        waiter = object()

        async def join() -> TransferBoard:
            return await self._address.ask(lambda reply: JoinTransfer(request, waiter, reply))

        return TransferFeed(join, lambda: self._address.tell(LeaveTransfer(waiter)))


# actor


@attrs.frozen(kw_only=True)
class Network:
    """The way to registries and hubs, and how much of it transfers may use.

    `rest` is called when the last transfer has ended, to close what was kept for the next request.
    """

    client: RegistryClient
    hub: Hub
    rest: Callable[[], None] = lambda: None
    pulls: int = 2
    pushes: int = 2
    connections: int = 12
    rules: RangeRules = attrs.field(factory=RangeRules)


@attrs.frozen
class TransferFault:
    """A transfer failed by a fault of ours."""

    reference: str
    error: Exception


@attrs.define(eq=False)
class _Transfer:
    """One transfer under way, and who waits for it."""

    id: int
    request: TransferRequest
    board: TransferBoard
    waiters: set[object] = attrs.field(factory=set)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class PullerActor:
    """Carries out packages and transfers side by side. A supervisor makes a new one for every start."""

    def __init__(
        self,
        address: Address[PullerMessage],
        store: StoreHandle,
        *,
        network: Network | None = None,
        ledger: TransferLedger | None = None,
        now_s: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        on_published: Callable[[Model], None] = lambda model: None,
        report: Callable[[TransferFault], None] = lambda fault: None,
    ) -> None:
        """`now_s` is Unix time. `on_published` hears of every model that was packaged or pulled. Without a
        network there are no transfers."""
        self._address = address
        self._store = store
        self._network = network
        self._ledger = ledger or TransferLedger()
        self._packaging = Packaging(store, now_s=now_s)
        self._chance = chance
        self._on_published = on_published
        self._report = report

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        self._ledger.clear()
        with self._address.open() as mailbox:
            async with trio.open_nursery() as nursery:
                work = self._work(nursery) if self._network is not None else None
                rest = self._network.rest if self._network is not None else lambda: None
                run = _Run(mailbox, nursery, self._package, work, self._ledger, rest)
                task_status.started()
                async for message in mailbox:
                    run.handle(message)

    async def _package(self, message: PackageModel) -> None:
        try:
            model = await self._packaging.package(message.spec)
        except RunnerError as error:
            message.reply.fail(error)
        else:
            self._on_published(model)
            message.reply.set(model)

    def _work(self, nursery: trio.Nursery) -> _Work:
        assert self._network is not None
        return _Work(
            self._store,
            self._network,
            nursery,
            self._packaging,
            self._chance,
            self._on_published,
            self._report,
        )


class _Run:
    """Who waits for which transfer. No method waits."""

    def __init__(
        self,
        mailbox: Mailbox[PullerMessage],
        nursery: trio.Nursery,
        package: Callable[[PackageModel], Awaitable[None]],
        work: _Work | None,
        ledger: TransferLedger,
        rest: Callable[[], None],
    ) -> None:
        self._mailbox = mailbox
        self._nursery = nursery
        self._package = package
        self._work = work
        self._ledger = ledger
        self._rest = rest
        self._by_id: dict[int, _Transfer] = {}
        self._by_request: dict[TransferRequest, _Transfer] = {}
        self._by_waiter: dict[object, _Transfer] = {}
        self._next_id = 0
        self._is_ending = False

    def handle(self, message: PullerMessage) -> None:
        match message:
            case PackageModel():
                self._nursery.start_soon(self._package, message)
            case JoinTransfer():
                self._join(message)
            case LeaveTransfer(waiter):
                self._leave(waiter)
            case TransferEnded(transfer_id):
                self._end(self._by_id.pop(transfer_id))
            case EndTransfers():
                self._end_all()
            case _:
                assert_never(message)

    def _join(self, message: JoinTransfer) -> None:
        if self._work is None:
            message.reply.fail(Unavailable("this daemon has no way to registries"))
            return
        if self._is_ending:
            message.reply.fail(Draining())
            return
        if message.reply.is_abandoned:
            message.reply.fail(Unavailable("the caller has left"))
            return
        transfer = self._by_request.get(message.request)
        if transfer is None or transfer.board.has_ended:  # its end may not have been heard of yet
            transfer = self._begin(message.request, self._work)
        transfer.waiters.add(message.waiter)
        transfer.board.waiters = len(transfer.waiters)
        self._by_waiter[message.waiter] = transfer
        message.reply.set(transfer.board)

    def _begin(self, request: TransferRequest, work: _Work) -> _Transfer:
        board = TransferBoard(
            reference=_name_of(request), direction=_direction_of(request), started_s=trio.current_time()
        )
        transfer = _Transfer(self._next_id, request, board)
        self._next_id += 1
        self._by_id[transfer.id] = self._by_request[request] = transfer
        self._ledger.add(transfer.id, board)
        self._nursery.start_soon(self._carry_out, transfer, work)
        return transfer

    async def _carry_out(self, transfer: _Transfer, work: _Work) -> None:
        try:
            with transfer.scope:
                await work.carry_out(transfer.request, transfer.board)
        finally:
            transfer.board.fail(interrupted())  # unless it has ended otherwise
            self._mailbox.tell(TransferEnded(transfer.id))

    def _leave(self, waiter: object) -> None:
        transfer = self._by_waiter.pop(waiter, None)
        if transfer is None:
            return
        transfer.waiters.discard(waiter)
        transfer.board.waiters = len(transfer.waiters)
        if not transfer.waiters and not transfer.board.has_ended:
            self._forget_request(transfer)  # who asks from now on begins anew
            transfer.scope.cancel()

    def _end_all(self) -> None:
        """They go on where they ended when somebody asks again, so nobody waits for them to be whole."""
        self._is_ending = True
        for transfer in self._by_id.values():
            transfer.board.fail(Draining())
            transfer.scope.cancel()

    def _end(self, transfer: _Transfer) -> None:
        self._forget_request(transfer)
        self._ledger.drop(transfer.id)
        if not self._by_id:
            self._rest()

    def _forget_request(self, transfer: _Transfer) -> None:
        if self._by_request.get(transfer.request) is transfer:
            del self._by_request[transfer.request]


class _Work:
    """Carries transfers out: what they share of threads, connections and turns."""

    def __init__(
        self,
        store: StoreHandle,
        network: Network,
        nursery: trio.Nursery,
        packaging: Packaging,
        chance: Callable[[], float],
        on_published: Callable[[Model], None],
        report: Callable[[TransferFault], None],
    ) -> None:
        threads = RemoteThreads(limiter=trio.CapacityLimiter(_SMALL_REQUESTS_AT_ONCE), chance=chance)
        tools = BlobTools(
            connections=trio.CapacityLimiter(network.connections),
            disk=trio.CapacityLimiter(_DISK_THREADS),
            rules=network.rules,
            chance=chance,
        )
        blobs = BlobTransfers(nursery, store, tools)
        pull_turns = TransferTurns(network.pulls)
        self._on_published = on_published
        self._report = report
        self._pull = PullTools(
            store=store, client=network.client, blobs=blobs, threads=threads, turns=pull_turns
        )
        self._hub = HubTools(
            store=store, hub=network.hub, blobs=blobs, threads=threads, turns=pull_turns, packaging=packaging
        )
        self._push = PushTools(
            store=store,
            client=network.client,
            threads=threads,
            uploads=RemoteThreads(limiter=trio.CapacityLimiter(_UPLOADS_AT_ONCE), chance=chance),
            turns=TransferTurns(network.pushes),
        )

    async def carry_out(self, request: TransferRequest, board: TransferBoard) -> None:
        """One transfer, to its end on the board, which is shown on the way. Raises nothing but Cancelled."""
        course = Course(board)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_regularly, course)
            try:
                board.finish(await self._transfer(request, course))
            except RunnerError as error:
                board.fail(error)
            except Exception as error:
                self._report(TransferFault(board.reference, error))
                board.fail(RunnerError("the transfer failed by a fault of ours; the log tells more"))
            nursery.cancel_scope.cancel()

    async def _transfer(self, request: TransferRequest, course: Course) -> TransferResult:
        match request:
            case PullRequest():
                model, result = await self._bring_in(request, course)
                self._on_published(model)
            case RepairRequest():
                _, result = await repair(request, course, self._pull, self._hub)
            case PushRequest():
                _, result = await push(request, course, self._push)
            case _:
                assert_never(request)
        return result

    async def _bring_in(self, request: PullRequest, course: Course) -> tuple[Model, TransferResult]:
        if is_hub(request.reference):
            return await pull_from_hub(request, course, self._hub)
        return await pull(request, course, self._pull)


async def _show_regularly(course: Course) -> None:
    while True:
        course.show()
        await trio.sleep(SHOWN_EVERY_S)


def _direction_of(request: TransferRequest) -> TransferDirection:
    return TransferDirection.PUSH if isinstance(request, PushRequest) else TransferDirection.PULL


def _name_of(request: TransferRequest) -> str:
    """What lists show: the name in familiar form."""
    match request:
        case PullRequest(reference=reference):
            return reference.familiar()
        case PushRequest(name=name, target=target):
            return target.familiar() if target is not None else name.text
        case RepairRequest(name=name):
            return name.text
        case _:
            assert_never(request)
