"""The life of the app around its requests: ASGI's lifespan protocol.

Quart opens its background nursery in it. A background task that fails ends the server, which its supervisor
starts again: carrying on without that nursery would fail every request that needs it. May import trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveEvent, ASGISendEvent, LifespanScope


@asynccontextmanager
async def lifespan(app: ASGIFramework) -> AsyncIterator[None]:
    """The app has started inside the block; leaving it ends the app's background tasks, as the app sees fit.

    Raises RuntimeError when the app cannot start or stop. Cancelling ends it at once.
    """
    events, received = trio.open_memory_channel[ASGIReceiveEvent](1)
    answers, answered = trio.open_memory_channel[ASGISendEvent](1)

    async def live() -> None:
        scope: LifespanScope = {
            "type": "lifespan",
            "asgi": {"spec_version": "2.0", "version": "3.0"},
            "state": {},
        }
        with answers:  # an app that ends early is noticed below
            await app(scope, received.receive, answers.send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await events.send({"type": "lifespan.startup"})
        _require(await answered.receive(), "lifespan.startup.complete")
        yield
        await events.send({"type": "lifespan.shutdown"})
        _require(await answered.receive(), "lifespan.shutdown.complete")


def _require(answer: ASGISendEvent, expected: str) -> None:
    if answer["type"] != expected:
        raise RuntimeError(f"the app answered {answer['type']}")
