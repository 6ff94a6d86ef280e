"""Request bodies into typed requests, off the event loop when they are large.

The serving layer has counted the bytes already (N09). Imports Quart; used by the routes of every dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio
from quart import request

T = TypeVar("T")

INLINE_BYTES_MAX: Final = (
    256 * 1024
)  # parsed in a few milliseconds; a thread costs 0.3 ms and helps from here


async def parsed_body(parse: Callable[[bytes], T]) -> T:
    """The body of the current request, parsed; raises what `parse` raises."""
    body = await request.get_data(False, False, False)
    if len(body) <= INLINE_BYTES_MAX:
        return parse(body)
    return await trio.to_thread.run_sync(parse, body)
