"""What brings models into the store. Today it packages local files that were uploaded as content.

Messages, then the handle, then the actor. Every package is a task of its own. Imports the store's handle and
runner.store, runner.gguf.
"""

from __future__ import annotations

import attrs

from actors.actor import Address, Reply
from runner.domain.model import Model
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
        InvalidModelFile for a part that must not reach the engine, DiskFull. Packaging the same again changes
        nothing.
        """
        return await self._address.ask(lambda reply: PackageModel(spec, reply))
