"""What brings models into the store. Today it packages local files that were uploaded as content.

Messages, then the handle, then the actor. Every package is a task of its own: `actors/puller_packaging.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs
import trio

from actors.actor import Address, Reply
from actors.puller_packaging import Packaging
from actors.store_handle import StoreHandle
from runner.domain.model import Model
from runner.errors import RunnerError
from runner.store.package import PackageSpec

# messages


@attrs.frozen
class PackageModel:
    spec: PackageSpec
    reply: Reply[Model]


PullerMessage = PackageModel


# handle


class PullerHandle:
    """What others know of the puller. Every method raises Unavailable while it is not running."""

    def __init__(self, address: Address[PullerMessage]) -> None:
        self._address = address

    async def package(self, spec: PackageSpec) -> Model:
        """Check uploaded parts, write config and manifest, and name the result.

        Raises InvalidParameter with every fault of the spec, BlobNotFound for a part that was never uploaded,
        InvalidModelFile for a part that must not reach the engine, DiskFull. Packaging the same again under
        the same name changes nothing.
        """
        spec.check()
        return await self._address.ask(lambda reply: PackageModel(spec, reply))


# actor


class PullerActor:
    """Carries out packages side by side. A supervisor makes a new one for every start."""

    def __init__(
        self,
        address: Address[PullerMessage],
        store: StoreHandle,
        *,
        now_s: Callable[[], float] = time.time,
        on_published: Callable[[Model], None] = lambda model: None,
    ) -> None:
        """`now_s` is Unix time. `on_published` hears of every model that was packaged."""
        self._address = address
        self._packaging = Packaging(store, now_s=now_s)
        self._on_published = on_published

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        with self._address.open() as mailbox:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for message in mailbox:
                    nursery.start_soon(self._package, message)

    async def _package(self, message: PackageModel) -> None:
        try:
            model = await self._packaging.package(message.spec)
        except RunnerError as error:
            message.reply.fail(error)
        else:
            self._on_published(model)
            message.reply.set(model)
